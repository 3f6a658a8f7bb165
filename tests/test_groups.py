# SPDX-License-Identifier: Apache-2.0
"""Which images of a data set are scans of one contrast."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bids_moediff.bids.groups import find_groups, group_scans, read_groups
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.errors import UsageError
from bids_moediff.interfaces.groups import GroupRecord


def image(name: str, problem: str | None = None, **metadata: float) -> AnatomicalImage:
    *entities, suffix = name.split("_")
    path = Path("/data") / f"{name}.nii.gz"
    pairs = dict(entity.split("-") for entity in entities)
    return AnatomicalImage(path, path.name, pairs, suffix, metadata, problem)


def names(images: list[AnatomicalImage]) -> list[list[str]]:
    return [[member.key for member in group.images] for group in group_scans(images)[0]]


def test_stacks_and_repeats_of_a_session_belong_together():
    images = [
        image("sub-01_ses-a_acq-sag_T2w"), image("sub-01_ses-a_acq-ax_T2w"),
        image("sub-01_ses-a_acq-ax_run-2_T2w"), image("sub-01_ses-b_acq-ax_T2w"),
        image("sub-01_ses-a_acq-ax_T1w"), image("sub-02_ses-a_acq-ax_T2w"),
        image("sub-01_ses-a_ce-gd_acq-ax_T2w"), image("sub-01_ses-a_acq-cor_T2w", "broken"),
    ]  # fmt: skip
    (group,), remarks = group_scans(images)
    assert [member.key for member in group.images] == [
        "sub-01_ses-a_acq-ax_T2w", "sub-01_ses-a_acq-ax_run-2_T2w", "sub-01_ses-a_acq-sag_T2w",
    ]  # fmt: skip
    assert group.name == "sub-01_ses-a_T2w"
    assert ["acq-cor" in words and "left out" in words for words in remarks] == [True]
    assert group.image.left_out == {"sub-01_ses-a_acq-cor_T2w": "broken"}


def test_other_echo_times_are_another_contrast():
    images = [
        image("sub-01_acq-ax_T2w", EchoTime=0.1),
        image("sub-01_acq-cor_T2w", EchoTime=0.1005),
        image("sub-01_acq-sag_T2w", EchoTime=0.08),
        image("sub-01_acq-none_T2w"),
    ]
    assert names(images) == [
        ["sub-01_acq-ax_T2w", "sub-01_acq-cor_T2w", "sub-01_acq-none_T2w"],
    ]


def test_groups_of_one_name_are_left_alone():
    images = [
        image(f"sub-01_acq-{plane}{kind}_T2w", EchoTime=time)
        for kind, time in (("short", 0.02), ("long", 0.1))
        for plane in ("ax", "cor")
    ]
    groups, remarks = group_scans(images)
    assert not groups and "sub-01_T2w" in remarks[0]


def test_a_scan_of_unknown_echo_time_does_not_join_two_contrasts():
    images = [
        image("sub-01_run-1_T2w"),
        image("sub-01_run-2_T2w", EchoTime=0.08),
        image("sub-01_run-3_T2w", EchoTime=0.2),
    ]
    assert names(images) == [["sub-01_run-1_T2w", "sub-01_run-2_T2w"]]


AXIAL, SAGITTAL = (f"sub-01/anat/sub-01_acq-{plane}_T2w.nii.gz" for plane in ("ax", "sag"))


def test_a_file_may_name_a_group_twice_and_in_several_spellings(tmp_path):
    groups = [[AXIAL, SAGITTAL], [SAGITTAL, f"bids::{AXIAL}"], [f"./{AXIAL}", SAGITTAL]]
    (tmp_path / "groups.json").write_text("\ufeff" + json.dumps(groups), encoding="utf-8")
    assert read_groups(tmp_path / "groups.json") == [[AXIAL, SAGITTAL]]


def test_a_named_scan_that_cannot_be_used_is_noted(tmp_path):
    names = [f"sub-01_acq-{plane}_T2w" for plane in ("ax", "cor", "sag")]
    images = [image(name, "broken" if "cor" in name else None) for name in names]
    images = [replace(item, relative_path=f"sub-01/anat/{item.path.name}") for item in images]
    file = tmp_path / "groups.json"
    file.write_text(json.dumps([[item.relative_path for item in images]]))
    (group,), remarks = find_groups(images, file)
    assert [member.key for member in group.images] == [names[0], names[2]]
    assert group.left_out == {names[1]: "broken"} and "acq-cor" in remarks[0]
    copy = type(group.image).from_json(group.image.to_json())
    assert copy.left_out == group.left_out


@pytest.mark.parametrize(
    "content",
    [
        f'[["/{AXIAL}", "/{SAGITTAL}"]]', '[["..", "."]]', "[" * 100_000, "[]",
        f'[["{AXIAL}", "./{AXIAL}"]]', f'[["{AXIAL}", "{SAGITTAL}", 1]]', "",
    ],
)  # fmt: skip
def test_a_file_that_names_no_scans_of_the_data_set(content, tmp_path):
    (tmp_path / "groups.json").write_text(content)
    with pytest.raises(UsageError, match="groups"):
        read_groups(tmp_path / "groups.json")


def test_times_are_compared_by_their_size():
    """A millisecond is much of an echo time and little of an inversion time."""
    assert (
        names(
            [image("sub-01_run-1_T2w", EchoTime=0.080), image("sub-01_run-2_T2w", EchoTime=0.085)]
        )
        == []
    )
    one, other = (image(f"sub-01_run-{n}_T2w", InversionTime=t) for n, t in ((1, 2.0), (2, 2.015)))
    assert names([one, other]) == [[one.key, other.key]]


@pytest.mark.parametrize(
    ("methods", "stripped"),
    [(("nonzero", "nonzero"), True), (("nonzero", "network"), False), (("network",), False)],
)
def test_a_combined_image_is_stripped_if_all_of_its_scans_are(tmp_path, methods, stripped):
    paths = [tmp_path / f"{number}.json" for number in range(len(methods))]
    for path, method in zip(paths, methods, strict=True):
        path.write_text(json.dumps({"method": method}))
    (tmp_path / "result.json").write_text('{"record": {"Model": "student"}}')
    step = GroupRecord(result=str(tmp_path / "result.json"), mask_records=[str(p) for p in paths])
    record = json.loads(Path(step.run(cwd=str(tmp_path)).outputs.record).read_text())
    assert record == {"Model": "student", "SkullStripped": stripped}
