# SPDX-License-Identifier: Apache-2.0
"""The JSON beside each product: what the standard requires and what ran."""

from collections.abc import Mapping, Sequence
from typing import Any

from bids_moediff.bids.dataset import RAW
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import PRODUCTS
from bids_moediff.runtime.sink import table_text

# Experts of MoEDiff-SR in the order of the gate maps, with the tissue each is meant for.
EXPERTS = ("smooth", "cortex", "junction")
_WITH_STRIPPING = ("sr", "preproc", "srstd")


def source_uri(image: AnatomicalImage) -> str:
    """BIDS URI of an input image, ``bids:raw:sub-01/anat/sub-01_T1w.nii.gz``."""
    return f"bids:{RAW}:{image.relative_path}"


def resolution_text(zooms: tuple[float, float, float]) -> str:
    """Voxel size in words: ``0.7 mm isotropic``, ``0.7 x 0.7 x 1 mm``."""
    words = [f"{zoom:.4f}".rstrip("0").rstrip(".") for zoom in zooms]
    return f"{words[0]} mm isotropic" if len(set(words)) == 1 else f"{' x '.join(words)} mm"


def build_sidecar(
    image: AnatomicalImage,
    product: str,
    output_zooms: tuple[float, float, float] | None = None,
    record: Mapping[str, Any] | None = None,
    experts: Sequence[str] = EXPERTS,
    skull_stripped: bool = False,
) -> dict[str, Any]:
    """Sidecar of a product.

    Parameters
    ----------
    image
        The source.
    product
        A key of :data:`bids_moediff.bids.names.PRODUCTS`.
    output_zooms
        Output voxel size in mm, for products on the output grid.
    record
        What ran: own keys, in the order in which they are to stand; they win over the others.
    experts
        Names of the volumes of the gate maps.
    skull_stripped
        Whether the input had been stripped.

    Returns
    -------
    dict
        Keys of the standard first.
    """
    row = PRODUCTS[product]
    content: dict[str, Any] = {"Sources": [source_uri(image)]}
    if product in _WITH_STRIPPING:
        content["SkullStripped"] = skull_stripped
    if row.on_output_grid:
        if output_zooms is None:
            raise ValueError(f"{product} needs output_zooms")
        content["Resolution"] = resolution_text(output_zooms)
    if row.suffix is not None and image.suffix != "T1w":
        content["SpatialReference"] = source_uri(image)
    if row.suffix == "mask":
        content["Type"] = "Brain"
    if product == "gates":
        content["LabelMap"] = list(experts)
    if product == "expert":
        content["LabelMap"] = dict(zip(experts, range(1, len(experts) + 1), strict=True))
    return {**content, **(record or {})}


def expert_table(experts: Sequence[str] = EXPERTS) -> str:
    """Table beside the map of winning experts: voxel value and name."""
    rows = [{"index": number, "name": name} for number, name in enumerate(experts, 1)]
    return table_text(rows, ["index", "name"])
