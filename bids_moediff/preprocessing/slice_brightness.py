# SPDX-License-Identifier: Apache-2.0
"""Find slices that are brighter or darker than their neighbours, and scale them to these.

The brightness of a head changes slowly from slice to slice: the median ratio of voxels that lie
side by side in two neighbouring slices is 0.64 to 1.56 in the real images at hand. The limits were
set on the same images (``research/notebook.md``), so others may exceed them.
"""

import numpy as np

from bids_moediff.errors import ImageError

from .planes import AXES, some_planes

ABRUPT = np.log(2.0)  # between neighbours: no head is like that
LESSER = np.log(1.6)  # the same, where another step of the axis is abrupt
SINGLE = np.log(1.4)  # from both neighbours; of the real images 1.15 at most
SAME = np.log(1.3)  # of the level of most slices: that level
# Typical change from one pair of neighbours to the next. The largest of the real images is 0.041.
BANDED = 0.06
IN_PLANE = 64  # voxels of a slice that are compared along each of its axes
LEAST_ALIKE = 0.5  # correlation of neighbours that show the same object
TISSUE = 0.3  # of the 98th percentile of a slice
# Of the log ratios of dim and bright tissue. Simulated on four images: multiplied slices have 0.13
# at most (at the end of a head), slices with a spike along them 0.13 to 0.4.
LARGEST_MISFIT = 0.15
FEWEST, LEAST_SHARE = 30, 0.3  # voxels of tissue in two neighbours; of the usual number
GLARING = 2.0  # times the 90th percentile of all slices; of the real images 1.2 at most
FEWEST_PAIRS, FEWEST_FOR_BANDS = 5, 12  # slices of 16 mm differ by themselves
LARGEST_CAP = 0.25  # of the slices: a dark end of the head
MOST_ODD = 0.65  # of the slices that were compared, for an image that is refused


def even_slices(
    data: np.ndarray, remarks: list[str], name: str = "the image"
) -> tuple[np.ndarray, bool]:
    """Return the image with abruptly bright or dark slices scaled to the others.

    Slices that differ by more than a factor are left as they are.

    Parameters
    ----------
    data
        (x, y, z) ``float32``, finite, air near zero.
    remarks
        A sentence is added for each axis along which slices were scaled or differ.
    name
        Of the image, for the error.

    Returns
    -------
    numpy.ndarray
        The image.
    bool
        Whether slices differ by a factor, scaled or not.

    Raises
    ------
    ImageError
        If there is no level that most slices share.
    """
    before = len(remarks)
    scaled: list[int] = []
    found = [_steps(data, axis) for axis in range(3)]
    # A bright slice makes jumps along the other axes too, so the worst axis comes first.
    while max(worst := [_largest(steps) for steps in found]) > ABRUPT:
        axis = int(np.argmax(worst))
        if axis in scaled:
            break
        scaled.append(axis)
        levels = _slice_levels(found[axis])
        if not levels.any():
            break
        if _misfit(data, axis, levels, found[axis]) > LARGEST_MISFIT:
            remarks.append(
                f"slices along the {AXES[axis]} axis differ in brightness, but not by a factor "
                "(something was added to them); they were left as they are, and the brain mask "
                "may be wrong"
            )
            return data, False
        _refuse_most(levels, found[axis], AXES[axis], name)
        data = _scaled(data, axis, levels, remarks)
        found = [_steps(data, other) for other in range(3)]
    for axis, steps in enumerate(found):
        if axis not in scaled:
            remarks += _unevenness(steps, AXES[axis])
    return data, len(remarks) > before


def _largest(steps: np.ndarray) -> float:
    known = np.abs(steps[np.isfinite(steps)])
    return float(known.max()) if len(known) >= FEWEST_PAIRS else 0.0


def _unevenness(steps: np.ndarray, axis: str) -> list[str]:
    """Return a sentence on bands, or on single slices that are less than abruptly different."""
    known = steps[np.isfinite(steps)]
    if len(known) < FEWEST_PAIRS:
        return []
    change = float(np.median(np.abs(np.diff(known)))) / 2
    if change > BANDED and len(known) >= FEWEST_FOR_BANDS:
        return [
            f"neighbouring slices along the {axis} axis differ in brightness, by "
            f"{100 * np.expm1(change):.0f} % as a rule: bands or interleaved slices, which the "
            "result keeps"
        ]
    apart = np.minimum(np.abs(steps[:-1]), np.abs(steps[1:])) * (steps[:-1] * steps[1:] < 0)
    single = np.nonzero(apart > SINGLE)[0] + 1
    if not len(single):
        return []
    return [
        f"{len(single)} slices along the {axis} axis ({some_planes(single)}, counted from 1) "
        "differ in brightness from both neighbours, by up to "
        f"{100 * np.expm1(float(np.nanmax(apart))):.0f} %, which the result keeps"
    ]


def _steps(data: np.ndarray, axis: int) -> np.ndarray:
    """Return the log ratio of brightness of each slice and the one before.

    NaN where the two show too little tissue, or not the same.
    """
    planes, level = _sampled(data, axis)
    tissue = (planes > TISSUE * level) & (level > 0)
    both = tissue[1:] & tissue[:-1]
    counts = both.sum(axis=1)
    alike = (counts >= FEWEST) & (_correlations(planes) > LEAST_ALIKE)
    steps = np.full(len(counts), np.nan)
    if not alike.any():
        return steps
    glaring = level.ravel() > GLARING * np.percentile(level, 90)  # however little tissue it shows
    enough = counts >= LEAST_SHARE * np.median(counts[alike])
    for place in np.nonzero(alike & (enough | glaring[1:] | glaring[:-1]))[0]:
        part = both[place]
        ratios = planes[place + 1][part].astype(np.float64) / planes[place][part]
        steps[place] = np.log(np.median(ratios))
    return steps


def _sampled(data: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels of each slice (one row a slice), and the brightness of each."""
    planes = np.moveaxis(data, axis, 0)
    skips = [max(1, size // IN_PLANE) for size in planes.shape[1:]]
    planes = planes[:, skips[0] // 2 :: skips[0], skips[1] // 2 :: skips[1]]
    planes = planes.reshape(len(planes), -1)
    return planes, np.percentile(planes, 98, axis=1, keepdims=True)


def _misfit(data: np.ndarray, axis: int, levels: np.ndarray, steps: np.ndarray) -> float:
    """Return how the log ratio of bright tissue differs from that of dim tissue, at jumps.

    It does not if a slice was multiplied; it does if something was added to it.
    """
    planes, level = _sampled(data, axis)
    found = []
    for place in np.nonzero(np.isfinite(steps) & (np.diff(levels) != 0))[0]:
        pair = (planes[place : place + 2] / level[place : place + 2]).astype(np.float64)
        pair = pair[:, (pair > TISSUE).all(axis=0)]
        ratio, mean = np.log(pair[1] / pair[0]), pair.sum(axis=0)
        dim = mean < np.median(mean)
        if dim.any():
            found.append(abs(float(np.median(ratio[~dim]) - np.median(ratio[dim]))))
    return float(np.median(found)) if found else 0.0


def _correlations(planes: np.ndarray) -> np.ndarray:
    """Return the correlation of each row with the next; 0 for a row of one value."""
    rest = planes - planes.mean(axis=1, keepdims=True, dtype=np.float64)
    length = np.sqrt(np.square(rest).sum(axis=1))
    products = (rest[1:] * rest[:-1]).sum(axis=1)
    lengths = length[1:] * length[:-1]
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)


def _slice_levels(steps: np.ndarray) -> np.ndarray:
    """Return the log ratio of each slice to the others; 0 for most."""
    levels = np.zeros(len(steps) + 1)
    # Stretches of slices that can be compared; each has its own usual level.
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], np.isfinite(steps), [0]])))
    for first, last in bounds.reshape(-1, 2):
        if last - first < FEWEST_PAIRS:
            continue
        part = steps[first:last]
        jumps = np.where(np.abs(part) > LESSER, part, 0.0)
        runs = np.concatenate([[0], np.cumsum(jumps != 0)])  # number of the run of each slice
        levels[first : last + 1] = _levels(jumps[jumps != 0], np.bincount(runs))[runs]
    return levels


def _refuse_most(levels: np.ndarray, steps: np.ndarray, axis: str, name: str) -> None:
    if np.count_nonzero(levels) > MOST_ODD * np.isfinite(steps).sum():
        raise ImageError(
            f"{name}: most of its slices along the {axis} axis are abruptly brighter or "
            "darker than others; reconstruct it again"
        )


def _scaled(data: np.ndarray, axis: int, levels: np.ndarray, remarks: list[str]) -> np.ndarray:
    """Return the image with each odd slice divided by its ratio to the others."""
    odd = np.nonzero(levels)[0]
    remarks.append(
        f"{len(odd)} of {len(levels)} slices along the {AXES[axis]} axis "
        f"({some_planes(odd)}, counted from 1) are {_range(np.exp(levels[odd]))} times as bright "
        "as their neighbours, as no head is; they were scaled to these, with their noise"
    )
    shape = [1, 1, 1]
    shape[axis] = len(levels)
    return np.asarray(data / np.exp(levels).reshape(shape).astype(np.float32))


def _levels(jumps: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the level of each run between jumps; 0 for those of the level of most slices.

    ``sizes`` are the slices of each run.
    """
    levels = [0.0]
    for jump in jumps:
        level = levels[-1] + jump
        near = [known for known in levels if abs(known - level) < SAME]
        levels.append(min(near, key=lambda known: abs(known - level)) if near else level)
    found = np.array(levels)
    groups = np.abs(found[:, None] - found) < SAME
    most = int(np.argmax(groups @ sizes))
    usual, base = groups[most], found[most]
    for place in range(1, len(found) - 1):  # up and down again: the mean of both ways
        if not usual[place] and usual[place - 1] and usual[place + 1]:
            found[place] = found[place - 1] + (jumps[place - 1] - jumps[place]) / 2
    found = np.where(usual, 0.0, found - base)
    places = np.flatnonzero(usual)
    for end in (np.s_[: places[0]], np.s_[places[-1] + 1 :]):
        if sizes[end].sum() < LARGEST_CAP * sizes.sum():  # a head becomes dark where it ends
            found[end] = np.maximum(found[end], 0.0)
    return found


def _range(ratios: np.ndarray) -> str:
    words = sorted({f"{ratio:.2g}" for ratio in ratios}, key=float)
    return words[0] if len(words) == 1 else f"{words[0]} to {words[-1]}"
