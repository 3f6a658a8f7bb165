# SPDX-License-Identifier: Apache-2.0
"""Keep freed memory for the next tensor instead of giving it back to the operating system.

The C library returns every large block at once, and the system fills the next one with zeros
page by page: a fifth of the seconds of a whole head (docs/speed.md).
"""

import ctypes
import sys

# Numbers of mallopt(3) in the GNU C library, and the largest block that it agrees to keep. What is
# larger (whole volumes, not the slabs that networks work on) still goes back at once.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST_KEPT = 2**31 - 1, 32 << 20


def keep_freed_memory() -> bool:
    """For the rest of this process; False where the C library has no such setting."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    kept = bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT))
    return kept and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
