# SPDX-License-Identifier: Apache-2.0
"""Which images are scans of one contrast in one session, and so can be combined."""

from collections.abc import Sequence
from dataclasses import dataclass

from bids_moediff.bids.image import AnatomicalImage

# Entities in which scans of one contrast may differ.
REPEATED = ("acq", "dir", "run", "chunk")
TIMES = ("EchoTime", "InversionTime")
TIME_TOLERANCE = 0.01  # of the time


@dataclass(frozen=True)
class ScanGroup:
    """Two scans or more of one subject, session and contrast, in the order of their names."""

    images: tuple[AnatomicalImage, ...]

    @property
    def name(self) -> str:
        """Entities that all scans share, and the suffix."""
        first = self.images[0]
        shared = [
            f"{key}-{value}"
            for key, value in first.entities.items()
            if all(image.entities.get(key) == value for image in self.images)
        ]
        return "_".join([*shared, first.suffix])


def group_scans(images: Sequence[AnatomicalImage]) -> tuple[list[ScanGroup], list[str]]:
    """Group images that differ in ``REPEATED`` only and whose ``TIMES`` agree within a percent.

    Parameters
    ----------
    images
        Of any number of participants; those with a problem belong to no group.

    Returns
    -------
    groups
        In the order of their first image.
    remarks
        One sentence for each name that several groups would share; these are no groups.
    """
    sets: list[list[AnatomicalImage]] = []
    for image in sorted(images, key=lambda image: image.relative_path):
        if image.problem is not None:
            continue
        place = next((members for members in sets if _alike(members[0], image)), None)
        if place is None:
            sets.append([image])
        else:
            place.append(image)
    groups = [ScanGroup(tuple(members)) for members in sets if len(members) > 1]
    names = [group.name for group in groups]
    twice = sorted({name for name in names if names.count(name) > 1})
    remarks = [
        f"{name}: several sets of scans with different echo or inversion times would share this "
        "name; they are not combined."
        for name in twice
    ]
    return [group for group in groups if group.name not in twice], remarks


def _alike(one: AnatomicalImage, other: AnatomicalImage) -> bool:
    """Whether two images show one contrast of one session."""
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
