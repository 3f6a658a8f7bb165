# SPDX-License-Identifier: Apache-2.0
"""Group images that are scans of one contrast in one session, which can be combined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.errors import UsageError
from bids_moediff.runtime.given_files import read_json

# Entities in which scans of one contrast may differ.
REPEATED = ("acq", "dir", "run", "chunk")
TIMES = ("EchoTime", "InversionTime")
TIME_TOLERANCE = 0.01  # of the time
DESCRIPTION = "desc-srcombined"  # tells a combined image from the scans that share its name


@dataclass(frozen=True)
class ScanGroup:
    """Two scans or more of one subject and contrast, in the order of their names.

    ``left_out``: key of each scan of the group that cannot be used, with the reason.
    """

    images: tuple[AnatomicalImage, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def entities(self) -> dict[str, str]:
        """Entities that all scans share."""
        return {
            key: value
            for key, value in self.images[0].entities.items()
            if all(image.entities.get(key) == value for image in self.images)
        }

    @property
    def name(self) -> str:
        """Entities that all scans share, and the suffix."""
        shared = [f"{key}-{value}" for key, value in self.entities.items()]
        return "_".join([*shared, self.images[0].suffix])

    @property
    def image(self) -> AnatomicalImage:
        """The combined image of the scans; ``desc-`` distinguishes its key from theirs."""
        first, shared = self.images[0], self.name.rpartition("_")[0]
        name = f"{shared}_{DESCRIPTION}_{first.suffix}.nii.gz"
        return AnatomicalImage(
            first.path.with_name(name),
            PurePosixPath(first.relative_path).with_name(name).as_posix(),
            self.entities,
            first.suffix,
            {},
            members=self.images,
            left_out=self.left_out,
        )


def is_group(key: str) -> bool:
    """Return True if a key is that of a combined image."""
    return f"_{DESCRIPTION}_" in key


def find_groups(
    images: Sequence[AnatomicalImage], combine: str | Path
) -> tuple[list[ScanGroup], list[str]]:
    """Return the groups of a participant's images, and remarks on images that are not combined.

    Parameters
    ----------
    images
        Images of one participant.
    combine
        ``"off"``, ``"auto"`` (:func:`group_scans`) or a file of groups.

    Raises
    ------
    UsageError
        For a file that cannot be used (:func:`read_groups`).
    """
    if combine == "off":
        return [], []
    if combine == "auto":
        return group_scans(images)
    return _named_groups(images, read_groups(Path(combine)))


def group_scans(images: Sequence[AnatomicalImage]) -> tuple[list[ScanGroup], list[str]]:
    """Group images that differ in ``REPEATED`` only and whose ``TIMES`` agree within a percent.

    Parameters
    ----------
    images
        Images of any number of participants; those with a problem belong to no group.

    Returns
    -------
    groups
        In the order of their first image.
    remarks
        One sentence for each name that several groups would share (these are no groups), and for
        each image with a problem that would belong to a group.
    """
    sets: list[list[AnatomicalImage]] = []
    ordered = sorted(images, key=lambda image: image.relative_path)
    for image in ordered:
        if image.problem is not None:
            continue
        place = next((members for members in sets if _alike(members, image)), None)
        if place is None:
            sets.append([image])
        else:
            place.append(image)
    groups, remarks = _of_one_name([ScanGroup(tuple(found)) for found in sets if len(found) > 1])
    for image in ordered:
        index = next((k for k, g in enumerate(groups) if _alike(g.images, image)), None)
        if image.problem is not None and index is not None:
            groups[index] = _without(groups[index], image)
            remarks.append(
                f"{image.relative_path} is left out of {groups[index].name}: it cannot be used."
            )
    return groups, remarks


def _without(group: ScanGroup, image: AnatomicalImage) -> ScanGroup:
    """Return the group with a scan noted that cannot be used."""
    return replace(group, left_out={**group.left_out, image.key: image.problem or ""})


def _of_one_name(groups: list[ScanGroup]) -> tuple[list[ScanGroup], list[str]]:
    """Return groups with a unique name, and a sentence for each name that several would share."""
    names = [group.name for group in groups]
    twice = sorted({name for name in names if names.count(name) > 1})
    remarks = [
        f"{name}: several sets of scans would share this name (such as those of different echo "
        "or inversion times, or sets of a file that have scans in common); they are not combined."
        for name in twice
    ]
    return [group for group in groups if group.name not in twice], remarks


def _alike(members: Sequence[AnatomicalImage], image: AnatomicalImage) -> bool:
    """Return True if an image has the contrast and session of all members of a set."""
    return all(_alike_pair(member, image) for member in members)


def _alike_pair(one: AnatomicalImage, other: AnatomicalImage) -> bool:
    """Return True if two images have one contrast and one session."""
    if one.suffix != other.suffix or _fixed(one) != _fixed(other):
        return False
    for key in TIMES:
        times = [image.metadata.get(key) for image in (one, other)]
        known = [float(time) for time in times if isinstance(time, int | float)]
        if len(known) == 2 and abs(known[0] - known[1]) > TIME_TOLERANCE * max(map(abs, known)):
            return False
    return True


def _fixed(image: AnatomicalImage) -> dict[str, str]:
    return {key: value for key, value in image.entities.items() if key not in REPEATED}


def read_groups(path: Path) -> list[list[str]]:
    """Read a file of groups: a JSON list of lists of image paths relative to the data set.

    ``bids::`` before a path is allowed. A group that is listed twice counts once.

    Raises
    ------
    UsageError
        If it cannot be read, has another form, or a group has scans of several subjects or
        suffixes.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--combine {path}: cannot be read as JSON ({error}).") from error
    if not content or not isinstance(content, list) or not all(map(_is_group, content)):
        raise UsageError(
            f"--combine {path}: expected a list of groups, each a list of two image paths or "
            'more, such as [["sub-01/anat/sub-01_acq-ax_T2w.nii.gz", '
            '"sub-01/anat/sub-01_acq-sag_T2w.nii.gz"]].'
        )
    groups: dict[tuple[str, ...], list[str]] = {}
    for group in content:
        names = sorted({_relative(name, path) for name in group})
        suffixes = {name.rsplit("_", 1)[-1].split(".")[0] for name in names}
        subjects = {PurePosixPath(name).parts[0] for name in names}
        if len(names) < 2 or len(suffixes) > 1 or len(subjects) > 1:
            raise UsageError(
                f"--combine {path}: a group has two different scans or more, of one subject and "
                f"one suffix; this one has not: {', '.join(names)}."
            )
        groups[tuple(names)] = names
    return list(groups.values())


def _relative(name: str, file: Path) -> str:
    """Return the path of a scan as the data set spells it; UsageError without a subject."""
    relative = PurePosixPath(name.removeprefix("bids::"))
    if len(relative.parts) < 2 or not relative.parts[0].startswith("sub-"):
        raise UsageError(
            f"--combine {file}: {name} is not a path from the root of the data set, such as "
            "sub-01/anat/sub-01_acq-ax_T2w.nii.gz."
        )
    return relative.as_posix()


def _is_group(group: object) -> bool:
    return (
        isinstance(group, list)
        and all(isinstance(name, str) and name for name in group)
        and len(group) > 1
    )


def _named_groups(
    images: Sequence[AnatomicalImage], wanted: Sequence[Sequence[str]]
) -> tuple[list[ScanGroup], list[str]]:
    """Return groups as a file names them, and a sentence for each missing scan."""
    known = {image.relative_path: image for image in images if image.problem is None}
    broken = {image.relative_path: image for image in images if image.problem is not None}
    subjects = {PurePosixPath(image.relative_path).parts[0] for image in images}
    groups, remarks = [], []
    for names in wanted:
        if PurePosixPath(names[0]).parts[0] not in subjects:
            continue  # of another participant
        remarks += [
            f"{name} is named by --combine, but "
            f"{'cannot be used' if name in broken else 'is not among the images to process'}."
            for name in names
            if name not in known
        ]
        found = tuple(known[name] for name in names if name in known)
        if len(found) > 1:
            group = ScanGroup(found)
            for name in names:
                group = _without(group, broken[name]) if name in broken else group
            groups.append(group)
        else:
            remarks.append(f"{', '.join(names)}: fewer than two scans, nothing to combine.")
    unique, more = _of_one_name(groups)
    return unique, remarks + more
