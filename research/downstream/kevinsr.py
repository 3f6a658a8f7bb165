# SPDX-License-Identifier: Apache-2.0
"""KevinSR (SOUP-GAN, MIT licence) as a method, called as a command of another environment."""

from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from bids_moediff.errors import ImageError
from bids_moediff.evaluation.benchmark import Method, Task

from .tools import call

COMMAND = Path(__file__).with_name("kevinsr_command.py")


def kevinsr(python: Path) -> Method:
    """Return the method; it refines one axis after the other, by whole factors.

    Parameters
    ----------
    python
        Of the environment of requirements-kevinsr.txt.
    """

    def restore(task: Task) -> np.ndarray:
        with TemporaryDirectory() as name:
            path = Path(name) / "coarse.nii.gz"
            nib.save(task.coarse_image, path)
            for axis, ratio in enumerate(task.ratios):
                factor = round(ratio)
                if factor > 1:
                    fine = path.with_name(f"{axis}.nii.gz")
                    call([python, COMMAND, path, fine, str(axis), str(factor)])
                    path = fine
            found = nib.Nifti1Image.from_filename(path)
            values = found.get_fdata(dtype=np.float32)
        same = np.allclose(found.affine, task.affine, atol=0.01)
        if values.shape != task.truth.shape or not same:
            raise ImageError("KevinSR takes whole factors only: choose protocols like x4slices.")
        return values

    return Method("kevinsr", "0.1.20 thin", restore)
