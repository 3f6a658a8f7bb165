# SPDX-License-Identifier: Apache-2.0
"""Test whether the bound of the error holds, and fit its factor: split conformal over heads."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bids_moediff.imaging.protocols import Protocol
from bids_moediff.inference import error_bound
from bids_moediff.inference.error_bound import MAP, SAMPLES, conformal_factor, score
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.inference.uncertainty import Restoration, Spread, sampler
from bids_moediff.options import Options
from bids_moediff.runtime.sink import table_text, write_text

from .benchmark import protocol_task
from .truth import Loaded

Row = dict[str, Any]
KEY = ("head", "protocol", "model", "weights", "block", "asked")
FIGURES = ("score", "factor", "within")
COLUMNS = ("group", *KEY, "map", "samples", *FIGURES)


class Finished:
    """The table of finished rows, which are not measured again."""

    def __init__(self, path: Path, block: int | None) -> None:
        self.path, self.block = path, str(block or "whole")
        self._rows: list[Row] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                self._rows = [_numbers(row) for row in csv.DictReader(stream, delimiter="\t")]

    def key(self, head: str, protocol: str, resolver: SuperResolver, options: Options) -> Row:
        """Return what tells one measurement from another."""
        names = (head, protocol, resolver.model.name, resolver.model.sha256[:8])
        return dict(zip(KEY, (*names, self.block, str(options.num_samples)), strict=True))

    def rows(self, key: Row) -> list[Row]:
        """Return the finished rows of a measurement; none if it was not made."""
        return [row for row in self._rows if key.items() <= row.items()]

    def add(self, rows: Sequence[Row]) -> None:
        """Add rows, and write the table."""
        self._rows.extend(rows)
        plain = [
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            for row in self._rows
        ]
        write_text(table_text(plain, [*COLUMNS]), self.path)


def _numbers(row: Row) -> Row:
    known = {name: float(row[name]) for name in FIGURES if row[name] != "n/a"}
    return {name: value for name, value in row.items() if name not in FIGURES} | known


def examine(
    loaded: Loaded, protocol: Protocol, resolver: SuperResolver, options: Options
) -> Iterator[Row]:
    """Yield the score of one head under one protocol, for each kind of map."""
    task = protocol_task(loaded, protocol)
    asked = replace(options, output_resolution=task.zooms, outputs=("uncertainty",))
    inputs = Inputs(acquisition=task.acquisition)
    made, _, _ = resolver.restore(task.coarse_image, asked, inputs, lambda stage, fraction: None)
    truth = torch.from_numpy(np.ascontiguousarray(task.truth, dtype=np.float32))
    error = (truth / made.posed.scale - made.image).numpy()[task.mask]
    for kind, deviation in deviations(resolver, made, asked):
        size = deviation.numpy()[task.mask]
        row = {
            "head": loaded.head.name,
            "group": loaded.head.group,
            "protocol": protocol.key,
            "model": resolver.model.name,
            "map": kind,
            "samples": asked.num_samples if kind == SAMPLES else 0,
            "score": score(error, size),
        }
        bound = resolver.uncertainty.bound
        if bound is not None and kind in bound.factors:
            row["factor"] = bound.factors[kind]
            row["within"] = float(np.mean(np.abs(error) <= bound.factors[kind] * size))
        yield row


def deviations(
    resolver: SuperResolver, made: Restoration, options: Options
) -> Iterator[tuple[str, Tensor]]:
    """Yield the expected error, and the deviation over samples if there are several."""
    known = resolver.uncertainty
    expected, _, _ = known.expected(made)
    if expected is None:
        raise ValueError("the model gives no expected error")
    yield MAP, expected / made.posed.scale
    scale = known.scale(made) if options.num_samples > 1 else None
    if scale is not None:
        drawn, spread = sampler(resolver.restorer, made, scale, options), Spread()
        for number in range(options.num_samples):
            spread.add(drawn.draw(options.random_seed + number))
        assert spread.deviation is not None
        yield SAMPLES, spread.deviation


def head_scores(rows: Sequence[Row], kind: str) -> dict[str, float]:
    """Return the score of each head: the largest over its protocols."""
    found: dict[str, float] = {}
    for row in rows:
        if row["map"] == kind:
            found[row["head"]] = max(found.get(row["head"], 0.0), float(row["score"]))
    return found


def bounds(rows: Sequence[Row], resolver: SuperResolver) -> Row:
    """Return the content of ``bounds.json``.

    Raises
    ------
    ValueError
        For too few heads.
    """
    scores = {kind: head_scores(rows, kind) for kind in (MAP, SAMPLES)}
    return {
        "factors": {
            kind: round(conformal_factor(list(found.values())) + 5e-4, 3)
            for kind, found in scores.items()
            if found
        },
        "samples": max(int(row["samples"]) for row in rows),
        "heads": len(scores[MAP]),
        "voxels_share": error_bound.VOXELS,
        "heads_share": error_bound.HEADS,
        "protocols": list(dict.fromkeys(row["protocol"] for row in rows)),
        "weights": resolver.uncertainty.weights,
    }


def markdown(rows: Sequence[Row]) -> str:
    """Return the number of heads that the model's factor holds for, and the scores as a table."""
    lines = []
    for model, kind in dict.fromkeys((row["model"], row["map"]) for row in rows):
        chosen = [row for row in rows if (row["model"], row["map"]) == (model, kind)]
        lines += [_held(model, kind, chosen), ""]
    lines += ["| head | protocol | model | map | score | voxels within |", "|---" * 6 + "|"]
    for row in rows:
        within = f"{row['within']:.1%}" if "within" in row else "-"
        cells = [row[key] for key in ("head", "protocol", "model", "map")]
        lines.append("| " + " | ".join([*cells, f"{row['score']:.2f}", within]) + " |")
    return "\n".join(lines) + "\n"


def _held(model: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    scores = head_scores([dict(row) for row in rows], kind)
    spread = f"scores {min(scores.values()):.2f} to {max(scores.values()):.2f}"
    if "factor" not in rows[0]:
        return f"{model}, {kind}: {spread}; the model has no factor yet."
    factor = rows[0]["factor"]
    held = f"{sum(found <= factor for found in scores.values())} of {len(scores)}"
    return f"{model}, {kind}: factor {factor:g} holds for {held} heads ({spread})."
