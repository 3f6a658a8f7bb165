# SPDX-License-Identifier: Apache-2.0
"""Which model a run takes. Imports nothing heavy: the command line asks before torch is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bids_moediff.networks.model_folder import available
from bids_moediff.runtime.resources import has_bfloat16

if TYPE_CHECKING:
    from bids_moediff.settings import Settings


@dataclass(frozen=True)
class ModelChoice:
    """Name or folder of a model, and why it was taken."""

    model: str
    reason: str


def choose(
    model: str,
    device: str,
    *,
    num_samples: int = 1,
    noise_strength: float = 0.0,
    num_steps: int | None = None,
    want_gates: bool = False,
    want_deviation: bool = False,
    planes: int = 1,
    bfloat16: bool | None = None,
    shipped: Iterable[str] | None = None,
) -> ModelChoice:
    """The model of a run; ``auto`` is settled by what is asked for, by device and by weights.

    Parameters
    ----------
    model
        ``auto``, or a name or folder, which is taken as it is.
    device
        ``cpu``, ``cuda`` or ``cuda:N``: where the network will run.
    num_samples, noise_strength, num_steps, want_gates, want_deviation, planes
        Samples, texture, sampling steps, expert maps, slice orientations: only the mixture has
        them. Expected error: the student has one too, of a less certain size
        (docs/trust.md).
    bfloat16
        Whether the processor multiplies bfloat16; looked up by default. Without it the student
        takes three quarters of the full model's time instead of half (docs/speed.md).
    shipped
        Names to choose from; the package's own by default.
    """
    if model != "auto":
        return ModelChoice(model, "asked for")
    asked = {
        "several samples": num_samples > 1,
        "texture (noise strength above 0)": noise_strength > 0,
        "a number of sampling steps": num_steps is not None,
        "expert maps": want_gates,
        "a map of the expected error": want_deviation,
        "an average over slice orientations": planes > 1,
    }
    wanted = " and ".join(words for words, is_asked in asked.items() if is_asked)
    if wanted:
        reason = f"chosen for {wanted}: the student has none, or a less certain one"
        return ModelChoice("moediff", reason)
    names = available() if shipped is None else list(shipped)
    if "student" not in names:
        return ModelChoice("moediff", "chosen because no student model comes with this package")
    if device.startswith("cuda"):
        return ModelChoice(
            "moediff", "chosen because a GPU is there, where the full model is fast"
        )
    if not (has_bfloat16() if bfloat16 is None else bfloat16):
        reason = "chosen because the student saves little on a processor without bfloat16"
        return ModelChoice("moediff", reason)
    return ModelChoice("student", "chosen for the processor: about half of the full model's time")


def choose_for(settings: "Settings", device: str) -> ModelChoice:
    """The model of a run with these settings on this device; ``--weights`` wins."""
    return choose(
        str(settings.weights) if settings.weights is not None else settings.model,
        device,
        num_samples=settings.num_samples,
        noise_strength=settings.noise_strength,
        num_steps=settings.num_steps,
        want_gates="gates" in settings.outputs,
        want_deviation="uncertainty" in settings.outputs,
        planes=settings.planes,
    )
