# SPDX-License-Identifier: Apache-2.0
"""From the options of ``bids_moediff-train`` to a model folder: pack, stages in turn, export."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from bids_moediff.errors import MoediffError, UsageError
from bids_moediff.models.hub import CONFIG_NAME

from .export import export
from .heads import check_heads, save_pack, select_heads
from .recipe import Recipe

PACK_NAME = "pack.npz"


def write_pack(options: Namespace, path: Path, keep_out: Sequence[str] = ()) -> None:
    """Collect, check and write the training data (see :func:`.bids_data.collect`)."""
    if not options.data and not options.labels:
        raise UsageError("Say what to train on: --data BIDS_DIR or --pack FILE.")
    from .bids_data import Choice, collect

    choice = Choice(
        options.pairs,
        tuple(options.modalities),
        options.max_voxel,
        tuple(options.validation_label),
    )
    heads = collect(options.data, options.labels, choice)
    if options.max_megabytes is not None:
        heads = select_heads(heads, options.max_megabytes)
    if keep_out:
        check_heads(heads, keep_out)
    try:
        digest = save_pack(heads, path)
    except OSError as error:
        raise MoediffError(f"{path} cannot be written ({error.strerror}).") from error
    size = path.stat().st_size / 1e6
    print(f"{path}: {len(heads)} volumes, {size:.1f} MB, SHA-256 {digest}")


def _is_main() -> bool:
    """Whether this process writes; torchrun tells each its rank."""
    return int(os.environ.get("RANK", "0")) == 0


def _training_pack(options: Namespace, keep_out: Sequence[str]) -> Path:
    if options.pack is not None:
        if options.data or options.labels:
            raise UsageError("Give either --pack or --data and --labels.")
        if not options.pack.is_file():
            raise UsageError(f"There is no training pack {options.pack}.")
        return Path(options.pack)
    path = Path(options.output) / PACK_NAME
    if path.is_file():
        return path
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "Write the training pack first (--pack-only FILE), then start the processes with "
            "--pack FILE."
        )
    write_pack(options, path, keep_out)
    return path


def run_recipes(recipes: Sequence[Recipe], options: Namespace) -> Path:
    """Train every stage in turn, or go on with it, and write RUN_DIR/model; returns that folder.

    Raises
    ------
    MoediffError
        one of its kinds, with the sentence to print.
    """
    from .trainer import train

    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is no folder.")
    keep_out = list(dict.fromkeys(name for recipe in recipes for name in recipe.keep_out))
    pack = _training_pack(options, keep_out)
    init: list[Path] = list(options.init)
    parts: list[Path] = []
    for recipe in recipes:
        place = folder / recipe.stage if len(recipes) > 1 else folder
        train(
            recipe, pack, place, device=options.device, init=init, minutes=options.minutes
        )
        parts.append(place)
        if recipe.stage in ("mean", "autoencoder"):
            init.append(place)
    model = folder / "model"
    if _is_main():
        stages = [recipe.stage for recipe in recipes]
        if stages[-1] in ("experts", "gate") and "mean" not in stages:
            parts += [_resolved(path) for path in options.init]
        digest = export(parts, model)
        print(f"{model}: weights with SHA-256 {digest}")
    return model


def _resolved(init: Path) -> Path:
    """Folder of a shipped model that was given by its name."""
    from bids_moediff.models.hub import resolve

    return init if init.is_dir() and not (init / CONFIG_NAME).is_file() else resolve(init)
