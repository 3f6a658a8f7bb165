# SPDX-License-Identifier: Apache-2.0
"""The central block of a head: enough to compare settings, at a fraction of a head's time."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bids_moediff.errors import ImageError

from .truth import Head, Loaded

# Voxels at a cut face that are not judged: there the truncated volume wraps around.
RIM = 8


@dataclass(frozen=True)
class Block(Head):
    """A head of which only the middle is read, `side` voxels wide."""

    side: int = 96

    @cached_property
    def digest(self) -> str:
        """That of the file, and the side: results of a block are no results of the head."""
        return f"{Head(self.path).digest}-{self.side}"

    def load(self) -> Loaded:
        """Block around the centre of the head's mask, which leaves out the rim; ImageError."""
        loaded = super().load()
        cut, judged = [], np.zeros_like(loaded.mask)
        for axis, size in enumerate(loaded.truth.shape):
            centre = round(float(np.flatnonzero(loaded.mask.any(_others(axis))).mean()))
            begin = int(np.clip(centre - self.side // 2, 0, max(0, size - self.side)))
            cut.append(slice(begin, min(size, begin + self.side)))
        inner = tuple(
            slice(part.start + RIM * (part.start > 0), part.stop - RIM * (part.stop < size))
            for part, size in zip(cut, loaded.truth.shape, strict=True)
        )
        judged[inner] = loaded.mask[inner]
        box = tuple(cut)
        if judged.sum() < 1000:
            raise ImageError(f"{self.name}: a block of {self.side} voxels shows too little head.")
        affine = loaded.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in cut]
        truth = np.ascontiguousarray(loaded.truth[box])
        return replace(loaded, truth=truth, mask=judged[box], affine=affine)


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)
