# SPDX-License-Identifier: Apache-2.0
"""Do the teacher's features and a ladder of blurs help the student? The same start for all arms.

    python -m research.measurements.distillation OUT --pack pack.npz --arms plain features ladder

The student is squeezed from its teacher once. Each arm goes on from there with the recipe
``student-cpu``: the same volumes, patches and steps, plain, guided by the teacher's features
(``feature_weight`` 0.1), or guided and on a ladder (``ladder_sigma`` 2). ``rows.json`` gets the
gains over cubic interpolation on the development heads, and processor seconds of the steps. Arms
that are there are kept.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bids_moediff.families.catalogue import catalogue
from bids_moediff.runtime.sink import write_json
from bids_moediff.training.loop import Job, Trainer
from bids_moediff.training.recipe import load_recipes

ARMS: Mapping[str, tuple[str, ...]] = {
    "start": ("steps=1", "learning_rate=1e-9"),
    "plain": (),
    "features": ("feature_weight=0.1",),
    "ladder": ("feature_weight=0.1", "ladder_sigma=2.0"),
}


def train_arm(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Train one arm; return its gains by protocol and its seconds."""
    known = catalogue()
    changes = [*asked.set, f"evaluate_every={asked.steps}", f"steps={asked.steps}", *ARMS[name]]
    (recipe,) = load_recipes("student-cpu", known, changes)
    folder = asked.output / name
    folder.mkdir(parents=True, exist_ok=True)
    volumes, start = asked.output / "volumes", asked.output / "start.safetensors"
    if volumes.is_dir():
        shutil.copytree(volumes, folder / "volumes", dirs_exist_ok=True)
    trainer = Trainer(Job(recipe, known, asked.pack, folder, "cpu", Path("moediff")))
    begin, network = trainer.stage.begin, trainer.stage.network

    def squeezed(batches: Any) -> None:
        if not start.is_file():
            begin(batches)
            save_file({k: v.contiguous() for k, v in network.state_dict().items()}, start)
        network.load_state_dict(load_file(start))

    trainer.stage.begin = squeezed  # type: ignore[method-assign]
    begun = time.process_time()
    record = trainer.run()
    shutil.copytree(folder / "volumes", volumes, dirs_exist_ok=True)
    lines = (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    gains = {key: row["over_cubic"] for key, row in json.loads(lines[-1])["gains"].items()}
    return {"steps": record["step"], "seconds": time.process_time() - begun, "gains": gains}


def main() -> None:
    """Read the arguments and train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipe, for all")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = asked.output / "rows.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in asked.arms:
        if name not in rows:
            rows[name] = train_arm(name, asked)
            write_json(rows, path)
            print(name, rows[name], flush=True)


if __name__ == "__main__":
    main()
