# SPDX-License-Identifier: Apache-2.0
"""Measure again what the pages show, and put the numbers in their place.

    python -m research.remeasure OUT --data DATA     all that needs no GPU: 90 minutes on two cores
    python -m research.remeasure OUT                 what the data of the tests allow: 10 minutes

Each measurement is a command that may be called alone; finished rows in OUT are kept, so that a
run that was stopped goes on. Results become tables beside the weights (:mod:`research.results`),
and the pages are brought up to date (``tools/figures.py --write``).
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_moediff.evaluation.benchmark import read_rows
from research.evaluation_tables import KINDS
from research.results import of_benchmark, write_result

ROOT = Path(__file__).parents[1]
BLOCK = "tests/data/sharp_block/T1w.nii.gz"
EVALUATE = "bids_moediff-evaluate"
MODELS = ("student", "moediff")
GATES = ("x2iso-kspace", "x1.5iso-kspace", "x4slices-gaussian", "x2slices-gaussian")
TWO_CORES = ("--omp-nthreads", "2")
LESIONS = (
    "t1w/ds002748_sub-60_T1w.nii.gz", "t1w/ds011_sub-09_T1w.nii.gz",
    "bids_mini/sub-03/anat/sub-03_T1w.nii.gz",
)  # fmt: skip
# Words of the other evaluations, and about how long they take for the student and for moediff.
OTHERS: dict[str, tuple[str, tuple[float, float]]] = {
    "calibration": ("--block 64 --protocols x2iso-kspace x4slices-gaussian x3iso-kspace", (1, 2)),
    "coverage": ("--block 96", (2, 3)),
    "sampling": ("--block 72 --num-samples 4", (2, 4)),
}


@dataclass(frozen=True)
class Measurement:
    """One command of ``bids_moediff-evaluate`` and the table that it fills.

    ``minutes``: about, on two idle cores with bfloat16.
    """

    model: str
    table: str
    words: Sequence[str]
    minutes: float


def measurements(data: Path | None) -> list[Measurement]:
    """Return what can be measured with some data."""
    if data is None:
        words = ["benchmark", "OUT", "--heads", BLOCK, "--protocols", *GATES, *TWO_CORES]
        return [Measurement(model, "block", [*words, "--model", model], 3) for model in MODELS]
    split = ["OUT", "--data", str(data), "--split", "val", *TWO_CORES]
    heads = [str(data / head) for head in LESIONS]
    found = []
    for place, model in enumerate(MODELS):
        last = [*TWO_CORES, "--model", model]
        words = ["benchmark", *split, "--model", model, "--protocols", *GATES]
        found.append(Measurement(model, "benchmark", words, (15.0, 45.0)[place]))
        words = ["hallucination", "OUT", "--heads", *heads, "--block", "96", "--repeats", "1"]
        words += ["--protocols", "x2iso-kspace", "x4slices-gaussian", *last]
        found.append(Measurement(model, "lesions", words, (2.0, 5.0)[place]))
        for kind, (more, minutes) in OTHERS.items():
            words = [kind, *split, "--model", model, *more.split()]
            found.append(Measurement(model, kind, words, minutes[place]))
    return found


def shown(words: Sequence[str]) -> str:
    """A command as the pages show it: no place of this machine."""
    names = {"--data": "DATA"}
    told = [names.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return shlex.join([EVALUATE, *(Path(w).name if Path(w).is_absolute() else w for w in told)])


def measure(wanted: Measurement, folder: Path) -> Path:
    """Run one command and write its table."""
    words = [str(folder) if word == "OUT" else word for word in wanted.words]
    subprocess.run([sys.executable, "-m", "bids_moediff.cli.evaluate", *words], check=True)
    command = {"command": shown(wanted.words)}
    if wanted.table in KINDS:
        content = {"precision": "auto"} | KINDS[wanted.table](folder, wanted.model)
        return write_result(wanted.model, wanted.table, content | command)
    rows = [row for row in read_rows(folder / "rows.tsv") if row["protocol"] in wanted.words]
    content = of_benchmark(rows, wanted.model)
    return write_result(wanted.model, wanted.table, content | command)


def main() -> None:
    """Measure, write, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder for rows and pictures; kept between runs")
    parser.add_argument("--data", type=Path, help="folder with manifest.tsv (docs/data.md)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    asked = parser.parse_args()
    for wanted in measurements(asked.data):
        if wanted.model not in asked.models:
            continue
        print(f"{shown(wanted.words)} (about {wanted.minutes:g} minutes)", flush=True)
        start = time.monotonic()
        folder = asked.out / wanted.model
        path = measure(wanted, folder / wanted.table if wanted.table in KINDS else folder)
        minutes = (time.monotonic() - start) / 60
        print(f"{path.relative_to(ROOT)} after {minutes:.1f} minutes", flush=True)
    subprocess.run(
        [sys.executable, str(ROOT / "tools/figures.py"), "--drop", "--write"], check=False
    )


if __name__ == "__main__":
    main()
