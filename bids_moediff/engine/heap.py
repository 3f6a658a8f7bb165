# SPDX-License-Identifier: Apache-2.0
"""Keep freed memory for the next tensor instead of giving it back to the operating system.

The C library returns every large block at once, and the system fills the next one with zeros
page by page: a fifth of the seconds of a whole head (docs/speed.md).
"""

import ctypes
import sys

# Numbers of mallopt(3) in the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """For the rest of this process; False where the C library has no such setting."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
