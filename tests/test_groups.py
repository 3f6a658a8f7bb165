# SPDX-License-Identifier: Apache-2.0
"""Which images of a data set are scans of one contrast."""

from pathlib import Path

from bids_moediff.bids.groups import group_scans
from bids_moediff.bids.image import AnatomicalImage


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
