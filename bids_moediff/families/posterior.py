# SPDX-License-Identifier: Apache-2.0
"""Draw samples of the image that may lie behind a measurement.

A restored image m that agrees with the measurement lacks an error e. The scale head predicts how
large e is in each voxel. A sample is m + P(s n) + R(t n'), with white noise n and n', the
projection P onto the unmeasured part, the projection R onto the measured part, and two scales s
and t. For a scan without noise the second part is zero, and every sample agrees with the
measurement exactly.

A sampler of a family uses it like this::

    scale = local_scale(network, problem, mean, start, precision)
    z = scale.draw(seed)                # a Gaussian sample of the error, (X, Y, Z)
    d = scale.missing_deviation         # its standard deviation in the null space
    z = scale.space.project(z)          # back to the null space after each step
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bids_moediff.families.protocol import Problem
from bids_moediff.families.whole_volume import CPU_VOXELS, CUDA_VOXELS, pad_to_multiple
from bids_moediff.imaging.axes import axis_order, reorder
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.networks.mean import FOLD
from bids_moediff.networks.precision import PRECISIONS, floating
from bids_moediff.networks.scale import (
    MIDDLE_NOISE,
    NEIGHBOURHOOD,
    ScaleNetwork,
    fold,
    log_scales,
    scale_inputs,
    scale_numbers,
    unfold,
)
from bids_moediff.options import Options

# Of the amplitude of detail that is amplified for texture.
LARGEST_GAIN = 2.0


@dataclass(frozen=True)
class LocalScale:
    """Size of the error of a restored image, in the scaled intensities of a problem.

    Parameters
    ----------
    missing
        Standard deviation (X, Y, Z) of noise before it is projected onto the unmeasured part.
    measured
        The same for the measured part; None for a scan without noise.
    space
        Both projections.
    """

    missing: Tensor
    measured: Tensor | None
    space: NullSpace

    @cached_property
    def missing_deviation(self) -> Tensor:
        """Standard deviation d (X, Y, Z) of P(s n), in closed form."""
        return self.space.variance(self.missing.square()).clamp_min(1e-12).sqrt()

    @property
    def deviation(self) -> Tensor:
        """Standard deviation (X, Y, Z) of the whole error."""
        if self.measured is None:
            return self.missing_deviation
        known = self.space.measured_variance(self.measured.square())
        return (self.missing_deviation.square() + known).sqrt()

    def times(self, factor: Tensor | float) -> "LocalScale":
        """Return both scales multiplied by a field (X, Y, Z) or a number."""
        measured = None if self.measured is None else self.measured * factor
        return LocalScale(self.missing * factor, measured, self.space)

    def missing_noise(self, seed: int) -> Tensor:
        """Return P(s n) (X, Y, Z)."""
        return self.space.project(self.missing * white(self.missing, seed))

    def measured_noise(self, seed: int) -> Tensor | None:
        """Return R(t n') (X, Y, Z), or None for a scan without noise."""
        if self.measured is None:
            return None
        return self.space.measured(self.measured * white(self.measured, (seed, 1)))

    def draw(self, seed: int) -> Tensor:
        """Return a Gaussian sample of the error (X, Y, Z)."""
        sample, known = self.missing_noise(seed), self.measured_noise(seed)
        return sample if known is None else sample + known


def texture(mean: Tensor, scale: LocalScale, seed: int) -> Tensor:
    """Return detail and noise that give an image the local power of the truth.

    The unmeasured detail of the image is amplified until its local power is that of the truth, at
    most ``LARGEST_GAIN`` times. Noise supplies the rest. For Gaussian fields this is the optimal
    transport from the posterior mean to the distribution of images, so it loses less than a sample
    does.

    Parameters
    ----------
    mean
        Image (X, Y, Z) that agrees with the measurement.
    scale
        Size of its error.
    seed
        Seed of the noise.

    Returns
    -------
    torch.Tensor
        Addition to ``mean`` (X, Y, Z).

    References
    ----------
    Blau and Michaeli, The perception-distortion tradeoff, CVPR 2018; Ohayon et al.,
    Posterior-mean rectified flow, arXiv:2410.00418.
    """
    detail = scale.space.project(mean)
    power = _local_mean(detail.square()).clamp_min(1e-12)
    variance = scale.missing_deviation.square()
    gain = (1 + variance / power).sqrt().clamp_max(LARGEST_GAIN)
    rest = (power + variance - gain.square() * power).clamp_min(0)
    noise = scale.missing * (rest / variance).sqrt() * white(mean, seed)
    return scale.space.project((gain - 1) * detail + noise)


def _local_mean(squares: Tensor) -> Tensor:
    local = ndimage.gaussian_filter(squares.cpu().numpy(), NEIGHBOURHOOD)
    return torch.from_numpy(local).to(squares)


def white(like: Tensor, seed: int | tuple[int, int]) -> Tensor:
    """Return white noise of the shape of ``like``, the same on every device."""
    # Numpy's generators hear all bits of a seed, torch's only the lower 32.
    noise = np.random.default_rng(seed).standard_normal(tuple(like.shape), dtype=np.float32)
    return torch.from_numpy(noise).to(like)


def local_scale(
    network: ScaleNetwork,
    problem: Problem,
    mean: Tensor,
    start: Tensor,
    precision: str,
    *,
    factor: float = 1.0,
    max_voxels: int | None = None,
) -> LocalScale:
    """Predict the size of the error of a restored image.

    Parameters
    ----------
    network
        Scale head.
    problem
        The problem that was solved; its operator is needed.
    mean, start
        Restored image that agrees with the measurement (``problem.agree``), and the start of the
        problem, both (X, Y, Z).
    precision
        A key of ``PRECISIONS``, or ``int8``.
    factor
        Both scales are multiplied by it (calibration).
    max_voxels
        Number of voxels that pass through the network at a time.
    """
    if problem.operator is None:
        raise ValueError("the operator of the acquisition is needed")
    order = axis_order(problem.condition)
    back = [order.index(axis) for axis in range(3)]
    numbers = scale_numbers(reorder(problem.condition, order), problem.noise)[None]
    images = [pad_to_multiple(part.permute(order), FOLD).contiguous() for part in (mean, start)]
    logs = _stream(network, images[0], images[1], numbers, problem.noise, precision, max_voxels)
    cut = (slice(None), *(slice(0, mean.shape[axis]) for axis in order))
    scales = (factor * logs[cut].exp()).permute(0, *(1 + axis for axis in back)).contiguous()
    measured = scales[1] if problem.noise > 0 else None
    return LocalScale(scales[0], measured, NullSpace(problem.operator))


def _stream(
    network: ScaleNetwork,
    mean: Tensor,
    start: Tensor,
    numbers: Tensor,
    noise: float,
    precision: str,
    max_voxels: int | None,
) -> Tensor:
    """Return logarithms of both scales (2, X, Y, Z); the network runs plane by plane."""
    device = mean.device
    voxels = max_voxels or (CUDA_VOXELS if device.type == "cuda" else CPU_VOXELS)
    step = max(1, voxels // (FOLD * mean.shape[1] * mean.shape[2])) * FOLD
    inputs = scale_inputs(mean, start)
    result = mean.new_empty((2, *mean.shape))
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        pipeline = network.stream(numbers.to(device), PRECISIONS[floating(precision)])
        done = 0
        for begin in range(0, mean.shape[0], step):
            end = min(begin + step, mean.shape[0])
            folded = fold(inputs[None, :, begin:end])
            folded = folded.contiguous(memory_format=torch.channels_last_3d)
            ready = unfold(pipeline.push(folded, last=end == mean.shape[0]).float())[0]
            until = done + ready.shape[1]
            guess = inputs[3, done:until] + math.log(MIDDLE_NOISE)
            result[:, done:until] = log_scales(ready, guess, noise)
            done = until
    return result


class ErrorSampler(Protocol):
    """Draws samples of the error of a restored image.

    ``changes`` holds what each expert added to the first sample (X, Y, Z), if it was asked for.
    """

    name: str
    changes: list[Tensor]

    def draw(self, seed: int) -> Tensor:
        """Return one sample of the error (X, Y, Z), without shading."""
        ...

    def record(self) -> Mapping[str, Any]:
        """Return the record of the samples so far, for the sidecar."""
        ...


@runtime_checkable
class SamplesErrors(Protocol):
    """A restorer with its own error sampler in place of the Gaussian one."""

    def error_sampler(
        self, problem: Problem, options: Options, mean: Tensor, scale: LocalScale
    ) -> ErrorSampler | None:
        """Return a sampler for an image that agrees with the measurement, or None."""
        ...
