# SPDX-License-Identifier: Apache-2.0
"""What methods text and record say ran is what ran, told by hooks on the networks."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.bids.dataset import bibliography, with_references
from bids_moediff.families import whole_volume
from bids_moediff.families.crfm import restorer as crfm_restorer
from bids_moediff.families.crfm.network import CRFMConfig, CRFMNetwork
from bids_moediff.families.moediff import restorer as moediff_restorer
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.model import MoEDiffModel
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.families.nsmoe import restorer as nsmoe_restorer
from bids_moediff.families.nsmoe.network import NSMoEConfig, NSMoENetwork
from bids_moediff.families.protocol import Restored
from bids_moediff.families.student import restorer as student_restorer
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.inference.request import ImageRequest
from bids_moediff.inference.super_resolver import SuperResolver, _networks
from bids_moediff.inference.worker import Scan, enhance_image
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.options import Options
from bids_moediff.reports import facts
from bids_moediff.reports.methods import methods_text
from generated import head

# Words of the text that stand for a part of a network, by the part's name in the record.
WORDS = {
    "mean": "regression network",
    "experts": "diffusion experts",
    "student": "regression network",
    "kernels": "steered kernels",
    "reference": "second network corrects",
}
CITED = {"mean": "moediffsr", "experts": "swin", "student": "moediffsr"}
FAMILIES = ("moediff", "mean only", "experts only", "student", "nsmoe", "crfm")


def student() -> StudentNetwork:
    return StudentNetwork(StudentConfig(8, 2, (6, 5, 6, 5)))


@pytest.fixture(autouse=True)
def small_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """What crfm corrects, in place of the shipped student."""
    base = LoadedModel(student().eval(), {"family": "student"}, "1" * 64, "base")
    monkeypatch.setattr(crfm_restorer, "load_model", lambda *_: base)


def small(name: str) -> SuperResolver:
    torch.manual_seed(0)
    mean = MeanNetwork(MeanConfig(8, 1))
    mixture = MoEDiffSR(MoEDiffConfig(width=8, embed_dim=32))
    networks = {
        "moediff": lambda: MoEDiffModel(mean, mixture),
        "mean only": lambda: MoEDiffModel(mean, None),
        "experts only": lambda: MoEDiffModel(None, mixture),
        "student": student,
        "nsmoe": lambda: NSMoENetwork(NSMoEConfig(8, 1, (4, 4, 4, 4), hidden=8)),
        "crfm": lambda: CRFMNetwork(CRFMConfig(channels=6, blocks=1)),
    }
    family = name if name in ("student", "nsmoe", "crfm") else "moediff"
    loaded = LoadedModel(networks[name]().eval(), {"family": family}, "0" * 64, f"small {name}")
    return SuperResolver(loaded, torch.device("cpu"), "fp32")


@contextmanager
def witnessed(resolver: SuperResolver) -> Iterator[set[str]]:
    """Names of the parts that are entered: experts by hooks, whole volumes by a wrapper."""
    seen: set[str] = set()
    network: Any = resolver.model.network
    experts = list(network.moediff.experts) if getattr(network, "moediff", None) else []
    hooks = [
        expert.register_forward_pre_hook(lambda *_: seen.add("experts")) for expert in experts
    ]

    def restore_volume(network: Any, *arguments: Any) -> torch.Tensor:
        seen.add("student" if isinstance(network, StudentNetwork) else "mean")
        return whole_volume.restore_volume(network, *arguments)

    def noted(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            seen.add(part)
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, part, name in (
            (nsmoe_restorer, "kernels", "apply_to_volume"),
            (crfm_restorer, "reference", "correct_volume"),
        ):
            patch.setattr(module, name, noted(part, getattr(module, name)))
        for module in (moediff_restorer, student_restorer):
            patch.setattr(module, "restore_volume", restore_volume)
        yield seen
    for hook in hooks:
        hook.remove()


def thin() -> nib.Nifti1Image:
    return nib.Nifti1Image(
        np.asarray(head((16, 18, 14)).dataobj, np.float32), np.diag([3.6, 3.6, 4.2, 1])
    )


def run(
    resolver: SuperResolver, reference: nib.Nifti1Image | None = None, **options: Any
) -> tuple[dict[str, Any], set[str]]:
    with witnessed(resolver) as seen:
        request = ImageRequest(key="", image="", out_dir="", metadata={})
        scan = Scan(thin(), reference=reference)
        found = enhance_image(resolver, scan, request, Options(noise="none", **options))
    return found.record, seen


def check_words(record: dict[str, Any], seen: set[str], text: str) -> None:
    """The text names the parts that ran, cites them, and names and cites no other."""
    assert set(record["NetworksRun"]) == seen
    said = {words for words in WORDS.values() if words in text}
    assert said == {WORDS[part] for part in seen}
    cited = set(re.findall(r"@(\w+)", text))
    expected = {CITED[part] for part in seen if part in CITED}
    assert expected <= cited
    # Experts are described after the same article as the mean.
    assert {"moediffsr", "swin"} & cited <= expected | (
        {"moediffsr"} if "experts" in seen else set()
    )
    assert ("pytorch" in cited) is bool(seen)


def item(key: str, record: dict[str, Any], **preparation: Any) -> dict[str, Any]:
    usual = {"BrainMask": "network", "BiasCorrection": True, "GradientUnwarping": False}
    return {
        "key": key, "status": "done", "record": record, "preparation": usual | preparation
    }  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_of_the_network_are_those_that_ran(name: str) -> None:
    resolver = small(name)
    for target, finer in ((1.8, True), (4.2, False)):
        record, seen = run(resolver, output_resolution=(target,) * 3)
        assert bool(seen) is finer
        text = methods_text([item("a", record)])
        check_words(record, seen, text)
        assert (f"`small {name}`" in text) is finer
        assert ("made to agree" in text) is finer
        assert ("not restored" in text) is not finer
        assert ("NumberOfSteps" in record) is finer


@pytest.mark.parametrize(("target", "finer"), [(1.8, True), (4.2, False)])
def test_a_reference_is_told_where_it_corrected(target: float, finer: bool) -> None:
    fine = nib.Nifti1Image(np.random.default_rng(1).random((32, 36, 32)), np.diag([1.8] * 3 + [1]))
    record, seen = run(small("crfm"), fine, output_resolution=(target,) * 3)
    assert seen == ({"student", "reference"} if finer else set())
    text = methods_text([item("a", record)])
    check_words(record, seen, text)
    assert "no reference" not in text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mask", ["derivatives", "nonzero"])
def test_every_family_agrees_with_what_was_averaged_and_names_the_mask(
    name: str, mask: str
) -> None:
    record, seen = run(
        small(name), output_resolution=(3.6,) * 3, acquired_resolution=(3.6, 7.2, 4.2)
    )
    assert seen
    text = methods_text([item("a", record, BrainMask=mask)])
    check_words(record, seen, text)
    assert "agree with the image averaged down to 3.6 x 7.2 x 4.2 mm" in text
    assert "agree with the measured image" not in text
    assert ("another pipeline" in text) is (mask == "derivatives")
    assert ("skull" in text) is (mask == "nonzero")
    assert "convolutional network that had" not in text  # of the app's own mask


def test_experts_that_the_gate_skipped_are_not_named() -> None:
    resolver = small("moediff")
    record, _ = run(resolver, output_resolution=(1.8,) * 3)
    assert record["ExpertEvaluations"]["evaluated"] > 0
    text = methods_text([item("a", record | {"NetworksRun": ["mean"]})])
    assert "expert" not in text and "gate" not in text and "@swin" not in text


def test_an_axis_that_was_averaged_down_is_what_results_agree_with() -> None:
    record, _ = run(
        small("student"), output_resolution=(3.6,) * 3, acquired_resolution=(3.6, 7.2, 4.2)
    )
    assert record["AcquiredVoxelSize"][1] == pytest.approx(7.2)
    text = methods_text([item("a", record)])
    assert "agree with the image averaged down to 3.6 x 7.2 x 4.2 mm" in text
    assert "agree with the measured image" not in text
    assert "differs from the input averaged over these voxels" in facts.summary(record)
    plain, _ = run(small("student"), output_resolution=(3.6,) * 3, acquired_resolution="header")
    assert "agree with the measured image" in methods_text([item("a", plain)])
    assert "averaged" not in facts.summary(plain)


def test_agreement_within_the_noise_promises_no_exactness() -> None:
    resolver = small("student")
    request = ImageRequest(key="", image="", out_dir="", metadata={})
    options = Options(noise=20.0, output_resolution=(1.8,) * 3)
    record = enhance_image(resolver, Scan(thin()), request, options).record
    assert record["ConsistencyNoise"] == pytest.approx(20.0, rel=1e-3)
    text = methods_text([item("a", record)])
    assert "within its noise" in text and "gives the" not in text


def fake(**changes: Any) -> dict[str, Any]:
    return {
        "Model": "m", "ModelFamily": "student", "NetworksRun": ["student"],
        "NumberOfSamples": 1, "InputVoxelSize": [2, 2, 2], "OutputVoxelSize": [1, 1, 1],
        "AcquiredVoxelSize": [2, 2, 2],
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("preparation", "there", "absent"),
    [
        ({}, ["convolutional network", "N4"], ["another pipeline", "gradients", "skull"]),
        ({"BrainMask": "derivatives"}, ["another pipeline"], ["convolutional network"]),
        ({"BrainMask": "nonzero"}, ["skull"], ["convolutional network", "another pipeline"]),
        ({"BiasCorrection": False}, ["convolutional network"], ["N4", "@simpleitk"]),
        ({"GradientUnwarping": True}, ["gradunwarp"], ["skull"]),
    ],
)
def test_steps_of_the_preparation(
    preparation: dict[str, Any], there: list[str], absent: list[str]
) -> None:
    text = methods_text([item("a", fake(), **preparation)])
    assert all(words in text for words in there)
    assert not any(words in text for words in absent)


def test_images_that_differ_are_told_apart_and_failed_ones_not_at_all() -> None:
    items = [
        item("a", fake()),
        item("b", fake(NetworksRun=[])),
        item("c", fake(), BrainMask="derivatives"),
        item("d", fake(Model="other", NumberOfSamples=4)),
        item("e", fake(Model="gone"), BrainMask="nonzero") | {"status": "failed"},
    ]
    text = methods_text(items)
    assert "`a` and `c` were super-resolved" in text and "`d` were super-resolved" in text
    assert "4 samples of what" in text and "(model `other`)" in text
    assert "`b` had voxels as small as asked for" in text
    assert "mask of `c` was taken" in text
    assert "`e`" not in text and "gone" not in text and "skull" not in text
    assert "Super-resolution" not in methods_text([item("a", {})])
    assert "Preparation" not in methods_text([{"key": "e", "status": "failed"}])


@pytest.mark.parametrize(
    ("ran", "guided"), [(["student", "reference"], True), (["student"], False)]
)
def test_a_reference_that_was_not_there_did_not_help(ran: list[str], guided: bool) -> None:
    text = methods_text([item("a", fake(ModelFamily="crfm", NetworksRun=ran))])
    assert ("corrects with the detail" in text) is guided
    assert ("no reference contrast" in text) is not guided


def test_the_kernels_of_nsmoe_are_named() -> None:
    text = methods_text([item("a", fake(ModelFamily="nsmoe", NetworksRun=["kernels"]))])
    assert "steered kernels" in text and "regression" not in text and "expert" not in text


def test_combined_scans_are_told_and_agree_with_all_of_them() -> None:
    several = {key: value for key, value in fake().items() if key != "AcquiredVoxelSize"}
    group = item("g", several | {"CombinedScans": [{}, {}]})
    text = methods_text([item("a", fake()), group])
    assert "Scans of one contrast were combined" in text and "@simpleitk" in text
    assert "The result was made to agree" in text
    alone = methods_text([group])
    assert "combined" in alone and "super-resolved" in alone and "made to agree" not in alone


def test_what_is_cited_is_listed_and_nothing_else() -> None:
    text = with_references(methods_text([item("a", fake())]))
    cited = set(re.findall(r"\[@(\w+)\]", text.partition("### References")[0]))
    listed = re.findall(r"^\* \[@(\w+)\]", text, re.M)
    assert set(listed) == cited and len(listed) == len(cited)
    assert cited <= set(bibliography())


def test_experts_without_a_single_evaluation_did_not_run() -> None:
    stages = ("interpolate", "mean", "experts")
    ran = [
        _networks(stages, Restored(torch.zeros(1), counts=counts))
        for counts in (None, {"evaluated": 3, "skipped": 1}, {"evaluated": 0, "skipped": 4})
    ]
    assert ran == [("mean", "experts"), ("mean", "experts"), ("mean",)]


@pytest.mark.parametrize("step", ["SelfEnsemble", "InPlaneRefit"])
@pytest.mark.parametrize("first", [True, False])
def test_what_was_done_to_some_images_is_told_of_these(step: str, first: bool) -> None:
    items = [item(key, fake(**{step: done})) for key, done in (("a", first), ("b", not first))]
    words = {"SelfEnsemble": "mirror image", "InPlaneRefit": "last layer"}[step]
    text = methods_text(items)
    parts = re.split(r"(?=`[ab]` were super-resolved)", text)[1:]
    assert [part[1] for part in parts] == ["a", "b"]
    assert [words in part for part in parts] == [first, not first]
