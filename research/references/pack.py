# SPDX-License-Identifier: Apache-2.0
"""Write the training pack of the CRFM family from the shared data.

    python -m research.references.pack SHARED_DATA PACK

Heads of the training split, label maps that are not kept for validation, and the three contrasts
of bids_mini/sub-01 with an aligned second contrast each. Two label maps that train nothing are
rendered in two contrasts and steer the training.
"""

import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_moediff.imaging.reference import align_reference, resample_reference
from bids_moediff.training.bids_heads import label_heads, manifest_heads
from bids_moediff.training.pack import (
    TrainingHead,
    bounding_box,
    brightness,
    make_image,
    quantise,
    save_pack,
)

from .render import render

UNSEEN = (
    "training_seg_17", "training_seg_18", "training_seg_19", "training_seg_20",
    "brain4_labels", "brain5_labels",
)  # fmt: skip
DEVELOPMENT = ("ds002748_sub-54_T1w", "ds011_sub-08_T1w", "uih_s1_T1w")
STEERING = (("training_seg_17", "T2w", "T1w"), ("brain4_labels", "FLAIR", "T1w"))
# Target and reference of the person with several contrasts; T1w was registered to each other one.
PAIRS = (("FLAIR", "T1w"), ("T2w", "T1w"), ("T1w", "FLAIR"))


def with_reference(name: str, image: nib.Nifti1Image, reference: nib.Nifti1Image) -> TrainingHead:
    """Return a head whose second contrast is aligned and on its grid."""
    data = np.asarray(image.dataobj, dtype=np.float32)
    other = resample_reference(reference, data.shape, image.affine)
    head = make_image(name, data, image.header.get_zooms(), subject="sub-01", source="pairs")
    box = bounding_box(quantise(data, brightness(data)) > 12, 4)
    return replace(head, reference=np.ascontiguousarray(quantise(other, brightness(other))[box]))


def real_pairs(folder: Path) -> list[TrainingHead]:
    """Return the contrasts of sub-01, each with another one."""
    images = {
        suffix: nib.nifti1.load(folder / f"sub-01_{suffix}.nii.gz")
        for suffix in ("T1w", "FLAIR", "T2w")
    }
    moves = {}
    for suffix in ("FLAIR", "T2w"):
        aligned = align_reference(images[suffix], images["T1w"])
        print(f"{suffix}, T1w: overlap {aligned.overlap:.3f}, before {aligned.overlap_before:.3f}")
        moves[suffix, "T1w"] = aligned.move
        moves["T1w", suffix] = np.linalg.inv(aligned.move)
    heads = []
    for target, other in PAIRS:
        source = images[other]
        affine = np.linalg.inv(moves[target, other]) @ source.affine
        moved = nib.Nifti1Image(np.asarray(source.dataobj, dtype=np.float32), affine)
        heads.append(with_reference(f"pair_sub-01_{target}", images[target], moved))
    return heads


def steering(labels: list[TrainingHead]) -> list[TrainingHead]:
    """Return rendered pairs of label maps that train nothing."""
    by_name = {head.name: head for head in labels}
    heads = []
    for name, target, other in STEERING:
        codes, seed = by_name[name].volume, by_name[name].volume.size
        image = (render(codes, contrast, seed) for contrast in (target, other))
        volume, reference = (quantise(one, brightness(one)) for one in image)
        heads.append(
            TrainingHead(
                f"{name}_{target}", volume, by_name[name].zooms, "image", name, "rendered",
                validation=True, reference=reference,
            )
        )  # fmt: skip
    return heads


def main(shared: Path, path: Path) -> None:
    """Write the pack."""
    labels = label_heads(shared / "labels")
    images = [
        head
        for head in manifest_heads(shared)
        if head.name not in DEVELOPMENT and not head.name.startswith("sub-01")
    ]
    training = [head for head in labels if head.name not in UNSEEN]
    heads = [*images, *real_pairs(shared / "bids_mini/sub-01/anat"), *training, *steering(labels)]
    print(f"{len(heads)} heads, SHA-256 {save_pack(heads, path)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
