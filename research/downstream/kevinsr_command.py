# SPDX-License-Identifier: Apache-2.0
"""Refine one axis of an image by KevinSR (SOUP-GAN, Zhang et al. 2022), as its own readme says.

``KEVIN/bin/python kevinsr_command.py IMAGE OUT AXIS FACTOR`` runs in the environment of
requirements-kevinsr.txt, which knows nothing of bids_moediff. The package reads its networks from
the working folder and downloads those that are missing: it gets a folder with the network of its
archive (for thin slices) and an empty place for the other (for thick ones).
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

THIN = 1  # prep_type of the network that the archive holds
Resolve = Callable[[np.ndarray, int, int], np.ndarray]


def soup_gan() -> Resolve:
    """Return the package's function, in a working folder where it finds all that it looks for."""
    import KevinSR
    from KevinSR import SOUP

    # Its first step interpolates from first to last slice centre, which changes their distance;
    # by the edges of the outer slices the result lies on the grid asked for.
    SOUP.zoom = partial(ndimage.zoom, mode="nearest", grid_mode=True)
    network = Path(KevinSR.__file__).parent / "Thin-to-thin"
    if not (network / "saved_model.pb").is_file():
        sys.exit(f"{network} is missing: unpack the archive as requirements-kevinsr.txt says.")
    place = Path(tempfile.mkdtemp())
    (place / "Thick-to-thin").mkdir()
    (place / network.name).symlink_to(network)
    os.chdir(place)
    return KevinSR.SOUP_GAN


def refine(image: nib.Nifti1Image, axis: int, factor: int, resolve: Resolve) -> nib.Nifti1Image:
    """Return the image with ``factor`` times the slices along an axis, in its own intensities."""
    values = np.moveaxis(image.get_fdata(dtype=np.float32), axis, -1)
    low, high = float(values.min()), float(values.max())
    made = resolve(values, factor, THIN)  # from 0 to 10000, slices last
    fine = np.moveaxis(low + made / 10000 * (high - low), -1, axis).astype(np.float32)
    step = np.eye(4)
    step[axis, axis], step[axis, 3] = 1 / factor, (1 / factor - 1) / 2
    return nib.Nifti1Image(fine, image.affine @ step)


def main() -> None:
    """Write the refined image."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("axis", type=int, choices=(0, 1, 2))
    parser.add_argument("factor", type=int)
    asked = parser.parse_args()
    image, out = nib.Nifti1Image.from_filename(asked.image.resolve()), asked.out.resolve()
    nib.save(refine(image, asked.axis, asked.factor, soup_gan()), out)


if __name__ == "__main__":
    main()
