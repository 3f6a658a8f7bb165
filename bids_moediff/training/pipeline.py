# SPDX-License-Identifier: Apache-2.0
"""Run ``bids_moediff-train``: from its options to a model folder, by pack, stages and export."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from bids_moediff.errors import MoediffError, UsageError
from bids_moediff.networks.model_folder import CONFIG_NAME

from .catalogue import Catalogue
from .export import export
from .pack import TrainingHead, check_heads, head_weights, save_pack, select_heads
from .recipe import Recipe

PACK_NAME = "pack.npz"


def write_pack(options: Namespace, path: Path, recipes: Sequence[Recipe] = ()) -> None:
    """Collect, check and write the training data (see :func:`.bids_data.collect`)."""
    if not options.data and not options.labels:
        raise UsageError("Say what to train on: --data BIDS_DIR or --pack FILE.")
    from .bids_heads import Selection, collect

    choice = Selection(
        options.pairs,
        tuple(options.modalities),
        options.max_voxel,
        tuple(options.validation_label),
    )
    heads = collect(options.data, options.labels, choice)
    if options.max_megabytes is not None:
        heads = select_heads(heads, options.max_megabytes)
    _check(heads, recipes)
    try:
        digest = save_pack(heads, path)
    except OSError as error:
        raise MoediffError(f"{path} cannot be written ({error.strerror}).") from error
    size = path.stat().st_size / 1e6
    print(f"{path}: {len(heads)} volumes, {size:.1f} MB, SHA-256 {digest}")


def _check(heads: Sequence[TrainingHead], recipes: Sequence[Recipe]) -> None:
    """UsageError, before anything is written, if a recipe cannot train on these heads."""
    kept_out = [name for recipe in recipes for name in recipe.keep_out]
    marked = check_heads(heads, kept_out) if recipes else []
    for recipe in recipes:
        training = [head for head in marked if not head.validation]
        head_weights(training, recipe.head_weights, recipe.label_share)


def _is_main() -> bool:
    """Whether this process writes; torchrun tells each its rank."""
    return int(os.environ.get("RANK", "0")) == 0


def _training_pack(options: Namespace, recipes: Sequence[Recipe]) -> Path:
    if options.pack is not None:
        if options.data or options.labels:
            raise UsageError("Give either --pack or --data and --labels.")
        if not options.pack.is_file():
            raise UsageError(f"There is no training pack {options.pack}.")
        return Path(options.pack)
    path = Path(options.output) / PACK_NAME
    if path.is_file():
        if _is_main():
            print(f"{path}: the data that were packed before; for other data, another --output")
        return path
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "Write the training pack first (--pack-only FILE), then start the processes with "
            "--pack FILE."
        )
    write_pack(options, path, recipes)
    return path


def run_recipes(recipes: Sequence[Recipe], options: Namespace, catalogue: Catalogue) -> Path:
    """Train every stage in turn, or continue it, write RUN_DIR/model and return that folder.

    Raises
    ------
    MoediffError
        One of its subclasses, with the sentence to print.
    """
    from .loop import Job, check_device, train

    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.")
    check_device(options.device)
    init: list[Path] = list(options.init)
    # What is wrong with recipe or --init is told before the data are packed.
    catalogue.make(recipes[0], torch.device("cpu"), init)
    pack = _training_pack(options, recipes)
    parts: list[Path] = []
    for recipe in recipes:
        place = folder / recipe.stage if len(recipes) > 1 else folder
        train(Job(recipe, catalogue, pack, place, options.device, init, options.minutes))
        parts.append(place)
        if catalogue.stages[recipe.stage].begins_others:
            init.append(place)
    model = folder / "model"
    if _is_main():
        entries = [catalogue.stages[recipe.stage] for recipe in recipes]
        sections = {entry.section for entry in entries[:-1]}
        if entries[-1].completes and not sections:
            parts += [_resolved(path) for path in options.init]
        digest = export(parts, model, catalogue)
        print(f"{model}: weights with SHA-256 {digest}")
    return model


def _resolved(init: Path) -> Path:
    """Folder of a shipped model that was given by its name."""
    from bids_moediff.networks.model_folder import resolve

    return init if init.is_dir() and not (init / CONFIG_NAME).is_file() else resolve(init)
