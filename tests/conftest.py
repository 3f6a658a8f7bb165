# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: where the shared brain data live, if they are there."""

import os
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("NO_ET", "1")
ROOT = Path(__file__).resolve().parents[1]


def _shared_candidates() -> list[Path]:
    candidates = [ROOT.parent / "shared" / "data"]
    if "BIDS_MOEDIFF_SHARED" in os.environ:
        candidates.insert(0, Path(os.environ["BIDS_MOEDIFF_SHARED"]))
    git = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--path-format=absolute", "--git-common-dir"],
        capture_output=True,
        text=True,
        check=False,
    )
    if git.returncode == 0:
        candidates.append(Path(git.stdout.strip()).parents[1] / "shared" / "data")
    return candidates


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the shared brain MRI (see docs/data.md)."""
    for candidate in _shared_candidates():
        if (candidate / "manifest.tsv").is_file():
            return candidate
    pytest.skip("needs the shared brain data: set BIDS_MOEDIFF_SHARED to their folder")
