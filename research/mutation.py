# SPDX-License-Identifier: Apache-2.0
"""Break the mathematics and the decisions by small faults, and see which the tests notice.

    pip install -e '.[test,mutation]'
    python -m research.mutation --sample 80 --seed 0
    python -m research.mutation --rooms imaging/grid.py execution/outcome.py --sample 20

The faults are those of cosmic-ray. Each runs against the test files of its room alone
(:data:`ROOMS`) in a copy of the checkout, until one fails. The parent has loaded the large
libraries and each run is a fork of it, so that a fault costs its tests and no start. What survives
is printed; :mod:`research.equivalent_mutants` lists what no test can notice, with the reason.
"""

import argparse
import difflib
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.equivalent_mutants import EQUIVALENT

ROOT = Path(__file__).parents[1]
# Modules below bids_moediff/ and the test files (tests/test_*.py) that answer for them.
ROOMS: dict[str, tuple[str, ...]] = {
    "imaging/metrics.py": ("imaging_metrics",),
    "imaging/grid.py": ("imaging_grid", "output_resolution"),
    "imaging/acquisition.py": ("imaging_acquisition", "consistency", "told"),
    "imaging/interpolation.py": ("imaging_acquisition",),
    "imaging/consistency.py": ("consistency",),
    "imaging/simulated_filters.py": ("imaging_simulation", "imaging_acquisition"),
    "imaging/simulation.py": ("imaging_simulation", "training_data"),
    "imaging/label_edges.py": ("label_maps",),
    "imaging/acquisition_choice.py": ("acquisition_choice",),
    "imaging/spline_fit.py": ("spectrum",),
    "imaging/spectrum.py": ("spectrum",),
    "imaging/noise_level.py": ("noise_level",),
    "inference/worker.py": ("worker", "certain_noise", "measured_voxels"),
    "inference/batch.py": ("worker",),
    "inference/several.py": ("worker",),
    "inference/uncertainty.py": ("super_resolver",),
    "combination/mending.py": ("combination",),
    "training/lesions.py": ("training_draws",),
    "training/sharpness.py": ("training_draws", "training_data"),
    "evaluation/truth.py": ("evaluation_benchmark",),
    "evaluation/sampling.py": ("sampling_figures", "posterior"),
    "families/crfm/mapping.py": ("crfm_network",),
    "families/nsmoe/export.py": ("nsmoe_network",),
    "families/nsmoe/kernels.py": ("nsmoe_network",),
    "families/nsmoe/network.py": ("nsmoe_network", "nsmoe_training"),
    "preprocessing/conform.py": ("conform",),
    "preprocessing/brain_mask.py": ("preparation_limits", "brain_mask"),
    "preprocessing/earlier_mask.py": ("preparation_limits", "earlier_masks"),
    "preprocessing/intensities.py": ("preparation_limits", "field_images"),
    "preprocessing/slice_brightness.py": ("preparation_limits", "field_images"),
    "preprocessing/wrapped.py": ("preparation_limits", "field_images"),
    "preprocessing/stripes.py": ("preparation_limits", "field_images"),
    "preprocessing/odd_slices.py": ("preparation_limits", "field_images"),
    "preprocessing/planes.py": ("preparation_limits", "planes"),
    "quality/input_checks.py": ("warning_limits", "input_checks"),
    "workflows/participant.py": ("graph_as_data", "graph"),
    "workflows/preparation.py": ("graph_as_data", "graph"),
    "workflows/products.py": ("graph_as_data", "products"),
    "workflows/made_with.py": ("run_as_a_whole", "finished"),
    "interfaces/network.py": ("records",),
    "interfaces/preparation.py": ("records",),
    "interfaces/run_record.py": ("records", "finished", "past_runs"),
    "execution/batch.py": ("batch", "containment"),
    "execution/finished.py": ("finished", "containment"),
    "execution/run.py": ("run_as_a_whole",),
    "execution/group.py": ("run_as_a_whole", "past_runs"),
    "execution/execute.py": ("run_as_a_whole",),
    "runtime/devices.py": ("run_as_a_whole", "runtime_devices"),
    "reports/group.py": ("report_as_data", "group_report"),
    "reports/participant.py": ("report_as_data", "participant_report"),
    "reports/facts.py": ("report_as_data", "participant_report"),
    "reports/figures.py": ("report_as_data", "figures"),
    "cli/train.py": ("tool_arguments",),
    "cli/superres.py": ("tool_arguments", "plain_tool"),
    "cli/degrade.py": ("tool_arguments", "degrade"),
    "cli/evaluation.py": ("tool_arguments",),
    "execution/outcome.py": ("outcome_table",),
    "errors.py": ("outcome_table", "settings_bounds"),
    "options.py": ("settings_bounds", "settings", "output_resolution"),
    "converters.py": ("settings_bounds", "settings"),
    "families/moediff/training/losses.py": ("moediff_losses",),
    "families/moediff/diffusion.py": ("moediff_equations",),
    "families/moediff/gating.py": ("moediff_equations",),
}
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
OTHER_OPERATORS = (
    "NumberReplacer", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr",
    "ReplaceOrWithAnd", "AddNot", "ZeroIterationForLoop", "ReplaceUnaryOperator_USub_UAdd",
    "ReplaceUnaryOperator_Delete_Not", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak",
)  # fmt: skip
SECONDS = 120  # of the processor, for the tests of one fault: a loop without an end is noticed
PRELOADED = ("torch", "scipy.ndimage", "scipy.stats", "skimage.metrics", "hypothesis", "nibabel")


@dataclass(frozen=True)
class Mutant:
    """One fault: the module (below bids_moediff/), its text with the fault, and what differs."""

    module: str
    text: str
    difference: str

    @property
    def key(self) -> str:
        """The changed lines without their place, by which a survivor is listed as equivalent."""
        lines = [line for line in self.difference.splitlines() if line[:1] in "+-"]
        return "\n".join([self.module, *(line[0] + line[1:].strip() for line in lines)])


def _sensible(name: str) -> bool:
    """Whether an operator makes faults that people make: no shifts and bit masks of floats."""
    short = name.rpartition("/")[2]
    if short.startswith("ReplaceBinaryOperator_"):
        return all(part in ARITHMETIC for part in short.split("_")[1:])
    if short.startswith("ReplaceComparisonOperator_"):
        return "Is" not in short
    return short in OTHER_OPERATORS


def places(module: str) -> list[tuple[str, int, int]]:
    """Operator, occurrence and line of every fault that can be made in a module."""
    tree: Any = importlib.import_module("cosmic_ray.ast")
    nodes = list(tree.ast_nodes(tree.get_ast_from_path(ROOT / "bids_moediff" / module)))
    found = []
    for name in filter(_sensible, plugins().operator_names()):
        operator = plugins().get_operator(name)()
        lines = [start[0] for node in nodes for start, _ in operator.mutation_positions(node)]
        found += [(name, occurrence, line) for occurrence, line in enumerate(lines)]
    return found


def plugins() -> Any:
    """Return cosmic-ray's table of operators; an extra that few have installed."""
    return importlib.import_module("cosmic_ray.plugins")


def mutant(module: str, operator: str, occurrence: int) -> Mutant:
    """Make one fault."""
    mutating: Any = importlib.import_module("cosmic_ray.mutating")
    source = (ROOT / "bids_moediff" / module).read_text(encoding="utf-8")
    text = mutating.mutate_code(source, plugins().get_operator(operator)(), occurrence)
    lines = difflib.unified_diff(source.splitlines(), text.splitlines(), n=0, lineterm="")
    return Mutant(module, text, "\n".join(list(lines)[2:]))


def draw(modules: Sequence[str], sample: int, seed: int) -> list[Mutant]:
    """Draw ``sample`` faults, at most one of a line, none that is known as equivalent."""
    rng = random.Random(seed)
    found = [(module, *place) for module in modules for place in places(module)]
    rng.shuffle(found)
    chosen: dict[tuple[str, int], Mutant] = {}
    for module, operator, occurrence, line in found:
        if len(chosen) < sample and (module, line) not in chosen:
            made = mutant(module, operator, occurrence)
            if made.key not in EQUIVALENT:
                chosen[module, line] = made
    return list(chosen.values())


def _child(copy: Path, tests: Sequence[str]) -> int:
    """Run tests in the copy; only in a fork."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    os.chdir(copy)
    sys.path[:0] = [str(copy), str(copy / "tests")]
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    files = [f"tests/test_{name}.py" for name in tests]
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files]))


def notices(copy: Path, tests: Sequence[str], limit: float = 1200.0) -> bool:
    """Whether one of the tests fails (or hangs) in the copy."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = _child(copy, tests)
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def main() -> int:
    """Return 1 if a fault survived."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sample", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="*", default=list(ROOMS), metavar="MODULE")
    asked = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    sys.dont_write_bytecode = True
    survived = 0
    chosen = draw(asked.rooms, asked.sample, asked.seed)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "site", "*.egg-info", "build")
        shutil.copytree(ROOT, copy, ignore=unwanted)
        for module in dict.fromkeys(fault.module for fault in chosen):
            if notices(copy, ROOMS[module]):
                print(f"The tests of {module} fail without a fault.")
                return 2
        for fault in chosen:
            path = copy / "bids_moediff" / fault.module
            whole = path.read_text(encoding="utf-8")
            path.write_text(fault.text, encoding="utf-8")
            if not notices(copy, ROOMS[fault.module]):
                survived += 1
                print(f"survived: {fault.module}\n{fault.difference}\n", flush=True)
            path.write_text(whole, encoding="utf-8")
    print(f"{len(chosen) - survived} of {len(chosen)} faults were noticed.")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
