# SPDX-License-Identifier: Apache-2.0
"""Agreement of tools with themselves on the truth; the tools as commands of another place."""

import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.errors import MoediffError, UsageError
from bids_moediff.evaluation.benchmark import make_task
from research.downstream import sample_volumes
from research.downstream.figures import bland_altman, compare, intraclass, summarise
from research.downstream.kevinsr import kevinsr
from research.downstream.tools import Anatomy, read_anatomy, run_tools


def anatomy(thick: float, shift: int = 0) -> Anatomy:
    """A slab: fluid, five voxels of cortex from 3 + shift on, white matter; 0.001 ml a voxel."""
    tissue = np.ones((16, 4, 4), np.float32)
    tissue[3 + shift : 8 + shift], tissue[8 + shift :] = 2, 3
    position = np.clip((np.arange(16) - 3 - shift) / 4, 0, 1)[:, None, None] + 0 * tissue
    return Anatomy(tissue, np.full_like(tissue, thick), position.astype(np.float32), 0.001)


def test_one_image_against_the_truth() -> None:
    truth, same = anatomy(3.0), compare(anatomy(3.0), anatomy(3.0))
    assert same["thickness"] == 3 and same["thickness_bias"] == same["thickness_difference"] == 0
    assert [same[f"dice_{name}"] for name in ("fluid", "grey", "white")] == [1, 1, 1]
    assert same["ml_grey"] == pytest.approx(0.08) and same["ml_fluid"] == pytest.approx(0.048)
    moved = compare(anatomy(2.5, shift=1), truth)
    assert moved["dice_grey"] == pytest.approx(0.8) and moved["dice_fluid"] == pytest.approx(6 / 7)
    assert moved["thickness_bias"] == moved["thickness"] - 3 == -0.5
    half = anatomy(3.0)
    half.tissue[7] = 2.5  # half white, half grey matter: counted in both
    assert half.volumes()["grey"] == pytest.approx(0.072)
    assert half.volumes()["white"] == pytest.approx(0.136)


def test_agreement_over_images() -> None:
    # Bland and Altman 1999, any text book: mean and deviation of the differences.
    mean, limits = bland_altman([1.0, 3.0, 5.0], [0.0, 3.0, 4.0])
    assert mean == pytest.approx(2 / 3) and limits == pytest.approx(1.96 / np.sqrt(3))
    assert intraclass([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1)
    # An offset costs agreement, though the correlation is 1: variance between 5/3, offset 1.
    between, offset = 5 / 3, 1.0
    assert intraclass([1, 2, 3, 4], [2, 3, 4, 5]) == pytest.approx(
        between / (between + offset / 2)
    )
    assert np.isnan(intraclass([1, 2], [1, 2]))


def test_summary_pairs_each_image_with_its_own_truth() -> None:
    rows = []
    for number, head in enumerate("abc"):
        for method, apart in (("truth", 0.0), ("model", 0.5)):
            about = {"head": head, "protocol": "p", "method": method}
            rows.append(about | compare(anatomy(3 + number + apart), anatomy(3.0 + number)))
    (entry,) = summarise(reversed(rows))
    assert entry["method"] == "model" and entry["images"] == 3
    assert entry["thickness_apart"] == pytest.approx(0.5)
    assert entry["thickness_limits"] == pytest.approx(0)
    assert (entry["thickness_bias_low"], entry["thickness_bias_high"]) == (0.5, 0.5)


def test_intervals_of_volumes_over_samples() -> None:
    row = {"head": "a", "model": "m", "protocol": "x4slices-box", "tissue": "grey", "samples": 8}
    rows = [
        row | {"truth": 200.0, "image": image, "mean": mean, "deviation": deviation}
        for image, mean, deviation in ((206.0, 200.0, 4.0), (204.0, 196.6, 2.0), (203.0, 206.0, 2))
    ]
    # 1.645 times the deviation, wider for eight samples: 6.98, 3.49 and 3.49 ml.
    assert sample_volumes.half_width(rows[0]) == pytest.approx(6.98, abs=0.005)
    found = sample_volumes.result(rows)
    assert [row["about_image"] for row in found["rows"]] == ["yes", "no", "yes"]
    assert [row["about_samples"] for row in found["rows"]] == ["yes", "yes", "no"]
    assert found["rows"][0]["bias"] == pytest.approx(3)
    assert found["rows"][2]["half"] == pytest.approx(1.745, abs=0.002)
    counts = found["values"]
    assert (counts["held"], counts["small"], counts["small_held"]) == (2, 2, 1)


def tool(path: Path, text: str) -> None:
    """Write a command."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_tools_are_commands_that_see_nothing_of_this_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, image, out = tmp_path / "bin", tmp_path / "image.nii.gz", tmp_path / "out"
    place.mkdir()
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 2, np.float32), np.diag([1, 1, 2, 1])), image)
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    with pytest.raises(UsageError, match=r"deepbet-cli cannot be run: No such file"):
        run_tools(place, image, out)
    calls = tmp_path / "calls"
    told = f'echo "$0 $PYTHONPATH $OMP_NUM_THREADS" >> {calls}'
    # deepbet: -i IMAGE -o STRIPPED -m MASK; python: segment.py IMAGE MASK OUT
    tool(place / "deepbet-cli", f'{told}; cp "$2" "$4"; cp "$2" "$6"')
    tool(place / "python", f"{told}; echo no brain found >&2; exit 3")
    with pytest.raises(MoediffError, match="failed: no brain found"):
        run_tools(place, image, out)
    copies = "; ".join(f'cp "$2" "$4/{n}.nii.gz"' for n in ("tissue", "thickness", "position"))
    tool(place / "python", f"{told}; {copies}")
    for _ in range(2):  # what is there is kept
        run_tools(place, image, out)
    lines = calls.read_text().splitlines()
    assert lines == [f"{place / name}  1" for name in ("deepbet-cli", "python", "python")]
    found = read_anatomy(out)
    assert found.voxel == pytest.approx(0.002) and (found.labels == 2).all()
    assert not (out / "stripped.nii.gz").exists() and os.environ["PYTHONPATH"] == "/somewhere"


STAND_IN = """
import os
from . import SOUP
import numpy as np
def SOUP_GAN(thick, factor, kind):
    assert kind == 1 and {"Thin-to-thin", "Thick-to-thin"} <= set(os.listdir())
    low, high = thick.min(), thick.max()
    return np.repeat((thick - low) / (high - low) * 10000, factor, -1)
"""


def test_kevinsr_gets_slices_last_and_gives_its_own_intensities_and_grid(tmp_path: Path) -> None:
    package, python = tmp_path / "KevinSR", tmp_path / "python"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    (package / "SOUP.py").touch()
    tool(python, f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    truth = np.random.default_rng(0).uniform(-50, 900, (24, 20, 16)).astype(np.float32)
    affine = np.array([[0, 0, 1.5, 3], [1, 0, 0, -7], [0, 1.2, 0, 11], [0, 0, 0, 1.0]])
    task = make_task(truth, truth > 0, (1, 1.2, 1.5), affine, (2, 4, 1), "gaussian")
    method = kevinsr(python)
    with pytest.raises(MoediffError, match="Thin-to-thin is missing"):  # nothing is downloaded
        method.restore(task)
    network = package / "Thin-to-thin"
    network.mkdir()
    (network / "saved_model.pb").touch()
    expected = task.measured.numpy().repeat(2, 0).repeat(4, 1)
    assert np.allclose(method.restore(task), expected, atol=1e-3)
