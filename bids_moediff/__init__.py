# SPDX-License-Identifier: Apache-2.0
"""bids_moediff: a BIDS App that super-resolves anatomical brain MRI in agreement with the scan."""

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded when asked for, since torch takes seconds; types are in __init__.pyi.
_LAZY = {
    "super_resolve": "bids_moediff.inference.simple",
    "SuperResolver": "bids_moediff.inference.super_resolver",
}

# Threads of OpenMP turn in a loop while they wait for one another, some milliseconds by default:
# where anything else runs on the same processors, networks then take twenty times as long. Read
# when torch is loaded; a wait policy of the user's own stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
