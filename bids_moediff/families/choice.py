# SPDX-License-Identifier: Apache-2.0
"""Choose the model of a run. Imports nothing heavy: it runs before torch is loaded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_moediff.errors import UsageError, WeightsError
from bids_moediff.families import OWN, family
from bids_moediff.networks.model_folder import BRAIN_MASK, available, read_config, resolve
from bids_moediff.options import Options
from bids_moediff.runtime.resources import has_bfloat16


@dataclass(frozen=True)
class ModelChoice:
    """Name or folder of a model, and the reason for the choice."""

    model: str
    reason: str


def choose(
    options: Options,
    device: str,
    *,
    bfloat16: bool | None = None,
    shipped: Iterable[str] | None = None,
) -> ModelChoice:
    """Return the model of a run: ``--weights``, ``--model``, or the choice for ``auto``.

    Parameters
    ----------
    options
        Sampling steps, expert maps, samples by experts and several slice orientations choose the
        mixture, which alone has them.
    device
        ``cpu``, ``cuda`` or ``cuda:N``: where the network will run.
    bfloat16
        Whether the processor multiplies bfloat16; by default it is looked up. Without it the
        student takes three quarters of the full model's time instead of half (docs/speed.md).
    shipped
        Names to choose from; by default the models of the package.

    Returns
    -------
    ModelChoice
        Name or folder, and the reason.

    Raises
    ------
    UsageError
        For a reference contrast that no network of the model uses, and for experts that draw
        samples and that the model does not have.
    WeightsError
        For a model that is asked for and cannot restore images.
    """
    choice = _choose(options, device, bfloat16, shipped)
    _check_sampler(options, choice.model)
    return choice


def _choose(
    options: Options, device: str, bfloat16: bool | None, shipped: Iterable[str] | None
) -> ModelChoice:
    asked_for = str(options.weights) if options.weights is not None else options.model
    if asked_for != "auto":
        # What cannot be read is refused where the weights are loaded, with the reason.
        if config := read_config(asked_for):
            _check_reference(options, config)
            check_restores(config, Path(asked_for).name)
        return ModelChoice(asked_for, "asked for")
    names = available() if shipped is None else list(shipped)
    if options.reference is not None:
        guided = [name for name in names if takes_reference(name)]
        if not guided:
            _check_reference(options, {})
        return ModelChoice(guided[0], "chosen for the reference contrast")
    if wanted := _only_of_the_mixture(options):
        reason = f"chosen for {wanted}: the student has none"
        return ModelChoice("moediff", reason)
    if "student" not in names:
        return ModelChoice("moediff", "chosen because no student model comes with this package")
    if device.startswith("cuda"):
        return ModelChoice("moediff", "chosen for the GPU, where the full model is fast")
    if not (has_bfloat16() if bfloat16 is None else bfloat16):
        reason = "chosen because the student saves little on a processor without bfloat16"
        return ModelChoice("moediff", reason)
    return ModelChoice("student", "chosen for the processor: about half of the full model's time")


def takes_reference(model: str) -> bool:
    """Return True if a reference contrast guides this model (a name or a folder)."""
    kind = read_config(model).get("family")
    return kind is not None and kind not in BRAIN_MASK and family(kind).takes_reference


def _only_of_the_mixture(options: Options) -> str:
    """Return the first option in use that the student does not have, or an empty text."""
    asked = {
        "a number of sampling steps": options.num_steps is not None,
        "expert maps": "gates" in options.outputs,
        "samples by experts": options.sampler.startswith("expert"),
        "an average over slice orientations": options.planes > 1,
    }
    return " and ".join(words for words, is_asked in asked.items() if is_asked)


def check_restores(config: Mapping[str, Any], name: str) -> None:
    """Raise WeightsError if models of this family cannot restore images."""
    kind = str(config.get("family"))
    if kind in BRAIN_MASK:
        raise WeightsError(f"{name} finds the brain; it does not restore images.")
    if family(kind).restorer is None:
        raise WeightsError(
            f"{name} is a {kind} model: this version can train such models, not yet restore "
            "images with them. Use --model moediff or --model student."
        )


def _check_sampler(options: Options, model: str) -> None:
    """Raise UsageError for experts that draw samples and that the model does not have."""
    if options.sampler.startswith("expert") and (config := read_config(model)):
        options.sampling_expert(family(str(config.get("family"))).sampling_experts(resolve(model)))


def _check_reference(options: Options, config: Mapping[str, Any]) -> None:
    """Raise UsageError for a reference contrast that the model does not use."""
    if options.reference is None or (config and family(str(config.get("family"))).takes_reference):
        return
    takers = ", ".join(name for name in OWN if family(name).takes_reference)
    raise UsageError(f"--reference guides only models of the family {takers}.")
