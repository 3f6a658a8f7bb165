# SPDX-License-Identifier: Apache-2.0
"""Read text files of other people: regular, of a plausible size, UTF-8 with or without BOM.

Opening a pipe waits forever, a device has no end, and deeply nested JSON raises unexpected errors.
Here each becomes an OSError or a ValueError with the reason.
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
        If it cannot be read, or is not a regular file.
    ValueError
        If it is larger than 64 MiB or not UTF-8.
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
        As for :func:`read_text`, and for invalid or deeply nested JSON.
    """
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
