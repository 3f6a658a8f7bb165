# SPDX-License-Identifier: Apache-2.0
"""Write files completely or not at all, with the same bytes for the same content.

A file is written under a hidden temporary name in its own folder, flushed to disk and renamed. So
a reader never sees half a file, many jobs may share an output folder, and nothing is moved across
file systems. Gzip streams have neither a time nor a name.
"""

import io
import json
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .text import visible

if TYPE_CHECKING:
    import nibabel as nib


PIECE = 1 << 24  # bytes that are packed at a time


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary stream that becomes ``path`` only if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not longer than the name it becomes, which may be as long as the file system allows.
    temporary = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        # Plain open: permissions follow the umask (those of mkstemp would be private).
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(content: bytes, path: Path) -> Path:
    """Write bytes."""
    with atomic(path) as stream:
        stream.write(content)
    return path


def write_text(text: str, path: Path) -> Path:
    """Write text as UTF-8 with its own line ends; names that are not UTF-8 become escapes."""
    return write_bytes(text.encode("utf-8", "backslashreplace"), path)


def _plain(value: Any) -> Any:
    """Turn numpy scalars and arrays into plain numbers; TypeError for anything else."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_json(obj: Any, path: Path) -> Path:
    """Write JSON with the keys in the given order.

    Raises
    ------
    ValueError
        For NaN and infinity, which JSON does not have.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    return write_text(text + "\n", path)


def write_nifti(
    img: "nib.Nifti1Image",
    path: Path,
    write_sidecar: Callable[[], object] | None = None,
    step: float | None = None,
) -> Path:
    """Write a NIfTI image, compressed if the name ends in ``.gz``.

    Header extensions and the free text of the header are left out: they may hold names of persons
    and host paths. So are the display limits of the input, which do not fit the output.

    Parameters
    ----------
    img
        Image.
    path
        File to write.
    write_sidecar
        Called when the image is on disk, just before it gets its name. The standard allows neither
        an image without a sidecar nor a sidecar without an image, and compression takes seconds.
        So both names appear at once, and a job that is killed meanwhile leaves neither.
    step
        Store 16-bit integers, multiples of this (the header's ``scl_slope``).
    """
    clean = img.__class__(img.dataobj, img.affine, img.header)
    if step is not None:
        import numpy as np

        rounded = np.rint(np.asarray(img.dataobj) / step).astype(np.int16)
        clean = img.__class__(rounded, img.affine, img.header)
        clean.header.set_data_dtype(np.int16)
        clean.header.set_slope_inter(step, 0.0)
    clean.header.extensions.clear()
    for field in ("data_type", "db_name", "descrip", "aux_file", "intent_name"):
        clean.header[field] = b""
    clean.header["cal_min"] = clean.header["cal_max"] = 0
    content = clean.to_bytes()
    with atomic(path) as stream:
        if path.name.endswith(".gz"):
            stream.writelines(_packed(content))
        else:
            stream.write(content)
        if write_sidecar is not None:
            stream.flush()
            os.fsync(stream.fileno())
            write_sidecar()
    return path


def _packed(content: bytes) -> Iterator[bytes]:
    """Return a gzip stream without time or name, in pieces.

    Most bits of scans are noise: a search for repeated strings takes three quarters of the time
    and finds none. Runs of one value (air, masks) and the frequency of each byte give files as
    small (0.2 % smaller for a whole head, 4 % larger for its mask).
    """
    gzip_format = 16 + zlib.MAX_WBITS
    packer = zlib.compressobj(wbits=gzip_format, strategy=zlib.Z_RLE)
    for start in range(0, len(content), PIECE):
        yield packer.compress(memoryview(content)[start : start + PIECE])
    yield packer.flush()


def table_text(rows: list[dict[str, Any]], columns: list[str]) -> str:
    """Return a tab-separated table; missing values are ``n/a``, cells one visible line."""
    out = io.StringIO()
    out.write("\t".join(columns) + "\n")
    for row in rows:
        cells = (row.get(column) for column in columns)
        out.write("\t".join("n/a" if cell is None else _cell(cell) for cell in cells) + "\n")
    return out.getvalue()


def _cell(value: Any) -> str:
    """Return a value without tabs, line ends and control characters."""
    return visible(re.sub(r"[\t\r\n]+", " ", str(value)))
