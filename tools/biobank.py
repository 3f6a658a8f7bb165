#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Simulate discovery and planning for a biobank, for the figures of docs/biobank.md.

    python tools/biobank.py --participants 100000 --outputs DERIVATIVES

A data set of empty files is made in a temporary folder: names and sidecars only, a T1w and a FLAIR
image each. Listing, discovery of a sample and planning run in a process of their own, whose peak
memory is read. With ``--outputs``, a finished output folder, files and bytes of an image and the
seconds and memory of its network are measured there; hours and disk space follow from them. The
group level then runs on copies of that image's sidecar and record, one for each participant, with
quality figures that differ.
Where that run shared its machine or had another network, ``--seconds`` takes those of an image on
an idle machine from docs/speed.md, any number of them with a name each (``student=31``), and
seconds and memory of the run are left out.
"""

import argparse
import json
import math
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bids_moediff.bids.past_runs import last_record
from bids_moediff.options import Options

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SUFFIXES = ("T1w", "FLAIR")
MATRIX = (192, 240, 240)  # the whole head of research.measurements.speed
ZOOM_IN = (1.0, 1.0, 1.0)
OPTIONS = Options(output_resolution=(0.7, 0.7, 0.7))


def make_names(root: Path, count: int) -> None:
    """Write folders, empty images and sidecars of ``count`` participants."""
    root.mkdir(parents=True)
    description = {"Name": "Names only", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "T1w.json").write_text('{"MagneticFieldStrength": 3}')
    for number in range(count):
        folder = root / f"sub-{number:07d}" / "ses-1" / "anat"
        folder.mkdir(parents=True)
        for suffix in SUFFIXES:
            stem = folder / f"{folder.parts[-3]}_ses-1_{suffix}"
            stem.with_suffix(".nii.gz").touch()
            stem.with_suffix(".json").write_text('{"SliceThickness": 1}')


def memory_mb() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def simulate(root: Path, sample: int) -> dict[str, Any]:
    """List all participants, discover and plan every n-th; figures of this process."""
    from bids_moediff.bids.discover import discover_participant, find_participants
    from bids_moediff.families.cost import estimate
    from bids_moediff.settings import load_settings

    given = {"bids_dir": root, "output_dir": root.parent / "out", "analysis_level": "participant"}
    settings = load_settings(given, None, {})
    start = time.perf_counter()
    labels = find_participants(settings)
    listing = time.perf_counter() - start
    step = max(1, len(labels) // sample)
    chosen = labels[::step][:sample]
    processor_seconds, marks, images = [], [], 0
    for position, label in enumerate(chosen, 1):
        start = time.process_time()
        for _ in discover_participant(settings, label).images:
            estimate(MATRIX, ZOOM_IN, OPTIONS, model="student")
            images += 1
        processor_seconds.append(time.process_time() - start)
        if position in (len(chosen) // 2, len(chosen)):
            marks.append(memory_mb())
    return {
        "participants": len(labels),
        "listing": listing,
        "sampled": len(chosen),
        "images": images,
        "seconds": statistics.median(processor_seconds),
        "memory_half": marks[0],
        "memory": marks[-1],
    }


def copy_outputs(root: Path, count: int, outputs: Path) -> None:
    """Give each participant the sidecar, record, page and thumbnail of one image that was made.

    Quality figures vary with heavy tails, so that some stand out of each; every tenth image keeps
    its warnings. The page and the thumbnail are empty.
    """
    sidecar = json.loads(next(outputs.rglob("*_desc-sr_*.json")).read_text())
    record = next(filter(None, map(last_record, outputs.glob("logs/sub-*"))))
    draw = random.Random(0)
    for number in range(count):
        label = f"{number:07d}"
        anat, figures = (root / f"sub-{label}" / "ses-1" / name for name in ("anat", "figures"))
        anat.mkdir(parents=True)
        figures.mkdir()
        varied = {
            name: value * math.exp(0.1 * draw.gauss(0, 1) / draw.uniform(0.2, 1))
            for name, value in sidecar["Quality"].items()
            if isinstance(value, float)
        }
        warnings = sidecar["Warnings"] if number % 10 == 0 else []
        content = {**sidecar, "Quality": {**sidecar["Quality"], **varied}, "Warnings": warnings}
        (anat / f"sub-{label}_ses-1_desc-sr_T1w.json").write_text(json.dumps(content))
        (figures / f"sub-{label}_ses-1_desc-thumbnail_T1w.png").touch()
        (root / f"sub-{label}.html").touch()
        item = {**record["images"][0], "key": f"sub-{label}_ses-1_T1w"}
        run = root / "logs" / f"sub-{label}" / "1"
        run.mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({**record, "images": [item]}))


def measure_group(root: Path, outputs: Path) -> dict[str, float]:
    """Seconds of the processor, peak memory and sizes of the group level, in this process."""
    from bids_moediff.execution.group import run_group
    from bids_moediff.settings import load_settings

    given = {"bids_dir": root, "output_dir": outputs, "analysis_level": "group"}
    start = time.process_time()
    run_group(load_settings(given, None, {}))
    tables = sum(path.stat().st_size for path in outputs.glob("group_*.tsv"))
    return {
        "group_seconds": time.process_time() - start,
        "group_memory": memory_mb(),
        "page_megabytes": (outputs / "group.html").stat().st_size / 1e6,
        "table_megabytes": tables / 1e6,
    }


def measure_outputs(folder: Path) -> dict[str, Any]:
    """Files, bytes, seconds and memory per image of a finished output folder."""
    records = list(_done_images(folder))
    if not records:
        raise SystemExit(f"{folder} holds no image that was done; give the outputs of a run.")
    files = [path for path in folder.rglob("sub-*") if path.is_file()]
    files += [path for path in folder.glob("sub-*/figures/*") if path.is_file()]
    files += [path for path in folder.glob("logs/sub-*/*/*") if path.is_file()]
    unique = set(files)
    inodes = len(unique) + len({path.parent for path in unique})
    return {
        "images": len(records),
        "files": inodes / len(records),
        "megabytes": sum(path.stat().st_size for path in unique) / 1e6 / len(records),
        "seconds": statistics.mean(record["seconds"] for record in records),
        "memory": max(record["peak_memory_gb"] for record in records),
        "device": ", ".join(sorted({record["record"]["Device"] for record in records})),
        "voxels": sorted(
            {"x".join(f"{z:g}" for z in r["record"]["OutputVoxelSize"]) for r in records}
        ),
    }


def _done_images(folder: Path) -> Iterator[dict[str, Any]]:
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("logs/sub-*/*/run.json")):
        for image in json.loads(path.read_text())["images"]:
            newest[image["key"]] = image
    for image in newest.values():
        if image["status"] == "done" and "seconds" in image:
            yield image


def table(found: dict[str, Any], outputs: dict[str, Any] | None, idle: dict[str, float]) -> str:
    """Figures as Markdown; `idle` is the seconds of an image on an idle machine, by name."""
    count = found["participants"]
    total = count * len(SUFFIXES)
    lines = [
        f"Made by `tools/biobank.py --participants {count}` on {os.cpu_count()} cores "
        f"({platform.machine()}).",
        "",
        "| discovery and planning | measured |",
        "| --- | --- |",
        f"| participants (names only), images each | {count:,}, {len(SUFFIXES)} |",
        f"| listing all participants | {found['listing']:.2f} s |",
        f"| one participant: discover and plan ({found['sampled']} sampled, median) "
        f"| {found['seconds']:.3f} s of processor time |",
        f"| the same for all, on one core | {found['seconds'] * count / 3600:.1f} h |",
        f"| peak memory after half of the sample, after all | {found['memory_half']:.0f} MB, "
        f"{found['memory']:.0f} MB |",
    ]
    if outputs is not None:
        voxels = " and ".join(outputs["voxels"])
        lines += [
            "",
            f"| super-resolution to {voxels} mm ({outputs['device']}) "
            f"| one image | {total:,} images |",
            "| --- | --- | --- |",
            *_network(outputs, idle, total),
            f"| files and folders (inodes), mean of {outputs['images']} | {outputs['files']:.0f} "
            f"| {outputs['files'] * total / 1e6:.1f} million |",
            f"| disk space | {outputs['megabytes']:.0f} MB "
            f"| {outputs['megabytes'] * total / 1e6:.1f} TB |",
            "",
            f"| group level of {count:,} participants, one image each | measured |",
            "| --- | --- |",
            f"| time | {found['group_seconds']:.0f} s of processor time |",
            f"| peak memory | {found['group_memory']:.0f} MB |",
            f"| page, table | {found['page_megabytes']:.1f} MB, "
            f"{found['table_megabytes']:.1f} MB |",
        ]
    return "\n".join(lines) + "\n"


def _network(outputs: dict[str, Any], idle: dict[str, float], total: int) -> Iterator[str]:
    """Rows on the network: of the run, or of an idle machine where those are given."""
    from bids_moediff.families.cost import estimate

    if not idle:
        yield _time("time of the network in that run", outputs["seconds"], total)
        yield f"| peak memory of the network | {outputs['memory']:.1f} GB | the same |"
    else:
        for name, seconds in idle.items():
            yield _time(f"{name}, as given", seconds, total)
    on_gpu = estimate(MATRIX, ZOOM_IN, OPTIONS, device="cuda", model="moediff").seconds
    yield _time("moediff on a data-centre GPU, only estimated", on_gpu, total)


def _time(name: str, seconds: float, total: int) -> str:
    return f"| {name} | {seconds:.0f} s | {seconds * total / 3600:,.0f} h |"


def _named_seconds(text: str) -> tuple[str, float]:
    name, _, seconds = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SECONDS")
    return name, float(seconds)


def write_figures(path: Path, text: str) -> None:
    """Put the figures between the two marks of a page."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{path} lacks the lines {BEGIN} and {END}.")
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _measured(words: list[str], what: str) -> dict[str, Any]:
    """Figures of a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, what, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--participants", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=500, help="participants to discover")
    parser.add_argument("--outputs", type=Path, help="output folder of a real run")
    parser.add_argument(
        "--seconds", type=_named_seconds, nargs="+", default=[], metavar="NAME=SECONDS",
        help="of an image on an idle machine",
    )  # fmt: skip
    parser.add_argument("--write", type=Path, help="page to put the figures into")
    parser.add_argument("--simulate", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--group", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.simulate:
        print(json.dumps(simulate(options.simulate, options.sample)))
        return
    if options.group:
        print(json.dumps(measure_group(*options.group)))
        return
    outputs = measure_outputs(options.outputs) if options.outputs else None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "raw"
        make_names(root, options.participants)
        found = _measured([str(root), "--sample", str(options.sample)], "--simulate")
        if options.outputs:
            copy_outputs(Path(folder) / "out", options.participants, options.outputs)
            found |= _measured([str(root), str(Path(folder) / "out")], "--group")
        # Before the names are removed, which takes as long as making them.
        text = table(found, outputs, dict(options.seconds))
        if options.write:
            write_figures(options.write, text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
