# SPDX-License-Identifier: Apache-2.0
"""The source image as a piece of text, so that it can travel between nodes and be hashed."""

import json
from pathlib import Path

from bids_moediff.bids.discover import AnatomicalImage


def image_key(image: AnatomicalImage) -> str:
    """Name of the image in requests, logs and tables: its file name without extension."""
    return image.path.name.removesuffix(".gz").removesuffix(".nii")


def dump_source(image: AnatomicalImage) -> str:
    """Text that :func:`load_source` turns back into the same image."""
    return json.dumps(
        {
            "path": str(image.path),
            "relative_path": image.relative_path,
            "entities": dict(image.entities),
            "suffix": image.suffix,
            "metadata": dict(image.metadata),
            "problem": image.problem,
        },
        sort_keys=False,
    )


def load_source(text: str) -> AnatomicalImage:
    """Inverse of :func:`dump_source`."""
    fields = json.loads(text)
    return AnatomicalImage(**{**fields, "path": Path(fields["path"])})
