# SPDX-License-Identifier: Apache-2.0
"""Do the experts differ where they should? Gate mass per tissue, and a test against chance.

Tissues are those that guide the gate while it trains: the core of the white matter (expert
"smooth"), the cortex ("cortex") and the band between grey and white matter ("junction").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import fft, ndimage

from bids_moediff.errors import ImageError
from bids_moediff.evaluation.benchmark import make_task
from bids_moediff.evaluation.truth import Block, TruthHead
from bids_moediff.families.moediff.restorer import MoEDiffRestorer
from bids_moediff.imaging.grid import Triple, voxel_sizes
from bids_moediff.imaging.masks import largest_component
from bids_moediff.imaging.protocols import Protocol
from bids_moediff.inference.pose import Inputs, pose
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.preprocessing.bias_field import bias_field
from bids_moediff.preprocessing.brain_mask import brain_mask
from bids_moediff.quality.figures import Tissue, tissue_classes

TISSUES = ("white-matter core", "cortex", "grey-white band")
OWNERS = {"smooth": 0, "cortex": 1, "junction": 2}
CORE_DEPTH = 3.0  # mm within the white matter
SMOOTHING = 0.7  # mm, so that noise makes no holes in the white matter
# Voxels of a tissue without which its mean is not to be relied on.
LEAST = 200
# Shifts in voxels: beyond the thickness of the cortex, and within the brain.
NEAREST, FARTHEST = 8, 32


def segment(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Tissue codes (X, Y, Z) uint8 of a T1-weighted head: 1 + the index in TISSUES, 0 elsewhere.

    Brain mask, N4, three Gaussians, and the same rims as the training's label maps have: the band
    is where white and grey matter are within one voxel of each other, the core more than 3 mm
    inside the white matter. ImageError where the tissues cannot be told apart.
    """
    image = nib.Nifti1Image(np.asarray(data, dtype=np.float32), affine)
    mask, _ = brain_mask(image)
    inside = np.asarray(mask.dataobj) > 0
    flat = data / np.asarray(bias_field(image, mask).dataobj)
    zooms = voxel_sizes(affine)
    flat = ndimage.gaussian_filter(flat, [SMOOTHING / zoom for zoom in zooms])
    classes = tissue_classes(flat[inside], "T1w")
    if classes is None:
        raise ImageError("grey and white matter cannot be told apart.")
    names = list(classes)
    likely = np.argmax([_log_density(flat, classes[name]) for name in names], axis=0)
    white = largest_component(inside & (likely == names.index("wm")))
    grey = inside & (likely == names.index("gm"))
    return codes_of(white, grey, zooms)


def _log_density(values: np.ndarray, tissue: Tissue) -> np.ndarray:
    density = np.log(tissue.share / tissue.deviation)
    return density - 0.5 * ((values - tissue.mean) / tissue.deviation) ** 2


def codes_of(white: np.ndarray, grey: np.ndarray, zooms: Triple = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Tissue codes from masks of white and of grey matter; voxel sizes in mm."""
    cube = np.ones((3, 3, 3), bool)
    near = ndimage.binary_dilation(white, cube) & ndimage.binary_dilation(grey, cube)
    band = near & (white | grey)
    core = ndimage.distance_transform_edt(white, sampling=zooms) > CORE_DEPTH
    codes = np.zeros(white.shape, np.uint8)
    codes[core & ~band] = 1
    codes[grey & ~band] = 2
    codes[band] = 3
    return codes


@dataclass(frozen=True)
class HeadMass:
    """Gate mass of one head.

    Parameters
    ----------
    mass : (experts, 3) mean gate of each expert in each tissue; columns sum to one
    statistic : by how much the owners' gates are larger in their own tissue than in the others
    shifted : (n,) the same after shifts of the gates against the tissue

    """

    mass: np.ndarray
    statistic: float
    shifted: np.ndarray


def head_mass(gates: np.ndarray, codes: np.ndarray, experts: Sequence[str]) -> HeadMass:
    """Gates (X, Y, Z, K) in tissues (X, Y, Z), and what chance would make of it.

    Chance keeps both maps as smooth as they are: the gates are shifted as a whole by
    8 to 32 voxels, and only those that come from a tissue count. ImageError for a head with too
    little of a tissue.
    """
    tissues = [codes == code for code in (1, 2, 3)]
    short = [name for name, tissue in zip(TISSUES, tissues, strict=True) if tissue.sum() < LEAST]
    if short:
        raise ImageError(f"fewer than {LEAST} voxels of {short[0]}.")
    mass = np.stack([gates[tissue].mean(0) for tissue in tissues], axis=1)
    owned = [(experts.index(name), owner) for name, owner in OWNERS.items() if name in experts]
    own = sum(_advantage(mass[index], owner) for index, owner in owned) / len(owned)
    inside = codes > 0
    counts = [_correlate(inside, tissue) for tissue in tissues]
    total = np.zeros(counts[0].shape)
    for index, owner in owned:
        values = np.where(inside, gates[..., index], 0)
        shifted = [
            _correlate(values, tissue) / np.maximum(count, 1)
            for tissue, count in zip(tissues, counts, strict=True)
        ]
        total += _advantage(np.stack(shifted), owner) / len(owned)
    enough = np.all([count >= LEAST / 2 for count in counts], axis=0)
    return HeadMass(mass, float(own), total[enough & _far(codes.shape)])


def _advantage(values: np.ndarray, owner: int) -> np.ndarray:
    """Value in the own tissue (first axis) minus the mean of the others."""
    others = [index for index in range(3) if index != owner]
    return values[owner] - values[others].mean(0)


def _correlate(values: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Sum over a tissue of the values, for every shift of the values without wrapping around."""
    size = [fft.next_fast_len(n + min(n, FARTHEST), real=True) for n in tissue.shape]
    first = fft.rfftn(values.astype(np.float32), size, workers=1)
    second = fft.rfftn(tissue.astype(np.float32), size, workers=1)
    every = fft.irfftn(second * first.conj(), size, workers=1)
    place = np.ix_(*[_shifts(n) % length for n, length in zip(tissue.shape, size, strict=True)])
    return every[place]


def _shifts(size: int) -> np.ndarray:
    reach = min(FARTHEST, size - 1)
    return np.arange(-reach, reach + 1)


def _far(shape: tuple[int, ...]) -> np.ndarray:
    """Shifts of a length between NEAREST and FARTHEST."""
    steps = np.meshgrid(*[_shifts(size) for size in shape], indexing="ij", sparse=True)
    length = np.sqrt(sum(step.astype(float) ** 2 for step in steps))
    return (length >= NEAREST) & (length <= FARTHEST)


@dataclass(frozen=True)
class Verdict:
    """Mean statistic over heads, mean of chance, and the share of chance that reaches it."""

    statistic: float
    chance: float
    p_value: float
    heads: int

    @property
    def above_chance(self) -> bool:
        """At the 5 % level, one-sided."""
        return self.p_value < 0.05


def verdict(heads: Sequence[HeadMass], draws: int = 9999, seed: int = 0) -> Verdict:
    """Permutation test over heads: each draw shifts every head's gates on its own."""
    rng = np.random.default_rng(seed)
    statistic = float(np.mean([head.statistic for head in heads]))
    null = np.mean([rng.choice(head.shifted, draws) for head in heads], axis=0)
    # A tie is no evidence; float32 sums of a constant gate differ in the last digits.
    reached = int((null >= statistic - 1e-6).sum())
    return Verdict(statistic, float(null.mean()), (1 + reached) / (1 + draws), len(heads))


def gate_mass_of(
    resolver: SuperResolver, head: Block, protocol: Protocol, experts: Sequence[str]
) -> HeadMass:
    """Gate mass of a model on the block of a T1-weighted head under a protocol; ImageError."""
    if not head.name.endswith("_T1w"):
        raise ImageError("tissues are known of T1-weighted heads only.")
    whole, block = TruthHead(head.path, head.group).load(), head.load()
    task = make_task(
        block.truth, block.mask, block.zooms, block.affine, protocol.ratios(block.axes),
        protocol.profile,
    )  # fmt: skip
    posed = pose(
        task.coarse_image, task.zooms, Inputs(acquisition=task.acquisition), resolver.device
    )
    assert isinstance(resolver.restorer, MoEDiffRestorer)
    gates = posed.image(resolver.restorer.gates(posed.problem()))
    # The corner of the block in voxels of the head; the task may cut off its end.
    corner = np.linalg.inv(whole.affine) @ block.affine[:, 3]
    cut = tuple(
        slice(round(begin), round(begin) + size)
        for begin, size in zip(corner[:3], task.truth.shape, strict=True)
    )
    codes = segment(whole.truth, whole.affine)[cut]
    return head_mass(np.asarray(gates.dataobj), codes, experts)
