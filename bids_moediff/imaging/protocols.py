# SPDX-License-Identifier: Apache-2.0
"""What is done to a head before it is restored, and how much has to be gained."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bids_moediff.errors import UsageError
from bids_moediff.imaging.acquisition import PROFILES
from bids_moediff.imaging.grid import Triple
from bids_moediff.settings import closest

# Slice-to-slice differences over the truth's, above which flicker shows.
FLICKER_LIMIT = 1.05
# Another scanner or site may reach this share of the gates.
OTHER_SITE_SHARE = 0.8


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
            f"{key!r} is no protocol{closest(key, DEFAULT_KEYS)}: write x2iso-kspace or "
            f"x4slices-gaussian (factor above 1, profile one of {', '.join(known)})."
        )
    return Protocol(key, float(match[1]), match[2] == "iso", match[3])


DEFAULT_KEYS = (
    "x2iso-kspace", "x2iso-gaussian", "x2iso-box", "x4slices-gaussian", "x4slices-kspace",
    "x2slices-gaussian", "x1.5iso-kspace",
)  # fmt: skip
PROTOCOLS = tuple(parse_protocol(key) for key in DEFAULT_KEYS)
# Mean gain in dB over cubic and over cubic + back-projection that a release has to reach.
GATES = {
    "x2iso-kspace": (2.2, 1.2),
    "x4slices-gaussian": (2.0, 1.4),
    "x2slices-gaussian": (1.8, 1.0),
    "x1.5iso-kspace": (1.6, 0.6),
}


def select_protocols(keys: Sequence[str] | None) -> list[Protocol]:
    """Protocols by short names; ``gates`` stands for those with a gate, None for the default."""
    if not keys:
        return list(PROTOCOLS)
    names = [name for key in keys for name in (GATES if key == "gates" else (key,))]
    return [parse_protocol(name) for name in dict.fromkeys(names)]
