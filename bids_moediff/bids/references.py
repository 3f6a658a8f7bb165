# SPDX-License-Identifier: Apache-2.0
"""Choose the other image of a subject that guides the restoration of an image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bids_moediff.bids.image import AnatomicalImage

# Contrasts whose edges are those of tissue: no maps, no vessels.
GUIDING = ("T1w", "T2w", "FLAIR", "PDw", "UNIT1", "inplaneT1", "inplaneT2")
# Coarser than this share of the image's coarsest voxel it has no detail to give.
LEAST_GAIN = 0.8
Zooms = Callable[[AnatomicalImage], Sequence[float]]


@dataclass(frozen=True)
class ReferenceChoice:
    """The image that guides another one, or in one sentence why there is none."""

    image: AnatomicalImage | None
    reason: str

    def record(self) -> dict[str, Any]:
        """Return plain values, for a node and the sidecar."""
        source = None if self.image is None else self.image.relative_path
        return {"Source": source, "Used": False, "Reason": self.reason}


def choose_reference(
    image: AnatomicalImage, others: Sequence[AnatomicalImage], wanted: str, zooms: Zooms
) -> ReferenceChoice:
    """Return the reference of an image.

    It is the finest image (by the volume of a voxel) of another contrast and of the same session;
    among equals T1w before T2w before FLAIR. If the session has none, it is the finest of the
    subject's other sessions. Images whose coarsest voxel is not smaller than that of the image are
    left out, unless ``wanted`` is more than ``auto``.

    Parameters
    ----------
    image
        The image to restore.
    others
        All images of the subject.
    wanted
        ``auto``, a suffix, or entities and a suffix (``ses-01_acq-mprage_T1w``).
    zooms
        Returns the voxel sizes of an image in mm.
    """
    *entities, suffix = wanted.split("_")
    asked = dict(part.split("-", 1) for part in entities)
    fitting = [
        other
        for other in others
        if other.key != image.key
        and other.suffix != image.suffix
        and other.problem is None
        and (other.suffix == suffix or (wanted == "auto" and other.suffix in GUIDING))
        and all(other.entities.get(key) == label for key, label in asked.items())
        and max(zooms(other)) < math.inf  # a file that cannot be read
    ]
    if not fitting:
        words = "of another contrast" if wanted == "auto" else f"that fits {wanted}"
        if wanted != "auto" and suffix == image.suffix:
            words += ", as the image is one itself"
        return ReferenceChoice(None, f"No reference was used: the subject has no image {words}.")
    coarsest = max(zooms(image))
    if wanted == "auto":
        fitting = [one for one in fitting if max(zooms(one)) < LEAST_GAIN * coarsest]
        if not fitting:
            return ReferenceChoice(
                None,
                "No reference was used: no image of another contrast has clearly smaller voxels "
                f"than the {coarsest:.3g} mm of this one.",
            )
    session = image.entities.get("ses")
    near = [one for one in fitting if one.entities.get("ses") == session]
    best = min(near or fitting, key=lambda one: _order(one, zooms))
    where = "of the same session" if near else f"of session {best.entities.get('ses', 'unnamed')}"
    if session is None and near:
        where = "of the subject"
    size = " x ".join(f"{zoom:.3g}" for zoom in zooms(best))
    of_all = f", the finest of {len(near or fitting)}" if len(near or fitting) > 1 else ""
    little = max(zooms(best)) >= LEAST_GAIN * coarsest
    doubt = "; its voxels are not clearly smaller, so expect little of it" if little else ""
    return ReferenceChoice(best, f"{best.key} ({size} mm), {where}{of_all}{doubt}")


def _order(image: AnatomicalImage, zooms: Zooms) -> tuple[float, float, int, str]:
    sizes = zooms(image)
    rank = GUIDING.index(image.suffix) if image.suffix in GUIDING else len(GUIDING)
    return (round(math.prod(sizes), 3), round(max(sizes), 3), rank, image.key)
