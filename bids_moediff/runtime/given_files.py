# SPDX-License-Identifier: Apache-2.0
"""Text files that somebody else wrote: regular, of a size that can be, UTF-8 with or without BOM.

Opening a pipe waits for ever, a device has no end, and JSON that is nested a million times deep
raises what nobody expects: here each is an OSError or a ValueError with the reason.
"""

import errno
import json
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 26


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises
    ------
    OSError
        if it cannot be read, or is no regular file.
    ValueError
        if it is larger than 64 MiB or not UTF-8.
    """
    size = path.stat().st_size
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    if not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    if size > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, more than any such file")
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises
    ------
    OSError, ValueError
        as :func:`read_text`, and for what is not JSON or nested too deep.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
