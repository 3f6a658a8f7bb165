# SPDX-License-Identifier: Apache-2.0
"""Which images a later run does again: the record of one run, and what is found of it later."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.bids.names import derivative_path
from bids_moediff.bids.products import wanted_products
from bids_moediff.bids.sidecar import build_sidecar, source_uri
from bids_moediff.execution.finished import Finished, applies, find_finished, words_on_finished
from bids_moediff.interfaces.run_record import CollectRun, ImageStatus
from bids_moediff.settings import Settings, load_settings
from bids_moediff.workflows.made_with import made_with
from bids_moediff.workflows.participant import RunPlan, run_file

ZOOMS = (1.0, 1.0, 1.0)
PLAN = RunPlan("student", "", ("cpu",), 1, "run")
CARRIED = "sub-01/anat/sub-01_res-1mm_desc-lesion_mask.nii.gz"
BODY = "sub-01/anat/sub-01_{}.nii.gz"
SAMPLES = [BODY.format(f"res-1mm_desc-srsample{number}_T1w") for number in (1, 2)]
SPACE = BODY.format("space-MNI152NLin6Asym_res-1mm_desc-sr_T1w")


def image(suffix: str = "T1w") -> AnatomicalImage:
    path = f"sub-01/anat/sub-01_{suffix}.nii.gz"
    return AnatomicalImage(Path("/nowhere") / path, path, {"sub": "01"}, suffix, {})


def settings_for(folder: Path, **more: object) -> Settings:
    given = {
        "bids_dir": "/nowhere", "output_dir": str(folder), "analysis_level": "participant",
        "output_resolution": "1", "num_samples": "2", "outputs": "samples",
        "output_spaces": "MNI152NLin6Asym",
    }  # fmt: skip
    return load_settings({**given, **more}, None, {})


def put(folder: Path, path: str, sidecar: dict) -> None:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), place)
    place.with_name(place.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps(sidecar))


@pytest.fixture
def finished(tmp_path) -> Settings:
    """The output folder of a run that drew two samples; its record is written by its own steps."""
    settings, folder = settings_for(tmp_path / "out"), tmp_path / "out"
    for row in wanted_products(settings, image()):
        zooms = ZOOMS if row.on_output_grid else None
        path = derivative_path(image(), row.key, zooms, row.extensions[0])
        put(folder, str(path), build_sidecar(image(), row.key, zooms, {}))
    put(folder, CARRIED, {"Sources": [source_uri(image())], "CarriedFrom": "x"})
    put(folder, BODY.format("res-1mm_desc-srsample3_T1w"), {"Sources": ["bids:raw:another"]})
    (tmp_path / "work").mkdir()
    step = ImageStatus(
        source=image().to_json(), stage="all", output_dir=str(folder), zooms=ZOOMS, run_id="run",
        made_with=made_with(image(), settings, "student"),
    )  # fmt: skip
    status = step.run(cwd=str(tmp_path / "work")).outputs.status
    record = run_file(settings, PLAN, Participant("01", ()))
    record.parent.mkdir(parents=True)
    collect = CollectRun(
        label="01", settings={}, statuses=[status], refused=[], run_file=str(record)
    )
    collect.run(cwd=str(tmp_path / "work"))
    return settings


def look(settings: Settings, *images: AnatomicalImage) -> Finished:
    return find_finished(Participant("01", images or (image(),)), settings, "student")


def test_what_is_whole_is_not_done_again(finished):
    found = look(finished, image(), image("T2w"))
    assert list(found.done) == ["sub-01_T1w"] and found.again == {}
    assert found.participant.images == (image("T2w"),), "of which there is no record"
    assert not found.report_missing, "as long as there is work to do"
    assert look(finished).report_missing


@pytest.mark.parametrize(
    "path",
    [*SAMPLES, SPACE, CARRIED]
    + [BODY.format(f"res-1mm_desc-{name}") for name in ("sr_T1w", "srstd_T1w", "brain_mask")],
)
@pytest.mark.parametrize("fault", ["gone", "without a sidecar", "cut", "empty"])
def test_an_image_that_lost_one_file_is_done_again(finished, path, fault):
    place = finished.output_dir / path
    if fault == "gone":
        place.unlink()
    elif fault == "without a sidecar":
        place.with_name(place.name.removesuffix(".nii.gz") + ".json").unlink()
    else:
        place.write_bytes(place.read_bytes()[:-30] if fault == "cut" else b"")
    found = look(finished)
    assert found.done == {} and not found.report_missing
    assert found.participant.images == (image(),)
    assert "missing or cut off" in found.again["sub-01_T1w"]


def test_files_of_others_are_not_looked_at(finished):
    (finished.output_dir / BODY.format("res-1mm_desc-srsample3_T1w")).unlink()
    assert list(look(finished).done) == ["sub-01_T1w"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"status": "failed"}, None),
        ({"source": "sub-01/anat/sub-01_T1w.nii"}, None),
        ({"products": {}}, "missing or cut off"),
        ({"made_with": {}}, "version unknown of bids_moediff"),
        ({"made_with": {"version": "0.0"}}, "version 0.0 of bids_moediff"),
        ({"made_with": {"inputs": "x"}}, "inputs changed since the last run"),
        ({"made_with": {"weights": "x", "options": "y"}}, "options and weights changed"),
    ],
)
def test_what_the_record_says(finished, changed, words):
    """``words``: why it is done again, or None where it was never done."""
    record = run_file(finished, PLAN, Participant("01", ()))
    content = json.loads(record.read_text())
    (item,) = content["images"]
    own = item["made_with"] if changed.get("made_with") else {}
    item |= changed
    if "made_with" in changed:
        item["made_with"] = own | changed["made_with"]
    record.write_text(json.dumps(content))
    found = look(finished)
    assert found.done == {} and found.participant.images == (image(),)
    assert list(found.again) == ([] if words is None else ["sub-01_T1w"])
    assert words is None or words in found.again["sub-01_T1w"]


@pytest.mark.parametrize("only", [False, True])
def test_a_group_is_done_as_a_whole_or_not_at_all(finished, only):
    """The scan alone is finished; what is combined of it and another one is not."""
    members = (image(), image("T2w"))
    path = "sub-01/anat/sub-01_desc-x_T1w.nii.gz"
    group = AnatomicalImage(Path("/nowhere") / path, path, {"sub": "01"}, "T1w", {}, None, members)
    settings = settings_for(
        finished.output_dir, combine="auto", **({"combine_only": True} if only else {})
    )
    found = find_finished(Participant("01", members, groups=(group,)), settings, "student")
    assert found.done == {}
    assert found.participant.images == members and found.participant.groups == (group,)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True), ({"stage": "sr"}, True), ({"stage": "preproc"}, False),
        ({"stage": "report"}, False), ({"rerun": True}, False), ({"reports_only": True}, False),
        ({"boilerplate_only": True}, False),
    ],
)  # fmt: skip
def test_when_finished_images_are_skipped(options, expected):
    assert applies(Settings(**options)) is expected


def test_what_is_said_of_them():
    from collections import Counter

    assert words_on_finished(Counter(), 0) == []
    again, skipped = words_on_finished(Counter({"why": 2}), 1)
    assert again == "2 images are done again: why."
    assert skipped.startswith("1 image was finished")
