# SPDX-License-Identifier: Apache-2.0
"""Draw docs/figures/three-stacks.png.

``python tools/three_stacks_picture.py COMBINED ALONE OUT.png``: what bids_moediff-superres made of
the three stacks of tests/data/three_stacks and of the axial one alone, at 2.4 mm.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

TRUTH = Path(__file__).parents[1] / "tests" / "data" / "three_stacks" / "truth.nii.gz"
SLICE = 36


def main(combined: str, alone: str, out: str) -> None:
    """Draw one sagittal slice of each image and of the truth, on the truth's voxels."""
    truth = nib.Nifti1Image.from_filename(TRUTH)
    titles = ("axial stack alone", "three stacks combined", "truth")
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.7), dpi=100)
    for axis, path, title in zip(axes, (alone, combined, TRUTH), titles, strict=True):
        image = nib.Nifti1Image.from_filename(path)
        first = np.round(np.linalg.inv(image.affine) @ truth.affine[:, 3])[:3].astype(int)
        sizes = (truth.shape[0], truth.shape[1], truth.shape[2] - 2)  # the axial stack ends there
        part = tuple(slice(o, o + n) for o, n in zip(first, sizes, strict=True))
        data = np.asarray(image.dataobj)[part]
        axis.imshow(data[SLICE].T, origin="lower", cmap="gray", vmin=0, vmax=1000)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
