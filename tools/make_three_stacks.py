# SPDX-License-Identifier: Apache-2.0
"""Make tests/data/three_stacks: three stacks of thick slices of one moved head, and the truth.

``python tools/make_three_stacks.py T1w.nii.gz OUT`` takes a fine, isotropic, skull-stripped image
(0.8 mm; T1.nii.gz of rordenlab/niimath-bitmap, CC0), makes slices of 7.2 mm along each axis with
2.4 mm in plane, box-shaped and without gaps, moves the second and third stack by known amounts and
adds Rician noise of 3 %. The truth has voxels of 2.4 mm.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.runtime.sink import write_json, write_nifti, write_text

IN_PLANE, SLICE = 3, 9  # fine voxels
NOISE = 0.03
# Stack, axis across slices, rotation vector (degrees) and shift (mm) of the head.
STACKS = (
    ("axial", 2, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ("coronal", 1, (1.2, -0.8, 1.0), (1.0, -1.4, 0.8)),
    ("sagittal", 0, (-0.7, 1.5, 0.6), (-1.1, 0.7, 1.3)),
)
README = """# Three stacks of one head

T1w of one adult, made from `T1.nii.gz` of https://github.com/rordenlab/niimath-bitmap, which is
in the public domain (CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/). The image
(0.8 mm, skull-stripped at source) was cut into slices of 7.2 mm with 2.4 mm in plane along each
axis; the coronal and the sagittal stack were moved; Rician noise of 3 % was added. Beside this
data set, `moves.json` holds the moves (world coordinates of the axial stack to those of each, mm)
and `truth.nii.gz` the head at 2.4 mm. Made by `tools/make_three_stacks.py`.
"""


def moved(image: nib.Nifti1Image, rotation: Sequence[float], shift: Sequence[float]) -> tuple:
    """The head after a move about its centre (float32), and the move as a 4x4 matrix (mm)."""
    data = np.asarray(image.dataobj, dtype=np.float32)
    centre = image.affine[:3, :3] @ ndimage.center_of_mass(data > 0) + image.affine[:3, 3]
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(rotation, degrees=True).as_matrix()
    move[:3, 3] = centre - move[:3, :3] @ centre + np.array(shift)
    back = np.linalg.inv(image.affine) @ np.linalg.inv(move) @ image.affine
    return ndimage.affine_transform(data, back[:3, :3], back[:3, 3], order=5), move


def measure(
    data: np.ndarray, affine: np.ndarray, factors: Sequence[int], profiles: Sequence[Axis]
) -> tuple[np.ndarray, np.ndarray]:
    """The head (X, Y, Z) with voxels `factors` times larger, and the new affine."""
    data = data[tuple(slice(0, n // f * f) for n, f in zip(data.shape, factors, strict=True))]
    zooms = voxel_sizes(affine)
    coarse = [zoom * factor for zoom, factor in zip(zooms, factors, strict=True)]
    shape, affine = output_grid(data.shape, affine, coarse)
    operator = Operator.between(
        data.shape, zooms, shape, voxel_sizes(affine), Acquisition(tuple(profiles))
    )
    return operator.forward(torch.from_numpy(np.ascontiguousarray(data))).numpy(), affine


def saved(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """16-bit image in scanner coordinates."""
    image = nib.Nifti1Image(np.clip(np.round(data), 0, 32767).astype(np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    return image


def main(source: str, out: str) -> None:
    """Write the data set, the truth and the moves."""
    root, image = Path(out), nib.Nifti1Image.from_filename(source)
    scale = 1000 / float(np.percentile(np.asarray(image.dataobj), 99.5))
    folder = root / "bids" / "sub-01" / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    random, moves = np.random.default_rng(0), {}
    for name, axis, rotation, shift in STACKS:
        data, move = moved(image, rotation, shift)
        factors, profiles = [IN_PLANE] * 3, [Axis("kspace")] * 3
        factors[axis], profiles[axis] = SLICE, Axis("box")
        clean, affine = measure(data * scale, image.affine, factors, profiles)
        sigma = NOISE * float(np.percentile(clean[clean > 100], 90))
        noisy = np.hypot(
            clean + random.normal(0, sigma, clean.shape), random.normal(0, sigma, clean.shape)
        )
        stem = folder / f"sub-01_acq-{name}_T1w"
        write_nifti(saved(noisy, affine), stem.with_name(stem.name + ".nii.gz"))
        thickness = round(float(voxel_sizes(affine)[axis]), 3)
        sidecar = {"MRAcquisitionType": "2D", "SliceThickness": thickness,
                   "SpacingBetweenSlices": thickness}  # fmt: skip
        write_json(sidecar, stem.with_name(stem.name + ".json"))
        moves[name] = move.round(9).tolist()
    data, affine = measure(
        moved(image, (0, 0, 0), (0, 0, 0))[0] * scale,
        image.affine, [IN_PLANE] * 3, [Axis("kspace")] * 3,
    )  # fmt: skip
    write_nifti(saved(data, affine), root / "truth.nii.gz")
    write_json(moves, root / "moves.json")
    description = {
        "Name": "Three stacks of one head",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "CC0",
        "SourceDatasets": [{"URL": "https://github.com/rordenlab/niimath-bitmap"}],
    }
    write_text(json.dumps(description, indent=2) + "\n", root / "bids/dataset_description.json")
    write_text(README, root / "bids/README.md")


if __name__ == "__main__":
    main(*sys.argv[1:3])
