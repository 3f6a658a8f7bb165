# SPDX-License-Identifier: Apache-2.0
"""What discovery finds and what a dry run says of it, as text beside this file.

Which images are taken, from where their statements come, why the others are left out, and what
each would cost: ``tests/data/plans`` (see ``golden.py``).
"""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.database import images_in_database
from bids_moediff.bids.discover import (
    SERIES,
    _why_left_out,
    discover_participant,
    participant_folders,
)
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.listing import list_participant
from bids_moediff.cli import dry_run
from bids_moediff.errors import MoediffError
from bids_moediff.families import cost
from bids_moediff.settings import load_settings
from golden import check

ZOOMS = {
    "sub-01/ses-a/anat/sub-01_ses-a_T1w": (1.0, 1.0, 1.5),
    "sub-01/ses-a/anat/sub-01_ses-a_acq-ax_T2w": (1.0, 1.0, 5.0),
    "sub-01/ses-a/anat/sub-01_ses-a_acq-cor_T2w": (1.0, 5.0, 1.0),
    "sub-01/ses-b/anat/sub-01_ses-b_part-mag_T2w": (1.0, 1.0, 5.0),
    "sub-01/ses-b/anat/sub-01_ses-b_T1map": (1.0, 1.0, 1.0),
    "sub-02/anat/sub-02_T1w": (0.5, 0.5, 0.5), "sub-02/anat/sub-02_run-2_FLAIR": (1.0, 1.0, 3.0),
}  # fmt: skip
ODD = (
    "sub-01/ses-b/anat/sub-01_ses-b_part-phase_T2w.nii.gz", "sub-01/ses-a/anat/sub-01_T2w.nii.gz",
    "sub-01/ses-a/anat/sub-01_ses-a_desc-x_T1w.nii.gz", "sub-02/anat/sub-02_bold.nii.gz",
    "sub-02/anat/sub-02_T1W.nii.gz", "sub-02/anat/sub-02_dir-AP_T1w.nii.gz",
    "sub-02/anat/sub-02_defacemask.nii.gz", "sub-02/anat/sub-02_T1w.nii", "sub-02/T1/x.nii.gz",
    "sub-02/sub-02_T2w.nii.gz", "sub-02/anat/sub-02_T2w.mgz", "sub-02/anat/x_T1w.nii.gz.nii",
    "sub-02/anat/sub-02_acq-y_T2w.JSON", "sub-02/session1/anat/sub-02_T1w.nii.gz",
    "sub-02/anat/sub-02_acq-broken_FLAIR.nii.gz",
)  # fmt: skip
SIDECARS = {
    "T2w.json": {"EchoTime": 0.1, "MRAcquisitionType": "2d "},
    "sub-01/sub-01_T2w.json": {"EchoTime": 0.2, "SliceThickness": 4},
    "sub-01/ses-a/sub-01_ses-a_acq-ax_T2w.json": {"SliceThickness": "x", "session": "a"},
    "sub-01/ses-a/anat/sub-01_ses-a_acq-ax_T2w.json": {
        "EchoTime": 0.2,
        "SpacingBetweenSlices": 5.5,
    },
    "sub-02/anat/sub-02_T1w.json": {"SliceEncodingDirection": "l", "RepetitionTime": [1, 2]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plans") / "bids"
    for name, zooms in ZOOMS.items():
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = tuple(round(180 / zoom) for zoom in zooms)
        header = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.diag([*zooms, 1.0])).header
        header.set_data_shape(shape)
        header.set_sform(np.diag([*zooms, 1.0]), 1)
        header.set_zooms(zooms)
        header["vox_offset"], header["magic"] = 352, b"n+1"
        content = header.binaryblock + bytes(4) + bytes(2 * int(np.prod(shape)))
        path.write_bytes(gzip.compress(content, 1))
    for name in ODD:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for name, statements in SIDECARS.items():
        (folder / name).write_text(json.dumps(statements))
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (folder / "sub-03" / "anat").mkdir(parents=True)
    (folder / "sub-04").symlink_to("nowhere")
    (folder / "sub-x_y").mkdir()
    (folder / "Subject05").mkdir()
    query = {"t1w": {"session": None}, "t2w": {"acquisition": ["ax", "*"]}, "bold": {}}
    (folder.parent / "filter.json").write_text(json.dumps(query))
    return folder


OPTIONS = {
    "default": {}, "combined": {"combine": "auto"}, "maps": {"modalities": ["T1map", "T2w"]},
    "session": {"session_label": ["b"]}, "filtered": {"bids_filter_file": "filter.json"},
}  # fmt: skip


def settings(root: Path, **given):
    if "bids_filter_file" in given:
        given["bids_filter_file"] = str(root.parent / "filter.json")
    places = {"bids_dir": str(root), "output_dir": str(root.parent / "out")}
    return load_settings({**places, "analysis_level": "participant", **given}, None, {})


def brief(sentence: str) -> str:
    """The names and numbers of a sentence: how it is put may change."""
    words = (word.strip(".,;:()") for word in sentence.split())
    return " ".join(word for word in words if not word.isalpha() or not word.islower())


def of_image(image: AnatomicalImage) -> list[str]:
    lines = [f"  {image.relative_path}: {json.dumps(dict(image.metadata), sort_keys=True)}"]
    lines += [f"    of {[scan.key for scan in image.members]}"] if image.members else []
    lines += [f"    {brief(image.problem)}"] if image.problem else []
    return lines + [f"    remark: {brief(words)}" for words in image.remarks]


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_found(root, name):
    lines = []
    for label in sorted(participant_folders(root)):
        lines.append(f"sub-{label}:")
        try:
            found = discover_participant(settings(root, **OPTIONS[name]), label)
        except MoediffError as error:
            lines.append(f"  {type(error).__name__}: {brief(str(error))}")
            continue
        lines += [line for image in found.results for line in of_image(image)]
        lines += [f"  notice: {brief(words)}" for words in found.notices]
        lines += [f"  {count} {reason}" for reason, count in sorted(found.passed.items())]
        lines += [f"  problem: {brief(words)}" for words in found.problems]
    check(f"plans/found_{name}.txt", "\n".join(lines).replace(str(root), "ROOT") + "\n")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("default", {}), ("combined", {"combine": "auto", "output_resolution": "1"}),
        ("guided", {"model": "crfm", "modalities": ["T2w"]}),
        ("experts", {"model": "moediff", "num_samples": "3", "session_label": ["a"]}),
    ],
)  # fmt: skip
def test_what_would_be_done(root, monkeypatch, capsys, name, more):
    monkeypatch.setattr(cost, "has_bfloat16", lambda: True)
    monkeypatch.setattr(dry_run, "NON_TERMINAL_WIDTH", 400)
    given = {"model": "student", "device": "cpu", "mem": "2", "nprocs": "2", "omp_nthreads": "2"}
    people = {"participant_label": ["01", "02"], "dry_run": True}
    code = dry_run.print_plan(settings(root, **given | people | more))
    lines = [f"exit code {code}"]
    said = capsys.readouterr()
    for line in said.out.splitlines():
        words = " ".join(line.split())
        lines += [words if words[0] in "│┃" else brief(words)]
    text = "\n".join(line for line in lines if line[0] not in "┏┡└") + "\n"
    broken = "broken_FLAIR.nii.gz is not a readable NIfTI image"
    assert (broken in said.err) == (code == 1), "what cannot be done is said"
    check(f"plans/dry_{name}.txt", text.replace(str(root.parent), "ROOT"))
    assert not (root.parent / "out").exists()


def test_a_database_lists_the_same_images_as_the_folders(root):
    for label in ("01", "02", "03"):
        # pybids passes over names without a participant.
        listed = [
            path for path in list_participant(root, label).images if path.name.startswith("sub-")
        ]
        assert images_in_database(root, root.parent / "database", label) == listed, label


@pytest.mark.parametrize("suffix", [*SERIES, "T1w", "UNIT1"])
def test_series_have_entities_that_other_images_have_not(tmp_path, suffix):
    path = tmp_path / "sub-1" / "anat" / f"sub-1_flip-1_inv-2_mt-on_{suffix}.nii.gz"
    reason = _why_left_out(path, path.relative_to(tmp_path).as_posix(), {path})
    of_bids = ("MESE", "MEGRE", "MP2RAGE", "MPM", "VFA", "MTS", "MTR", "IRT1")
    assert (reason is None) == (suffix in of_bids)
