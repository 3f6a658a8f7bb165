# SPDX-License-Identifier: Apache-2.0
"""Make the demo data set: a head with thick axial slices out of one with nearly isotropic voxels.

    python tools/make_demo.py SOURCE_T1w.nii.gz bids_moediff/data/demo

The source is the T1w image of FNNDSC/data, dicom/adi_brain (see the README it writes). Empty
margins are cut off, pairs of slices along the axis nearest to feet-head are measured with the
package's own acquisition operator (a Gaussian slice profile, its width at half maximum equal to
the slice spacing), and Rician noise brings the noise back to the level of the source, as a scanner
would not have averaged it away. Same source, same bytes.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.runtime.sink import write_json, write_nifti, write_text

ROOT = Path(__file__).resolve().parents[1]
SOURCE_SHA256 = "63b29e3f46380fba047b9dd65617ea4d460b05af7e9fee76c1711e2d91669cf6"
FACTOR = 2
MARGIN = 6
SEED = 20250

DESCRIPTION = {
    "Name": "bids_moediff demo: one head with thick axial slices",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "Apache-2.0",
    "Authors": ["FNNDSC, Boston Children's Hospital (source image)"],
    "HowToAcknowledge": "Name the source repository, https://github.com/FNNDSC/data.",
    "SourceDatasets": [{"URL": "https://github.com/FNNDSC/data"}],
    "GeneratedBy": [{"Name": "tools/make_demo.py of bids_moediff"}],
}

README = """# A demo head for bids_moediff

One T1-weighted head ({zooms} mm voxels) for a first run, for tests and for nothing else: it is a
simulation, no patient was scanned with these slices.

* **Source**: github.com/FNNDSC/data, `dicom/adi_brain`, Apache-2.0 (text in `LICENSE`): a
  volunteer of 26 years, Siemens Trio 3 T, multi-echo MPRAGE, root mean square of the echoes,
  1.0 x 1.15 x 1.15 mm.
* **Changed from the source**: one slice that is missing there (115 of 176) is a cubic
  interpolation; the face was removed (everything in front of and below an oblique plane is zero);
  empty margins were cut off; pairs of axial slices were merged with a Gaussian slice profile as
  wide as the slice spacing; Rician noise was added up to the level of the source. The command is
  `tools/make_demo.py`.
* **Honest use**: neither this head nor any other image of its scanner or site trained the weights
  that ship with bids_moediff. It is one of the heads that validated them.
"""

SIDECAR = {
    "Modality": "MR",
    "Manufacturer": "Siemens",
    "ManufacturersModelName": "TrioTim",
    "MagneticFieldStrength": 3,
    "PulseSequenceDetails": "simulated thick slices from a multi-echo MPRAGE, see README.md",
    "EchoTime": 0.00166,
    "RepetitionTime": 2.53,
    "FlipAngle": 7,
    "MRAcquisitionType": "2D",
}


def read_source(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array and affine of the source, its empty margins cut off; (x, y, z) float32 and 4x4."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != SOURCE_SHA256:
        raise SystemExit(f"{path.name} is not the file the demo was made of (SHA-256 differs)")
    image = nib.as_closest_canonical(nib.load(path))
    data = np.asarray(image.dataobj, dtype=np.float32)
    head = data > 0.1 * np.percentile(data, 99)
    box = []
    for axis, count in enumerate(data.shape):
        others = tuple(other for other in range(3) if other != axis)
        inside = np.flatnonzero(head.sum(axis=others) > 20)
        start, stop = max(0, inside[0] - MARGIN), min(count, inside[-1] + 1 + MARGIN)
        box.append(slice(start, stop - (stop - start) % FACTOR if axis == 2 else stop))
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [axis.start for axis in box]
    return data[tuple(box)], affine


def noise_level(data: np.ndarray) -> float:
    """Standard deviation of the noise: the mode of a Rayleigh distribution, read off the air."""
    counts = np.bincount(np.round(data[data > 0]).astype(int))
    return float(np.argmax(counts[: int(0.1 * np.percentile(data, 99))]))


def measure(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thick-slice measurement of the head: array (x, y, z / 2) float32 and affine."""
    zooms = voxel_sizes(affine)
    coarse_zooms = (zooms[0], zooms[1], zooms[2] * FACTOR)
    shape, coarse_affine = output_grid(data.shape, affine, coarse_zooms)
    acquisition = Acquisition((Axis("none"), Axis("none"), Axis("gaussian", 1.0)))
    operator = Operator.between(data.shape, zooms, shape, coarse_zooms, acquisition)
    coarse = operator.forward(torch.from_numpy(data)).numpy()
    # The measurement averages white noise by the norm of the rows of A; put the rest back.
    impulse = torch.zeros(shape)
    impulse[tuple(count // 2 for count in shape)] = 1
    kept = float(operator.adjoint(impulse).square().sum())
    missing = noise_level(data) * np.sqrt(1 - kept)
    random = np.random.default_rng(SEED)
    real, imaginary = random.normal(0, missing, (2, *shape))
    noisy = np.hypot(coarse + real, imaginary)
    return np.where(coarse > 0.5, noisy, 0).astype(np.float32), coarse_affine


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=Path, help="T1w image of adi_brain, defaced")
    parser.add_argument("output", type=Path, help="folder of the new data set")
    arguments = parser.parse_args()
    data, affine = measure(*read_source(arguments.source))
    image = nib.Nifti1Image(np.round(data).astype(np.int16), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    zooms = [round(float(size), 4) for size in voxel_sizes(affine)]
    output = arguments.output
    stem = output / "sub-01" / "anat" / "sub-01_T1w"
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(image, stem.with_suffix(".nii.gz"))
    sidecar = {**SIDECAR, "SliceThickness": zooms[2], "SpacingBetweenSlices": zooms[2]}
    write_json(sidecar, stem.with_suffix(".json"))
    write_json(DESCRIPTION, output / "dataset_description.json")
    write_text(README.format(zooms=" x ".join(map(str, zooms))), output / "README.md")
    write_text("1.0.0 2026-11-20\n  - First version.\n", output / "CHANGES")
    write_text("participant_id\tage\nsub-01\t26\n", output / "participants.tsv")
    write_json({"age": {"Description": "age", "Units": "year"}}, output / "participants.json")
    shutil.copy(ROOT / "LICENSE", output / "LICENSE")
    print(json.dumps({"shape": image.shape, "zooms": zooms}))


if __name__ == "__main__":
    main()
