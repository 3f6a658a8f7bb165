# SPDX-License-Identifier: Apache-2.0
"""Compare the image that a device makes with that of the processor in 32 bits.

``python -m research.measurements.agreement --device cuda`` restores one artificial head with each
shipped model on both and prints the largest and the root mean square difference, relative to the
largest voxel. It ends with 1 if one of them is above its bound.
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch

from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.model_folder import available
from bids_moediff.options import PRECISIONS, Options

from .speed import ZOOM, artificial_head

# Of the largest voxel: what 16-bit convolutions on the processor stay below with a wide margin.
LARGEST, ROOT_MEAN_SQUARE = 0.02, 0.002


def restore(model: str, size: int, device: str, precision: str) -> np.ndarray:
    """Return the voxels of an artificial head of `size` mm, brought to 0.7 mm."""
    resolver = SuperResolver.from_pretrained(model, device, precision)
    head = artificial_head((size, size, size))
    result = resolver.enhance(head, Options(output_resolution=(ZOOM,) * 3))
    return np.asarray(result.image.dataobj, dtype=np.float64)


def differences(model: str, size: int, device: str, precision: str) -> tuple[float, float]:
    """Return the largest and the root mean square difference, of the largest voxel."""
    expected = restore(model, size, "cpu", "fp32")
    error = (restore(model, size, device, precision) - expected) / expected.max()
    return float(np.abs(error).max()), float(np.sqrt(np.mean(error**2)))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each model; 0 if all agree."""
    parser = argparse.ArgumentParser(
        prog="python -m research.measurements.agreement",
        description="Compare a device's images with those of the processor in 32 bits.",
    )
    parser.add_argument("--models", nargs="+", default=None, help="default: all that are shipped")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--size", type=int, default=96, help="side of the cube, mm")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    agree = True
    for model in options.models or available():
        largest, mean = differences(model, options.size, options.device, options.precision)
        good = largest <= LARGEST and mean <= ROOT_MEAN_SQUARE
        agree = agree and good
        print(
            f"{model}: largest {largest:.2e} (bound {LARGEST:g}), root mean square {mean:.2e} "
            f"(bound {ROOT_MEAN_SQUARE:g}): {'agrees' if good else 'DIFFERS'}",
            flush=True,
        )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
