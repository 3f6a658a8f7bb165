# SPDX-License-Identifier: Apache-2.0
"""Write the checksums of the shipped networks, after weights or configurations have changed.

    python tools/weight_sums.py

A run whose model matches the list does not load it only to check it. Matching files were loaded by
the tests. ``sha256sum -c SHA256SUMS`` reads the list, too.
"""

import hashlib

from bids_moediff.networks.model_folder import CONFIG_NAME, MODELS_FOLDER, SUMS_NAME

PATTERNS = (f"*/{CONFIG_NAME}", "*/*.safetensors", "*/scale.json", "*/experts.json")


def list_sums() -> str:
    """Return the list in the format of ``sha256sum``."""
    paths = sorted(path for pattern in PATTERNS for path in MODELS_FOLDER.glob(pattern))
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(MODELS_FOLDER)}\n"
        for path in paths
    ]
    return "".join(lines)


if __name__ == "__main__":
    (MODELS_FOLDER / SUMS_NAME).write_text(list_sums(), encoding="utf-8")
