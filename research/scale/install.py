# SPDX-License-Identifier: Apache-2.0
"""Put a trained scale head into a model folder, with the factors that were measured.

    python -m research.scale.install RUN MODEL_FOLDER [--table sampling.tsv] [--validated TABLE]

The factors make the variance of samples that of the error on the mean of development images
(geometric): ``--table`` is that of ``bids_moediff-evaluate sampling`` without factors.
``--validated`` is a table of held-out images with factors; their range goes into sidecars.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from bids_moediff.networks.scale import ScaleNetwork
from bids_moediff.networks.scale_file import NAME
from research.beside import save_beside

KINDS = {"iso": "isotropic", "slices": "slices"}


def read(path: Path | None, model: str) -> list[dict[str, str]]:
    """Rows of the scale head's own samples."""
    if path is None:
        return []
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return [row for row in rows if row["sampler"] == "learned" and row["model"] == model]


def by_kind(rows: Sequence[dict[str, str]], column: str) -> dict[str, list[float]]:
    """Figures of a column, for thick slices and for isotropic voxels."""
    found: dict[str, list[float]] = {}
    for row in rows:
        kind = next(name for word, name in KINDS.items() if word in row["protocol"])
        found.setdefault(kind, []).append(float(row[column]))
    return found


def factors(rows: Sequence[dict[str, str]]) -> dict[str, float]:
    """What the scale has to be multiplied with."""
    found = by_kind(rows, "v")
    return {kind: round(float(np.exp(-0.5 * np.log(v).mean())), 3) for kind, v in found.items()}


def main() -> None:
    """Write scale.json and scale.safetensors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--validated", type=Path)
    parser.add_argument("--expected-error", action="store_true")
    parser.add_argument("--level-share", type=float, default=0.75)
    options = parser.parse_args()
    state = load_file(options.run / "best.safetensors")
    network = ScaleNetwork()
    network.load_state_dict({key.removeprefix("average."): v for key, v in state.items()})
    config = json.loads((options.model / "config.json").read_text())
    measured = read(options.table, options.model.name)
    about: dict[str, Any] = {
        "model_sha256": config["sha256"],
        "factors": factors(measured),
        "heads": sorted({row["head"] for row in measured}),
        "protocols": list(dict.fromkeys(row["protocol"] for row in measured)),
        "expected_error": options.expected_error,
        "level_share": options.level_share,
    }
    if held_out := by_kind(read(options.validated, options.model.name), "v"):
        about["variance_ratio"] = {
            kind: [round(min(v), 2), round(max(v), 2)] for kind, v in held_out.items()
        }
    print(save_beside(network, options.model, NAME, **about), about)


if __name__ == "__main__":
    main()
