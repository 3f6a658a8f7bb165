# SPDX-License-Identifier: Apache-2.0
"""Model the acquisition: the operator A gives what a scanner with coarser voxels would measure.

Both grids share orientation and outer corner (:mod:`.grid`), so A is separable: one small matrix
per axis, for any voxel ratio. Its singular value decomposition is the Kronecker product of three
small ones. So exact projection, Tikhonov filtering and the discrepancy principle have a closed
form for every slice profile.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .grid import Shape, Triple
from .simulated_filters import FILTERS, window

PROFILES = ("none", "box", "gaussian", "kspace")
FWHM_TO_SIGMA = 1 / (2 * math.sqrt(2 * math.log(2)))
# Full width at half maximum of a sinc whose first zeros are one voxel away.
_SINC_FWHM = 1.2067
# Slice thickness over slice distance: what is assumed where nothing is stated, and the limits.
UNSTATED_WIDTH = 0.75
NARROWEST, WIDEST = 0.2, 2.0


@dataclass(frozen=True)
class Axis:
    """How one axis was sampled.

    Parameters
    ----------
    profile
        "none" (already on the fine grid), "box" (slice or voxel average), "gaussian"
        (slice-selective pulse) or "kspace" (truncated Fourier encoding).
    fwhm
        Width of box or Gaussian in units of the acquired voxel: slice thickness over slice
        spacing, so below one for gaps.
    filter
        Filter of k-space, see :func:`.simulated_filters.window`. Along one axis alone
        "elliptical", which only cuts corners, equals "hard".
    """

    profile: str = "kspace"
    fwhm: float = 1.0
    filter: str = "hard"

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"unknown profile {self.profile!r}: choose from {PROFILES}")
        if self.filter not in FILTERS or (self.filter != "hard" and self.profile != "kspace"):
            raise ValueError(f"a {self.profile} profile has no filter {self.filter!r}")
        if not 0 < self.fwhm < 10:
            raise ValueError(f"the profile width must lie between 0 and 10 voxels: {self.fwhm}")

    @property
    def effective_fwhm(self) -> float:
        """Width in acquired voxels, as an input of the networks (a sinc counts as 1.21)."""
        return {"none": 0.0, "kspace": _SINC_FWHM}.get(self.profile, self.fwhm)


@dataclass(frozen=True)
class Acquisition:
    """Sampling of the three voxel axes."""

    axes: tuple[Axis, Axis, Axis]

    @classmethod
    def uniform(cls, profile: str, fwhm: float = 1.0) -> "Acquisition":
        """Return an acquisition that samples all three axes alike."""
        axis = Axis(profile, fwhm)
        return cls((axis, axis, axis))

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, Any], zooms: Sequence[float], slice_axis: int | None = None
    ) -> "Acquisition":
        """Return the acquisition that a BIDS sidecar declares.

        A 2-D scan has slices along its coarsest axis, as thick as SliceThickness says
        (:meth:`of_slices` without it), and k-space in plane. A 3-D scan is Fourier-encoded on all
        axes. Without ``MRAcquisitionType``, an axis over 1.9 times the finest counts as slices.

        Parameters
        ----------
        metadata
            Content of the sidecar.
        zooms, slice_axis
            As for :meth:`of_slices`.
        """
        kind = str(metadata.get("MRAcquisitionType", "")).upper()
        thick = float(max(zooms)) > 1.9 * float(min(zooms))
        if kind == "2D" or (kind != "3D" and thick):
            thickness = float(metadata.get("SliceThickness") or 0)
            return cls.of_slices(zooms, thickness=thickness or None, slice_axis=slice_axis)
        return cls.uniform("kspace")

    @classmethod
    def of_slices(
        cls,
        zooms: Sequence[float],
        profile: str = "auto",
        thickness: float | None = None,
        slice_axis: int | None = None,
    ) -> "Acquisition":
        """Return slices along the coarsest axis and k-space along the others.

        Parameters
        ----------
        zooms
            Voxel sizes in mm.
        profile
            "box", "gaussian" or "auto". "auto" is a box, which costs least if another profile is
            true: with a box the networks also gain on Gaussian slices, with a Gaussian they lose
            on box-shaped ones.
        thickness
            Slice thickness in mm. Without it, an "auto" profile is three quarters of the slice
            distance wide, for the same reason, and a named profile as wide as the distance.
        slice_axis
            Axis of the slices; by default the coarsest.
        """
        axis = int(np.argmax(zooms)) if slice_axis is None else slice_axis
        if thickness is None:
            width = UNSTATED_WIDTH if profile == "auto" else 1.0
        else:
            width = thickness / float(zooms[axis])
        axes = [Axis("kspace"), Axis("kspace"), Axis("kspace")]
        name = "box" if profile == "auto" else profile
        axes[axis] = Axis(name, min(max(width, NARROWEST), WIDEST))
        return cls((axes[0], axes[1], axes[2]))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Acquisition":
        """Return the acquisition of a record, the inverse of :meth:`to_dict`."""
        axes = [
            Axis(axis["profile"], float(axis["fwhm"]), axis.get("filter", "hard"))
            for axis in record["axes"]
        ]
        return cls((axes[0], axes[1], axes[2]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for sidecars and requests."""
        records: list[dict[str, Any]] = []
        for axis in self.axes:
            filtered = {} if axis.filter == "hard" else {"filter": axis.filter}
            records.append({"profile": axis.profile, "fwhm": axis.fwhm} | filtered)
        return {"axes": records}

    @property
    def has_slices(self) -> bool:
        """Whether an axis has a slice profile instead of Fourier encoding."""
        return any(axis.profile in ("gaussian", "box") for axis in self.axes)

    @property
    def erases_detail(self) -> bool:
        """Whether slice profiles overlap so widely that inverting them would amplify noise.

        A Gaussian as wide as the voxel keeps 58 % of the finest detail, one of 1.6 voxels 17 %.
        """
        return any(axis.profile in ("gaussian", "box") and axis.fwhm > 1.5 for axis in self.axes)

    def condition(self, fine: Sequence[float], coarse: Sequence[float]) -> tuple[float, ...]:
        """Return the six inputs of the networks: log2 voxel ratio, then profile width, by axis.

        Parameters
        ----------
        fine, coarse
            Voxel sizes in mm of output and scan.
        """
        ratios = [math.log2(c / f) for f, c in zip(fine, coarse, strict=True)]
        same = [abs(ratio) < 1e-3 for ratio in ratios]
        widths = [
            0.0 if equal else axis.effective_fwhm
            for axis, equal in zip(self.axes, same, strict=True)
        ]
        return (*ratios, *widths)


def _overlap(
    n_fine: int, d_fine: float, n_coarse: int, d_coarse: float, width: float
) -> np.ndarray:
    """Return the overlap of each coarse profile with each fine voxel, (n_coarse, n_fine)."""
    centre = (np.arange(n_coarse)[:, None] + 0.5) * d_coarse
    left = np.arange(n_fine)[None] * d_fine
    low = np.maximum(left, centre - width / 2)
    high = np.minimum(left + d_fine, centre + width / 2)
    return np.clip(high - low, 0, None)


def _truncated_fourier(
    n_fine: int, d_fine: float, n_coarse: int, d_coarse: float, name: str
) -> np.ndarray:
    """Filter, band-limit to the coarse Nyquist frequency and sample at the coarse centres."""
    field_of_view = n_fine * d_fine
    distance = (np.arange(n_coarse)[:, None] + 0.5) * d_coarse - (
        np.arange(n_fine)[None] + 0.5
    ) * d_fine
    nyquist = field_of_view / (2 * d_coarse)
    last = math.floor(nyquist + 1e-9)
    matrix = np.ones_like(distance)
    passed = window(name, np.arange(last + 1) / nyquist)
    for harmonic in range(1, last + 1):
        weight = passed[harmonic] * (1.0 if harmonic < nyquist - 1e-9 else 0.5)
        matrix += 2 * weight * np.cos(2 * np.pi * harmonic * distance / field_of_view)
    return matrix / n_fine


@lru_cache(maxsize=64)
def axis_matrix(
    n_fine: int, d_fine: float, n_coarse: int, d_coarse: float, axis: Axis
) -> np.ndarray | None:
    """Return the matrix of one axis (n_coarse, n_fine), or None for the identity.

    Rows sum to one, so a constant image keeps its value.

    Parameters
    ----------
    n_fine, n_coarse
        Voxel counts.
    d_fine, d_coarse
        Voxel sizes in mm.
    axis
        How the axis was sampled.
    """
    if n_fine == n_coarse and abs(d_coarse / d_fine - 1) < 1e-4:
        return None
    if axis.profile == "none":
        raise ValueError("an axis with profile 'none' must have the same voxels on both grids")
    if axis.profile == "kspace":
        matrix = _truncated_fourier(n_fine, d_fine, n_coarse, d_coarse, axis.filter)
    elif axis.profile == "box":
        matrix = _overlap(n_fine, d_fine, n_coarse, d_coarse, max(axis.fwhm * d_coarse, d_fine))
    else:
        sigma = axis.fwhm * d_coarse * FWHM_TO_SIGMA
        centre = (np.arange(n_coarse)[:, None] + 0.5) * d_coarse
        distance = (centre - (np.arange(n_fine)[None] + 0.5) * d_fine) / sigma
        matrix = np.where(np.abs(distance) < 4.5, np.exp(-0.5 * distance**2), 0.0)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _along(tensor: torch.Tensor, matrices: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Apply one matrix per axis of a 3-D tensor."""
    if matrices[0] is not None:
        tensor = torch.tensordot(matrices[0], tensor, dims=([1], [0]))
    if matrices[1] is not None:
        tensor = torch.matmul(matrices[1], tensor)
    if matrices[2] is not None:
        tensor = torch.matmul(tensor, matrices[2].T)
    return tensor


class Operator:
    """The separable linear map A from a fine grid to the acquired one.

    Parameters
    ----------
    matrices
        One (n_coarse, n_fine) array per axis, None for the identity.
    fine_shape, coarse_shape
        Voxel counts.
    device
        Where tensors are kept.
    """

    def __init__(
        self,
        matrices: Sequence[np.ndarray | None],
        fine_shape: Shape,
        coarse_shape: Shape,
        device: torch.device | str = "cpu",
    ) -> None:
        self.fine_shape, self.coarse_shape = fine_shape, coarse_shape
        self._forward = [_tensor(matrix, device) for matrix in matrices]
        self._adjoint = [None if m is None else m.T.contiguous() for m in self._forward]
        self._left: list[torch.Tensor | None] = []
        self._right: list[torch.Tensor | None] = []
        values = []
        for matrix, count in zip(matrices, coarse_shape, strict=True):
            if matrix is None:
                self._left.append(None)
                self._right.append(None)
                values.append(torch.ones(count, device=device))
                continue
            left, singular, right = _decompose(matrix.tobytes(), matrix.shape)
            self._left.append(_tensor(left.T, device))
            self._right.append(_tensor(right.T, device))
            padded = np.zeros(count)
            padded[: singular.size] = singular
            values.append(torch.as_tensor(padded, dtype=torch.float32, device=device))
        self._singular = values

    @classmethod
    def between(
        cls,
        fine_shape: Shape,
        fine_zooms: Triple,
        coarse_shape: Shape,
        coarse_zooms: Triple,
        acquisition: Acquisition,
        device: torch.device | str = "cpu",
    ) -> "Operator":
        """Return the operator between two grids that share their outer corner.

        Parameters
        ----------
        fine_shape, coarse_shape
            Voxel counts.
        fine_zooms, coarse_zooms
            Voxel sizes in mm.
        acquisition
            How each axis was sampled.
        device
            Where tensors are kept.
        """
        matrices = [
            axis_matrix(n_f, round(d_f, 6), n_c, round(d_c, 6), axis)
            for n_f, d_f, n_c, d_c, axis in zip(
                fine_shape, fine_zooms, coarse_shape, coarse_zooms, acquisition.axes, strict=True
            )
        ]
        return cls(matrices, tuple(fine_shape), tuple(coarse_shape), device)  # type: ignore[arg-type]

    def forward(self, fine: torch.Tensor) -> torch.Tensor:
        """Return A x (x, y, z), the coarse measurement of ``fine`` (X, Y, Z)."""
        return _along(fine, self._forward)

    def adjoint(self, coarse: torch.Tensor) -> torch.Tensor:
        """Return A^T y (X, Y, Z) of a coarse volume (x, y, z)."""
        return _along(coarse, self._adjoint)

    def project(
        self, fine: torch.Tensor, measured: torch.Tensor, noise: float = 0.0
    ) -> torch.Tensor:
        """Return the image closest to ``fine`` that agrees with ``measured``.

        Without noise this is the exact projection x + A^+ (y - A x). With noise it is the Tikhonov
        solution whose residual has the standard deviation of the noise (Morozov's discrepancy
        principle), so that measured noise is not put back. If ``fine`` agrees already, it is
        returned.

        Parameters
        ----------
        fine
            Image (X, Y, Z).
        measured
            Scan (x, y, z).
        noise
            Standard deviation of the noise of the scan.
        """
        residual = measured - self.forward(fine)
        coefficients = _along(residual, self._left)
        first, second, third = self._singular
        singular = first[:, None, None] * second[None, :, None] * third[None, None, :]
        # Directions the scanner practically did not measure carry noise only.
        power = torch.where(singular > 1e-3 * singular.max(), singular, 0.0).square_()
        weight = self._damping(coefficients, power, noise)
        if weight is None:
            return fine
        gain = torch.where(power > 0, singular / (power + weight).clamp_min(1e-20), 0.0)
        return fine + self._synthesis(gain * coefficients)

    def correct(self, fine: torch.Tensor, lacking: torch.Tensor, noise: float) -> torch.Tensor:
        """Return ``fine`` plus the change that explains ``lacking``.

        A direction that the scanner hardly measured is followed only as far as its noise allows,
        the best measured ones fully.

        Parameters
        ----------
        fine
            Image (X, Y, Z).
        lacking
            Measurement that the image does not explain (x, y, z).
        noise
            Standard deviation of the noise of ``lacking``.
        """
        coefficients = _along(lacking, self._left)
        first, second, third = self._singular
        singular = first[:, None, None] * second[None, :, None] * third[None, None, :]
        power = singular.square()
        missing = lacking.square().mean().clamp_min(1e-20) / power.mean()
        least = torch.maximum(power, (noise**2 / missing).clamp_max(power.max()))
        gain = torch.where(singular > 1e-3 * singular.max(), singular / least, 0.0)
        return fine + self._synthesis(gain * coefficients)

    def measured_projections(self, share: float) -> list[torch.Tensor | None]:
        """Return A^+ A as one matrix (n_fine, n_fine) for each axis, None for the identity.

        Singular values below ``share`` of the largest of an axis count as not measured.
        """
        projections: list[torch.Tensor | None] = []
        for right, singular in zip(self._right, self._singular, strict=True):
            if right is None:
                projections.append(None)
                continue
            kept = right[:, singular > share * singular.max()]
            projections.append(kept @ kept.T)
        return projections

    def _synthesis(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return right singular vectors times coefficients: coarse-shaped to fine-shaped."""
        return _along(coefficients, self._right)

    @staticmethod
    def _damping(coefficients: torch.Tensor, power: torch.Tensor, noise: float) -> float | None:
        """Return the Tikhonov weight with residual norm noise * sqrt(n), None if not needed."""
        if noise <= 0:
            return 0.0
        measured = power > 0
        energy = coefficients.square()[measured].double()
        power = power[measured].double()
        goal = noise**2 * energy.numel()
        if float(energy.sum()) <= goal:
            return None
        low, high = 1e-9, 1e9
        for _ in range(60):
            middle = math.sqrt(low * high)
            left_over = float((energy * (middle / (power + middle)).square()).sum())
            low, high = (middle, high) if left_over < goal else (low, middle)
            if high / low < 1.01:
                break
        return math.sqrt(low * high)


@lru_cache(maxsize=32)
def _decompose(content: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Return the thin SVD of an axis matrix, U (n_c, k), s (k,), V^T (k, n_f), k padded to n_c."""
    matrix = np.frombuffer(content).reshape(shape)
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    missing = shape[0] - singular.size
    if missing > 0:
        left = np.pad(left, ((0, 0), (0, missing)))
        right = np.pad(right, ((0, missing), (0, 0)))
    return left, singular, right


def _tensor(matrix: np.ndarray | None, device: torch.device | str) -> torch.Tensor | None:
    if matrix is None:
        return None
    return torch.as_tensor(np.ascontiguousarray(matrix), dtype=torch.float32, device=device)
