# SPDX-License-Identifier: Apache-2.0
r"""Processor seconds of a participant's steps around the network.

    python research/measurements/around_network.py steps.json DATA OUT participant --nprocs 1 \
        --omp-nthreads 1 --device cpu --model student --output-resolution 1

runs the app of the environment in this process, one step after the other, and writes seconds by
step. It imports nothing else of the package, so the environment may be that of another commit.
Give the voxel size of the image: nothing can be gained, so everything runs but the network.

    python research/measurements/around_network.py --table numbers.json OLD.json NEW.json

compares two of them, in the form that ``research.results values`` takes.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

NODES = "nipype.pipeline.engine.nodes"
# Row of a step by the name of its node; the rest is between steps.
ROWS = {
    "conform": "conform", "brain_mask": "brain mask", "bias_field": "bias field",
    "quality": "quality figures", "ds_preproc": "write prepared image",
    "ds_mask": "write prepared image", "superres": "super-resolution without its network",
    "make_srmask": "mask on the new grid, writing",
    "resample_mask": "mask on the new grid, writing",
    "ds_srmask": "mask on the new grid, writing", "ds_sr": "mask on the new grid, writing",
    "report": "report",
}  # fmt: skip
CHECK, START = "check of the model in a child", "start of the main process and between steps"


def processor_seconds(of_children_only: bool = False) -> float:
    """Return what this process and its ended children have used."""
    used = os.times()
    own = 0.0 if of_children_only else used.user + used.system
    return own + used.children_user + used.children_system


class Stopwatch(importlib.abc.MetaPathFinder):
    """Replace the method that runs a node, as soon as Nipype is imported."""

    def __init__(self) -> None:
        self.rows: dict[str, float] = {}
        self.nodes: list[tuple[str, float]] = []
        self.in_nodes = 0.0

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        """Take Nipype's own module and change it once it is loaded."""
        if name != NODES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            self._change(module.Node)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec

    def _change(self, node_class: Any) -> None:
        run = node_class.run

        def timed(node: Any, *words: Any, **named: Any) -> Any:
            if not self.nodes:
                self.rows[CHECK] = processor_seconds(of_children_only=True)
            before = processor_seconds()
            try:
                return run(node, *words, **named)
            finally:
                self._note(node, processor_seconds() - before)

        node_class.run = timed

    def _note(self, node: Any, seconds: float) -> None:
        self.in_nodes += seconds
        self.nodes.append((node.fullname, round(seconds, 3)))
        if row := ROWS.get(node.name):
            self.rows[row] = self.rows.get(row, 0.0) + seconds


def measure(file: Path, words: list[str]) -> int:
    """Run the app and write the seconds of its steps; return its exit code."""
    watch = Stopwatch()
    sys.meta_path.insert(0, watch)
    from bids_moediff.cli.app import main

    code = main(words)
    watch.rows[START] = processor_seconds() - watch.in_nodes - watch.rows[CHECK]
    file.write_text(json.dumps({"rows": watch.rows, "nodes": watch.nodes}, indent=1) + "\n")
    return int(code)


def compare(old: dict[str, float], new: dict[str, float]) -> dict[str, Any]:
    """Return values, rows and columns of the table of two measurements."""
    order = [START, CHECK, *dict.fromkeys(ROWS.values())]
    pairs = {step: (old.get(step, 0.0), new.get(step, 0.0)) for step in order}
    before, after = (sum(pair[k] for pair in pairs.values()) for k in (0, 1))
    pairs["sum"] = (before, after)
    rows = [
        {"step": step, "old": f"{first:.1f}", "new": f"{second:.1f}"}
        for step, (first, second) in pairs.items()
    ]
    values = {"old": round(before, 1), "new": round(after, 1), "share": round(after / before, 2)}
    columns = [["step", "{step}"], ["f057152", "{old}"], ["now", "{new}"]]
    return {"values": values, "rows": rows, "views": {"steps": {"columns": columns}}}


def main_command(words: list[str]) -> int:
    """Run the command."""
    if words[0] != "--table":
        return measure(Path(words[0]), words[1:])
    old, new = (json.loads(Path(name).read_text())["rows"] for name in words[2:4])
    Path(words[1]).write_text(json.dumps(compare(old, new), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main_command(sys.argv[1:]))
