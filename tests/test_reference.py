# SPDX-License-Identifier: Apache-2.0
"""A reference contrast: chosen, registered, refused, used and recorded."""

import json
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_moediff import super_resolve
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.references import choose_reference
from bids_moediff.bids.sidecar import build_sidecar
from bids_moediff.cli.evaluate import hallucination_parser
from bids_moediff.cli.evaluation import load_heads
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.evaluation.truth import Block, TruthHead
from bids_moediff.families import family
from bids_moediff.families.load import build_network
from bids_moediff.imaging.reference import (
    LEAST_EDGES,
    SURE_EDGES,
    gradient_overlap,
    reference_weight,
    resample_reference,
    use_reference,
)
from bids_moediff.inference.request import ImageRequest
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.inference.worker import Scan, enhance_image
from bids_moediff.networks.model_folder import save_model
from bids_moediff.options import Options
from conftest import run_script
from generated import dataset, head

SIZES: Mapping[str, tuple[float, float, float]] = {
    "ses-1_T1w": (1.0, 1.0, 1.0),
    "ses-2_FLAIR": (1.0, 1.0, 3.0),
    "ses-2_T2w": (0.5, 0.5, 5.0),
    "ses-2_acq-fine_PDw": (0.9, 0.9, 0.9),
    "ses-1_acq-broken_T1w": (np.inf, np.inf, np.inf),
}


def image(name: str) -> AnatomicalImage:
    *parts, suffix = name.split("_")
    entities = {"sub": "01", **dict(part.split("-") for part in parts)}
    file = f"sub-01_{name}.nii.gz"
    return AnatomicalImage(Path("/data", file), f"sub-01/anat/{file}", entities, suffix, {})


IMAGES = [image(name) for name in SIZES]


def sizes(one: AnatomicalImage) -> tuple[float, float, float]:
    return SIZES[one.key.removeprefix("sub-01_")]


@pytest.mark.parametrize(
    ("target", "wanted", "chosen", "words"),
    [
        ("ses-2_T2w", "auto", "ses-2_acq-fine_PDw", "same session"),
        ("ses-2_T2w", "T1w", "ses-1_T1w", "of session 1"),
        ("ses-2_FLAIR", "ses-1_T1w", "ses-1_T1w", "of session 1"),
        ("ses-2_FLAIR", "acq-fine_PDw", "ses-2_acq-fine_PDw", "same session"),
        ("ses-2_acq-fine_PDw", "auto", None, "clearly smaller voxels"),
        ("ses-1_T1w", "T1w", None, "one itself"),
        ("ses-2_FLAIR", "UNIT1", None, "no image that fits UNIT1"),
        ("ses-2_FLAIR", "T2w", "ses-2_T2w", "expect little of it"),  # coarser, but asked for
    ],
)
def test_the_finest_of_the_session_guides(target, wanted, chosen, words) -> None:
    choice = choose_reference(image(target), IMAGES, wanted, sizes)
    assert (choice.image and choice.image.key) == (chosen and f"sub-01_{chosen}")
    assert words in choice.reason
    assert choice.record()["Used"] is False


def test_a_coarser_image_of_the_session_goes_before_a_finer_one_of_another() -> None:
    known = {"ses-1_T1w": (0.8, 0.8, 0.8), "ses-2_T1w": (1.0, 1.0, 1.0)}
    target = image("ses-2_FLAIR")
    choice = choose_reference(
        target, [image(name) for name in known], "auto",
        lambda one: known.get(one.key.removeprefix("sub-01_"), (1.0, 1.0, 3.0)),
    )  # fmt: skip
    assert choice.image is not None and choice.image.key == "sub-01_ses-2_T1w"


def test_among_equals_the_order_of_contrasts_and_of_names_counts() -> None:
    """The smaller voxel first, then the smaller side, then T1w, T2w, FLAIR, others, and names."""
    known = {
        "acq-big_T1w": (1.0, 1.0, 1.1), "acq-long_T1w": (0.5, 1.0, 2.0),
        "acq-b_T1w": (1.0, 1.0, 1.0), "acq-a_FLAIR": (1.0, 1.0, 1.0),
        "acq-a_T2w": (1.0, 1.0, 1.0), "acq-c_T1w": (1.0, 1.0, 1.0004),
        "acq-b_T2starw": (1.0, 1.0, 1.0), "acq-a_T2starw": (1.0, 1.0, 1.0001),
    }  # fmt: skip

    def sizes(one: AnatomicalImage) -> tuple[float, float, float]:
        return known.get(one.key.removeprefix("sub-01_"), (1.0, 1.0, 5.0))

    left = [image(name) for name in known]
    order = []
    while found := choose_reference(image("PDw"), left, "auto", sizes).image:
        order.append(found.key.removeprefix("sub-01_"))
        left.remove(found)
    wanted = ["acq-b_T1w", "acq-c_T1w", "acq-a_T2w", "acq-a_FLAIR", "acq-long_T1w", "acq-big_T1w"]
    assert order == wanted
    assert {one.suffix for one in left} == {"T2starw"}, "taken by name only"
    unreadable = [image("acq-odd_T1w")]
    for wanted_suffix in ("auto", "T1w"):
        choice = choose_reference(image("PDw"), unreadable, wanted_suffix, lambda _: (np.inf,) * 3)
        assert choice.image is None and "has no image" in choice.reason
    chosen = choose_reference(image("PDw"), left, "T2starw", sizes)
    assert chosen.image == image("acq-a_T2starw") and "the finest of 2" in chosen.reason


def test_what_reference_takes() -> None:
    for words in ("auto", "T1w", "ses-01_acq-mprage_T1w"):
        assert Options.from_dict({"reference": words}, "").reference == words
    for words in ("t1w", "acq_T1w", "other", ""):
        with pytest.raises(UsageError, match="--reference"):
            Options.from_dict({"reference": words}, "")


def sharp(contrast: str = "T2w", zooms: tuple[float, float, float] = (2.0, 2.0, 2.0)):
    """A generated head with fine detail, in one of two contrasts."""
    shape = tuple(int(n * z / new) for n, z, new in zip((44, 52, 40), (3.6, 3.6, 4.2), zooms,
                                                       strict=True))  # fmt: skip
    made = head(shape, zooms, seed=2)
    data = np.asarray(made.dataobj, dtype=np.float32)
    texture = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), 1.5)
    data = data * (1 + 1.5 * texture)
    if contrast == "T1w":
        data = np.where(data > 40, 700 - data, data).clip(0)
    return nib.Nifti1Image(data.astype(np.float32), made.affine)


def moved(one: nib.Nifti1Image, degrees: float, millimetres: float) -> nib.Nifti1Image:
    angle = np.deg2rad(degrees)
    move = np.eye(4)
    move[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    move[:3, 3] = millimetres
    return nib.Nifti1Image(np.asarray(one.dataobj), move @ one.affine)


def test_registration_undoes_a_move_and_the_overlap_tells(recwarn) -> None:
    target, reference = sharp(), sharp("T1w")
    away = moved(reference, 4, 5)
    choice = use_reference(target, away)
    assert choice.record["Used"] and choice.aligned is not None
    assert choice.record["EdgeOverlap"] > choice.record["EdgeOverlapBefore"] + 0.1
    corner = target.affine @ [10, 10, 10, 1]
    back = np.linalg.inv(away.affine @ np.linalg.inv(reference.affine)) @ choice.aligned.move
    assert np.linalg.norm((back @ corner - corner)[:3]) == pytest.approx(
        np.linalg.norm((np.array(choice.record["Move"]) @ corner - away.affine
                        @ np.linalg.inv(reference.affine) @ corner)[:3]), abs=0.1)  # fmt: skip
    assert np.linalg.norm((back @ corner - corner)[:3]) < 0.5  # mm


def test_a_reference_of_half_the_field_of_view_is_registered() -> None:
    """Where it shows nothing it is zero, and nothing else is wrong with it."""
    target, away = sharp(), moved(sharp("T1w"), 3, 4)
    first = away.shape[2] // 3
    affine = away.affine.copy()
    affine[:3, 3] = (away.affine @ [0, 0, first, 1])[:3]
    part = nib.Nifti1Image(np.asarray(away.dataobj)[:, :, first:], affine)
    choice = use_reference(target, part)
    assert choice.record["Used"] and choice.aligned is not None
    whole = away.affine @ np.linalg.inv(sharp("T1w").affine)
    corner = target.affine @ [10, 10, 10, 1]
    assert np.linalg.norm((choice.aligned.move @ corner - whole @ corner)[:3]) < 0.7  # mm
    found = resample_reference(choice.aligned.image, target.shape, target.affine)
    assert not found[:, :, : first - 3].any() and found[:, :, first + 3 : -4].any()


@pytest.mark.shared
def test_head_and_neck_are_registered_to_a_reference_of_the_head(shared_data: Path) -> None:
    """From the header's start this registration ends elsewhere; from the other side it works."""
    folder = shared_data / "bids_mini/sub-01/anat"
    neck, flair = (
        nib.nifti1.load(folder / f"sub-01_{suffix}.nii.gz") for suffix in ("T1w", "FLAIR")
    )
    choice = use_reference(neck, flair)
    assert choice.record["Used"] and choice.record["EdgeOverlap"] > 0.87


def test_another_head_is_refused() -> None:
    target = sharp()
    data = np.random.default_rng(0).normal(size=target.shape).astype(np.float32)
    noise = nib.Nifti1Image(300 + 100 * ndimage.gaussian_filter(data, 2), target.affine)
    assert gradient_overlap(target, sharp("T1w")) > LEAST_EDGES > gradient_overlap(target, noise)
    empty = nib.Nifti1Image(np.zeros((20, 20, 20), np.float32), target.affine)
    choice = use_reference(empty, target)
    assert choice.image is None and not choice.record["Used"] and "No reference" in (
        choice.record["Reason"])  # fmt: skip


def test_larger_voxels_average_a_reference_and_beyond_it_there_is_nothing() -> None:
    line = np.arange(40, dtype=np.float32)[:, None, None] + np.ones((40, 24, 24), np.float32)
    reference = nib.Nifti1Image(line, np.eye(4))
    affine = np.diag([4.0, 1.0, 1.0, 1.0])
    affine[0, 3] = 1.5
    found = resample_reference(reference, (12, 24, 24), affine)
    assert np.allclose(found[2:8, 5:-5, 5:-5].mean((1, 2)), 2.5 + 4 * np.arange(2, 8), atol=0.05)
    assert not found[10:].any()


def test_fine_voxels_are_averaged_along_whichever_axis_they_lie() -> None:
    """Stripes of 1 mm along the first axis of the reference, the last of the grid of 2 mm."""
    stripes = 100 + 50 * (-1.0) ** np.arange(40)
    data = np.broadcast_to(stripes[:, None, None], (40, 30, 12)).astype(np.float32)
    reference = nib.Nifti1Image(data, np.diag([1.0, 1.0, 3.0, 1.0]))
    affine = nib.affines.from_matvec(2 * np.eye(3)[::-1], [4, 4, 4])
    found = resample_reference(reference, (10, 10, 14), affine)
    assert found[2:8, 2:8, 2:8] == pytest.approx(100, abs=0.1)


def crfm(folder: Path) -> Path:
    """A tiny model whose output depends on the reference."""
    torch.manual_seed(0)
    student = {"channels": 8, "blocks": 1, "ranks": [4, 4, 4, 4]}
    config = {"family": "student", "version": "test", "student": student}
    base = folder / "base"
    save_model(build_network(config), config, base, "")
    config = {"family": "crfm", "version": "test"}
    config["crfm"] = {"channels": 6, "blocks": 1, "base": str(base)}
    network = build_network(config)
    torch.nn.init.normal_(network.tail.weight, std=0.05)
    save_model(network, config, folder / "crfm", "")
    return folder / "crfm"


def coarse(one: nib.Nifti1Image) -> nib.Nifti1Image:
    """Slices three times as thick."""
    data = np.asarray(one.dataobj)
    count = data.shape[2] // 3 * 3
    thick = data[:, :, :count].reshape(*data.shape[:2], -1, 3).mean(3)
    affine = one.affine @ np.diag([1, 1, 3, 1.0])
    affine[:3, 3] = (one.affine @ [0, 0, 1, 1])[:3]
    made = nib.Nifti1Image(thick.astype(np.float32), affine)
    made.header.set_xyzt_units("mm", "sec")
    return made


def test_from_python_with_and_without_a_useful_reference(tmp_path: Path) -> None:
    weights, target = crfm(tmp_path), coarse(sharp())
    asked = {"weights": str(weights), "device": "cpu", "output_resolution": 2.0}
    alone = super_resolve(target, **asked).get_fdata()
    guided = super_resolve(target, reference=sharp("T1w"), **asked).get_fdata()
    assert np.abs(guided - alone).max() > 1
    noise = np.random.default_rng(0).normal(300, 50, target.shape).astype(np.float32)
    with pytest.warns(UserWarning, match="No reference was used"):
        refused = super_resolve(target, reference=nib.Nifti1Image(noise, target.affine), **asked)
    assert np.array_equal(refused.get_fdata(), alone)
    with pytest.raises(UsageError, match="one image"):
        super_resolve([target, target], reference=target, **asked)


def test_a_doubtful_reference_counts_in_part(tmp_path: Path) -> None:
    """Its weight runs from 0 where it is refused to 1, and the change is that share."""
    low, middle, high = LEAST_EDGES, (LEAST_EDGES + SURE_EDGES) / 2, SURE_EDGES
    assert [reference_weight(one) for one in (0.3, low, middle, high, 1)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
    resolver = SuperResolver.from_pretrained(crfm(tmp_path), "cpu", "fp32")
    size = (2.0, 2.0, 2.0)
    scan = Scan(coarse(sharp()), reference=sharp("T1w"))

    def restored(weight: float) -> np.ndarray:
        record = {"Used": True, "Weight": weight}
        told = ImageRequest(key="", image="", out_dir="", reference_record=record)
        result = enhance_image(resolver, scan, told, Options(output_resolution=size))
        return np.asarray(result.image.dataobj)

    alone, half, whole = restored(0.0), restored(0.5), restored(1.0)
    assert np.abs(whole - alone).max() > 1
    assert np.abs(half - (alone + whole) / 2).max() < 0.05 * np.abs(whole - alone).max()


def test_lesions_are_tried_with_a_registered_reference(tmp_path: Path) -> None:
    """The evaluation registers a reference to the head, cuts both alike and refuses a stranger."""
    target, reference = sharp(), sharp("T1w")
    paths = [tmp_path / f"{name}.nii.gz" for name in ("head", "reference", "noise")]
    noise = np.random.default_rng(0).normal(300, 50, target.shape).astype(np.float32)
    images = (target, moved(reference, 2, 3), nib.Nifti1Image(noise, target.affine))
    for path, one in zip(paths, images, strict=True):
        nib.save(one, path)
    found = Block(paths[0], reference=paths[1], side=48).load()
    corner = np.rint(np.linalg.inv(target.affine) @ found.affine[:, 3]).astype(int)
    part = tuple(slice(first, first + 48) for first in corner[:3])
    assert np.array_equal(found.truth, np.asarray(target.dataobj)[part])
    nib.save(reference, paths[1])
    right = Block(paths[1], side=48).load().truth
    inside = right > 0
    assert np.corrcoef(found.reference[inside], right[inside])[0, 1] > 0.95
    with pytest.raises(ImageError, match="edges do not run along"):
        TruthHead(paths[0], reference=paths[2]).load()
    words = ["out", "--heads", *map(str, paths[:2]), "--reference", str(paths[1])]
    with pytest.raises(UsageError, match="one for each of --heads"):
        load_heads(hallucination_parser().parse_args(words))


def test_the_reference_is_a_source_where_it_was_used() -> None:
    used = {"Used": True, "Source": "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"}
    record = {"Reference": used, "BrainMask": {"method": "network"}}
    target = image("ses-2_T2w")
    found = build_sidecar(target, "sr", (1.0, 1.0, 1.0), record)
    assert found["Sources"] == [
        f"bids:raw:{target.relative_path}",
        "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
    ]
    used["Used"] = False
    assert len(build_sidecar(target, "sr", (1.0, 1.0, 1.0), record)["Sources"]) == 1


def test_through_the_app(tmp_path: Path) -> None:
    """T1w in one session, FLAIR in the other; the T1w itself has no finer contrast."""
    weights = crfm(tmp_path)
    data = dataset(
        tmp_path / "data",
        {
            "sub-01_ses-1_T1w": moved(sharp("T1w"), 2, 3),
            "sub-01_ses-2_FLAIR": coarse(sharp()),
        },
    )
    words = ["--weights", str(weights), "--output-resolution", "2", "--skip-bias-correction"]
    call = ["bids_moediff", data, tmp_path / "out", "participant", *words, "--nprocs", "1"]
    plan = run_script(*call, "--dry-run", cwd=tmp_path)
    assert "sub-01_ses-2_FLAIR: guided by sub-01_ses-1_T1w (2 x 2 x 2 mm), of session 1" in (
        plan.stdout)  # fmt: skip
    assert "sub-01_ses-1_T1w: No reference was used" in plan.stdout
    done = run_script(*call, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "sub-01"
    (sidecar,) = (out / "ses-2" / "anat").glob("*desc-sr_FLAIR.json")
    record = json.loads(sidecar.read_text())
    assert record["Reference"]["Used"] and record["Reference"]["EdgeOverlap"] > LEAST_EDGES
    assert record["Sources"][1] == "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert "reference contrast" in record["Sampler"]
    (alone,) = (out / "ses-1" / "anat").glob("*desc-sr_T1w.json")
    record = json.loads(alone.read_text())
    assert not record["Reference"]["Used"] and len(record["Sources"]) == 1
    assert any("No reference was used" in remark for remark in record["Warnings"])
    assert next((out / "figures").glob("*ses-2*desc-reference_FLAIR.png")).stat().st_size > 1000
    page = (tmp_path / "out" / "sub-01_ses-2_FLAIR.html").read_text()
    assert "Reference contrast" in page


def test_the_methods_text_tells_of_a_reference_where_one_was_used() -> None:
    words = family("crfm").network_words
    assert "second network corrects" in words({"NetworksRun": ["student", "reference"]})
    assert "no reference contrast" in words({"NetworksRun": ["student"]})
