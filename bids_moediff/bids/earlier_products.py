# SPDX-License-Identifier: Apache-2.0
"""Find the outputs of an image that an earlier run wrote with other options."""

import re
from collections.abc import Iterator
from pathlib import Path

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path, figure_path
from bids_moediff.bids.products import PREPARATION, PRODUCTS, Product, find_product
from bids_moediff.bids.sidecar import source_uri
from bids_moediff.runtime.given_files import read_json

Zooms = tuple[float, float, float]


def earlier_products(image: AnatomicalImage, output_dir: Path, zooms: Zooms) -> Iterator[Product]:
    """Yield the products after the network that this app wrote for an image.

    Their sidecars name the image. Results with another voxel size are not looked at.

    Parameters
    ----------
    image
        The source image, or group.
    output_dir
        Root of the app's derivatives.
    zooms
        Output voxel size in mm.
    """
    for row in PRODUCTS.values():
        if row.made_by == PREPARATION or row.of_group != bool(image.members):
            continue
        for key in _keys(row, image, output_dir, zooms):
            if _is_own(image, key, output_dir, zooms):
                yield find_product(key)


def further_files(image: AnatomicalImage, output_dir: Path, zooms: Zooms) -> list[str]:
    """Return the files of products of which an image has several (samples, standard spaces).

    Parameters
    ----------
    image, output_dir, zooms
        As for :func:`earlier_products`.

    Returns
    -------
    list
        Paths of images relative to the output folder.
    """
    return [
        str(derivative_path(image, product.key, zooms))
        for product in earlier_products(image, output_dir, zooms)
        if product.label
    ]


def _keys(row: Product, image: AnatomicalImage, output_dir: Path, zooms: Zooms) -> Iterator[str]:
    """Yield the key of a product, or that of each of its files on disk if there may be several."""
    if row.each is None:
        yield row.key
        return
    pattern = output_dir / derivative_path(image, f"{row.key}_*", zooms)
    label = re.compile(re.escape(pattern.name).replace(r"\*", "([A-Za-z0-9+]+)"))
    for path in sorted(pattern.parent.glob(pattern.name)):
        if found := label.fullmatch(path.name):
            yield f"{row.key}_{found[1]}"


def remove_product(
    image: AnatomicalImage, key: str, output_dir: Path, zooms: Zooms | None
) -> None:
    """Remove a product of an image that this app wrote, its picture first and its sidecar last.

    Parameters
    ----------
    image, output_dir, zooms
        As for :func:`earlier_products`.
    key
        Key of the product.
    """
    if not _is_own(image, key, output_dir, zooms):
        return
    row = find_product(key)
    if row.figure is not None:
        (output_dir / figure_path(image, row.key, ".png")).unlink(missing_ok=True)
    for extension in sorted(row.extensions, key=lambda extension: extension == ".json"):
        (output_dir / derivative_path(image, key, zooms, extension)).unlink(missing_ok=True)


def _is_own(image: AnatomicalImage, key: str, output_dir: Path, zooms: Zooms | None) -> bool:
    """Return True if the sidecar of a product says that it was made from this image."""
    try:
        sidecar = read_json(output_dir / derivative_path(image, key, zooms, ".json"))
    except (OSError, ValueError):
        return False
    sources = sidecar.get("Sources") if isinstance(sidecar, dict) else None
    own = [source_uri(source) for source in image.sources]
    return isinstance(sources, list) and sources[: len(own)] == own
