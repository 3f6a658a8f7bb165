# SPDX-License-Identifier: Apache-2.0
"""Find the scans that show the same head, and register them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_moediff.errors import ImageError
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.registration import register

COMPARED_AT = 3.0  # mm: finer detail differs between stacks, coarser hides another head
# Blocks that are compared, in voxels of that size: planes, so that a bad slice spoils few of them.
BLOCKS = ((1, 16, 16), (16, 1, 16), (16, 16, 1))
# Median correlation in the head: one head 0.96 (the same where one scan has 12 % noise), two
# skull-stripped heads of one study 0.877 (docs/combining.md).
SAME_HEAD = 0.92
FEWEST_VOXELS = 0.5  # of a block, inside both fields of view and the head
NO_MOVE = np.eye(4)
ELSEWHERE = nib.affines.from_matvec(  # 5 mm and 3 degrees away
    Rotation.from_euler("xyz", [2, -2, 1], degrees=True).as_matrix(), [3, -3, 3]
)
LEAST_OVERLAP = 1000  # voxels of 3 mm: a cube of 30 mm


@dataclass(frozen=True)
class Alignment:
    """Moves from the first scan to each, and how well each agrees with the one it fits best.

    ``moves``: 4x4 matrices from world coordinates of the first kept scan to those of each scan;
    ``agreement``: largest correlation with another scan; ``kept``: indices, in order;
    ``disagreement``: largest distance (mm, mean over the head) between two ways to register a
    scan that is kept.
    """

    moves: list[np.ndarray]
    agreement: list[float]
    kept: list[int]
    disagreement: float = 0.0

    def moved(self, moves: Sequence[np.ndarray]) -> "Alignment":
        """Return the alignment with other transforms of the scans that are kept."""
        changed = list(self.moves)
        for index, move in zip(self.kept, moves, strict=True):
            changed[index] = move
        return replace(self, moves=changed)


def align(images: Sequence[nib.Nifti1Image]) -> Alignment:
    """Register super-resolved images of one contrast to the first, and leave out other heads.

    The largest set of images that agree with one another is kept. If the first is not among them,
    the first that is kept takes its place.

    Parameters
    ----------
    images
        Super-resolved images (3-D), in the order of the scans.
    """
    moves = [np.eye(4)] + [register(images[0], image) for image in images[1:]]
    similarity = correlations(images, moves)
    if len(strange := [k for k, row in enumerate(similarity) if _agreement(row, k) < SAME_HEAD]):
        moves, similarity = _from_centres(images, moves, similarity, strange)
    kept = _largest_set(similarity > SAME_HEAD)
    agreement = [_agreement(row, k) for k, row in enumerate(similarity)]
    if kept[0] != 0:
        rest = align([images[k] for k in kept])
        for index, move in zip(kept, rest.moves, strict=True):
            moves[index] = move
        for index, value in zip(kept, rest.agreement, strict=True):
            agreement[index] = value
        kept = [kept[k] for k in rest.kept]
        return Alignment(moves, agreement, kept, rest.disagreement)
    ways = _disagreement([images[k] for k in kept], [moves[k] for k in kept])
    return Alignment(moves, agreement, kept, ways)


def _disagreement(images: Sequence[nib.Nifti1Image], moves: Sequence[np.ndarray]) -> float:
    """Largest distance (mm) between the move of an image and that by way of the one before it.

    The second way starts from elsewhere, so it also tells one optimum from another.
    """
    found = []
    for k in range(1, len(images)):
        before, image = (
            nib.Nifti1Image(images[j].dataobj, np.linalg.inv(moves[j]) @ images[j].affine)
            for j in (k - 1, k)
        )
        moved = nib.Nifti1Image(image.dataobj, ELSEWHERE @ image.affine)
        try:
            rest = np.linalg.inv(ELSEWHERE) @ register(before, moved, coarse=True)
        except ImageError:  # of a field of view that hardly overlaps: the first way did better
            continue
        found.append(displacement(images[0], np.eye(4), rest))
    return max(found, default=0.0)


def displacement(image: nib.Nifti1Image, move: np.ndarray, other: np.ndarray = NO_MOVE) -> float:
    """Mean distance (mm) in the head of an image between two moves."""
    data = np.asarray(image.dataobj, dtype=np.float32)[::4, ::4, ::4]
    points = np.argwhere(data > 0.1 * np.percentile(data, 99.5)) * 4
    if not points.size:
        return 0.0
    world = image.affine[:3, :3] @ points.T + image.affine[:3, 3:]
    change = move - other
    return float(np.linalg.norm(change[:3, :3] @ world + change[:3, 3:], axis=0).mean())


def _agreement(row: np.ndarray, k: int) -> float:
    """Correlation of image k with the other that it fits best; `row` is its similarity to all."""
    return float(np.delete(row, k).max())


def _from_centres(
    images: Sequence[nib.Nifti1Image],
    moves: list[np.ndarray],
    similarity: np.ndarray,
    strange: Sequence[int],
) -> tuple[list[np.ndarray], np.ndarray]:
    """Moves and similarity, where strangers fit better once the centres of the heads agree.

    Headers can be wrong by more than a head.
    """
    tried, centre = list(moves), _centre(images[0])
    for k in set(strange) - {0}:
        shift = np.eye(4)
        shift[:3, 3] = centre - _centre(images[k])
        shifted = nib.Nifti1Image(images[k].dataobj, shift @ images[k].affine)
        tried[k] = np.linalg.inv(shift) @ register(images[0], shifted)
    found = correlations(images, tried)
    better = [k for k in strange if _agreement(found[k], k) > _agreement(similarity[k], k)]
    chosen = [tried[k] if k in better else move for k, move in enumerate(moves)]
    return chosen, correlations(images, chosen) if better else similarity


def _centre(image: nib.Nifti1Image) -> np.ndarray:
    """Return the middle of the bright voxels in world coordinates (mm)."""
    data = np.asarray(image.dataobj, dtype=np.float32)[::4, ::4, ::4]
    places = np.argwhere(data > 0.1 * np.percentile(data, 99.5)) * 4.0
    middle = places.mean(axis=0) if len(places) else np.array(image.shape) / 2
    return np.asarray(image.affine[:3, :3] @ middle + image.affine[:3, 3])


def correlations(images: Sequence[nib.Nifti1Image], moves: Sequence[np.ndarray]) -> np.ndarray:
    """Median correlation of each pair of images over blocks of the first one's head.

    Of blocks that are thin along one axis or another, the largest median: along the slices of a
    stack, most thin blocks hold no bad slice.
    """
    first = images[0]
    shape, affine = output_grid(first.shape, first.affine, (COMPARED_AT,) * 3)
    views, inside = [], []
    for image, move in zip(images, moves, strict=True):
        data = np.asarray(image.dataobj, dtype=np.float32)
        sigma = 0.42 * COMPARED_AT / np.array(voxel_sizes(image.affine))
        to_image = np.linalg.inv(image.affine) @ move @ affine
        view = ndimage.affine_transform(
            ndimage.gaussian_filter(data, sigma), to_image[:3, :3], to_image[:3, 3],
            output_shape=shape, order=1, cval=np.nan,
        )  # fmt: skip
        views.append(view)
        inside.append(np.isfinite(view))
    head = head_mask_array(np.nan_to_num(views[0]), (COMPARED_AT,) * 3)
    found = np.eye(len(images))
    for i, one in enumerate(views):
        for j in range(i):
            common = inside[i] & inside[j] & head
            agreement = [_median_correlation(one, views[j], common, block) for block in BLOCKS]
            found[i, j] = found[j, i] = max(agreement)
    return found


def _median_correlation(
    one: np.ndarray, other: np.ndarray, inside: np.ndarray, block: Sequence[int]
) -> float:
    """Median over blocks: a few torn slices, or a shading, change it little.

    Of the whole where the field of view holds no block.
    """
    values = []
    for corner in np.ndindex(*[n // size for n, size in zip(one.shape, block, strict=True)]):
        part = tuple(
            slice(size * k, size * (k + 1)) for k, size in zip(corner, block, strict=True)
        )
        used = inside[part]
        if used.mean() > FEWEST_VOXELS:
            values.append(_correlation(one[part][used], other[part][used]))
    if not values and inside.sum() > LEAST_OVERLAP:
        return _correlation(one[inside], other[inside])
    return float(np.median(values)) if values else 0.0


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):  # of a block of one value
        return float(np.nan_to_num(np.corrcoef(one, other)[0, 1]))


def _largest_set(agrees: np.ndarray) -> list[int]:
    """Indices of the largest connected set; of equal ones, the one with the first scan."""
    left = list(range(len(agrees)))
    best: list[int] = []
    while left:
        part, grown = [], [left[0]]
        while grown:
            part += grown
            grown = [k for k in left if k not in part and any(agrees[k, p] for p in part)]
        left = [k for k in left if k not in part]
        best = sorted(part) if len(part) > len(best) else best
    return best
