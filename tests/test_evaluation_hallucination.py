# SPDX-License-Identifier: Apache-2.0
"""Lesions: placed right, recovered as they should be by known methods, inventions noticed."""

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.errors import ImageError
from bids_moediff.evaluation import hallucination as suite
from bids_moediff.evaluation.benchmark import BASELINES, Method, Task
from bids_moediff.evaluation.truth import Loaded, TruthHead
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.metrics import intensity_range
from bids_moediff.imaging.protocols import parse_protocol
from conftest import run_here
from generated import head, untrained_model
from golden import check_numbers, read_table

SHAPE, ZOOMS = (64, 76, 60), (2.4, 2.4, 2.6)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    image = head(SHAPE, ZOOMS)
    data = np.asarray(image.dataobj, np.float32)
    mask = head_mask_array(data, ZOOMS)
    return Loaded(TruthHead(Path("h.nii.gz")), data, mask, ZOOMS, image.affine, (0, 1, 2), "")


@pytest.fixture(scope="module")
def lesions(loaded: Loaded) -> list[suite.Lesion]:
    return suite.place_lesions(loaded, diameters=(4.0, 7.0), contrasts=(0.3, -0.2), repeats=2)


@pytest.fixture(scope="module")
def trial(loaded: Loaded, lesions: list[suite.Lesion]) -> suite.Trial:
    return suite.make_trial(loaded, parse_protocol("x2slices-box"), lesions)


def test_lesions_are_apart_and_deep(loaded: Loaded, lesions: list[suite.Lesion]) -> None:
    assert len(lesions) == 8
    centres = np.array([lesion.centre for lesion in lesions]) * ZOOMS
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    assert distance[~np.eye(8, dtype=bool)].min() >= suite.SPACING
    assert all(loaded.mask[lesion.centre] for lesion in lesions)
    assert suite.place_lesions(loaded, (4.0, 7.0), (0.3, -0.2)) == lesions
    slab = loaded.mask.copy()
    slab[:, :, 40:] = slab[:, :, :20] = slab[:, 46:] = slab[:, :30] = False
    with pytest.raises(ImageError, match=r"room for \d+ of 12000 lesions"):
        suite.place_lesions(replace(loaded, mask=slab), repeats=1000)


def test_volume_and_contrast_of_a_lesion() -> None:
    """A soft edge that is symmetric leaves the volume of the sphere nearly unchanged."""
    zooms = (0.4, 0.5, 0.4)
    lesion = suite.Lesion((30, 25, 30), 5.0, -0.2)
    image = suite.add_lesions(np.full((61, 51, 61), 700.0), zooms, [lesion], 1000.0)
    assert image.min() == pytest.approx(500)
    volume = ((700 - image) / 200).sum() * np.prod(zooms)
    # Mean of r cubed over the edge: r0^3 (1 + 3 var / r0^2), var of a raised cosine of width 1.
    variance = (1 / 3 - 2 / np.pi**2) / 4 * suite.SOFT_EDGE**2
    expected = 4 / 3 * np.pi * 2.5**3 * (1 + 3 * variance / 2.5**2)
    assert volume == pytest.approx(expected, rel=0.02)


def restored_exactly(task: Task) -> np.ndarray:
    return task.truth.copy()


def test_the_truth_recovers_everything(trial: suite.Trial) -> None:
    rows, figures, _, _ = suite.examine(trial, Method("truth", "", restored_exactly))
    assert [row["recovered"] for row in rows] == pytest.approx([1.0] * 8, rel=1e-5)
    assert figures["outside_max"] == 0
    assert figures["false_positives"] == 0
    assert figures["null_energy"] == pytest.approx(1)
    assert figures["null_correlation"] == pytest.approx(1)
    assert figures["mirror_difference"] == 0


def repetition(task: Task) -> np.ndarray:
    """Every slice twice: what the null space of a box profile holds nothing of."""
    return np.repeat(task.measured.numpy(), 2, axis=2)


def test_repeated_slices_have_an_empty_null_space(trial: suite.Trial) -> None:
    rows, figures, _, _ = suite.examine(trial, Method("repeat", "", repetition))
    assert figures["null_energy"] < 1e-9
    truth = trial.with_lesions.truth - trial.without.truth
    pairs = truth.reshape(*SHAPE[:2], SHAPE[2] // 2, 2)
    mean = np.repeat(pairs.mean(axis=-1), 2, axis=2)
    for row, lesion in zip(rows, trial.lesions, strict=True):
        grid = np.indices(SHAPE).reshape(3, -1).T
        distance = np.linalg.norm((grid - lesion.centre) * ZOOMS, axis=1).reshape(SHAPE)
        core = distance < lesion.diameter / 2
        assert row["recovered"] == pytest.approx(mean[core].sum() / truth[core].sum(), rel=1e-3)


def test_inventions_are_counted(trial: suite.Trial, loaded: Loaded) -> None:
    """A method that adds two spots wherever the slices hold a lesion, and is not symmetric."""
    size = np.argwhere(loaded.mask)
    spots = [tuple(size[len(size) // 7]), tuple(size[-len(size) // 9])]
    reference = repetition(trial.without)

    def invent(task: Task) -> np.ndarray:
        image = repetition(task)
        if np.abs(image - reference).max() > 0:
            for spot in spots:
                image[spot] += 50 * trial.noise
        return image

    plain = suite.examine(trial, Method("repeat", "", repetition))[1]
    found = suite.examine(trial, Method("invent", "", invent))[1]
    assert plain["false_positives"] == plain["invented"] == 0
    assert found["false_positives"] == found["invented"] == 2
    # Had the scan itself shown the one spot and half of the other, one would be the method's own.
    change = invent(trial.with_lesions) - invent(trial.without)
    change[spots[0]] /= 2
    half = suite.examine(replace(trial, scanned=change), Method("invent", "", invent))[1]
    assert half["false_positives"] == 2 and half["invented"] == 1
    assert found["outside_max"] == pytest.approx(50, rel=0.01)
    assert found["mirror_difference"] > 0
    assert plain["mirror_difference"] == 0


def test_what_blurring_spreads_is_not_outside_a_lesion(trial: suite.Trial) -> None:
    """Two coarse voxels (5.2 mm) beyond the edge of 4 mm: up to 12.9 mm from the centre."""
    one = replace(trial, lesions=[next(x for x in trial.lesions if x.diameter == 4)])
    x, y, z = one.lesions[0].centre
    largest = {}
    for steps in (3, 5, 6):  # of 2.4 mm

        def spill(task: Task, steps: int = steps) -> np.ndarray:
            image = trial.without.truth.copy()
            if task is trial.with_lesions:
                image[x + steps, y, z] += 50 * trial.noise
            return image

        figures = suite.examine(one, Method("spill", "", spill))[1]
        largest[steps] = figures["outside_max"]
    assert largest == {3: 0, 5: 0, 6: pytest.approx(50, rel=0.01)}


def test_the_ringing_of_the_scan_is_not_the_method_s(loaded: Loaded) -> None:
    """Truncated k-space rings far around a lesion; the scan says so, and no method invented it."""
    lesions = suite.place_lesions(loaded, (5.0,), (0.3,), 2)
    trial = suite.make_trial(loaded, parse_protocol("x2slices-kspace"), lesions)
    trial = replace(trial, noise=trial.noise / 20)
    figures = suite.examine(trial, BASELINES[3])[1]
    assert BASELINES[3].name == "consistent"
    assert figures["false_positives"] > 0 and figures["invented"] == 0


def test_lesions_of_a_reference_are_told_apart(loaded: Loaded) -> None:
    """A method that adds the reference copies its lesions; one that ignores it does not."""
    lesions = suite.place_lesions(loaded, (4.0,), (0.3,), 2)
    guided = replace(loaded, reference=1000 - loaded.truth)
    trial = suite.make_trial(guided, parse_protocol("x2slices-box"), lesions)

    assert trial.without.reference is not None
    share = trial.scale / intensity_range(trial.without.reference, trial.without.mask)

    def copier(task: Task) -> np.ndarray:
        assert task.reference is not None
        return task.truth + share * task.reference

    def shares(method: Method) -> dict[str, float]:
        rows = suite.examine(trial, method)[0]
        return {row["lesions_in"]: row["recovered"] for row in rows}

    found = shares(Method("copier", "", copier, guided=True))
    assert found == pytest.approx({"image": 1, "reference": 1, "both": 2}, rel=1e-4)
    found = shares(Method("truth", "", restored_exactly, guided=True))
    assert found == pytest.approx({"image": 1, "reference": 0, "both": 1}, abs=1e-5)
    assert set(shares(Method("truth", "", restored_exactly))) == {"image"}
    figures = suite.examine(trial, Method("copier", "", copier, guided=True))[1]
    assert figures["mirror_difference"] == 0


def test_size_classes_are_against_back_projection(trial: suite.Trial) -> None:
    tables = suite.Tables([], [])
    for method in (BASELINES[1], BASELINES[2]):
        rows, _, _, _ = suite.examine(trial, method)
        base = {"head": "h", "protocol": "x2slices-box", "method": method.name, "version": "1"}
        tables.lesions += [base | row for row in rows]
    classes = {(c["method"], c["diameter_mm"]): c for c in suite.size_classes(tables)}
    cubic, back = classes["cubic", 4.0], classes["back-projection", 4.0]
    assert cubic["lesions"] == 4
    difference = cubic["recovered"] - back["recovered"]
    assert cubic["over_back_projection"] == pytest.approx(difference)
    assert back["over_back_projection"] == 0
    assert classes["back-projection", 7.0]["recovered"] > back["recovered"]


def test_command(tmp_path: Path) -> None:
    nib.save(head(SHAPE, ZOOMS), tmp_path / "h_T1w.nii.gz")
    untrained_model(tmp_path / "tiny")
    arguments = ["out", "--heads", "h_T1w.nii.gz", "--model", "./tiny", "--precision", "fp32"]
    arguments += ["--protocols", "x2slices-kspace", "--repeats", "1"]
    run = run_here("bids_moediff-evaluate", "hallucination", *arguments, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    with (tmp_path / "out" / "lesions.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) == 3 * 12
    assert {row["method"] for row in rows} == {"cubic", "back-projection", "tiny"}
    with (tmp_path / "out" / "sizes.tsv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream, delimiter="\t"))) == 3 * 4
    tables = {
        path.name: read_table(path, without=("seconds",))
        for path in sorted((tmp_path / "out").glob("*.tsv"))
    }
    check_numbers("evaluations.json", "hallucination", tables, rel=5e-3, abs=2e-3)
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "| x2 slices, k-space | 5 mm | tiny | 3 |" in page
    for link in ("recovered.png", "lesions_h_T1w_x2slices-kspace.png"):
        assert f"figures/{link}" in page
        assert (tmp_path / "out" / "figures" / link).stat().st_size > 5000
