# SPDX-License-Identifier: Apache-2.0
"""Draw reference contrasts for training: right, misregistered, soft, cut off, and wrong ones.

A label map is rendered in a second contrast. Of an image, an aligned second contrast of the same
head is taken if there is one; otherwise a random intensity curve of the image with its own noise.
Lesions are put into the target or into the reference, never into both: what the two share is
anatomy. Some references are useless, and the target stays as it is.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from .contrast import bias_field, random_contrast, synthesise
from .lesions import LesionPlan, lesion_field
from .pack import BRIGHT, TrainingHead
from .tensor_filters import gaussian

LARGEST_SHIFT, LARGEST_TURN = 1.0, 1.0  # voxels and degrees of misregistration
COARSEST = 3.0  # voxels of the target in one of the reference
KINDS = ("right", "cut", "absent", "stranger", "shifted", "noise", "mirrored")
SHARES = (0.58, 0.12, 0.08, 0.09, 0.05, 0.04, 0.04)
WRONG_SHIFT = (3.0, 8.0)  # voxels
LESIONS = LesionPlan(spacing=20.0, tries=400)
SHORTEST = 8  # voxels that a cut leaves


class Rendered(Protocol):
    """A head before it is degraded (:class:`.volumes.Simulated`)."""

    image: torch.Tensor
    weight: torch.Tensor
    volume: torch.Tensor


def _contrast(
    head: TrainingHead, volume: torch.Tensor, own: torch.Tensor | None, rng: np.random.Generator
) -> torch.Tensor:
    """Another contrast (X, Y, Z), about [0, 1], of a head's labels, or of its image."""
    if head.kind == "labels":
        generator = torch.Generator(volume.device).manual_seed(int(rng.integers(2**62)))
        return synthesise(volume, rng, generator)
    if own is not None:
        return random_contrast(own.float() / BRIGHT, rng, 0.4, 0.0)
    return random_contrast(volume.float() / BRIGHT, rng, 0.2, 0.8)


def draw_reference(
    head: TrainingHead,
    made: Rendered,
    own: torch.Tensor | None,
    others: Sequence[TrainingHead],
    rng: np.random.Generator,
) -> torch.Tensor:
    """Draw one reference of a head that was rendered, on its grid.

    Parameters
    ----------
    head
        What ``made`` was made of.
    made
        The head on its training grid, without lesions.
    own
        Its aligned second contrast on that grid, if there is one, as stored.
    others
        Heads that strangers are taken from.
    """
    kind = str(rng.choice(KINDS, p=SHARES))
    shape = made.image.shape
    if kind == "absent":
        return torch.zeros_like(made.image)
    if kind == "noise":
        return _noise(shape, rng, float(rng.uniform(0.5, 3))).mul(0.15).add(0.5).clamp_min(0)
    if kind == "stranger" and others:
        stranger = others[int(rng.integers(len(others)))]
        volume = _crop(stranger.volume, shape, rng).to(made.image.device)
        image = _contrast(replace(stranger, reference=None), volume, None, rng)
    else:
        image = _contrast(head, made.volume, own, rng)
        if rng.random() < 0.5:
            image = image + lesion_field(image, made.weight, LESIONS, rng)
    if kind == "mirrored":
        image = image.flip(int(rng.integers(3)))
    shift = LARGEST_SHIFT * float(rng.random()) ** 1.5
    if kind == "shifted":
        shift = float(rng.uniform(*WRONG_SHIFT))
    image = _scanned(_moved(image, shift, rng), rng)
    return _cut(image, rng) if kind == "cut" else image


def _moved(image: torch.Tensor, shift: float, rng: np.random.Generator) -> torch.Tensor:
    """Turn an image by up to a degree and shift it by ``shift`` voxels in any direction."""
    axis, direction = rng.normal(size=3), rng.normal(size=3)
    angle = np.deg2rad(LARGEST_TURN) * min(shift, LARGEST_SHIFT) * rng.random()
    x, y, z = axis / np.linalg.norm(axis) * angle
    turn = np.eye(3) + np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    # grid_sample counts axes backwards, in halves of the field of view.
    half = np.array(image.shape, dtype=float) / 2
    affine = np.zeros((3, 4))
    affine[:, :3] = np.diag(1 / half) @ turn @ np.diag(half)
    affine[:, 3] = direction / np.linalg.norm(direction) * shift / half
    backwards = np.ascontiguousarray(affine[::-1][:, [2, 1, 0, 3]])
    theta = torch.from_numpy(backwards).to(image)[None]
    grid = functional.affine_grid(theta, [1, 1, *image.shape], align_corners=False)
    # Linear interpolation softens like the voxels of a scan; border planes are repeated.
    return functional.grid_sample(
        image[None, None], grid, padding_mode="border", align_corners=False
    )[0, 0]


def _scanned(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Soft, shaded and noisy as the scan of a reference is; air stays 0 where it was."""
    if rng.random() < 0.5:
        coarse = float(rng.uniform(1.0, COARSEST))
        image = gaussian(image, 0.4 * float(np.sqrt(coarse**2 - 1)) + 1e-3)
    if rng.random() < 0.5:
        image = image * bias_field(image.shape, rng, float(rng.uniform(0, 0.25)), image.device)
    if rng.random() < 0.8:
        sigma = float(np.exp(rng.uniform(np.log(0.003), np.log(0.04))))
        noise = _noise(image.shape, rng, 0.0).to(image)
        image = torch.where(image > 0, image + sigma * noise, image)
    return image.clamp_min(0)


def _noise(shape: Sequence[int], rng: np.random.Generator, width: float) -> torch.Tensor:
    """Gaussian noise of deviation one, smoothed over ``width`` voxels."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = gaussian(torch.randn(tuple(shape), generator=generator), width)
    return noise / noise.std()


def _crop(volume: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
    """A block of another head, in any orientation, padded with air if small."""
    turned = volume.transpose([int(axis) for axis in rng.permutation(3)])
    parts, padding = [], []
    for size, wanted in zip(turned.shape, shape, strict=True):
        corner = int(rng.integers(0, max(size - wanted, 0) + 1))
        parts.append(slice(corner, corner + wanted))
        padding.append((0, max(0, wanted - size)))
    return torch.from_numpy(np.ascontiguousarray(np.pad(turned[tuple(parts)], padding)))


def _cut(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The field of view ends somewhere inside: 0 beyond."""
    axis = int(rng.integers(3))
    size = image.shape[axis]
    last = int(rng.integers(min(SHORTEST, size - 1), size))
    cut = image.clone()
    start, length = (last, size - last) if rng.random() < 0.5 else (0, size - last)
    cut.narrow(axis, start, length).zero_()
    return cut


def with_lesions(made: Rendered, rng: np.random.Generator) -> torch.Tensor:
    """The image of a head, half of the time with lesions that no reference has."""
    if rng.random() < 0.5:
        return made.image
    return made.image + lesion_field(made.image, made.weight, LESIONS, rng)
