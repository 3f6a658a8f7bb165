# SPDX-License-Identifier: Apache-2.0
"""The default voxel size: 0.7 mm, no axis coarser than it came; a no-op is called one."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.discover import discover_participant
from bids_moediff.cli.app import main
from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.grid import NOT_RESTORED, voxel_sizes
from bids_moediff.inference.warnings import range_warnings
from bids_moediff.options import Options
from bids_moediff.preprocessing.conform import conform
from bids_moediff.reports.participant import write_participant_report
from bids_moediff.settings import load_settings
from bids_moediff.workflows.participant import RunPlan, _init_status
from report_data import make_run


@pytest.mark.parametrize(
    ("zooms", "expected"),
    [
        ((1, 1, 1), (0.7, 0.7, 0.7)),
        ((0.43, 0.43, 2.5), (0.43, 0.43, 0.7)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        (np.array([0.7, 0.7, 5], np.float32), (0.7, 0.7, 0.7)),
    ],
)
def test_no_axis_gets_coarser_than_it_came(zooms, expected):
    assert Options().output_zooms(zooms) == expected
    assert Options().for_image(zooms).zooms == expected


def test_coarser_voxels_come_only_when_asked_for():
    asked = Options(output_resolution=(1.0, 1.0, 1.0))
    assert asked.output_zooms((0.43, 0.43, 2.5)) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="for_image"):
        _ = Options().zooms


@pytest.fixture
def data(tmp_path) -> Path:
    """Three participants: thick slices, fine enough already, oblique."""
    root = tmp_path / "data"
    turn = nib.eulerangles.euler2mat(0.1, 0.2, 0.3)
    for label, zooms, rotation in (
        ("thick", (0.43, 0.43, 2.5), np.eye(3)),
        ("fine", (0.6, 0.6, 0.6), np.eye(3)),
        ("oblique", (0.9, 0.43, 3.1), turn),
    ):
        folder = root / f"sub-{label}" / "anat"
        folder.mkdir(parents=True)
        affine = np.eye(4)
        affine[:3, :3] = rotation * np.array(zooms)
        voxels = np.random.default_rng(0).normal(100, 10, (12, 12, 12)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"sub-{label}_T1w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    return root


def test_dry_run_shows_the_size_of_each_image_and_what_is_unusual(data, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main([str(data), out, "participant", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "0.43 x 0.43 x 0.7" in said
    assert f"sub-fine/anat/sub-fine_T1w.nii.gz: {NOT_RESTORED}" in said
    assert "coarser than the input" not in said
    size = ("--output-resolution", "1")
    assert main([str(data), out, "participant", "--dry-run", *size]) == 0
    assert "and 2 more: Output voxels are coarser than the input" in capsys.readouterr().out


def test_app_and_child_agree_on_the_size(data, tmp_path):
    """The app names files by the header, the child works on the conformed image."""
    settings = load_settings(
        {"bids_dir": data, "output_dir": tmp_path / "out", "analysis_level": "participant"},
        environment={},
    )
    plan = RunPlan("student", "", ("cpu",), 1, "run")
    for label in ("thick", "fine", "oblique"):
        (image,) = discover_participant(settings, label).images
        named = _init_status(image, settings, plan).inputs.zooms
        worked = settings.output_zooms(voxel_sizes(conform(image.path)[0].affine))
        assert named == worked


def test_a_no_op_is_called_one_in_sidecar_and_report(tmp_path):
    acquisition = Acquisition.uniform("kspace")
    assert range_warnings((0.6,) * 3, (0.6,) * 3, acquisition) == [NOT_RESTORED]
    assert NOT_RESTORED not in range_warnings((1, 1, 1), (0.7, 0.7, 0.7), acquisition)
    run = make_run(tmp_path)
    run["images"] = run["images"][:1]
    run["images"][0]["warnings"] = [NOT_RESTORED]
    text = write_participant_report(tmp_path, "01", run).read_text()
    assert 'class="badge missing">not restored</span>' in text
