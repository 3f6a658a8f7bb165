# SPDX-License-Identifier: Apache-2.0
"""Which model a run takes. Imports nothing heavy: the command line asks before torch is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass

from bids_moediff.networks.model_folder import available
from bids_moediff.options import Options
from bids_moediff.runtime.resources import has_bfloat16


@dataclass(frozen=True)
class ModelChoice:
    """Name or folder of a model, and why it was taken."""

    model: str
    reason: str


def choose(
    options: Options,
    device: str,
    *,
    bfloat16: bool | None = None,
    shipped: Iterable[str] | None = None,
) -> ModelChoice:
    """Return the model of a run: ``--weights``, ``--model``, or what ``auto`` comes to.

    Parameters
    ----------
    options
        Samples, texture, sampling steps, expert maps and slice orientations: only the mixture has
        them. Expected error: the student has one too, of a less certain size (docs/trust.md).
    device
        ``cpu``, ``cuda`` or ``cuda:N``: where the network will run.
    bfloat16
        Whether the processor multiplies bfloat16; looked up by default. Without it the student
        takes three quarters of the full model's time instead of half (docs/speed.md).
    shipped
        Names to choose from; the package's own by default.
    """
    if options.weights is not None:
        return ModelChoice(str(options.weights), "asked for")
    if options.model != "auto":
        return ModelChoice(options.model, "asked for")
    asked = {
        "several samples": options.num_samples > 1,
        "texture (noise strength above 0)": options.noise_strength > 0,
        "a number of sampling steps": options.num_steps is not None,
        "expert maps": "gates" in options.outputs,
        "a map of the expected error": "uncertainty" in options.outputs,
        "an average over slice orientations": options.planes > 1,
    }
    wanted = " and ".join(words for words, is_asked in asked.items() if is_asked)
    if wanted:
        reason = f"chosen for {wanted}: the student has none, or a less certain one"
        return ModelChoice("moediff", reason)
    names = available() if shipped is None else list(shipped)
    if "student" not in names:
        return ModelChoice("moediff", "chosen because no student model comes with this package")
    if device.startswith("cuda"):
        return ModelChoice("moediff", "chosen for the GPU, where the full model is fast")
    if not (has_bfloat16() if bfloat16 is None else bfloat16):
        reason = "chosen because the student saves little on a processor without bfloat16"
        return ModelChoice("moediff", reason)
    return ModelChoice("student", "chosen for the processor: about half of the full model's time")
