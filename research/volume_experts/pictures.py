# SPDX-License-Identifier: Apache-2.0
"""What each expert does, as one picture (after Table IV of the paper).

    python -m research.volume_experts.pictures CASE.safetensors RUN/mixture --scale MODEL --to PNG

One slice of a case of research.volume_experts.compare: the restored image and what it misses, each
expert's weight, and each expert's sample minus the mixture's from the same noise.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file
from torch import Tensor

from bids_moediff.families.moediff.angle_sampler import AngleSampler

from .compare import Judge, case_view, load_experts
from .train import scale_head

STEPS, SEED = 2, 0


def panels(sampler: AngleSampler, image: Tensor, error: Tensor) -> list[list[tuple[str, Tensor]]]:
    """Rows of titled volumes (X, Y, Z)."""
    names = sampler.experts.config.experts
    drawn = sampler.draw(SEED, STEPS)
    gates = sampler.view.maps(sampler.scene.gates[0])
    alone = [replace(sampler, only=index).draw(SEED, STEPS) for index in range(len(names))]
    return [
        [("restored image", image), ("what it misses", error), ("sample of the mixture", drawn)],
        [(f"weight of {name}", gates[..., index]) for index, name in enumerate(names)],
        [(f"{name} - mixture", one - drawn) for name, one in zip(names, alone, strict=True)],
    ]


def main() -> None:
    """Read the arguments, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = load_file(options.case)
    sampler = AngleSampler(
        load_experts(options.run), case_view(case, scale_head(options.scale)), "bf16"
    )
    rows = panels(sampler, case["mean"], Judge.of(case).error)
    size = 2 * float(sampler.deviation.median())
    scales = [(0.0, 1.0), (0.0, 1.0), (-size, size)]
    figure, axes = plt.subplots(3, 3, figsize=(7, 7.4), layout="constrained")
    for row, limits, cells in zip(rows, scales, axes, strict=True):
        for (title, volume), cell in zip(row, cells, strict=True):
            plain = title in ("what it misses", "sample of the mixture")
            low, high = (-3 * size, 3 * size) if plain else limits
            middle = volume[:, :, volume.shape[2] // 2].T.float()
            shown = cell.imshow(middle, cmap="gray", vmin=low, vmax=high, origin="lower")
            cell.set_title(title, fontsize=8)
            cell.axis("off")
        figure.colorbar(shown, ax=cells.tolist(), shrink=0.8)
    figure.savefig(options.to, dpi=110)


if __name__ == "__main__":
    main()
