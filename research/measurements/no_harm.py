# SPDX-License-Identifier: Apache-2.0
"""Where a model falls below plain interpolation, if anywhere.

    python -m research.measurements.no_harm OUT --data DATA [--model student]
    python -m research.results values OUT/numbers.json student no_harm --command '…'

The middle of each validation head (:data:`SIDE` voxels), two adult heads without noise that were
filtered until their finest detail was gone, and two label maps rendered with the contrast and the
softness of an infant. Each is made coarse in the ways of :data:`PROTOCOLS` and restored as the app
would. The margin is PSNR in the head over the best of linear, cubic and sinc interpolation.
Finished rows in OUT are kept.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.cli.common import ProgressBar, set_threads
from bids_moediff.cli.evaluation import result_line
from bids_moediff.evaluation.benchmark import (
    BASELINES,
    BenchmarkPlan,
    HeadTable,
    Method,
    Rows,
    Task,
    model_method,
    run,
)
from bids_moediff.evaluation.truth import Block, TruthHead, heads_of_manifest
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.imaging.separable import along_axes
from bids_moediff.inference.super_resolver import SuperResolver

from .rendered import FLUID, SCALP, WHITE, head_box

SIDE = 112
PROTOCOLS = (
    "x1.25iso-kspace+noise2+untold", "x1.5iso-kspace+noise4+untold",
    "x2iso-kspace+untold", "x2iso-kspace+noise4+untold", "x2iso-kspace-halfhann+noise4+untold",
    "x2iso-gaussian+untold", "x3iso-kspace+noise2+untold",
    "x2slices-box0.5+noise2+stated", "x3slices-gaussian0.5+untold",
    "x4slices-box0.25+noise2+untold", "x4slices-box0.5+noise4+stated",
    "x4slices-box1.2+noise2+untold", "x4slices-gaussian+noise4+stated",
    "x6slices-box0.5+noise4+untold",
)  # fmt: skip
# Brightness of an infant's T1w image: white matter without myelin is darker than grey.
INFANT = {"grey": 0.80, "white": 0.62, "fluid": 0.30, "scalp": 0.95}
SOFT = 0.85  # voxels, deviation of the blur: detail ends at two voxels
TEXTURE = 0.03
ADULTS, LABELS = 2, ("brain4_labels", "brain5_labels")


def infant(path: Path, seed: int = 0) -> nib.Nifti1Image:
    """A label map as a soft infant head without noise, float32, brightest tissue 950."""
    source = nib.Nifti1Image.from_filename(path)
    labels, affine = head_box(np.asarray(source.dataobj).astype(np.int32), source.affine)
    image = np.full(labels.shape, INFANT["grey"], dtype=np.float32)
    image[np.isin(labels, WHITE)] = INFANT["white"]
    image[np.isin(labels, FLUID)] = INFANT["fluid"]
    image[labels >= SCALP] = INFANT["scalp"]
    texture = np.random.default_rng(seed).standard_normal(labels.shape)
    image *= 1000 * (1 + TEXTURE * texture)
    image[labels == 0] = 0
    return nib.Nifti1Image(ndimage.gaussian_filter(image, SOFT).astype(np.float32), affine)


def heads(data: Path, out: Path, side: int, names: Sequence[str]) -> Iterator[TruthHead]:
    """Middles of validation heads; soft heads, which are written to ``out``.

    ``names``: parts of file names; without any, all heads are taken.
    """
    sharp = heads_of_manifest(data, "val")
    out.mkdir(parents=True, exist_ok=True)
    soft = []
    for head in sharp[:ADULTS]:
        image = nib.Nifti1Image.from_filename(head.path)
        blurred = ndimage.gaussian_filter(np.asarray(image.dataobj, dtype=np.float32), SOFT)
        soft.append((f"soft_{head.name}", nib.Nifti1Image(blurred, image.affine)))
    for name in LABELS:
        (path,) = data.rglob(f"{name}.nii.gz")
        soft.append((f"infant_{name.removesuffix('_labels')}", infant(path)))
    for name, image in soft:
        nib.save(image, out / f"{name}.nii.gz")
    files = [TruthHead(out / f"{name}.nii.gz", "soft") for name, _ in soft]
    for head in [*sharp, *files]:
        if not names or any(name in head.name for name in names):
            yield Block(head.path, head.group, side=side)


def sinc(task: Task) -> np.ndarray:
    """Fourier interpolation of the measurement (X, Y, Z)."""
    matrices = []
    for axis, (count, fine) in enumerate(
        zip(task.measured.shape, task.operator.fine_shape, strict=True)
    ):
        ratio = task.coarse_zooms[axis] / task.zooms[axis]
        place = (np.arange(fine) + 0.5) / ratio - 0.5
        turns = 2 * np.pi * (place[:, None] - np.arange(count)) / count
        order = np.arange(1, (count - 1) // 2 + 1)
        row = (1 + 2 * np.cos(order[:, None, None] * turns).sum(axis=0)) / count
        matrices.append(None if fine == count else row.astype(np.float32))
    return np.ascontiguousarray(along_axes(task.measured.numpy(), matrices))


def margins(rows: Sequence[Mapping[str, Any]], model: str) -> dict[str, dict[str, float]]:
    """Decibels over the best interpolation, by protocol and head."""
    psnr: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        psnr[row["protocol"], row["head"]][row["method"]] = row["psnr"]
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (protocol, head), by_method in psnr.items():
        best = max(by_method[name] for name in ("linear", "cubic", "sinc"))
        found[protocol][head] = by_method[model] - best
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Values, rows and a view of a result table: the mean, and the head with the least margin."""
    lines = []
    for protocol, by_head in sorted(found.items(), key=lambda item: _place(item[0])):
        sharp = [margin for head, margin in by_head.items() if not _is_soft(head)]
        soft = [margin for head, margin in by_head.items() if _is_soft(head)]
        worst = min(by_head, key=lambda head: by_head[head])
        line = {"name": parse_protocol(protocol).name, "protocol": protocol, "head": worst}
        line |= {"mean": _signed(sharp), "soft": _signed(soft), "least": _signed([by_head[worst]])}
        lines.append(line)
    every = [margin for by_head in found.values() for margin in by_head.values()]
    values = {"loss": -min(every)}  # of the worst case
    columns = [
        ["what the scanner did", "{name}"],
        ["validation heads", "{mean}"],
        ["soft heads", "{soft}"],
        ["least", "{least} ({head})"],
    ]
    return {"values": values, "rows": lines, "views": {"margins": {"columns": columns}}}


def _place(protocol: str) -> int:
    return PROTOCOLS.index(protocol) if protocol in PROTOCOLS else len(PROTOCOLS)


def _signed(margins: Sequence[float]) -> str:
    return f"{np.mean(margins):+.2f}" if margins else "-"


def _is_soft(head: str) -> bool:
    return head.startswith(("soft_", "infant_"))


def main() -> None:
    """Measure, and write ``numbers.json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="student")
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS))
    parser.add_argument("--side", type=int, default=SIDE, help="voxels; 512 for whole heads")
    parser.add_argument("--names", nargs="+", default=[], help="parts of file names")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    set_threads(options.threads)
    resolver = SuperResolver.from_pretrained(options.model)
    plain = [method for method in BASELINES if method.name in ("linear", "cubic")]
    methods = [*plain, Method("sinc", "1", sinc), model_method(resolver)]
    plan = BenchmarkPlan(
        list(heads(options.data, options.output / "heads", options.side, options.names)),
        [parse_protocol(key) for key in options.protocols],
        methods,
    )
    progress = ProgressBar(len(plan), "result")
    rows, _ = run(
        plan, Rows(options.output / "rows.tsv"), HeadTable(options.output / "heads.tsv"),
        lambda row, problem: progress(result_line(row) if row and "psnr" in row else problem),
    )  # fmt: skip
    progress.close()
    found = margins(rows, options.model)
    text = json.dumps(table(found), indent=1)
    (options.output / "numbers.json").write_text(text, encoding="utf-8")
    for protocol, by_head in found.items():
        print(protocol, *(f"{head} {margin:+.2f}" for head, margin in by_head.items()), sep="\t")


if __name__ == "__main__":
    main()
