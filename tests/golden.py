# SPDX-License-Identifier: Apache-2.0
"""Compare text with a file of tests/data that holds what was right when somebody last looked.

``BIDS_MOEDIFF_TEST_GOLDEN=1 python -m pytest -k …`` writes the files anew; read their difference
before you commit it.
"""

import os
from pathlib import Path

DATA = Path(__file__).with_name("data")


def check(name: str, text: str) -> None:
    """Fail at the first lines that differ from ``tests/data/<name>``."""
    path = DATA / name
    if os.environ.get("BIDS_MOEDIFF_TEST_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found, wanted = text.splitlines(), path.read_text(encoding="utf-8").splitlines()
    assert found == wanted, f"differs from tests/data/{name} (tests/golden.py writes it anew)"
