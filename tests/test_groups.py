# SPDX-License-Identifier: Apache-2.0
"""Which images of a data set are scans of one contrast."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bids_moediff.bids.groups import find_groups, group_scans, is_group, read_groups
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
    others = [
        image(f"{item.key.removesuffix('T2w')}{suffix}", EchoTime=item.metadata["EchoTime"])
        for item in images
        for suffix in ("T1w", "PDw", "FLAIR")
    ]
    groups, remarks = group_scans([*images, *others, image("sub-01_run-1_T2starw")])
    names = [words.split(":")[0] for words in remarks]
    assert not groups and names == [f"sub-01_{kind}" for kind in ("FLAIR", "PDw", "T1w", "T2w")]


def test_a_scan_of_unknown_echo_time_does_not_join_two_contrasts():
    images = [
        image("sub-01_run-1_T2w"),
        image("sub-01_run-2_T2w", EchoTime=0.08),
        image("sub-01_run-3_T2w", EchoTime=0.2),
    ]
    assert names(images) == [["sub-01_run-1_T2w", "sub-01_run-2_T2w"]]


def test_what_scans_of_a_group_share_and_what_they_may_differ_in():
    """Acquisition, direction, run and chunk; not the session, echo, or anything else."""
    shared = "sub-01_ses-a_ce-gd"
    more = ("acq-x", "dir-AP_run-1", "acq-x_run-2_chunk-1", "acq-x_run-2_echo-1")
    found = [image(f"{shared}_{entities}_T2w") for entities in more]
    found = [
        replace(item, path=Path("/data/sub-01/anat") / item.path.name,
                relative_path=f"sub-01/anat/{item.path.name}")
        for item in found
    ]  # fmt: skip
    odd = replace(image(f"{shared}_run-9_T2w", "broken"), relative_path="sub-01/anat/odd.nii.gz")
    other = replace(image("sub-01_T1w", "broken"), relative_path="sub-01/anat/other.nii.gz")
    (group,), remarks = group_scans([other, *reversed(found), odd])
    assert group.images == (found[0], found[2], found[1])
    name = f"{shared}_desc-srcombined_T2w.nii.gz"
    whole = AnatomicalImage(
        Path("/data/sub-01/anat") / name, f"sub-01/anat/{name}",
        {"sub": "01", "ses": "a", "ce": "gd"}, "T2w", {},
        members=group.images, left_out={odd.key: "broken"},
    )  # fmt: skip
    assert (group.image, group.name) == (whole, f"{shared}_T2w")
    left_out = "sub-01/anat/odd.nii.gz is left out of sub-01_ses-a_ce-gd_T2w: it cannot be used."
    assert remarks == [left_out]
    assert is_group(group.image.key) and not any(is_group(item.key) for item in found)
    assert find_groups(found, "off") == ([], [])
    assert find_groups([*found, odd], "auto") == ([group], remarks)


@pytest.mark.parametrize(
    ("key", "one", "other", "alike"),
    [
        ("EchoTime", 0.1, 0.10100, True), ("EchoTime", 0.1, 0.1013, False),
        ("EchoTime", 0.1013, 0.1, False), ("InversionTime", 1, 2, False),
        ("InversionTime", 1.0, 1.009, True), ("EchoTime", "0.1", 0.2, True),
        ("RepetitionTime", 1.0, 9.0, True), ("EchoTime", 0.0, 0.0, True),
    ],
)  # fmt: skip
def test_times_agree_within_a_percent_of_the_longer_one(key, one, other, alike):
    pair = [image(f"sub-01_run-{n}_T2w", **{key: t}) for n, t in ((1, one), (2, other))]
    assert (names(pair) != []) == alike


def test_every_remark_on_groups_of_a_file(tmp_path):
    """Three participants' images; a file with groups of these and of others."""
    found = [
        replace(item, relative_path=f"sub-{item.entities['sub']}/{item.path.name}")
        for item in (
            image("sub-01_run-1_T2w"), image("sub-01_run-2_T2w"), image("sub-01_run-3_T2w", "bad"),
            image("sub-02_run-1_T2w"),
        )
    ]  # fmt: skip
    one, two, odd, alone = (item.relative_path for item in found)
    missing, foreign = "sub-02/sub-02_run-2_T2w.nii.gz", "sub-09/sub-09_run-1_T2w.nii.gz"
    file = tmp_path / "groups.json"
    file.write_text(
        json.dumps([[one, odd, two], [alone, missing], [foreign, foreign.replace("-1_", "-2_")]])
    )
    groups, remarks = find_groups(found, str(file))
    assert [group.images for group in groups] == [tuple(found[:2])]
    assert groups[0].left_out == {found[2].key: "bad"}
    assert remarks == [
        f"{odd} is named by --combine, but cannot be used.",
        f"{missing} is named by --combine, but is not among the images to process.",
        f"{alone}, {missing}: fewer than two scans, nothing to combine.",
    ]
    file.write_text(json.dumps([[one, two], [one, two, odd]]))
    groups, remarks = find_groups(found, file)
    assert groups == [] and remarks[1].startswith("sub-01_T2w: several sets of scans")
    for content in ([[one, one]], [[one, alone]], [[one, two.replace("T2w", "T1w")]], {"a": 1}):
        file.write_text(json.dumps(content))
        with pytest.raises(UsageError, match="--combine"):
            find_groups(found, file)
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        read_groups(tmp_path / "missing.json")


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
    images = [replace(item, problem="broken" if "ax" in item.key else None) for item in images]
    ((other,), _) = find_groups(images, file)
    assert other.left_out == {names[0]: "broken"}, "the first one too"
    more = [image("sub-01_acq-obl_T2w", "torn"), image("sub-01_acq-par_T2w", "empty")]
    ((third,), _) = find_groups([*images, *more], "auto")
    assert third.left_out == {
        names[0]: "broken", "sub-01_acq-obl_T2w": "torn", "sub-01_acq-par_T2w": "empty",
    }  # fmt: skip


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
