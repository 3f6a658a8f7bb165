# SPDX-License-Identifier: Apache-2.0
"""Data sets with one fault each, after reports that users of other tools filed in public."""

import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np

from generated import dataset, head

SOLID = '{"MRAcquisitionType": "3D"}'
LIMIT = 255
# Characters of a name and whether its outputs still fit into the limit.
LONG_NAMES = {"long": 190, "longer": 249}


def put(root: Path, name: str, image: nib.Nifti1Image, sidecar: str | bytes = SOLID) -> Path:
    """Write an image into the folder that its name says, with a sidecar."""
    parts = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
    path = root.joinpath(*parts, "anat", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    text = sidecar if isinstance(sidecar, bytes) else sidecar.encode()
    path.with_name(name.split(".")[0] + ".json").write_bytes(text)
    return path


def fields(root: Path) -> Path:
    """Faults of names, sidecars and headers: images of one participant, and a second one."""
    dataset(root, {})
    good = small_head()
    put(root, "sub-01_T1w.nii.gz", good)
    for label in ("B1", "B1+"):
        put(root, f"sub-01_acq-{label}_T1w.nii.gz", good)
    keys = {"MRAcquisitionType": "3D", "session": "baseline", "run": 1, "IntendedFor": ["x"]}
    put(root, "sub-02_ses-1_run-01_T1w.nii.gz", good, json.dumps(keys))
    for label, length in LONG_NAMES.items():
        start, end = f"sub-01_acq-{label}", "_T1w.nii.gz"
        put(root, start + ("Echo" * 99)[: length - len(start + end)] + end, good)
    stated = {"MRAcquisitionType": "2D", "SliceThickness": 6.0, "SpacingBetweenSlices": 7.5}
    put(root, "sub-01_acq-gap_T1w.nii.gz", good, json.dumps(stated))
    half = put(root, "sub-01_acq-half_T1w.nii", good)
    content = half.read_bytes()
    keep = int(0.6 * len(content))
    half.write_bytes(content[:keep] + bytes(len(content) - keep))
    thin = b'{"MRAcquisitionType": "2D", "SliceThickness": 2.0}'
    put(root, "sub-01_acq-bom_T1w.nii.gz", good, b"\xef\xbb\xbf" + thin)
    annex = put(root, "sub-01_acq-annex_T1w.nii.gz", good)
    annex = annex.with_name("sub-01_acq-annex_T1w.json")
    annex.unlink()
    annex.symlink_to("../../.git/annex/objects/a/b/MD5E-s9--0.json")
    unsuitable(root, good)
    return root


def small_head(seed: int = 0) -> nib.Nifti1Image:
    """A head of few voxels."""
    return head((30, 36, 28), (5.2, 5.2, 6.0), seed)


def unsuitable(root: Path, good: nib.Nifti1Image) -> None:
    """What a header alone gives away."""
    data, affine = np.asarray(good.dataobj), good.affine
    colours = np.zeros(data.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    odd = {"complex": data.astype(np.complex64), "rgb": colours, "tiny": data[:7, :5, :3]}
    put(root, "sub-03_T1w.nii.gz", nib.Nifti1Image(data[:5], affine))  # nothing else of sub-03
    for label, values in odd.items():
        put(root, f"sub-01_acq-{label}_T1w.nii.gz", nib.Nifti1Image(values, affine))
    short = put(root, "sub-01_acq-short_T1w.nii.gz", good)
    short.write_bytes(gzip.compress(good.to_bytes()[: data.nbytes // 3]))
    endless = put(root, "sub-01_acq-endless_T1w.nii", good)
    content = bytearray(endless.read_bytes())
    content[80:84] = np.float32(np.inf).tobytes()  # pixdim[1]
    content[252:256] = bytes(4)  # qform_code, sform_code
    content[280:328] = bytes(48)  # sform
    endless.write_bytes(content)


REFUSED = {
    "acq-complex": "complex values",
    "acq-rgb": "colour image",
    "acq-tiny": "too few voxels",
    "sub-03": "too few voxels",
    "acq-short": "cut short",
    "acq-endless": "no voxel size",
    "acq-longer": "has 249 characters",
}


def runs_with_one_mask(root: Path, derivatives: Path) -> None:
    """Two runs between which the head moved, and one mask of another app without run-."""
    image = small_head()
    data = np.asarray(image.dataobj)
    put(root, "sub-02_ses-2_run-1_T2w.nii.gz", image)
    moved = nib.Nifti1Image(np.roll(data, (3, 2), (1, 2)), image.affine)
    put(root, "sub-02_ses-2_run-2_T2w.nii.gz", moved)
    places = np.indices(data.shape) - np.reshape([n / 2 for n in data.shape], (3, 1, 1, 1))
    ball = ((places**2).sum(0) < (50 / 5.2) ** 2).astype(np.uint8)
    name = "sub-02_ses-2_space-T2w_desc-brain_mask.nii.gz"
    put(derivatives, name, nib.Nifti1Image(ball, image.affine))
