# SPDX-License-Identifier: Apache-2.0
"""Put trained experts into a model folder, with what was measured of them.

    python -m research.volume_experts.ship RUN/mixture MODEL_FOLDER [--rows OUT/rows.json]

The app draws with the experts by itself (`auto`) only where the comparison says that they are
better than Gaussian noise: at equal variance, by the mean of the energy scores, and on no image
worse by more than `WORST` percent. Without a comparison it does not.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_moediff.families.moediff.error_sampler import EXPERTS, GAUSSIAN, STEPS
from bids_moediff.families.moediff.experts_file import NAME
from research.beside import save_beside

from .compare import load_experts

WANTED, WORST = -0.5, 0.2  # percent of the energy score


def gains(rows: Mapping[str, Mapping[str, Mapping[str, float]]], sampler: str) -> list[float]:
    """Change of the energy score at equal variance, in percent, of each case."""
    return [100 * (case[sampler]["=ES"] / case["white"]["ES"] - 1) for case in rows.values()]


def decide(rows: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """Return what `--sampler auto` is to run, and the figures that say so."""
    found = gains(rows, f"mixture {STEPS}")
    mean, worst = sum(found) / len(found), max(found)
    better = mean <= WANTED and worst <= WORST
    figures = {"energy_score_percent": round(mean, 2), "worst_image_percent": round(worst, 2)}
    return (EXPERTS if better else GAUSSIAN), figures


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    auto: str = GAUSSIAN
    figures: dict[str, float] = {}
    if options.rows is not None:
        auto, figures = decide(json.loads(options.rows.read_text()))
    curve = json.loads((options.run / "curve.json").read_text())
    last = {key: curve[-1][key] for key in ("step", "seconds")}
    network = load_experts(options.run)
    digest = save_beside(network, options.folder, NAME, auto=auto, measured=figures, training=last)
    print(auto, figures, digest)


if __name__ == "__main__":
    main()
