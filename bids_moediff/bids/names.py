# SPDX-License-Identifier: Apache-2.0
"""Name outputs strictly: general patterns drop entities, and names collide.

Every entity of the source is kept. A product adds its own entities, a suffix and an extension. A
mask or a segmentation has no contrast in its suffix, so those of any contrast but T1w get
``space-<contrast>``. Otherwise the T1w and the T2w image of a session would share a mask name (an
absent ``space`` means the T1w image, as in fMRIPrep's outputs).
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.products import Product, find_product
from bids_moediff.errors import ImageError

# Order of entities in a file name, BIDS 1.11 (schema: rules/entities).
ENTITY_ORDER = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "ce", "trc", "stain", "rec", "dir", "run",
    "mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording",
    "chunk", "atlas", "seg", "scale", "res", "den", "label", "desc",
)  # fmt: skip
RESERVED = frozenset({"space", "atlas", "seg", "scale", "res", "den", "label", "desc"})


def resolution_label(zooms: tuple[float, float, float]) -> str:
    """Return ``0p7mm`` for 0.7 mm isotropic, else ``0p7x0p7x1mm`` (BIDS values are alphanumeric).

    >>> resolution_label((0.7, 0.7, 1.0))
    '0p7x0p7x1mm'
    """
    words = [f"{zoom:.4f}".rstrip("0").rstrip(".").replace(".", "p") for zoom in zooms]
    return (words[0] if len(set(words)) == 1 else "x".join(words)) + "mm"


def parse_name(name: str) -> tuple[dict[str, str], str, str]:
    """Return entities in order, suffix and extension of a file name.

    Raises
    ------
    ImageError
        If it is not a BIDS name, or its entities are unknown, repeated or out of order.
    """
    match = re.fullmatch(
        r"((?:[a-zA-Z]+-[a-zA-Z0-9+]+_)+)([a-zA-Z0-9]+)((?:\.[a-zA-Z0-9]+)+)", name
    )
    if match is None:
        raise ImageError(f"{name} is not a BIDS file name.")
    pairs = [part.split("-", 1) for part in match[1].rstrip("_").split("_")]
    keys = [key for key, _ in pairs]
    known = [key for key in ENTITY_ORDER if key in keys]
    if keys != known:
        raise ImageError(f"{name}: entities must be {', '.join(known)} in this order, each once.")
    return dict(map(tuple, pairs)), match[2], match[3]


def build_name(entities: Mapping[str, str], suffix: str, extension: str) -> str:
    """Return a file name from entities in the order of the standard."""
    unknown = set(entities) - set(ENTITY_ORDER)
    if unknown:
        raise ImageError(f"{sorted(unknown)[0]} is not a BIDS entity.")
    parts = [f"{key}-{entities[key]}" for key in ENTITY_ORDER if key in entities]
    return "_".join([*parts, suffix]) + extension


def _folder(entities: Mapping[str, str], last: str) -> PurePosixPath:
    session = [f"ses-{entities['ses']}"] if "ses" in entities and last == "anat" else []
    return PurePosixPath(f"sub-{entities['sub']}", *session, last)


def derivative_path(
    image: AnatomicalImage,
    product: str,
    output_zooms: tuple[float, float, float] | None = None,
    extension: str = ".nii.gz",
) -> PurePosixPath:
    """Return the path of a product of an image, relative to the output folder.

    Parameters
    ----------
    image
        The source.
    product
        A key of :data:`~bids_moediff.bids.products.PRODUCTS`, with its label if there are several.
    output_zooms
        Output voxel size in mm, for products on the output grid only.
    extension
        One of the product's extensions.

    Raises
    ------
    ValueError
        For an unknown product or extension, or a voxel size that is missing or not wanted.
    ImageError
        If the source has an entity that only derivatives have.
    """
    row = find_product(product)
    if extension not in row.extensions:
        raise ValueError(f"{product} has no {extension} file")
    if (output_zooms is not None) != row.on_output_grid:
        raise ValueError(f"{product} {'needs' if row.on_output_grid else 'has no'} output_zooms")
    if clash := RESERVED & set(image.entities):
        raise ImageError(f"{image.relative_path} is a derivative already ({sorted(clash)[0]}-).")
    entities = {**image.entities, **row.entities}
    if row.suffix is not None and image.suffix != "T1w":
        # BIDS allows no flip-, inv- and mt- in the names of masks: the space has them.
        parts = [f"{key}{entities.pop(key)}" for key in ("flip", "inv", "mt") if key in entities]
        entities.setdefault("space", "".join([image.suffix, *parts]))
    if output_zooms is not None:
        entities["res"] = resolution_label(output_zooms)
    name = build_name(entities, row.suffix or image.suffix, extension)
    return _folder(image.entities, "anat") / name


def longest_name(
    image: AnatomicalImage, products: Iterable[Product], output_zooms: tuple[float, float, float]
) -> int:
    """Return the length of the longest file name of these products of an image.

    Parameters
    ----------
    image
        The source.
    products
        Rows of the table of products.
    output_zooms
        Output voxel size in mm.
    """
    return max(
        len(derivative_path(image, row.key, zooms, extension).name)
        for row in products
        for zooms in (output_zooms if row.on_output_grid else None,)
        for extension in row.extensions
    )


def figure_path(image: AnatomicalImage, desc: str, extension: str = ".svg") -> PurePosixPath:
    """Return the path of a figure: ``sub-01/figures/<entities>_desc-<desc>_<suffix>.svg``."""
    if extension not in (".svg", ".png"):
        raise ValueError(f"a figure is .svg or .png, not {extension}")
    if not re.fullmatch(r"[A-Za-z0-9]+", desc):
        raise ValueError(f"{desc!r} is not a label")
    # A combined image bears a desc- already, which keeps its pictures apart from those of a scan.
    desc = image.entities.get("desc", "") + desc
    name = build_name({**image.entities, "desc": desc}, image.suffix, extension)
    return _folder(image.entities, "figures") / name
