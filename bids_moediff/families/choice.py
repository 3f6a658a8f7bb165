# SPDX-License-Identifier: Apache-2.0
"""Which models come with the package, which of them a run takes, and what they cost.

Reads config.json only and imports nothing heavy: the command line asks before torch is loaded.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff.runtime.resources import has_bfloat16

if TYPE_CHECKING:
    from bids_moediff.settings import Settings

CONFIG_NAME = "config.json"
MODELS_FOLDER = Path(__file__).resolve().parents[1] / "data" / "models"
HELPERS = frozenset({"brainmask"})  # shipped for preparation: no choice of --model

# Multiply-accumulates per output voxel and step of the default experts, counted by torch.
_EXPERT_MACS = 34_000.0
# A network nobody has a count for is taken to cost as much as the first shipped mean.
_UNKNOWN_MACS = 101_000.0
# Billion multiply-accumulates a second of each network (docs/speed.md): of one thread of a
# processor with and without bfloat16, and of a data-centre GPU (never measured).
_RATES = {
    "bf16": {"mean": 220.0, "experts": 63.0, "student": 185.0},
    "fp32": {"mean": 60.0, "experts": 18.0, "student": 38.0},
    "cuda": {"mean": 20_000.0, "experts": 20_000.0, "student": 20_000.0},
}


def available() -> list[str]:
    """Names of the super-resolution models that come with the package."""
    if not MODELS_FOLDER.is_dir():
        return []
    folders = (p for p in MODELS_FOLDER.iterdir() if (p / CONFIG_NAME).is_file())
    return sorted(p.name for p in folders if p.name not in HELPERS)


@dataclass(frozen=True)
class Choice:
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
) -> Choice:
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
        return Choice(model, "asked for")
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
        return Choice("moediff", reason)
    names = available() if shipped is None else list(shipped)
    if "student" not in names:
        return Choice("moediff", "chosen because no student model comes with this package")
    if device.startswith("cuda"):
        return Choice("moediff", "chosen because a GPU is there, where the full model is fast")
    if not (has_bfloat16() if bfloat16 is None else bfloat16):
        reason = "chosen because the student saves little on a processor without bfloat16"
        return Choice("moediff", reason)
    return Choice("student", "chosen for the processor: about half of the full model's time")


def choose_for(settings: "Settings", device: str) -> Choice:
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


def read_config(name_or_dir: str | Path) -> dict[str, Any]:
    """config.json of a shipped model's name or of a folder; empty where it cannot be read."""
    for folder in (Path(name_or_dir), MODELS_FOLDER / str(name_or_dir)):
        try:
            config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return config if isinstance(config, dict) else {}
    return {}


def stage_macs(config: Mapping[str, Any], steps: int = 1) -> dict[str, float]:
    """Multiply-accumulates for one output voxel of each network: student, or mean and experts.

    `steps` counts evaluations of the experts: sampling steps times samples. Empty where the
    configuration is none of these.
    """
    stages = {}
    try:
        if config.get("family") == "student":
            section = config["student"]
            shape = section["channels"], section["blocks"], section["ranks"]
            stages["student"] = _student_macs(*shape)
        if mean := config.get("mean"):
            stages["mean"] = _mean_macs(mean["channels"], mean["blocks"])
        if experts := config.get("moediff"):
            stages["experts"] = _EXPERT_MACS * (experts.get("width", 32) / 32) ** 2 * steps
    except (KeyError, TypeError, ValueError):
        return {}
    return stages


def seconds_per_voxel(
    config: Mapping[str, Any],
    steps: int = 1,
    *,
    device: str = "cpu",
    threads: int = 1,
    bfloat16: bool | None = None,
) -> float:
    """Time of all networks for one output voxel; `steps` as above, `bfloat16` as in `choose`."""
    gpu = device.startswith("cuda")
    fast = not gpu and (has_bfloat16() if bfloat16 is None else bfloat16)
    rates = _RATES["cuda" if gpu else "bf16" if fast else "fp32"]
    stages = stage_macs(config, steps) or {"experts": _UNKNOWN_MACS}
    seconds = sum(macs / (1e9 * rates[name]) for name, macs in stages.items())
    return seconds if gpu else seconds / max(1, threads)


def _mean_macs(channels: int, blocks: int) -> float:
    """Convolutions of :class:`~bids_moediff.networks.mean.MeanNetwork`, folded by two."""
    return 27 * (2 * blocks * channels**2 + 16 * channels) / 8


def _student_macs(channels: int, blocks: int, ranks: list[int]) -> float:
    """Convolutions of :class:`~bids_moediff.families.student.network.StudentNetwork`."""
    cores = 27 * (ranks[0] * ranks[1] + ranks[2] * ranks[3])
    return (27 * 16 * channels + blocks * (cores + channels * sum(ranks))) / 8
