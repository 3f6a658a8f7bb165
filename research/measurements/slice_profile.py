# SPDX-License-Identifier: Apache-2.0
"""Can the slice profile be read from the data where no sidecar names it? A measurement.

``python -m research.measurements.slice_profile FILE…`` makes thick slices of isotropic heads
with every profile in turn and tries to tell which it was: an axis in plane is made as coarse with
each candidate, and the candidate whose spectrum is most like that of the slice axis is the guess.
It assumes that anatomy has the same spectrum along both axes.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from bids_moediff.evaluation.truth import Block, Loaded
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.spectrum import axis_spectrum

CANDIDATES = {
    "k-space": Axis("kspace"),
    "box 1.0": Axis("box", 1.0),
    "Gaussian 0.6": Axis("gaussian", 0.6),
    "Gaussian 1.0": Axis("gaussian", 1.0),
    "Gaussian 1.4": Axis("gaussian", 1.4),
}
RATIO = 4.0
SIDE = 112


def coarsen(data: np.ndarray, axis: int, profile: Axis) -> np.ndarray:
    """(x, y, z) `data` with RATIO times larger voxels along one axis."""
    count = int(data.shape[axis] / RATIO)
    part = np.take(data, np.arange(int(count * RATIO)), axis=axis)
    ratios = [RATIO if k == axis else 1.0 for k in range(3)]
    counts = [int(n / r) for n, r in zip(part.shape, ratios, strict=True)]
    coarse = (counts[0], counts[1], counts[2])
    axes = [Axis("kspace")] * 3
    axes[axis] = profile
    operator = Operator.between(
        (part.shape[0], part.shape[1], part.shape[2]), (1.0, 1.0, 1.0),
        coarse, (ratios[0], ratios[1], ratios[2]),
        Acquisition((axes[0], axes[1], axes[2])),
    )  # fmt: skip
    return operator.forward(torch.from_numpy(np.ascontiguousarray(part))).numpy()


def misfit(slices: np.ndarray, plane_axis: int, slice_axis: int, candidate: Axis) -> float:
    """Decibels between the spectra of the slice axis and of a plane axis made as coarse."""
    both = coarsen(slices, plane_axis, candidate)
    mask = np.ones(both.shape, dtype=bool)
    spectra = [axis_spectrum(both, mask, axis) for axis in (slice_axis, plane_axis)]
    levels = [10 * np.log10(s.power[2:]) for s in spectra if s is not None]
    if len(levels) < 2 or len(levels[0]) != len(levels[1]):
        return float("nan")
    return float(np.sqrt(np.mean((levels[0] - levels[1]) ** 2)))


def guesses(loaded: Loaded) -> dict[str, str]:
    """For each true profile the guessed one; both plane axes have a say."""
    found = {}
    for true, profile in CANDIDATES.items():
        slices = coarsen(loaded.truth.astype(np.float32), 2, profile)
        scores = {
            name: float(np.nanmean([misfit(slices, axis, 2, axis_profile) for axis in (0, 1)]))
            for name, axis_profile in CANDIDATES.items()
        }
        found[true] = min(scores, key=lambda name: scores[name])
    return found


def main(arguments: list[str]) -> int:
    """Print how often each profile was guessed as which."""
    torch.set_num_threads(1)
    counts = {true: dict.fromkeys(CANDIDATES, 0) for true in CANDIDATES}
    for name in arguments:
        found = guesses(Block(Path(name), side=SIDE).load())
        for true, guess in found.items():
            counts[true][guess] += 1
        print(Path(name).name, found, file=sys.stderr, flush=True)
    print("| true \\ guessed | " + " | ".join(CANDIDATES) + " |")
    print("|---" * (1 + len(CANDIDATES)) + "|")
    for true, row in counts.items():
        print(f"| {true} | " + " | ".join(str(n) for n in row.values()) + " |")
    right, total = sum(counts[t][t] for t in counts), sum(sum(r.values()) for r in counts.values())
    print(f"\n{right} of {total} right")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
