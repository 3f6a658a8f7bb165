# SPDX-License-Identifier: Apache-2.0
"""Pass files between nodes: they exist for minutes, so images are not compressed."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib


def load_image(path: str | Path) -> nib.Nifti1Image:
    """Read an intermediate image."""
    return nib.Nifti1Image.from_filename(str(path))


def save_image(image: nib.Nifti1Image, path: Path) -> str:
    """Write an intermediate image and return its path."""
    nib.save(image, path)
    return str(path)


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
