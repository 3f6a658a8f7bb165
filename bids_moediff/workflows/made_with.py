# SPDX-License-Identifier: Apache-2.0
"""Record everything that decides the result of an image, as digests that a later run compares."""

import hashlib
import json
from dataclasses import fields
from functools import cache
from typing import Any

from bids_moediff import __version__
from bids_moediff.bids.carried_maps import find_maps
from bids_moediff.bids.earlier_masks import find_brain_mask
from bids_moediff.bids.image import AnatomicalImage, stamp
from bids_moediff.bids.listing import list_participant
from bids_moediff.families.choice import takes_reference
from bids_moediff.networks.model_folder import CONFIG_NAME, resolve
from bids_moediff.options import RESTORATION, Options
from bids_moediff.settings import Settings

# Options that say how the work is done, or what the weights say already.
NO_MATTER = ("model", "weights", "batch_size")
# Files that a run adds: their contents count, not their place.
FILES = ("gradient_coefficients", "derivatives", "carry")
# What else a run adds to the options that decide the result of one image.
OF_RUN = (
    *(
        item.name
        for item in fields(Settings)
        if item.metadata["group"] == RESTORATION and item.name not in (*Options.names(), *FILES)
    ),
    "output_spaces",
    "sloppy",
)
VERSION, OTHERS = "version", ("inputs", "options", "weights")


def made_with(image: AnatomicalImage, settings: Settings, model: str) -> dict[str, str]:
    """Return what decides the result of an image: the version and three digests.

    Files count by size and modification time, weights by the checksum that is verified on loading.
    """
    if image.members:
        parts = [made_with(member, settings, model) for member in image.members]
        return {**parts[0], "inputs": _digest([image.key, *(part["inputs"] for part in parts)])}
    files: list[Any] = [stamp(image.path)]
    if takes_reference(model):  # any of them may guide the image
        found = list_participant(settings.bids_dir, image.entities["sub"]).images
        files.append([[str(path), stamp(path)] for path in found])
    if settings.gradient_coefficients:
        files.append(stamp(settings.gradient_coefficients))
    if settings.derivatives:
        mask = find_brain_mask(image, settings.derivatives)
        files.append([mask.remark, str(mask.path), stamp(mask.path) if mask.path else None])
    if settings.carry:
        files += [[str(path), stamp(path)] for path in find_maps(image, settings.carry)]
    inputs = [image.relative_path, image.suffix, dict(image.metadata), files]
    options = {key: value for key, value in settings.to_dict().items() if key not in NO_MATTER}
    options |= {name: getattr(settings, name) for name in OF_RUN}
    return {
        VERSION: __version__,
        "inputs": _digest(inputs),
        "options": _digest(options),
        "weights": weights_digest(model),
    }


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def weights_digest(model: str) -> str:
    """Return a digest of a model: its JSON files hold the checksums of all weights."""
    paths = [*sorted(resolve(model).glob("*.json")), resolve("brainmask") / CONFIG_NAME]
    return _digest([path.read_text(encoding="utf-8") for path in paths])
