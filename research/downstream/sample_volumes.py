# SPDX-License-Identifier: Apache-2.0
"""Do samples say how uncertain tissue volumes are? An independent segmenter on each of them.

``python -m research.downstream.sample_volumes OUT --data DATA --tools TOOLS/bin --block 96`` makes
T1w images coarse, restores them, draws samples, and lets N4 and AMAP segment truth, restored image
and every sample within one brain mask, that of the truth by deepbet. ``rows.tsv`` gets a row for
each tissue: the volume in the truth, in the restored image, and mean and deviation over samples.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from bids_moediff.cli.evaluation import (
    check_threads,
    each_result,
    load_models,
    restoring_parser,
    sampling_options,
    write_table,
)
from bids_moediff.errors import MoediffError
from bids_moediff.evaluation.benchmark import Task, protocol_task
from bids_moediff.evaluation.sampling import NORMAL_90
from bids_moediff.evaluation.truth import Loaded
from bids_moediff.imaging.protocols import Protocol, parse_protocol
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.inference.uncertainty import sampler
from bids_moediff.options import Options
from bids_moediff.runtime.sink import write_json

from .tools import find_brain, find_tissues, tissue_volumes

PROGRAM = "python -m research.downstream.sample_volumes"
SMALL = 3.0  # percent: a bias of the restored image that leaves the interval a chance
COLUMNS = (
    "head", "protocol", "model", "sampler", "samples", "tissue", "truth", "image", "mean",
    "deviation",
)  # fmt: skip
Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    protocols = ("x2iso-kspace+noise2", "x4slices-gaussian")
    made = restoring_parser(PROGRAM, __doc__.partition("\n")[0], "student", protocols, 8)
    made.add_argument(
        "--tools", type=Path, required=True, metavar="BIN", help="bin folder of the tools"
    )
    return made


def volumes(image: np.ndarray, task: Task, mask: Path, tools: Path) -> dict[str, float]:
    """Return millilitres of each tissue that the tools find in an image (X, Y, Z)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.nii"
        data = np.clip(image, 0, None).astype(np.float32)
        nib.save(nib.Nifti1Image(data, task.affine), path)
        found = find_tissues(tools, path, mask, Path(folder))
    voxel = abs(float(np.linalg.det(task.affine[:3, :3]))) / 1000
    return tissue_volumes(found, voxel)


def brain_of(loaded: Loaded, task: Task, folder: Path, tools: Path) -> Path:
    """Write the brain mask of the whole truth, and its part on the grid of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, part = folder / "brain.nii.gz", folder / "part.nii.gz"
    find_brain(tools, loaded.head.path, whole)
    brain = nib.Nifti1Image.from_filename(whole)
    nib.save(resample_from_to(brain, (task.truth.shape, task.affine), order=0), part)
    return part


def examine(
    task: Task, protocol: Protocol, resolver: SuperResolver, options: Options, measure: Any
) -> list[Row]:
    """Return a row for each tissue; ``measure`` returns the volumes of an image."""
    noise = protocol.noise / 100 * float(np.percentile(task.truth[task.mask], 90))
    inputs = Inputs(acquisition=task.acquisition, noise=noise or None)
    asked = replace(options, output_resolution=task.zooms)
    made, _, _ = resolver.restore(task.coarse_image, asked, inputs, lambda stage, fraction: None)
    found = resolver.uncertainty.scale(made)
    assert found is not None
    drawing = sampler(resolver.restorer, made, found, asked)
    scale = made.posed.scale
    seen = []
    for number in range(asked.num_samples):
        sample = made.image + drawing.draw(asked.random_seed + number)
        seen.append(measure(sample.numpy() * scale))
    truth, image = measure(task.truth), measure(made.image.numpy() * scale)
    about = {"sampler": drawing.name, "samples": len(seen)}
    return [
        about
        | {"tissue": name, "truth": truth[name], "image": image[name]}
        | {
            "mean": float(np.mean([one[name] for one in seen])),
            "deviation": float(np.std([one[name] for one in seen], ddof=1)),
        }
        for name in truth
    ]


def half_width(row: Mapping[str, Any]) -> float:
    """Return half of the 90 % interval of a volume, in millilitres."""
    return NORMAL_90 * float(row["deviation"]) * float(np.sqrt(1 + 1 / int(row["samples"])))


def judged(row: Mapping[str, Any]) -> Row:
    """Return one volume in percent of the truth, and which intervals hold the truth.

    ``about_image`` is the interval about the restored image's volume, ``about_samples`` that about
    the mean of the samples, which hold noise that a segmenter takes for tissue.
    """
    truth, image, mean = (float(row[name]) for name in ("truth", "image", "mean"))
    half = half_width(row)
    return {
        **{name: row[name] for name in ("head", "model", "tissue")},
        "scan": parse_protocol(row["protocol"]).name,
        "bias": 100 * (image / truth - 1),
        "sample_bias": 100 * (mean / truth - 1),
        "half": 100 * half / truth,
        "about_image": "yes" if abs(image - truth) <= half else "no",
        "about_samples": "yes" if abs(mean - truth) <= half else "no",
    }


VIEW = {
    "columns": [
        ["image", "{head}"],
        ["scan", "{scan}"],
        ["model", "{model}"],
        ["tissue", "{tissue}"],
        ["bias of the restored image", "{bias:+.1f} %"],
        ["half of the interval", "{half:.1f} %"],
        ["about the image it holds the truth", "{about_image}"],
        ["bias of samples", "{sample_bias:+.1f} %"],
        ["about the samples it does", "{about_samples}"],
    ]
}


def result(rows: Sequence[Mapping[str, Any]]) -> Row:
    """Return what ``research.results values`` takes: each volume, and counts of intervals."""
    found = [judged(row) for row in rows]
    small = [row for row in found if abs(row["bias"]) < SMALL]

    def holding(those: Sequence[Row], name: str) -> int:
        return sum(row[name] == "yes" for row in those)

    values = {
        "cases": len(found),
        "held": holding(found, "about_image"),
        "held_about_samples": holding(found, "about_samples"),
        "small": len(small),
        "small_held": holding(small, "about_image"),
    }
    return {"values": values, "rows": found, "views": {"volumes": VIEW}}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and summarise; return 1 if a head failed."""
    options = parser().parse_args(argv)
    check_threads(options)
    asked = replace(Options(), **sampling_options(options))
    rows: list[Row] = []

    def work(loaded: Loaded, protocol: Protocol, resolver: SuperResolver) -> str:
        about = {"head": loaded.head.name, "protocol": protocol.key, "model": resolver.model.name}
        if "T1w" not in loaded.head.name:
            return f"{loaded.head.name}  is not T1w"
        task = protocol_task(loaded, protocol)
        mask = brain_of(loaded, task, options.output / loaded.head.name, options.tools)

        def measure(image: np.ndarray) -> dict[str, float]:
            return volumes(image, task, mask, options.tools)

        rows.extend(about | row for row in examine(task, protocol, resolver, asked, measure))
        write_table(rows, COLUMNS, options.output / "rows.tsv")
        return f"{about['head']}  {about['protocol']}  {about['model']}"

    all_used = each_result(options, PROGRAM, load_models(options), work)
    write_json(result(rows), options.output / "result.json")
    return 0 if all_used else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MoediffError as error:
        sys.exit(f"{PROGRAM}: {error}")
