# SPDX-License-Identifier: Apache-2.0
"""Draw tissues of one image and the agreement of thickness: ``… pictures OUT HEAD PNG``."""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from bids_moediff.imaging.protocols import parse_protocol

from .tools import read_anatomy

METHODS = ("cubic", "back-projection", "student")


def draw(folder: Path, head: str, path: Path, protocol: str = "x4slices-gaussian") -> None:
    """Draw a coronal slice of tissues by method, and thickness against the truth by protocol."""
    with (folder / "rows.tsv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.6), layout="constrained")
    for panel, name in zip(axes[0], ("truth", *METHODS), strict=True):
        place = folder / head if name == "truth" else folder / head / protocol
        found = read_anatomy(next(place.glob(f"{name}-*")))
        plane = found.tissue[:, found.tissue.shape[1] // 2]
        panel.imshow(plane.T, origin="lower", cmap="gray", vmin=0, vmax=3)
        panel.set(title=name, xticks=[], yticks=[])
    for panel in axes[1, 2:]:
        panel.remove()
    for panel, key in zip(axes[1], ("x4slices-gaussian", "x2iso-kspace"), strict=False):
        true = {
            row["head"]: float(row["thickness"])
            for row in rows
            if (row["protocol"], row["method"]) == (key, "truth")
        }
        for name in METHODS:
            pairs = np.array(
                [
                    (true[row["head"]], float(row["thickness"]))
                    for row in rows
                    if (row["protocol"], row["method"]) == (key, name)
                ]
            )
            panel.plot(pairs.mean(1), pairs[:, 1] - pairs[:, 0], "o", label=name)
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.set(title=parse_protocol(key).name, xlabel="mean of both, mm")
    axes[1, 0].set_ylabel("thickness minus truth, mm")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc=(0.6, 0.25))
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
