# SPDX-License-Identifier: Apache-2.0
"""Recognise errors that mean memory is exhausted: each library has its own."""

import errno

# torch on the processor and on a card, cuBLAS and cuDNN, NumPy, the C++ library, SimpleITK.
WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_cpu.cpp",
    "defaultcpuallocator",
    "alloc_failed",
    "cudaerrormemoryallocation",
    "unable to allocate",
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return True if an error, or its cause, means that memory is exhausted."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or any(word in text for word in WORDS):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False
