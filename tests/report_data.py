# SPDX-License-Identifier: Apache-2.0
"""A small synthetic participant for tests of the report: images, products and run record."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

SHAPE = (48, 56, 40)


def head(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Ellipsoid with a folded cortex, white matter, ventricles and noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    fold = ndimage.gaussian_filter(rng.normal(size=shape), 2.0)
    radius = np.sqrt((grid**2).sum(axis=0)) + 0.8 * fold / np.abs(fold).max() * 0.2
    data = np.select([radius < 0.15, radius < 0.55, radius < 0.75], [30.0, 110.0, 70.0], 0.0)
    data[grid[0] < -0.1] *= 1.05
    return np.abs(data + rng.normal(0, 2, shape)).astype(np.float32)


def affine(zooms: tuple[float, float, float], codes: str = "RAS") -> np.ndarray:
    """Affine of a grid in an orientation, its first voxel's corner at the origin."""
    matrix = np.diag([*zooms, 1.0])
    matrix[:3, 3] = np.array(zooms) / 2
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(codes), nib.orientations.axcodes2ornt("RAS")
    )
    shape = np.array(SHAPE)
    return matrix @ nib.orientations.inv_ornt_aff(turn, shape[turn[:, 0].astype(int)])


def quality(value: float = 20.0) -> dict[str, Any]:
    """A few quality figures."""
    return {
        "snr_brain": value,
        "cnr": 3.1,
        "efc": 0.5,
        "fber": None,
        "spacing_x": 2.0,
        "usable_x": 2.2,
        "acquired_x": 2.0,
        "interpolation_x": "native",
    }


def make_image(root: Path, label: str, seed: int = 0, rich: bool = True) -> dict[str, Any]:
    """Write products of one image; its entry in the run record."""
    fine = head(seed=seed)
    half = fine.reshape(24, 2, 28, 2, 20, 2).mean(axis=(1, 3, 5))
    folder, name = f"sub-{label}/anat", f"sub-{label}"
    volumes = {
        "preproc": (half, (2.0, 2.0, 2.0), f"{name}_desc-preproc_T1w"),
        "sr": (fine, (1.0, 1.0, 1.0), f"{name}_res-1mm_desc-sr_T1w"),
        "mask": ((half > 40).astype(np.uint8), (2.0, 2.0, 2.0), f"{name}_desc-brain_mask"),
    }
    if rich:
        gates = np.random.default_rng(seed).dirichlet(np.ones(3), SHAPE).astype(np.float32)
        volumes["gates"] = (gates, (1.0, 1.0, 1.0), f"{name}_seg-moegate_res-1mm_probseg")
        winner = gates.argmax(axis=3).astype(np.uint8) + 1
        volumes["expert"] = (winner, (1.0, 1.0, 1.0), f"{name}_seg-moegate_res-1mm_dseg")
        for number in (1, 2, 3):
            change = (gates[..., number - 1] - 0.3) * number
            stem = f"{name}_res-1mm_desc-srexpert{number}_T1w"
            volumes[f"srexpert{number}"] = (change, (1.0, 1.0, 1.0), stem)
        volumes["srstd"] = (fine * 0.1, (1.0, 1.0, 1.0), f"{name}_res-1mm_desc-srstd_T1w")
    products = {}
    (root / folder).mkdir(parents=True, exist_ok=True)
    for product, (data, zooms, stem) in volumes.items():
        matrix = np.diag([*zooms, 1.0])
        matrix[:3, 3] = np.array(zooms) / 2
        products[product] = f"{folder}/{stem}.nii.gz"
        nib.save(nib.Nifti1Image(data, matrix), root / products[product])
        if product in ("gates", "expert"):
            sidecar = {"LabelMap": ["smooth", "cortex", "junction"]}
            (root / folder / f"{stem}.json").write_text(json.dumps(sidecar))
        if product.startswith("srexpert"):
            expert = {"Expert": ("smooth", "cortex", "junction")[int(product[-1]) - 1]}
            (root / folder / f"{stem}.json").write_text(json.dumps(expert))
    return {
        "key": f"{name}_T1w",
        "source": f"{folder}/{name}_T1w.nii.gz",
        "suffix": "T1w",
        "status": "done",
        "message": "",
        "products": products,
        "quality": quality(20.0 + seed),
        "warnings": ["Slices are thick & <few>."],
        "seconds": 83.2,
        "peak_memory_gb": 3.4,
        "record": {
            "Model": "moediff",
            "ModelSHA256": "ab" * 32,
            "NumberOfSteps": 4,
            "RandomSeed": 0,
            "InputVoxelSize": [2.0, 2.0, 2.0],
            "OutputVoxelSize": [1.0, 1.0, 1.0],
            "ConsistencyResidual": 3.2e-4,
        },
    }


def make_run(root: Path, label: str = "01") -> dict[str, Any]:
    """A run with one image done and one failed."""
    failed = {
        "source": f"sub-{label}/anat/sub-{label}_T2w.nii.gz",
        "status": "failed",
        "message": "The file is truncated.",
    }
    return {
        "images": [make_image(root, label), failed],
        "methods": "# Methods\n\nImages were **conformed** <script>alert(1)</script>.",
        "errors": ["sub-01_T2w: The file is truncated."],
        "versions": {"bids_moediff": "0.1.0"},
    }
