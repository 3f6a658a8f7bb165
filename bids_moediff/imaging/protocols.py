# SPDX-License-Identifier: Apache-2.0
"""Acquisitions that networks are trained and judged by."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bids_moediff.errors import UsageError, closest
from bids_moediff.imaging.acquisition import PROFILES
from bids_moediff.imaging.grid import Triple


@dataclass(frozen=True)
class Protocol:
    """A voxel ratio, the axes it is applied to and a slice profile.

    Parameters
    ----------
    key : short name, such as ``x4slices-gaussian``
    factor : coarse over fine voxel size
    isotropic : every axis that holds truth, or the last one of them only
    profile : slice or voxel profile of the acquisition

    """

    key: str
    factor: float
    isotropic: bool
    profile: str

    @property
    def name(self) -> str:
        """In words."""
        kind = "isotropic" if self.isotropic else "slices"
        profile = {"kspace": "k-space", "gaussian": "Gaussian"}.get(self.profile, self.profile)
        return f"x{self.factor:g} {kind}, {profile}"

    def ratios(self, axes: Sequence[int]) -> Triple:
        """Voxel ratio per axis of a head whose `axes` hold truth."""
        chosen = axes if self.isotropic else axes[-1:]
        first, second, third = (self.factor if axis in chosen else 1.0 for axis in range(3))
        return (first, second, third)


def parse_protocol(key: str) -> Protocol:
    """Protocol from its short name, such as ``x2iso-kspace`` or ``x4slices-gaussian``."""
    match = re.fullmatch(r"x(\d+(?:\.\d+)?)(iso|slices)-(kspace|gaussian|box)", key)
    if match is None or not 1 < float(match[1]) <= 10:
        known = [name for name in PROFILES if name != "none"]
        raise UsageError(
            f"{key!r} is not a protocol{closest(key, DEFAULT_KEYS)}: write x2iso-kspace or "
            f"x4slices-gaussian (factor above 1, profile one of {', '.join(known)})."
        )
    return Protocol(key, float(match[1]), match[2] == "iso", match[3])


DEFAULT_KEYS = (
    "x2iso-kspace", "x2iso-gaussian", "x2iso-box", "x4slices-gaussian", "x4slices-kspace",
    "x2slices-gaussian", "x1.5iso-kspace",
)  # fmt: skip
PROTOCOLS = tuple(parse_protocol(key) for key in DEFAULT_KEYS)


# Name: voxel ratio, slice profile. What trainings are judged by, and may be restricted to.
ACQUISITIONS: dict[str, tuple[tuple[float, float, float], str]] = {
    "x2 isotropic": ((2.0, 2.0, 2.0), "kspace"),
    "x2 isotropic gaussian": ((2.0, 2.0, 2.0), "gaussian"),
    "x4 slices": ((1.0, 1.0, 4.0), "gaussian"),
    "x2 slices": ((1.0, 1.0, 2.0), "gaussian"),
    "x1.5 isotropic": ((1.5, 1.5, 1.5), "kspace"),
}
