# SPDX-License-Identifier: Apache-2.0
"""Mean of what a network makes of an image and of its left-right mirror image.

Geometric self-ensemble (Timofte et al., CVPR 2016), with the one mirroring that keeps a head a
head. It costs a second pass of the network.
"""

from collections.abc import Sequence
from dataclasses import replace

import nibabel as nib
import numpy as np
from torch import Tensor

from bids_moediff.families.protocol import Problem, Progress, Restored, Restorer
from bids_moediff.options import Options


def left_right_axis(affine: np.ndarray) -> int:
    """Return the voxel axis (0, 1 or 2) that is closest to left-right of a (4, 4) affine."""
    codes: Sequence[str | None] = nib.orientations.aff2axcodes(affine)
    return next((axis for axis, code in enumerate(codes) if code in ("L", "R")), 0)


def mirrored(problem: Problem, axis: int) -> Problem:
    """Return the problem of the image that is flipped along `axis`."""

    def flip(volume: Tensor) -> Tensor:
        return volume.flip(axis)

    return replace(
        problem,
        measured=flip(problem.measured),
        start=lambda: flip(problem.start()),
        agree=lambda volume: flip(problem.agree(flip(volume))),
        operator=None,  # of samplers, which do not run here
        reference=None if problem.reference is None else flip(problem.reference),
        round_trip=lambda volume: flip(problem.round_trip(flip(volume))),
    )


def restore_mirrored(
    restorer: Restorer, problem: Problem, options: Options, progress: Progress, axis: int
) -> Restored:
    """Return the mean of the two estimates; maps and counts are those of the image as it is.

    Parameters
    ----------
    restorer, problem, options, progress
        As for :meth:`~bids_moediff.families.protocol.Restorer.restore`.
    axis
        Left-right, from :func:`left_right_axis`.
    """
    first = next(iter(restorer.restore(problem, options, lambda k, f: progress(k, f / 2))))
    turned = mirrored(problem, axis)
    other = next(iter(restorer.restore(turned, options, lambda k, f: progress(k, (1 + f) / 2))))
    return replace(first, image=(first.image + other.image.flip(axis)) / 2)
