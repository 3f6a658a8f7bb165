# SPDX-License-Identifier: Apache-2.0
"""Recipes: everything that decides the outcome of a training besides the data, in YAML files.

A file of a recipe folder (or the user's own) names a stage and its settings. ``base`` takes over
another recipe, ``smoke`` holds the sizes of a trial run of a minute, ``stages`` chains recipes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, get_args, get_origin, get_type_hints

import yaml

from bids_moediff.errors import UsageError, closest
from bids_moediff.imaging.protocols import ACQUISITIONS

# What may change when a run goes on: nothing that the weights so far depend on, but for the
# arithmetic of another machine.
FREE = ("steps", "evaluate_every", "save_every", "patience", "workers", "precision")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that all stages share.

    Attributes
    ----------
    steps, batch
        Optimiser steps, and patches or slices in each (for every device).
    learning_rate, warm_up, final_share
        Peak, steps of linear rise, and share of the peak that the cosine ends at.
    betas, weight_decay, clip
        AdamW, and the largest norm of a gradient.
    decay
        Of the moving average of the weights.
    precision, seed
        bf16 or fp32; seed of the weights and of every draw.
    evaluate_every, save_every, patience
        Steps between validations and between saved states; validations without progress after
        which the training stops (0: never).
    block
        Side in voxels of the part of a head that is degraded at a time.
    window, steps_per_volume, stored_volumes, workers
        Degraded volumes at hand, steps after which the oldest is exchanged, how many different
        ones there are (made once and kept on disk; 0: always new), and threads that make them.
    label_share, gamma_share, curve_share, noise_share
        Share of label maps, and of volumes with a gamma, with a random intensity curve, with
        noise.
    acquisition
        One of the validation protocols ("x2 isotropic") that all volumes are degraded by, without
        noise, for small comparisons; empty: a new one is drawn for each.
    coarsen_share, interpolated
        Share of real heads that are brought to larger voxels first, and which axes of which heads
        are smoother than their voxels (:mod:`.sharpness`).
    head_weights
        Shell pattern of head names: how much such a head counts.
    keep_out, validation_block
        Heads of the pack that only validate, and the side of the part of them that is used.
    """

    stage: ClassVar[str] = ""
    least_steps: ClassVar[int] = 1

    steps: int = 4200
    batch: int = 4
    learning_rate: float = 1e-3
    warm_up: int = 100
    final_share: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 1e-4
    clip: float = 1.0
    decay: float = 0.999
    precision: str = "bf16"
    seed: int = 1
    evaluate_every: int = 250
    save_every: int = 100
    patience: int = 0
    block: int = 168
    window: int = 16
    steps_per_volume: int = 4
    stored_volumes: int = 0
    workers: int = 1
    label_share: float = 0.08
    gamma_share: float = 0.15
    curve_share: float = 0.15
    noise_share: float = 0.4
    coarsen_share: float = 0.0
    acquisition: str = ""
    interpolated: dict[str, Any] = field(default_factory=dict)
    head_weights: dict[str, Any] = field(default_factory=dict)
    keep_out: tuple[str, ...] = ()
    validation_block: int = 112

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is bf16 or fp32, not {self.precision!r}")
        if self.learning_rate <= 0:
            raise ValueError("learning_rate must be positive")
        counts = ("batch", "evaluate_every", "save_every", "block", "window")
        if self.acquisition and self.acquisition not in ACQUISITIONS:
            known = ", ".join(ACQUISITIONS)
            raise ValueError(f"acquisition is empty or one of {known}, not {self.acquisition!r}")
        if self.steps < self.least_steps:
            raise ValueError(f"steps must be at least {self.least_steps}, not {self.steps}")
        for name in (*counts, "steps_per_volume", "workers", "validation_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def smallest(self) -> int:
        """Voxels that every side of a volume needs."""
        raise NotImplementedError

    @property
    def maps(self) -> bool:
        """Whether volumes need the maps that guide the gate."""
        return False

    @property
    def uncertain(self) -> bool:
        """Whether scans are drawn as they come, and known in part (:mod:`.uncertain`)."""
        return False

    @property
    def disturbed(self) -> bool:
        """Whether such scans have ghosts and the noise of several coils besides."""
        return False

    @property
    def reference_count(self) -> int:
        """How many reference contrasts are drawn for each volume (:mod:`.references`)."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for the state and the model card."""
        values = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class PatchRecipe(Recipe):
    """Settings of a stage that learns from cubes of ``patch`` voxels a side."""

    patch: int = 64

    @property
    def smallest(self) -> int:
        """Voxels that every side of a volume needs."""
        return self.patch


class Entry(Protocol):
    """What a recipe needs to know of a stage (:class:`.catalogue.StageEntry`)."""

    @property
    def recipe(self) -> type[Recipe]:
        """Class of its settings."""
        ...


class Known(Protocol):
    """What can be trained (:class:`.catalogue.Catalogue`)."""

    @property
    def stages(self) -> Mapping[str, Entry]:
        """Stages by name."""
        ...

    def recipe_files(self) -> dict[str, Path]:
        """Return the recipes by name."""
        ...


def check_crop(crop: int) -> None:
    """ValueError for slices that the mixture cannot take."""
    if crop % 64:
        raise ValueError(f"crop must be a multiple of 64, not {crop}")


def recipe_names(catalogue: Known) -> list[str]:
    """Names of the recipes in the folders of a catalogue."""
    return sorted(catalogue.recipe_files())


def _read(name: str, catalogue: Known) -> dict[str, Any]:
    own = Path(name)
    path = own if own.suffix in (".yaml", ".yml") else catalogue.recipe_files().get(name, own)
    if not path.is_file():
        names = recipe_names(catalogue)
        known = ", ".join(names)
        raise UsageError(f"There is no recipe {name}{closest(name, names)}; {known}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UsageError(
            f"The recipe {path} cannot be read: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(values, dict):
        raise UsageError(f"The recipe {path} must hold settings, one a line.")
    base = values.pop("base", None)
    if base is None:
        return values
    return _merge(_read(str(base), catalogue), values)


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others on top; mappings are joined."""
    merged = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def load_recipes(
    name: str,
    catalogue: Known,
    changes: Sequence[str] = (),
    *,
    smoke: bool = False,
    steps: int | None = None,
) -> list[Recipe]:
    """Recipes of a run in their order; `changes` are ``key=value``, or ``stage.key=value``.

    UsageError for an unknown recipe, an unknown key (with the closest one) and a wrong value.
    """
    values = _read(name, catalogue)
    chain = values.get("stages")
    names = chain if isinstance(chain, list) else []
    parts = [_read(str(stage), catalogue) for stage in names] or [values]
    if chain is not None:
        parts = [_merge(part, values.get(str(part.get("stage")), {})) for part in parts]
        stages = [str(part.get("stage")) for part in parts]
        _refuse_unknown(values, ["stages", *stages])
    tried = [_trial(part, smoke) for part in parts]
    edits = [_parse_change(change) for change in changes]
    edits += [(["steps"], steps)] if steps is not None else []
    for path, value in edits:
        _apply(tried, path, value, catalogue)
    return [build_recipe(part, catalogue) for part in tried]


def _trial(values: Mapping[str, Any], smoke: bool) -> dict[str, Any]:
    values = dict(values)
    small = values.pop("smoke", {})
    return _merge(values, small) if smoke else values


def _parse_change(change: str) -> tuple[list[str], Any]:
    key, sign, text = change.partition("=")
    if not sign or not key:
        raise UsageError(f"--set wants key=value, not {change!r}.")
    try:
        return key.strip().replace("-", "_").split("."), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"The value of --set {change!r} cannot be read.") from error


def _apply(parts: list[dict[str, Any]], path: list[str], value: Any, catalogue: Known) -> None:
    """Change a setting in every stage that has it, or in the one that is named first."""
    stages = [str(part.get("stage")) for part in parts]
    chosen = parts
    if path[0] in stages and len(path) > 1:
        chosen, path = [parts[stages.index(path[0])]], path[1:]
    known = [names for part in chosen for names in _keys(part, catalogue)]
    fitting = [part for part in chosen if path[0] in _keys(part, catalogue)]
    if not fitting:
        raise UsageError(f"No recipe has the setting {path[0]}{closest(path[0], known)}.")
    nested = value
    for name in reversed(path[1:]):
        nested = {name: nested}
    for part in fitting:
        part.update(_merge(part, {path[0]: nested}))


def _keys(values: Mapping[str, Any], catalogue: Known) -> list[str]:
    entry = catalogue.stages.get(str(values.get("stage")))
    return [item.name for item in fields(entry.recipe)] if entry else []


def _refuse_unknown(values: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            raise UsageError(f"The recipe has the unknown setting {key}{closest(key, known)}.")


def build_recipe(values: Mapping[str, Any], catalogue: Known) -> Recipe:
    """Recipe from plain values; UsageError names what is wrong with them."""
    stage = str(values.get("stage"))
    if stage not in catalogue.stages:
        known = ", ".join(catalogue.stages)
        raise UsageError(f"The recipe's stage must be one of {known}, not {stage}.")
    kind = catalogue.stages[stage].recipe
    _refuse_unknown(values, ["stage", *_keys(values, catalogue)])
    hints = get_type_hints(kind)
    given = {}
    for key, value in values.items():
        if key != "stage":
            given[key] = _typed(key, value, hints[key])
    try:
        return kind(**given)
    except ValueError as error:
        raise UsageError(f"The recipe is wrong: {error}.") from error


def _typed(key: str, value: Any, hint: Any) -> Any:
    """Value in the type of its field; YAML reads 1e-3 as a word, for one."""
    origin = get_origin(hint) or hint
    try:
        if origin is tuple and isinstance(value, (list, tuple)):
            return tuple(get_args(hint)[0](item) for item in value)
        if origin is dict and isinstance(value, dict):
            return dict(value)
        if origin is bool and isinstance(value, bool):
            return value
        if origin is int and not isinstance(value, bool) and float(value) == int(float(value)):
            return int(float(value))
        if origin is float and not isinstance(value, bool):
            return float(value)
        if origin is str and isinstance(value, str):
            return value
    except (TypeError, ValueError):
        pass
    raise UsageError(f"The recipe's {key} cannot be {value!r}.")


def check_same(recipe: Recipe, recorded: Mapping[str, Any], folder: Path) -> None:
    """UsageError if a run would go on with another recipe than it was begun with."""
    for key, value in recipe.to_dict().items():
        if key in FREE or key not in recorded or recorded[key] == value:
            continue
        raise UsageError(
            f"{folder} holds a run with {key} {recorded[key]}, not {value}: give it another "
            "folder, or the same recipe."
        )
