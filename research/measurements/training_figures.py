# SPDX-License-Identifier: Apache-2.0
"""What the training heads look like in figures, for the distance of a scan from them.

``python -m research.measurements.training_figures DATA [OUT.json]`` takes the heads of the split
"train" of DATA/manifest.tsv, computes the figures of
:mod:`bids_moediff.quality.familiarity` and writes
median and deviation over sources by contrast. Then it prints the distance of every image of the
manifest; that of a training head is computed without the heads of its own source.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import nibabel as nib

from bids_moediff.preprocessing.brain_mask import brain_mask
from bids_moediff.preprocessing.conform import conform
from bids_moediff.quality.familiarity import FIGURES, novelty, scan_figures, summarise
from bids_moediff.quality.input_checks import prepare
from bids_moediff.runtime.sink import write_json

Row = dict[str, Any]


def read_manifest(folder: Path) -> list[Row]:
    """Images of the manifest with their suffix: file, suffix, split, source."""
    with (folder / "manifest.tsv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return [
        {
            "file": row["file"],
            "suffix": row["modality"].split("+")[0],
            "split": row["split"],
            "source": row["source_repo"],
        }
        for row in rows
        if row["file"].endswith(".nii.gz") and not row["file"].startswith("labels")
    ]


def figures_of(path: Path) -> dict[str, float] | None:
    """Figures of one image, with a brain mask of its own."""
    image = conform(path)[0]
    mask: nib.Nifti1Image = brain_mask(image)[0]
    scan = prepare(image, mask, "")
    return scan_figures(scan.data, scan.brain, scan.depth, scan.zooms)


def summaries(rows: list[Row]) -> Row:
    """Summary by contrast, and of all contrasts."""
    sources: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in rows:
        sources.setdefault((row["suffix"], row["source"]), []).append(row["figures"])
    summary = {"all": summarise(list(sources.values()))}
    for contrast in sorted({suffix for suffix, _ in sources}):
        own = [heads for (suffix, _), heads in sources.items() if suffix == contrast]
        summary[contrast] = summarise(own)
    return summary


def main(arguments: list[str]) -> int:
    """Write the summaries and print every distance."""
    folder = Path(arguments[0])
    rows = read_manifest(folder)
    for row in rows:
        row["figures"] = figures_of(folder / row["file"])
    rows = [row for row in rows if row["figures"]]
    trained = [row for row in rows if row["split"] == "train"]
    known = summaries(trained)
    if len(arguments) > 1:
        sources = sorted(row["file"] for row in trained)
        content = {"figures": FIGURES, "contrasts": known, "files": sources}
        write_json(content, Path(arguments[1]))
    print("| image | split | distance | furthest off |\n|---|---|---|---|")
    for row in rows:
        others = known
        if row["split"] == "train":
            others = summaries([other for other in trained if other["source"] != row["source"]])
        found = novelty(row["figures"], row["suffix"], others)
        furthest = f"{FIGURES[found.furthest]} ({found.deviation:.1f})"
        print(f"| {row['file']} | {row['split']} | {found.distance:.2f} | {furthest} |")
        print(row["file"], {k: round(v, 3) for k, v in row["figures"].items()}, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
