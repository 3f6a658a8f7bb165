# SPDX-License-Identifier: Apache-2.0
"""Call the tools of another environment on an image, and read what they found."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_moediff.errors import MoediffError, UsageError

SEGMENT = Path(__file__).with_name("segment.py")
MAPS = ("thickness", "position", "tissue")
TISSUES = ("fluid", "grey", "white")
MIDDLE = 0.25  # of the way from pial to white surface, on both sides of the central one


@dataclass(frozen=True)
class Anatomy:
    """What the tools found in one image (X, Y, Z).

    Parameters
    ----------
    tissue
        0 outside the brain, then 1 fluid, 2 grey, 3 white matter, fractions at borders.
    thickness
        Of the cortex at each voxel, mm.
    position
        0 at the pial, 1 at the white surface.
    voxel
        Volume of a voxel in ml.
    """

    tissue: np.ndarray
    thickness: np.ndarray
    position: np.ndarray
    voxel: float

    @property
    def labels(self) -> np.ndarray:
        """The nearest whole tissue (X, Y, Z), 0 outside the brain."""
        return np.rint(self.tissue).astype(np.uint8)

    @property
    def cortex(self) -> np.ndarray:
        """Voxels (X, Y, Z) about the central surface."""
        return (np.abs(self.position - 0.5) < MIDDLE) & (self.thickness > 0)

    def volumes(self) -> dict[str, float]:
        """Return millilitres of each tissue, a voxel of two of them shared by its fractions."""
        return tissue_volumes(self.tissue, self.voxel)


def tissue_volumes(tissue: np.ndarray, voxel: float) -> dict[str, float]:
    """Return millilitres of each tissue of a map, with ``voxel`` millilitres a voxel."""
    shares = (np.clip(1 - np.abs(tissue - k), 0, None).sum() for k in (1, 2, 3))
    return {name: float(n) * voxel for name, n in zip(TISSUES, shares, strict=True)}


def run_tools(tools: Path, image: Path, folder: Path) -> None:
    """Find brain, tissues and thickness of an image; what is there already is kept.

    Parameters
    ----------
    tools
        ``bin`` folder of the tools' environment.
    image
        T1w image.
    folder
        Gets brain.nii.gz and the maps of segment.py.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mask = folder / "brain.nii.gz"
    find_brain(tools, image, mask)
    if not all((folder / f"{name}.nii.gz").is_file() for name in MAPS):
        call([tools / "python", SEGMENT, image, mask, folder])


def find_brain(tools: Path, image: Path, mask: Path) -> None:
    """Write the ``mask`` of a T1w image's brain, unless it is there; tools as in run_tools."""
    if mask.is_file():
        return
    stripped = mask.with_name("stripped.nii.gz")
    call([tools / "deepbet-cli", "-i", image, "-o", stripped, "-m", mask, "--no_gpu"])
    stripped.unlink(missing_ok=True)


def find_tissues(tools: Path, image: Path, mask: Path, folder: Path) -> np.ndarray:
    """Return the tissues (X, Y, Z) that AMAP finds in an image, without the cortex."""
    call([tools / "python", SEGMENT, image, mask, folder, "--only-tissue"])
    return nib.Nifti1Image.from_filename(folder / "tissue.nii.gz").get_fdata(dtype=np.float32)


def call(command: Sequence[str | Path]) -> None:
    """Run a tool on one thread; MoediffError with its last words if it fails."""
    words = [str(part) for part in command]
    openmp, itk = "OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
    threads = (openmp, itk, "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    # Nothing of this environment may be seen from that of the tools.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=kept | dict.fromkeys(threads, "1")
        )
    except OSError as error:
        raise UsageError(
            f"{words[0]} cannot be run: {error.strerror}. Make the environments of "
            "research/downstream/requirements*.txt and give their places: --tools, --kevinsr."
        ) from error
    if done.returncode:
        raise MoediffError(f"{words[0]} failed: {' '.join(done.stderr.split())[-300:]}")


def read_anatomy(folder: Path) -> Anatomy:
    """Read what :func:`run_tools` wrote."""
    images = {name: nib.Nifti1Image.from_filename(folder / f"{name}.nii.gz") for name in MAPS}
    maps = {name: np.asarray(image.dataobj, np.float32) for name, image in images.items()}
    voxel = abs(float(np.linalg.det(images["tissue"].affine[:3, :3]))) / 1000
    return Anatomy(**maps, voxel=voxel)
