# SPDX-License-Identifier: Apache-2.0
"""Acquisitions that networks are trained and judged on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bids_moediff.errors import UsageError, closest
from bids_moediff.imaging.acquisition import PROFILES, Acquisition, Axis
from bids_moediff.imaging.grid import Triple
from bids_moediff.imaging.simulated_filters import FILTERS

STATED, UNTOLD = "stated", "untold"


@dataclass(frozen=True)
class Protocol:
    """An acquisition that makes heads coarse, and the part of it that the app knows.

    Parameters
    ----------
    key
        Short name, such as ``x4slices-box0.5+noise2+untold``.
    factor
        Coarse over fine voxel size.
    isotropic
        True for every axis with true detail, False for the last of them only.
    axis
        How the coarse axes are sampled.
    filter
        Filter of k-space, see :mod:`.simulated_filters`.
    noise
        Rician noise in percent of the 90th percentile of the head.
    plane
        For slices: Fourier-encoded voxel ratio in plane.
    told
        Axis that the app assumes: None for the true one, another axis, ``STATED`` (the sidecar has
        the slice thickness) or ``UNTOLD`` (it has not). For the last two the app estimates it.
    bicubic
        True where slices are made coarse in plane by a bicubic filter, as computer vision does it,
        instead of a scanner.
    """

    key: str
    factor: float
    isotropic: bool
    axis: Axis
    filter: str = "hard"
    noise: float = 0.0
    plane: float = 1.0
    told: Axis | str | None = None
    bicubic: bool = False

    @property
    def profile(self) -> str:
        """Slice or voxel profile."""
        return self.axis.profile

    @property
    def plain(self) -> bool:
        """Whether slices of usual width are measured without noise or filter, known to the app."""
        return self.axis == Axis(self.profile) and self == Protocol(
            self.key, self.factor, self.isotropic, self.axis
        )

    @property
    def name(self) -> str:
        """The protocol in words."""
        if self.bicubic:
            return f"x{self.factor:g} in plane, bicubic"
        kind = "isotropic" if self.isotropic else "slices"
        profile = {"kspace": "k-space", "gaussian": "Gaussian"}.get(self.profile, self.profile)
        words = f"x{self.factor:g} {kind}, {profile}"
        if self.axis.fwhm != 1:
            words += f" {self.axis.fwhm:g}"
        if self.plane != 1:
            words += f", x{self.plane:g} in plane"
        if self.filter != "hard":
            words += f", {self.filter}"
        if self.noise:
            words += f", {self.noise:g} % noise"
        if isinstance(self.told, Axis):
            return f"{words}, told {self.told.profile} {self.told.fwhm:g}"
        return words if self.told is None else f"{words}, {self.told}"

    def ratios(self, axes: Sequence[int]) -> Triple:
        """Return the voxel ratio per axis of a head with true detail on ``axes``."""
        chosen = axes if self.isotropic else axes[-1:]
        if self.bicubic:
            chosen = axes[:2]
        others = dict.fromkeys(axes, self.plane)
        first, second, third = (
            self.factor if axis in chosen else others.get(axis, 1.0) for axis in range(3)
        )
        return (first, second, third)

    def acquisition(self, axes: Sequence[int], axis: Axis | None = None) -> Acquisition:
        """Return how a head with true detail on ``axes`` is measured.

        ``axis`` replaces that of the protocol.
        """
        used = axis or self.axis
        if self.plane == 1:
            return Acquisition((used,) * 3)
        first, second, third = (used if k == axes[-1] else Axis("kspace") for k in range(3))
        return Acquisition((first, second, third))


# A stack of a portable 64 mT scanner, 1.5 x 1.5 x 5 mm of a head of 1 mm voxels. Its noise is a
# guess: manufacturers state none.
LOW_FIELD = "x5slices-gaussian+plane1.5+noise6"
FILTER_KEYS = {name.replace("-", ""): name for name in FILTERS}
_KEY = re.compile(
    r"x(\d+(?:\.\d+)?)(iso|slices)-(kspace|gaussian|box)(\d+(?:\.\d+)?)?(?:-([a-z]+))?"
)
_BICUBIC = re.compile(r"x(\d+(?:\.\d+)?)inplane-bicubic")
_TOLD = re.compile(r"told-(kspace|gaussian|box)(\d+(?:\.\d+)?)?")


def parse_protocol(key: str) -> Protocol:
    """Return the protocol of a short name.

    ``x2iso-kspace``, ``x4slices-box0.5`` (slices half as thick as their distance),
    ``x2iso-kspace-halfhann`` (a filter); then ``+plane1.5`` (ratio in the plane of slices),
    ``+noise2`` (percent), and ``+told-gaussian1``, ``+stated`` or ``+untold``. ``lowfield`` is
    :data:`LOW_FIELD`. ``x2inplane-bicubic`` takes the first two axes with true detail, for
    comparison with figures of computer vision.

    Raises
    ------
    UsageError
        For any other name.
    """
    head, *further = (LOW_FIELD if key == "lowfield" else key).split("+")
    if (match := _BICUBIC.fullmatch(head)) and not further and 1 < float(match[1]) <= 10:
        return Protocol(key, float(match[1]), True, Axis("kspace"), bicubic=True)
    match = _KEY.fullmatch(head)
    if match is None or not 1 < float(match[1]) <= 10:
        raise _wrong(key)
    try:
        axis = Axis(match[3], float(match[4] or 1))
        values: dict[str, Any] = {"filter": FILTER_KEYS[match[5]]} if match[5] else {}
        for word in further:
            values |= _further(word)
        if values.get("plane") and match[2] == "iso":
            raise ValueError(key)
    except (KeyError, ValueError) as error:
        raise _wrong(key) from error
    return Protocol(key, float(match[1]), match[2] == "iso", axis, **values)


def _further(word: str) -> dict[str, Any]:
    """Return the settings of a part after a plus; KeyError or ValueError for a wrong one."""
    if word in (STATED, UNTOLD):
        return {"told": word}
    if told := _TOLD.fullmatch(word):
        return {"told": Axis(told[1], float(told[2] or 1))}
    if word.startswith("plane") and 1 < float(word.removeprefix("plane")) <= 10:
        return {"plane": float(word.removeprefix("plane"))}
    if not word.startswith("noise"):
        raise ValueError(word)
    return {"noise": float(word.removeprefix("noise"))}


def _wrong(key: str) -> UsageError:
    known = [name for name in PROFILES if name != "none"]
    return UsageError(
        f"{key!r} is not a protocol{closest(key, DEFAULT_KEYS)}: write x2iso-kspace or "
        f"x4slices-gaussian (factor above 1, profile one of {', '.join(known)}), with a width "
        "(box0.5), a filter (kspace-halfhann), +plane1.5, +noise2, +told-box0.75, +stated or "
        "+untold; or x2inplane-bicubic; or lowfield."
    )


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
