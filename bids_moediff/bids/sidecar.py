# SPDX-License-Identifier: Apache-2.0
"""Build the JSON sidecar of each product: required keys, and what ran."""

from collections.abc import Mapping, Sequence
from typing import Any

from bids_moediff.bids.dataset import RAW
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.products import EXPERTS, TABLES, find_product
from bids_moediff.runtime.sink import table_text


def source_uri(image: AnatomicalImage) -> str:
    """Return the BIDS URI of an input image, ``bids:raw:sub-01/anat/sub-01_T1w.nii.gz``."""
    return f"bids:{RAW}:{image.relative_path}"


def resolution_text(zooms: tuple[float, float, float]) -> str:
    """Return the voxel size in words: ``0.7 mm isotropic``, ``0.7 x 0.7 x 1 mm``."""
    words = [f"{zoom:.4f}".rstrip("0").rstrip(".") for zoom in zooms]
    return f"{words[0]} mm isotropic" if len(set(words)) == 1 else f"{' x '.join(words)} mm"


def build_sidecar(
    image: AnatomicalImage,
    product: str,
    output_zooms: tuple[float, float, float] | None = None,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the sidecar of a product.

    Parameters
    ----------
    image, product, output_zooms
        As for :func:`~bids_moediff.bids.names.derivative_path`.
    record
        What ran: of the super-resolution, or of the brain mask for products of the preparation.
        The row of the product takes its own keys from it; they win over the others.

    Returns
    -------
    dict
        Keys of the standard first.
    """
    row, record = find_product(product), record or {}
    content: dict[str, Any] = {"Sources": [source_uri(source) for source in image.sources]}
    reference = record.get("Reference") or {}
    if row.on_output_grid and reference.get("Used"):
        content["Sources"].append(f"bids:{RAW}:{reference['Source']}")
    if row.suffix is None:
        mask = record.get("BrainMask", record)
        content["SkullStripped"] = mask.get("method") == "nonzero"
    if row.on_output_grid:
        if output_zooms is None:
            raise ValueError(f"{product} needs output_zooms")
        content["Resolution"] = resolution_text(output_zooms)
    if row.suffix is not None:
        content["SpatialReference"] = source_uri(image)
    content |= row.sidecar(record)
    content.pop(EXPERTS, None)
    content.pop(TABLES, None)
    return content


def label_table(sidecar: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the table beside a label map: voxel value, and name or properties of each label."""
    if rows:
        return table_text([dict(row) for row in rows], [*rows[0]])
    names = [{"index": number, "name": name} for name, number in sidecar["LabelMap"].items()]
    return table_text(names, ["index", "name"])
