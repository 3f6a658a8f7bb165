# SPDX-License-Identifier: Apache-2.0
"""Error bars of volumes: segment the image and each of its samples, and compare.

    bids_moediff BIDS OUT participant --num-samples 8 --outputs samples
    python volume_error_bars.py OUT/sub-01/anat/sub-01_res-0p7mm_desc-sr_T1w.nii.gz \\
        --command 'segment {image} {labels}'

`segment` is any program that reads an image and writes a label map. Without --command, voxels are
counted in three classes of brightness. A table goes to standard output: volume in the image in ml,
mean and standard deviation of the samples, and a 90 % interval about the volume in the image.
Not about the mean of the samples: they hold noise, in which a segmenter finds other volumes. What
the segmenter gets wrong in any restored image comes on top (docs/downstream.md).
"""

import argparse
import json
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

NORMAL_90 = 1.645


def samples_of(image: Path) -> list[Path]:
    """Samples beside an image, in their order."""
    if "_desc-sr_" not in image.name:
        raise SystemExit(f"{image.name} is not a super-resolved image (desc-sr).")
    before, after = map(re.escape, image.name.split("_desc-sr_"))
    pattern = re.compile(rf"{before}_desc-srsample(\d+)_{after}")
    found = {int(m[1]): p for p in image.parent.iterdir() if (m := pattern.fullmatch(p.name))}
    return [found[number] for number in sorted(found)]


def by_command(image: Path, command: str, folder: Path) -> np.ndarray:
    """Label map (x, y, z) that a program makes of an image."""
    labels = folder / "labels.nii.gz"
    words = [word.format(image=image, labels=labels) for word in shlex.split(command)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return np.asarray(nib.load(labels).dataobj).astype(int)


def by_brightness(data: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Classes 1 to 3 of (x, y, z), 0 outside the head."""
    return np.digitize(data, borders)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--command", help="with {image} and {labels}")
    options = parser.parse_args()
    paths = [options.image, *samples_of(options.image)]
    if len(paths) < 3:
        raise SystemExit("Two samples or more are needed: --num-samples 8 --outputs samples.")
    for path in paths[1:]:
        sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
        if sidecar.is_file() and json.loads(sidecar.read_text()).get("Sample") == "texture":
            raise SystemExit(f"{path.name} is texture, not a sample of the posterior.")
    first = nib.load(options.image)
    size = float(np.prod(first.header.get_zooms()[:3])) / 1000
    data = np.asarray(first.dataobj)
    head = data[data > 0.1 * np.percentile(data, 99)]
    borders = np.array([head.min(), *np.percentile(head, [33, 67])])
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            if options.command:
                labels = by_command(path, options.command, Path(folder))
            else:
                labels = by_brightness(np.asarray(nib.load(path).dataobj), borders)
            tables.append(dict(zip(*np.unique(labels, return_counts=True), strict=True)))
    print("label\timage_ml\tmean_ml\tdeviation_ml\tlow_ml\thigh_ml")
    for label in sorted(set().union(*tables) - {0}):
        image, *samples = (size * table.get(label, 0) for table in tables)
        spread = float(np.std(samples, ddof=1))
        # Fewer samples know their spread less well.
        half = NORMAL_90 * spread * np.sqrt(1 + 1 / len(samples))
        figures = (image, float(np.mean(samples)), spread, image - half, image + half)
        print("\t".join([str(label), *(f"{figure:.3f}" for figure in figures)]))


if __name__ == "__main__":
    main()
