# SPDX-License-Identifier: Apache-2.0
"""Figures of each shipped model on the sharp block, beside those of the weights as they shipped.

    python tests/block_figures.py

measures them anew and writes them into ``tests/data/sharp_block/figures.json``: after weights were
replaced on purpose, and only then.
"""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_moediff.evaluation.benchmark import BASELINES, protocol_task
from bids_moediff.evaluation.sampling import LEARNED, OWN, examine
from bids_moediff.evaluation.truth import Loaded, TruthHead
from bids_moediff.imaging.metrics import psnr
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.options import Options

FOLDER = Path(__file__).parent / "data" / "sharp_block"
FIGURES = FOLDER / "figures.json"
PROTOCOLS = ("x2iso-kspace", "x4slices-gaussian")
MODELS = ("student", "moediff", "crfm", "nsmoe")
SCORES = ("energy", "v", "correlation", "top")
Figures = dict[str, float]


def load_block() -> Loaded:
    """The block as a head with known truth."""
    return TruthHead(FOLDER / "T1w.nii.gz").load()


def load_resolver(model: str) -> SuperResolver:
    """A shipped model in 32 bits on the processor."""
    return SuperResolver.from_pretrained(model, "cpu", "fp32")


def other_contrast(block: Loaded) -> nib.Nifti1Image:
    """The block as another contrast would show it: dark where it is bright, in other steps."""
    bright = np.clip(block.truth / np.percentile(block.truth, 99.5), 0, 1)
    return nib.Nifti1Image(np.sqrt(1 - bright).astype(np.float32), block.affine)


def gains(resolver: SuperResolver, block: Loaded, key: str) -> Figures:
    """Gains in dB over the two baselines, inside the head."""
    task = protocol_task(block, parse_protocol(key))
    reference = other_contrast(block) if resolver.model.config["family"] == "crfm" else None
    inputs = Inputs(acquisition=task.acquisition, reference=reference)
    made = resolver.enhance(task.coarse_image, Options(output_resolution=task.zooms), inputs)
    ours = psnr(np.asarray(made.image.dataobj), task.truth, task.mask)
    return {
        f"{key} over {one.name}": ours - psnr(one.restore(task), task.truth, task.mask)
        for one in BASELINES
        if one.name in ("cubic", "back-projection")
    }


def scores(resolver: SuperResolver, block: Loaded, key: str) -> Figures:
    """How well samples of the scale head, and of experts, tell the error (two of each)."""
    plan = replace(Options(model=resolver.model.name), num_samples=2, sampler="auto")
    return {
        f"{key} {row['sampler'].split(':')[0]} {name}": row[name]
        for row in examine(block, parse_protocol(key), resolver, plan)
        if row["sampler"].startswith((LEARNED, OWN))
        for name in SCORES
    }


def figures(model: str, block: Loaded) -> Figures:
    """All figures of one shipped model."""
    resolver = load_resolver(model)
    found: Figures = {}
    for key in PROTOCOLS if model in ("student", "moediff") else PROTOCOLS[1:]:
        found |= gains(resolver, block, key)
    if resolver.model.scale is not None:
        found |= scores(resolver, block, PROTOCOLS[0])
    return found


def main() -> None:
    """Write the figures of all shipped models."""
    block, found = load_block(), {}
    for model in MODELS:
        measured = figures(model, block)
        found[model] = {key: round(float(value), 4) for key, value in measured.items()}
        print(model, found[model], flush=True)
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
