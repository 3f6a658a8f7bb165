# SPDX-License-Identifier: Apache-2.0
"""Training data: packs, pairs found in BIDS data sets, degraded volumes, patches and slices."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_moediff.cli.train import main
from bids_moediff.errors import UsageError
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.interpolation import initial_estimate
from bids_moediff.imaging.protocols import ACQUISITIONS
from bids_moediff.imaging.simulation import degrade, draw, fixed
from bids_moediff.training import tensor_filters
from bids_moediff.training.batches import patches, slices
from bids_moediff.training.bids_heads import (
    Selection,
    bids_heads,
    collect,
    manifest_heads,
    mark_validation,
)
from bids_moediff.training.contrast import (
    CORTEX,
    WHITE,
    random_contrast,
    synthesise,
    tissue_codes,
)
from bids_moediff.training.guidance import (
    displacement,
    guidance_maps,
    log_jacobian,
    warp_labels,
)
from bids_moediff.training.pack import (
    check_heads,
    head_weights,
    load_pack,
    make_image,
    save_pack,
    select_heads,
)
from bids_moediff.training.pipeline import write_pack
from bids_moediff.training.sharpness import Grid, draw_grid, to_larger_voxels
from bids_moediff.training.stage import relative_weight
from bids_moediff.training.validation import gains, make_cases
from bids_moediff.training.volumes import Simulated, Source, Window, image_weight, make_volume
from generated import dataset, head
from training_data import SHAPE, ZOOMS, heads, label_map, tiny

CPU = torch.device("cpu")


def _volume(seed: int = 0, shape: tuple[int, ...] = (21, 18, 24)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


# Filters, against scipy


def test_filters_agree_with_scipy() -> None:
    volume = _volume()
    mask = ndimage.gaussian_filter(volume.numpy(), 1.5) > 0.5
    blurred = ndimage.gaussian_filter(volume.numpy(), 1.2, mode="nearest", radius=5)
    assert np.allclose(tensor_filters.gaussian(volume, 1.2), blurred, atol=1e-6)
    for count in (1, 2, 3):
        grown = ndimage.binary_dilation(mask, iterations=count)
        shrunk = ndimage.binary_erosion(mask, iterations=count, border_value=1)
        assert np.array_equal(tensor_filters.dilate(torch.from_numpy(mask), count), grown)
        assert np.array_equal(tensor_filters.erode(torch.from_numpy(mask), count), shrunk)
    inside = ndimage.uniform_filter(volume.numpy(), 5)[3:-3, 3:-3, 3:-3]
    assert np.allclose(tensor_filters.box_mean(volume, 5)[3:-3, 3:-3, 3:-3], inside, atol=1e-6)


def test_tissue_codes_are_core_cortex_and_band() -> None:
    labels = label_map().astype(np.uint8)
    white, cortex = np.isin(labels, WHITE), np.isin(labels, CORTEX)
    band = ndimage.binary_dilation(white) & ndimage.binary_dilation(cortex) & (white | cortex)
    core = ndimage.binary_erosion(white, iterations=3, border_value=1) & ~band
    codes = tissue_codes(torch.from_numpy(labels)).numpy()
    assert np.array_equal(codes == 1, core)
    assert np.array_equal(codes == 2, cortex & ~band)
    assert np.array_equal(codes == 3, band)
    assert {1, 2, 3} <= set(np.unique(codes))


@pytest.mark.parametrize("seed", range(8))
def test_contrasts_keep_air_dark_and_order_or_inverse(seed: int) -> None:
    level = torch.linspace(0, 1.2, 50)
    mapped = random_contrast(level, np.random.default_rng(seed), 0.3, 0.7)
    assert torch.isfinite(mapped).all() and mapped.max() > 0.1
    assert float(mapped[0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("left", "right"), [(2, 41), (3, 42), (11, 50)])
def test_both_hemispheres_of_a_label_map_look_alike(left: int, right: int) -> None:
    labels = torch.zeros(24, 16, 16, dtype=torch.uint8)
    labels[2:11], labels[13:22] = left, right
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        image = synthesise(labels, np.random.default_rng(seed), generator)
        sides = [float(part[2:-2, 4:-4, 4:-4].mean()) for part in (image[2:11], image[13:22])]
        assert sides[0] == pytest.approx(sides[1], abs=0.02)


# Degraded volumes


def test_degrading_measures_and_starts_consistently() -> None:
    rng = np.random.default_rng(3)
    for _ in range(6):
        drawn = replace(draw(rng), noise=0.0)
        result = degrade(_volume(1, (30, 28, 32)), drawn)
        residual = result.operator.forward(result.start) - result.measured
        assert float(residual.norm() / result.measured.norm()) < 1e-3
        assert list(drawn.ratios) == sorted(drawn.ratios)  # the coarsest axis comes last
        expected = result.operator.forward(result.truth)
        assert torch.allclose(result.measured, expected, atol=1e-6)


def test_a_volume_depends_on_its_number_only(tmp_path: Path) -> None:
    recipe = tiny("experts")
    training = [h for h in heads() if not h.validation]
    source = Source(training, recipe, CPU, None, None, tissue=True)
    again = Source(training, recipe, CPU, None, None, tissue=True)
    source(5)
    first, second = source(2), again(2)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["target"], again(3)["target"])
    other = Source(training, recipe, CPU, None, None, rank=1, tissue=True)(2)
    assert not torch.equal(other["target"], first["target"])
    stored = Source(training, replace(recipe, stored_volumes=3), CPU, None, tmp_path, tissue=True)
    assert all(torch.equal(stored(2)[key], first[key]) for key in first)
    assert all(torch.equal(stored(2)[key], first[key]) for key in first)  # read from disk
    assert len(list(tmp_path.iterdir())) == 1


def test_the_window_moves_by_one_volume() -> None:
    asked: list[int] = []

    def source(index: int) -> dict[str, torch.Tensor]:
        asked.append(index)
        return {"number": torch.tensor(index)}

    recipe = replace(tiny("mean"), window=3, steps_per_volume=2, stored_volumes=0)
    window = Window(source, recipe, quiet=True)
    for step, expected in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [1, 2, 3]), (5, [2, 3, 4])):
        assert [int(v["number"]) for v in window.at(step)] == expected
    window.close()
    assert sorted(set(asked)) == sorted(asked)  # none was made twice
    late = Window(source, recipe, quiet=True)
    assert [int(v["number"]) for v in late.at(5)] == [2, 3, 4]
    few = Window(source, replace(recipe, stored_volumes=2), quiet=True)
    assert [int(v["number"]) for v in few.at(9)] == [0, 1]


def test_deleted_voxels_count_nothing() -> None:
    volume = torch.full((24, 24, 24), 150, dtype=torch.uint8)
    volume[:10] = 0  # a face that was cut away
    weight = image_weight(volume)
    assert (weight[:12] == 0).all() and (weight[14:] == 1).all()


def test_small_heads_are_padded() -> None:
    recipe = tiny("experts", block=64)
    volume = make_volume(heads()[0], recipe, np.random.default_rng(0), CPU, tissue=True)
    assert min(volume["target"].shape) >= recipe.smallest


def test_patches_are_cut_from_one_place() -> None:
    shape = (40, 44, 48)
    index = torch.arange(float(np.prod(shape))).reshape(shape) / 1000
    volume = {"start": index, "target": index + 1, "weight": torch.ones(shape)}
    volume["condition"] = torch.arange(6.0)
    batch = patches([volume], 16, 3, np.random.default_rng(0))
    assert batch["start"].shape == (3, 16, 16, 16) and batch["condition"].shape == (3, 6)
    assert torch.allclose(batch["target"], batch["start"] + 1)
    step = batch["start"][:, 1:, :, :] - batch["start"][:, :-1, :, :]
    assert torch.allclose(step, torch.tensor(44 * 48 / 1000), atol=2e-2)
    again = patches([volume], 16, 3, np.random.default_rng(0))
    assert torch.equal(again["start"], batch["start"])
    with pytest.raises(UsageError, match="too little head"):
        patches([volume | {"weight": torch.zeros(shape)}], 16, 1, np.random.default_rng(0))


def test_slices_stack_the_finest_axis_with_its_neighbours() -> None:
    shape = (70, 72, 74)
    planes = torch.arange(70.0)[:, None, None].expand(shape)  # the value is the slice's number
    volume = {"start": planes, "target": planes, "weight": torch.ones(shape)}
    volume |= {"tissue": torch.full(shape, 3, dtype=torch.uint8)}
    volume["condition"] = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.2, 1.1])
    batch = slices([volume], 64, 5, 4, np.random.default_rng(2))
    assert batch["start"].shape == (4, 5, 64, 64) and batch["target"].shape == (4, 64, 64)
    assert torch.equal(batch["start"][:, 2], batch["target"])
    steps = batch["start"].diff(dim=1)[..., 0, 0]
    assert (steps.abs() <= 1).all() and (steps.abs().sum(1) >= 2).all()
    assert torch.allclose(batch["condition"], torch.tensor([1.0, 2.0, 0.0, 1.2, 1.1, 0.0]))
    assert batch["tissue"][:, 2].all() and not batch["tissue"][:, 0].any()


# Packs


def test_a_pack_keeps_everything(tmp_path: Path) -> None:
    pair = replace(
        heads()[0], name="p", kind="pair", start=heads()[0].volume // 2, condition=(0.0,) * 6
    )
    written = [*heads(), pair]
    digest = save_pack(written, tmp_path / "p.npz")
    assert save_pack(load_pack(tmp_path / "p.npz"), tmp_path / "q.npz") == digest
    for before, after in zip(written, load_pack(tmp_path / "p.npz"), strict=True):
        assert np.array_equal(before.volume, after.volume)
        assert replace(before, volume=after.volume, start=after.start) == after
    (tmp_path / "p.npz").write_bytes(b"PK\3\4 torn")
    with pytest.raises(UsageError, match="not a readable training pack"):
        load_pack(tmp_path / "p.npz")


def test_a_small_pack_keeps_every_site(tmp_path: Path) -> None:
    many = [
        replace(h, name=f"{h.name}{n}", source="labels" if h.kind == "labels" else f"site{n % 3}")
        for n in range(6)
        for h in heads()
        if not h.validation or n == 0
    ]
    save_pack(many, tmp_path / "all.npz")
    limit = 0.6 * (tmp_path / "all.npz").stat().st_size / 1e6
    chosen = select_heads(many, limit)
    save_pack(chosen, tmp_path / "some.npz")
    assert (tmp_path / "some.npz").stat().st_size / 1e6 <= limit
    assert {h.source for h in chosen} == {"site0", "site1", "site2", "labels"}
    assert any(h.validation for h in chosen) and len(chosen) < len(many)
    with pytest.raises(UsageError, match="too few"):
        select_heads(many, limit / 20)


def test_weights_of_heads() -> None:
    image, labels = heads()[0], heads()[3]
    many = [replace(image, name=f"m{n}", source="big") for n in range(4)]
    weights = head_weights([image, *many, labels], {"m0": 2.0}, 0.1)
    assert weights.sum() == pytest.approx(1)
    assert weights[5] == pytest.approx(0.1)
    assert weights[2] / weights[0] == pytest.approx(0.5)  # one of four of its site
    assert weights[1] / weights[0] == pytest.approx(2.0)


def test_recipes_without_heads_of_their_kind_are_told() -> None:
    image, labels = heads()[0], heads()[3]
    with pytest.raises(UsageError, match="label maps alone, and there is none"):
        head_weights([image], {}, 1.0)
    with pytest.raises(UsageError, match="label_share is 0"):
        head_weights([labels], {}, 0.0)
    assert head_weights([image], {}, 0.1).tolist() == [1.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"validation": False}, "No head is kept out"),
        ({"volume": np.zeros((20, 20, 20), np.uint8)}, "is empty"),
        ({"volume": np.ones((20, 20), np.uint8)}, "shape"),
        ({"volume": np.ones((20, 20, 20), np.float32)}, "float32"),
        ({"kind": "pair"}, "pair whose two grids differ"),
        ({"kind": "film"}, "unknown kind"),
        ({"subject": "a"}, "in the training and in the validation"),
    ],
)
def test_wrong_heads_are_told(change: dict[str, Any], words: str) -> None:
    one, two = heads()[0], heads()[2]
    with pytest.raises(UsageError, match=words):
        check_heads([one, replace(two, **change)])


# Pairs and images of BIDS data sets


def _scan(
    seed: int, ratios: tuple[int, int, int] = (1, 1, 1), shift: float = 0.0
) -> nib.Nifti1Image:
    """The generated head, as a scanner with voxels so many times as large would measure it."""
    fine = head(SHAPE, (1.0, 1.1, 1.2), seed)
    data = np.asarray(head(SHAPE, ZOOMS, seed).dataobj, dtype=np.float32)
    counts = [size // ratio for size, ratio in zip(SHAPE, ratios, strict=True)]
    zooms = tuple(z * r for z, r in zip((1.0, 1.1, 1.2), ratios, strict=True))
    affine = np.diag([*zooms, 1.0])
    corner = fine.affine[:3, 3] - 0.5 * np.array([1.0, 1.1, 1.2])
    affine[:3, 3] = corner + 0.5 * np.asarray(zooms) + [shift, 0, 0]
    if max(ratios) > 1:
        operator = Operator.between(
            SHAPE, (1.0, 1.1, 1.2), (counts[0], counts[1], counts[2]),
            (zooms[0], zooms[1], zooms[2]), Acquisition.uniform("kspace"),
        )  # fmt: skip
        data = operator.forward(torch.from_numpy(data)).numpy()
    return nib.Nifti1Image(data, affine)


def _paired(root: Path, shift: float = 0.0) -> Path:
    return dataset(
        root,
        {
            "sub-01_ses-low_T1w": _scan(1, (2, 2, 2), shift),
            "sub-01_ses-high_T1w": _scan(1),
            "sub-02_acq-thick_T1w": _scan(2, (1, 1, 3)),
            "sub-02_acq-iso_T1w": _scan(2),
            "sub-03_T1w": _scan(3),
            "sub-03_T2w": _scan(4, (1, 1, 3)),
        },
    )


def test_pairs_are_found_by_session_and_acquisition(tmp_path: Path) -> None:
    found = {h.name.split("/")[1]: h for h in bids_heads(_paired(tmp_path / "d"), Selection())}
    low = found.pop("sub-01_ses-low_T1w+sub-01_ses-high_T1w")
    thick = found.pop("sub-02_acq-thick_T1w+sub-02_acq-iso_T1w")
    assert set(found) == {"sub-03_T1w"}  # the thick T2w is no target
    assert low.kind == thick.kind == "pair" and low.subject == "d/sub-01"
    assert low.condition == pytest.approx((1, 1, 1, 1.2067, 1.2067, 1.2067), abs=1e-4)
    assert thick.condition[2] == pytest.approx(np.log2(3))  # type: ignore[index]
    truth = np.asarray(_scan(1).dataobj, dtype=np.float32)
    coarse = torch.from_numpy(np.asarray(_scan(1, (2, 2, 2)).dataobj, dtype=np.float32))
    zooms, larger = (1.0, 1.1, 1.2), (2.0, 2.2, 2.4)
    operator = Operator.between(SHAPE, zooms, (28, 30, 27), larger, Acquisition.uniform("kspace"))
    expected = initial_estimate(coarse, operator, larger, zooms).numpy()
    scale = 200 / np.percentile(truth[truth > 0], 99.5)
    crop = low.volume.shape
    assert low.start is not None and low.start.shape == crop
    inner = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(SHAPE, crop, strict=True))
    error = low.start - np.clip(expected[inner] * scale, 0, 255)
    assert np.abs(error).max() < 1.01


def test_pairs_named_on_the_command_line(tmp_path: Path) -> None:
    root = _paired(tmp_path / "d")
    kinds = [h.kind for h in bids_heads(root, Selection("acq-thick:acq-iso"))]
    assert sorted(kinds) == ["image", "image", "pair"]
    assert {h.kind for h in bids_heads(root, Selection("none"))} == {"image"}
    with pytest.raises(UsageError, match="no pair ses-low:ses-hihg"):
        bids_heads(root, Selection("ses-low:ses-hihg"))


def test_pairs_train_in_the_orientation_the_networks_know(tmp_path: Path) -> None:
    root = dataset(
        tmp_path / "d",
        {"sub-01_acq-a_T1w": _scan(1, (3, 1, 1)), "sub-01_acq-b_T1w": _scan(1)},
    )
    pair = bids_heads(root, Selection())[0]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        volume = make_volume(pair, tiny("mean", patch=16, block=48), rng, CPU)
        ratios = volume["condition"][:3]
        assert ratios[2] == pytest.approx(np.log2(3), abs=1e-5)
        assert float((volume["start"] - volume["target"]).float().abs().mean()) > 1e-3
        lost = [_roughness(volume["start"], n) / _roughness(volume["target"], n) for n in (0, 2)]
        assert lost[1] < 0.9 * lost[0]  # the coarse axis is the smooth one


def test_the_numbers_of_a_pair_follow_its_axes() -> None:
    pair = replace(
        heads()[0],
        kind="pair",
        start=heads()[0].volume,
        condition=(2.0, 0.0, 1.0, 1.3, 1.1, 1.2),
    )
    volume = make_volume(pair, tiny("mean"), np.random.default_rng(0), CPU)
    assert volume["condition"].tolist() == pytest.approx([0, 1, 2, 1.1, 1.2, 1.3])


def _roughness(volume: torch.Tensor, axis: int) -> float:
    return float(volume.float().diff(dim=axis).square().mean())


def test_validation_takes_whole_participants(tmp_path: Path) -> None:
    found = collect([_paired(tmp_path / "d")], [], Selection(), report=lambda line: None)
    kept = {h.subject for h in found if h.validation}
    assert len(kept) == 1 and len({h.subject for h in found}) == 3
    named = collect([tmp_path / "d"], [], Selection(validation=("02",)), report=lambda line: None)
    assert {h.subject for h in named if h.validation} == {"d/sub-02"}
    cases = make_cases([h for h in named if h.validation])
    assert [case.protocol for case in cases] == ["paired scans"]
    gained = gains(cases, lambda start, condition: cases[0].truth)
    assert gained["paired scans"]["over_consistent"] > 50


def _nan() -> nib.Nifti1Image:
    image = _scan(1)
    data = np.asarray(image.dataobj, dtype=np.float32)
    data[3, 4, 5:7] = np.nan
    return nib.Nifti1Image(data, image.affine)


def _series() -> nib.Nifti1Image:
    data = np.asarray(_scan(1).dataobj, dtype=np.float32)
    return nib.Nifti1Image(np.stack([data, data], -1), _scan(1).affine)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one participant": ({"sub-01_T1w": _scan(1)}, "All data are of one participant (d/sub-01)"),
    "nan": ({"sub-01_T1w": _scan(1), "sub-02_T1w": _nan()}, "holds 2 voxels that are not finite"),
    "series": ({"sub-01_T1w": _scan(1), "sub-02_T1w": _series()}, "has the shape (56, 60, 54, 2)"),
    "empty": (
        {
            "sub-01_T1w": _scan(1),
            "sub-02_T1w": nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.eye(4)),
        },
        "sub-02/anat/sub-02_T1w.nii.gz is empty",
    ),
    "torn": ({"sub-01_T1w": _scan(1), "sub-02_T1w": b"no image at all"}, "cannot be read"),
    "thick only": (
        {"sub-01_T1w": _scan(1, (1, 1, 3)), "sub-02_T1w": _scan(2, (1, 1, 3))},
        "no pair of a coarse and a fine scan",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_told_before_the_first_step(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, words = BAD[name]
    root = dataset(tmp_path / "d", images)
    run = tmp_path / "run"
    command = ["--recipe", "mean", "--smoke", "--data", str(root), "--output", str(run)]
    assert main([*command, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["experts"], 2, "need a trained one"),
        (["student"], 2, "needs its teacher"),
        (
            [
                "experts",
                "--set",
                "network.start=noise",
                "network.latent=kl",
                "network.latent_channels=8",
            ],
            2,
            "needs a trained autoencoder",
        ),
        (["mean", "--set", "label_share=1"], 2, "label maps alone"),
        (["mean", "--device", "cuda:99"], 69, "--device cuda:99"),
        (["mean", "--device", "gpu"], 2, "cuda or cuda:N, not gpu"),
    ],
)
def test_what_is_wrong_with_the_recipe_is_told_before_data_are_packed(
    words: list[str], code: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = dataset(tmp_path / "d", {"sub-01_T1w": _scan(1), "sub-02_T1w": _scan(2)})
    run = tmp_path / "run"
    command = ["--smoke", "--data", str(root), "--output", str(run), "--recipe", *words]
    assert main(command) == code
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not run.exists()


def test_mismatched_grids_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _paired(tmp_path / "d", shift=0.7)
    command = ["--data", str(root), "--pack-only", str(tmp_path / "p.npz")]
    assert main(command) == 2
    assert "are shifted by 0.70 mm" in capsys.readouterr().err
    assert not (tmp_path / "p.npz").exists()
    assert main([*command, "--pairs", "none"]) == 0
    packed = load_pack(tmp_path / "p.npz")
    assert {h.kind for h in packed} == {"image"} and any(h.validation for h in packed)


def test_train_on_a_bids_data_set_with_pairs(tmp_path: Path) -> None:
    root = _paired(tmp_path / "d")
    command = ["--recipe", "mean", "--smoke", "--data", root, "--output", tmp_path / "run"]
    command += ["--steps", "4", "--validation-label", "01", "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    assert main([str(word) for word in command]) == 0  # the data are packed already
    curve = json.loads((tmp_path / "run" / "model" / "curve.json").read_text())
    assert set(curve["mean"][-1]["gains"]) == {"paired scans"}
    card = (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text()
    assert "d/sub-02_acq-thick_T1w+sub-02_acq-iso_T1w" in card


def test_only_training_rows_of_a_manifest_are_read(tmp_path: Path) -> None:
    rows = ["file\tsplit", "a_T1w.nii.gz\ttrain", "b_T1w.nii.gz\tval", "labels/l.nii.gz\ttrain"]
    (tmp_path / "manifest.tsv").write_text("\n".join(rows))
    nib.save(_scan(1), tmp_path / "a_T1w.nii.gz")  # the others are not even there
    found = manifest_heads(tmp_path)
    assert [(h.name, h.kind) for h in found] == [("a_T1w", "image")]
    assert found[0].zooms == pytest.approx((1.0, 1.1, 1.2))


def test_images_are_cropped_and_scaled() -> None:
    data = np.zeros((60, 60, 60), np.float32)
    data[20:40, 18:42, 22:50] = 1234.0
    made = make_image("x", data, (1, 1, 1))
    assert made.volume.shape == (28, 32, 36) and made.volume.max() == 200


# Guidance of the gate


def test_the_jacobian_is_that_of_the_polynomial() -> None:
    shape = (41, 37, 45)
    places = [torch.linspace(-1, 1, size) for size in shape]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij"))
    scale = torch.tensor([2 / (size - 1) for size in shape])[:, None, None, None]
    amplitude = torch.tensor([3.0, -2.0, 1.0])[:, None, None, None]
    found = log_jacobian(amplitude * grid**3)
    expected = (1 + 3 * amplitude * scale * grid**2).prod(0).log()
    inner = (slice(1, -1),) * 3
    assert torch.allclose(found[inner], expected[inner], atol=2e-3)
    moved = displacement(shape, np.random.default_rng(0), 8.0)
    assert float(moved.abs().max()) <= 8.0 and float(moved[:, 20, 18, 22].abs().max()) < 1e-6


def test_labels_move_with_the_displacement() -> None:
    labels = torch.from_numpy(label_map().astype(np.uint8))
    moved = torch.zeros(3, *labels.shape)
    assert torch.equal(warp_labels(labels, moved), labels)
    moved[1] = 3.2
    warped = warp_labels(labels, moved)
    assert torch.equal(warped[:, :-3], labels[:, 3:]) and not warped[:, -3:].any()


def test_guidance_is_given_where_it_is_known() -> None:
    recipe = tiny("experts", guidance="[bias, nonlinearity]")
    for head_index, given in ((0, [True, False]), (3, [True, True])):
        rng = np.random.default_rng(5)
        volume = make_volume(heads()[head_index], recipe, rng, CPU, tissue=True)
        assert volume["given"].tolist() == given
        assert volume["maps"].shape == (2, *volume["target"].shape)
        assert bool(volume["maps"][1].any()) == given[1]
    batch = slices([volume], 64, 3, 5, np.random.default_rng(0))
    assert batch["maps"].shape == (5, 2, 64, 64)
    maps = guidance_maps(batch["maps"], torch.tensor([[True, False]] * 5))
    assert maps.shape == (5, 4, 64, 64)
    assert not maps[:, 1].any() and (maps[:, 2] == 1).all() and not maps[:, 3].any()
    assert torch.equal(maps[:, 0], batch["maps"][:, 0])


def test_the_gate_sees_guidance_and_does_without() -> None:
    torch.manual_seed(0)
    network = MoEDiffSR(MoEDiffConfig(width=4, embed_dim=12, heads=2, guidance_channels=2))
    network.eval()
    image = torch.rand(1, 64, 64)
    plain = network.gate_tokens(network.encode_tokens(image)).coarse
    absent = network.encode_tokens(image, torch.zeros(1, 4, 64, 64))
    assert torch.equal(network.gate_tokens(absent).coarse, plain)
    known = network.encode_tokens(image, torch.ones(1, 4, 64, 64))
    assert float((network.gate_tokens(known).coarse - plain).detach().abs().max()) > 1e-4


@pytest.mark.parametrize("profile", [Axis("kspace"), Axis("gaussian", 0.8)])
def test_a_head_on_larger_voxels_is_what_the_scanner_would_measure(profile: Axis) -> None:
    fine = torch.rand(30, 28, 24, generator=torch.Generator().manual_seed(1))
    coarse = to_larger_voxels(fine, (1.5, 1.0, 2.0), profile)
    same = Acquisition((profile,) * 3)
    operator = Operator.between((30, 28, 24), (1.0, 1.0, 1.0), (20, 28, 12), (1.5, 1.0, 2.0), same)
    torch.testing.assert_close(coarse, operator.forward(fine))


def test_a_larger_voxel_with_a_deleted_part_counts_nothing() -> None:
    image = _volume(shape=(12, 12, 12))
    weight = torch.ones(12, 12, 12)
    weight[4, 5, 6] = 0
    fine = Simulated(image, weight, image)
    coarse = fine.coarsened([2.0, 1.0, 2.0], Axis("box")).weight
    assert coarse.shape == (6, 12, 6)
    assert torch.nonzero(coarse == 0).tolist() == [[2, 5, 3]]


def test_interpolated_slices_are_undone_or_spared() -> None:
    head = replace(heads()[0], name="thick_1")
    rng = np.random.default_rng(0)
    grids = [draw_grid(head, {"thick*": [1, 1, 2]}, 0.0, rng) for _ in range(60)]
    spared = [grid for grid in grids if grid.spared is not None]
    assert 15 < len(spared) < 45
    assert all(grid.spared == 2 and not grid.changes for grid in spared)
    undone = [grid for grid in grids if grid.spared is None]
    assert all(grid.factors[2] == 2 for grid in undone)
    # the plane (3 mm voxels) is coarsened a part of the way to cubes of 6.4 mm
    plane = [grid.factors[0] for grid in undone]
    assert 1 <= min(plane) < 1.3 and 1.8 < max(plane) <= 6.4 / 3 + 1e-6
    assert draw_grid(head, {"other*": [1, 1, 2]}, 0.0, rng) == Grid()
    assert draw_grid(heads()[3], {"*": [1, 1, 2]}, 1.0, rng) == Grid()


def test_a_spared_axis_comes_first_and_is_not_degraded() -> None:
    recipe = tiny("mean", block=40, patch=16)
    head = replace(heads()[0], name="thick_1")
    told = []
    for seed in range(12):
        given = replace(recipe, interpolated={"thick*": [1, 1, 1.01]})
        volume = make_volume(head, given, np.random.default_rng(seed), torch.device("cpu"))
        told.append(volume["condition"].tolist())
        assert min(volume["target"].shape) >= 16
    assert sum(values[0] == 0 for values in told) >= 3
    assert all(values[2] > 0 for values in told)


def test_every_patch_counts_by_its_relative_error() -> None:
    target = torch.zeros(2, 4, 4, 4)
    start = torch.stack([torch.full((4, 4, 4), 0.095), torch.full((4, 4, 4), 0.015)])
    batch = {"start": start, "target": target, "weight": torch.ones_like(target)}
    weight = relative_weight(batch, border=1)
    assert float(weight[1, 0, 0, 0] / weight[0, 0, 0, 0]) == pytest.approx(0.1 / 0.02, rel=1e-5)
    assert float(weight[:, 0, 0, 0].mean()) == pytest.approx(1.0)
    for axis in range(3):  # what lies in the border changes nothing
        for end in (0, -1):
            start[0].select(axis, end).fill_(9.0)
    torch.testing.assert_close(relative_weight(batch, border=1), weight)


@pytest.mark.parametrize("name", list(ACQUISITIONS))
def test_one_acquisition_for_all_volumes(name: str) -> None:
    recipe = tiny("mean", acquisition=name, noise_share=1)
    ratios, profile = ACQUISITIONS[name]
    for seed in range(2):
        volume = make_volume(heads()[0], recipe, np.random.default_rng(seed), CPU)
        assert volume["condition"][:3].tolist() == pytest.approx(np.log2(ratios), abs=1e-6)
    plan = fixed(name, spare_first=True)
    assert plan.noise == 0 and plan.ratios == (1.0, *ratios[1:])
    assert {axis.profile for axis in plan.acquisition.axes} == {profile}


@pytest.mark.parametrize(("count", "kept"), [(2, 1), (10, 1), (11, 2), (21, 3)])
def test_a_tenth_of_the_participants_is_kept_out_rounded_up(count: int, kept: int) -> None:
    people = [replace(heads()[0], name=f"{n}", subject=f"sub-{n}") for n in range(count)]
    marked = mark_validation([*people, replace(people[0], name="again")], [])
    assert len({head.subject for head in marked if head.validation}) == kept
    assert marked[0].validation == marked[-1].validation


def test_label_maps_alone_are_something_to_train_on(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    nib.save(
        nib.Nifti1Image(label_map().astype(np.int16), np.diag([*ZOOMS, 1])), folder / "l.nii.gz"
    )
    options = Namespace(
        data=[], labels=[folder], pairs="auto", modalities=["T1w"], max_voxel=9.0,
        validation_label=[], max_megabytes=None,
    )  # fmt: skip
    write_pack(options, tmp_path / "pack.npz")
    (head,) = load_pack(tmp_path / "pack.npz")
    assert head.kind == "labels" and np.array_equal(
        np.unique(head.volume), [0, 2, 3, 24, 41, 42, 207]
    )
    with pytest.raises(UsageError, match="what to train on"):
        write_pack(Namespace(data=[], labels=[]), tmp_path / "none.npz")
