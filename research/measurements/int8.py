# SPDX-License-Identifier: Apache-2.0
"""Ranges for ``--precision int8``, and what the precision costs.

``python -m research.measurements.int8 ranges MODEL --data DIR`` runs a model over crops of
training heads under many acquisitions and writes int8.json into its folder: lowest and highest
input of each convolution of its residual blocks. ``... loss MODEL --data DIR --split val``
prints PSNR of the precisions beside each other, on crops of the heads of a split.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_moediff.evaluation.benchmark import protocol_task, restored
from bids_moediff.evaluation.truth import Loaded, heads_of_manifest
from bids_moediff.imaging import metrics
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.int8 import RANGES_NAME, Range, Recorder, checksum, recorded
from bids_moediff.networks.model_folder import resolve
from bids_moediff.networks.precision import INT8
from bids_moediff.options import Options
from bids_moediff.runtime.sink import write_json

SIDE = 72
PROTOCOLS = (
    "x2iso-kspace", "x4slices-gaussian", "x1.5iso-kspace", "x2slices-gaussian", "x6slices-box0.75",
    "x3iso-gaussian", "x2iso-kspace+noise4", "x4slices-box0.5+noise2",
)  # fmt: skip
JUDGED = ("x2iso-kspace", "x4slices-gaussian", "x2iso-kspace+noise4")


def crop(loaded: Loaded, side: int = SIDE) -> Loaded:
    """Return the middle of a head."""
    inside = tuple(
        slice(max(0, (size - side) // 2), max(0, (size - side) // 2) + side)
        for size in loaded.truth.shape
    )
    return dataclasses.replace(loaded, truth=loaded.truth[inside], mask=loaded.mask[inside])


def watch(resolver: SuperResolver) -> list[list[Recorder]]:
    """Return a list that gets the recorders of every pipeline of the regression network."""
    seen: list[list[Recorder]] = []
    for part in resolver.model.network.modules():
        if not hasattr(part, "int8_ranges"):
            continue
        make: Any = part.stream

        def stream(condition: torch.Tensor, kind: torch.dtype, make: Any = make) -> Any:
            pipeline = make(condition, kind)
            seen.append(recorded(pipeline))
            return pipeline

        part.stream = stream  # type: ignore[assignment]
    return seen


def crops(options: argparse.Namespace) -> Iterator[Loaded]:
    """Yield crops of the heads that were asked for."""
    for head in heads_of_manifest(options.data, options.split)[:: options.every]:
        yield crop(head.load())


def ranges(options: argparse.Namespace) -> None:
    """Write int8.json."""
    resolver = SuperResolver.from_pretrained(options.model, "cpu")
    seen = watch(resolver)
    names = []
    for loaded in crops(options):
        names.append(loaded.head.name)
        for key in PROTOCOLS:
            task = protocol_task(loaded, parse_protocol(key))
            restored(resolver, task, Options(output_resolution=task.zooms))
        _write(seen, names, resolver, options.model)
        print(f"{loaded.head.name} done", flush=True)


def _write(
    seen: Sequence[Sequence[Recorder]], names: Sequence[str], resolver: SuperResolver, model: str
) -> None:
    found: list[Range] = [
        (round(min(r.low for r in column), 4), round(max(r.high for r in column), 4))
        for column in zip(*seen, strict=True)
    ]
    content = {
        "ranges": found,
        "checksum": checksum(found),
        "heads": list(names),
        "protocols": PROTOCOLS,
        "sha256": resolver.model.sha256,
    }
    write_json(content, resolve(model) / RANGES_NAME)


def loss(options: argparse.Namespace) -> None:
    """Print PSNR and seconds of each precision."""
    resolvers = {
        name: SuperResolver.from_pretrained(options.model, "cpu", name)
        for name in options.precisions
    }
    print("head protocol " + " ".join(f"{name} dB (s)" for name in resolvers))
    lost, names = [], []
    for loaded in crops(options):
        for key in JUDGED:
            task = protocol_task(loaded, parse_protocol(key))
            cells, psnr = [], {}
            for name, resolver in resolvers.items():
                begun = time.process_time()
                result = restored(resolver, task, Options(output_resolution=task.zooms))
                spent = time.process_time() - begun
                image = np.asarray(result.image.dataobj, dtype=np.float32)
                found = metrics.psnr(image, task.truth, task.mask)
                cells.append(f"{found:.4f} ({spent:.1f})")
                psnr[name] = found
            print(loaded.head.name, key, *cells, flush=True)
            lost.append(next(iter(psnr.values())) - psnr.get(INT8, np.inf))
        names.append(loaded.head.name)
    print(f"largest loss {max(lost):.4f} dB")
    if options.write:
        path = resolve(options.model) / RANGES_NAME
        known = json.loads(path.read_text(encoding="utf-8"))
        write_json(known | {"loss_db": round(max(lost), 4), "loss_measured_on": names}, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ranges`` or ``loss``."""
    parser = argparse.ArgumentParser(
        prog="python -m research.measurements.int8", description=__doc__
    )
    parser.add_argument("action", choices=("ranges", "loss"))
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--split", default="train")
    parser.add_argument("--every", type=int, default=1, help="take every n-th head")
    parser.add_argument(
        "--write", action="store_true", help="put the largest loss into int8.json (`auto` looks)"
    )
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    ranges(options) if options.action == "ranges" else loss(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
