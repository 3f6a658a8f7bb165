# SPDX-License-Identifier: Apache-2.0
"""Which model a run takes, that it is said everywhere, and what a model costs."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bids_moediff.errors import UsageError
from bids_moediff.families.choice import choose
from bids_moediff.families.cost import estimate, seconds_per_voxel, stage_macs
from bids_moediff.families.load import load_model
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks import model_folder
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import read_config, save_model
from bids_moediff.options import Options
from conftest import ROOT, run_script
from generated import dataset, untrained_model

BOTH = ("moediff", "student")


def student_folder(folder: Path, config: StudentConfig | None = None) -> Path:
    """Model folder of a small student with random weights."""
    torch.manual_seed(3)
    network = StudentNetwork(config or StudentConfig(8, 2, (6, 5, 6, 5)))
    torch.nn.init.normal_(network.tail.weight, std=0.05)
    content = {"family": "student", "version": "random", "student": network.config.to_dict()}
    save_model(network, content, folder, "# Random student\n")
    return folder


@pytest.mark.parametrize(
    ("device", "options", "there", "model", "words"),
    [
        ("cpu", {"bfloat16": True}, BOTH, "student", "half of the full model's time"),
        ("cpu", {"bfloat16": False}, BOTH, "moediff", "without bfloat16"),
        ("cuda:1", {}, BOTH, "moediff", "GPU"),
        ("cpu", {}, ("moediff",), "moediff", "no student"),
        ("cpu", {"num_samples": 4, "bfloat16": True}, BOTH, "student", "half"),
        ("cpu", {"outputs": ("gates",)}, BOTH, "moediff", "expert maps"),
        ("cpu", {"outputs": ("uncertainty",), "bfloat16": True}, BOTH, "student", "half"),
        ("cpu", {"num_steps": 2}, BOTH, "moediff", "sampling steps"),
        ("cpu", {"planes": 3, "bfloat16": True}, BOTH, "moediff", "orientations"),
        ("cpu", {"sampler": "experts", "bfloat16": True}, BOTH, "moediff", "experts"),
    ],
)
def test_auto_chooses_by_what_is_asked_for_and_by_device(device, options, there, model, words):
    options = dict(options)
    bfloat16 = options.pop("bfloat16", None)
    choice = choose(Options(**options), device, bfloat16=bfloat16, shipped=there)
    assert choice.model == model
    assert words in choice.reason


def test_a_reference_that_no_network_would_look_at_is_refused():
    with pytest.raises(UsageError, match="crfm"):
        choose(Options(reference="T1w"), "cpu", shipped=BOTH)
    with pytest.raises(UsageError, match="crfm"):
        choose(Options(reference="T1w", model="moediff"), "cpu")


def test_what_is_asked_for_by_name_is_taken():
    assert choose(Options(model="student", num_samples=8), "cuda").model == "student"
    assert choose(Options(model="moediff"), "cpu", shipped=BOTH).model == "moediff"
    folder = choose(Options(weights=Path("/some/folder")), "cpu", shipped=BOTH)
    assert (folder.model, folder.reason) == ("/some/folder", "asked for")


def test_the_shipped_folder_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "MODELS_FOLDER", tmp_path)
    untrained_model(tmp_path / "moediff")
    assert choose(Options(), "cpu").model == "moediff"
    student_folder(tmp_path / "student")
    assert choose(Options(), "cpu", bfloat16=True).model == "student"
    assert load_model("student").config["family"] == "student"


def test_plan_and_check_name_model_and_reason(tmp_path):
    """A run says the same in log, sidecar and report: tests/test_families.py."""
    data = dataset(tmp_path / "data", {"sub-01_T1w": 0})
    weights = student_folder(tmp_path / "tiny student")
    words = ["--weights", weights, "--device", "cpu", "--output-resolution", "3"]
    plan = run_script(
        "bids_moediff", data, tmp_path / "out", "participant", *words, "--dry-run", cwd=tmp_path
    )
    assert "Model tiny student, asked for." in plan.stdout
    check = run_script("bids_moediff", "--check", *words[:4], cwd=tmp_path)
    (line,) = [line for line in check.stdout.splitlines() if "weights" in line]
    assert line.startswith("ok      weights: tiny student, version random") and "asked for" in line


def test_counted_arithmetic_equals_torchs():
    student = StudentNetwork(StudentConfig(6, 2, (5, 4, 3, 2)))
    mean = MeanNetwork(MeanConfig(6, 2))
    configs = (
        {"family": "student", "student": student.config.to_dict()},
        {"family": "moediff", "mean": mean.config.to_dict()},
    )
    for network, config in zip((student, mean), configs, strict=True):
        counter = FlopCounterMode(display=False)
        with counter:
            network(torch.rand(1, 1, 32, 32, 32), torch.zeros(1, 6))
        counted = counter.get_total_flops() / 2 / 32**3
        # The condition's small dense layers do not grow with the volume.
        (macs,) = stage_macs(config, Options()).values()
        assert macs == pytest.approx(counted, rel=0.1)
        assert macs <= counted


def test_samples_take_time_and_disk():
    def cost(model, **options):
        return estimate((200,) * 3, (1.0,) * 3, Options(**options), model=model, bfloat16=True)

    alone, eight = cost("student"), cost("student", num_samples=8, sample="posterior")
    voxels = 286**3  # of 0.7 mm
    assert eight.seconds - alone.seconds == pytest.approx(8 * 0.3e-6 * voxels, rel=0.05)
    # Eight samples and their deviation, 3.6 bytes each.
    more = (eight.disk_gigabytes - alone.disk_gigabytes) * 1e9
    assert more == pytest.approx(9 * 3.6 * voxels, rel=0.05)
    texture, experts = (
        cost("moediff", num_samples=8, sample=kind) for kind in ("texture", "posterior")
    )
    assert experts.seconds > texture.seconds > cost("moediff").seconds
    assert experts.gigabytes > texture.gigabytes == cost("moediff").gigabytes
    assert cost("student", sampler="gaussian") == alone


def test_time_estimate_follows_the_model(tmp_path):
    small = student_folder(tmp_path / "small")
    large = student_folder(tmp_path / "large", StudentConfig(48, 4, (32,) * 4))
    seconds = [
        estimate((200,) * 3, (1.0,) * 3, Options(), model=str(folder)).seconds
        for folder in (small, large)
    ]
    assert seconds[1] > 1.5 * seconds[0]


@pytest.mark.parametrize(
    ("model", "bfloat16", "voxels", "measured"),
    [
        ("moediff", True, 32.35e6, 103.0),
        ("student", True, 32.35e6, 56.6),
        ("moediff", False, 6.13e6, 71.1),
        ("student", False, 6.13e6, 50.3),
    ],
)
def test_time_estimate_is_near_what_was_measured(model, bfloat16, voxels, measured):
    """The table of docs/speed.md: two threads, with and without bfloat16."""
    assert f"| {measured} |" in (ROOT / "docs" / "speed.md").read_text()
    config, options = read_config(model), Options()
    seconds = voxels * seconds_per_voxel(config, options, threads=2, bfloat16=bfloat16)
    assert seconds == pytest.approx(measured, rel=0.15)


def test_what_a_student_cannot_give_is_said(tmp_path):
    from test_super_resolver import scan

    resolver = SuperResolver.from_pretrained(student_folder(tmp_path / "student"))
    plain = resolver.enhance(scan(), Options(output_resolution=(0.7,) * 3))
    assert not plain.record["Warnings"]
    assert plain.record["Sampler"] == "one step of the compressed network"
    assert plain.record["NumberOfSteps"] == plain.record["NumberOfSamples"] == 1
    asked = resolver.enhance(
        scan(), Options(output_resolution=(0.7,) * 3, num_steps=3, outputs=("gates",))
    )
    assert any("--model moediff" in warning for warning in asked.record["Warnings"])
    assert asked.record["NumberOfSteps"] == 1
    assert asked.gates is None and asked.standard_deviation is None


def test_each_option_that_runs_the_network_twice_doubles_its_count():
    config = read_config("student")
    ((name, once),) = stage_macs(config, Options()).items()
    for more, times in (
        ({"self_ensemble": True}, 2), ({"in_plane_refit": True}, 2),
        ({"self_ensemble": True, "in_plane_refit": True}, 4),
    ):  # fmt: skip
        assert stage_macs(config, Options(**more)) == {name: times * once}
