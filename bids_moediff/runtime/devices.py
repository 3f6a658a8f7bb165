# SPDX-License-Identifier: Apache-2.0
"""Check that the requested GPU is there, and say what is missing if not.

Torch is asked in its own process: initialising CUDA here would break every worker that is forked
afterwards, and importing torch takes seconds. ``CUDA_VISIBLE_DEVICES`` is never written.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bids_moediff.errors import DeviceError
from bids_moediff.runtime.platform import die_with_parent
from bids_moediff.runtime.resources import visible_devices

DRIVER_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")
# capability of the cards, (major, minor), and the architectures that this torch was built for
_QUESTION = """
import json, torch
count = torch.cuda.device_count()
cards = [torch.cuda.get_device_properties(i) for i in range(count)]
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda,
    "architectures": torch.cuda.get_arch_list() if count else [],
    "cards": [{"name": c.name, "gigabytes": c.total_memory / 1e9, "capability": [c.major, c.minor]}
              for c in cards],
}))
"""


@dataclass(frozen=True)
class Card:
    """A GPU that torch can use; memory in GB."""

    name: str
    gigabytes: float
    capability: tuple[int, int]


@dataclass(frozen=True)
class Acceleration:
    """Version of torch and the GPUs that it sees."""

    torch: str
    cuda: str | None
    architectures: tuple[str, ...]
    cards: tuple[Card, ...]


def ask_torch(environment: Mapping[str, str] | None = None) -> Acceleration:
    """Return the version of torch, the CUDA version of its build, and the GPUs it can use.

    Raises
    ------
    DeviceError
        If torch cannot be imported or its process dies.
    """
    answer = subprocess.run(
        [sys.executable, "-c", _QUESTION],
        capture_output=True,
        text=True,
        check=False,
        env=None if environment is None else {**environment},
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    if answer.returncode < 0:
        raise DeviceError(
            f"torch cannot be asked for devices: it was ended by signal {-answer.returncode}"
            + (", most likely for want of memory" if answer.returncode == -9 else "")
        )
    try:
        words = json.loads(answer.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DeviceError(f"torch cannot be asked for devices: {last}") from None
    cards = tuple(
        Card(card["name"], card["gigabytes"], tuple(card["capability"])) for card in words["cards"]
    )
    return Acceleration(words["torch"], words["cuda"], tuple(words["architectures"]), cards)


def driver_is_visible() -> bool:
    """Return True if the NVIDIA driver is visible in this file system."""
    return any(Path(name).exists() for name in DRIVER_FILES)


def container_kind(environment: Mapping[str, str]) -> str | None:
    """Return ``apptainer``, ``docker`` (or podman), or None for a plain machine."""
    if environment.get("APPTAINER_CONTAINER") or environment.get("SINGULARITY_CONTAINER"):
        return "apptainer"
    if environment.get("BIDS_MOEDIFF_DOCKER_TAG"):  # set in the image, whatever runs it
        return "docker"
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return "docker"
    return None


def missing_flag(container: str | None, environment: Mapping[str, str]) -> str:
    """Return the flag that makes a GPU visible in this kind of container."""
    if container == "apptainer":
        return "add --nv to the apptainer call"
    if container == "docker":
        return "add --gpus all to the docker call"
    if environment.get("SLURM_JOB_ID"):
        return (
            "ask SLURM for one, --gres=gpu:1 (and add --nv to apptainer or --gpus all to docker)"
        )
    return (
        "install the NVIDIA driver, or in a container add --gpus all (docker) or --nv (apptainer)"
    )


def reason_of_absence(
    found: Acceleration | None,
    driver: bool,
    container: str | None,
    environment: Mapping[str, str],
) -> str:
    """Return why no GPU can be used and what to do, as part of a sentence; empty if one can.

    Parameters
    ----------
    found
        Torch's answer, or None if it was not asked because no driver is visible.
    driver
        Whether the driver is visible.
    container
        See :func:`container_kind`.
    environment
        Environment variables.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU; unset it"
    if not driver:
        return f"no NVIDIA driver is visible: {missing_flag(container, environment)}"
    if found is not None and found.cuda is None:
        return f"torch {found.torch} was built without CUDA; install one with"
    if found is None or not found.cards:
        version = f" for CUDA {found.cuda}" if found else ""
        return (
            "torch can use no GPU although a driver is visible; the driver may be too old"
            f"{version}: update it"
        )
    return ""


def explain_absence(
    device: str,
    found: Acceleration | None,
    driver: bool,
    container: str | None,
    environment: Mapping[str, str],
) -> str:
    """Return a sentence on why the requested ``device`` is not there, and what to do.

    The other parameters are those of :func:`reason_of_absence`.
    """
    reason = reason_of_absence(found, driver, container, environment)
    if not reason:
        last = len(found.cards) - 1 if found else 0
        numbers = "0" if last == 0 else f"0 to {last}"
        reason = f"the visible GPUs have the numbers {numbers}; choose one of them"
    return f"--device {device} was asked for, but {reason}, or use --device cpu."


def require_devices(device: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the torch devices to use; for ``auto`` the CPU if there is no GPU.

    Raises
    ------
    DeviceError
        If a GPU was requested by name and is not there.
    """
    environment = os.environ if environment is None else environment
    if device == "cpu":
        return ["cpu"]
    driver = driver_is_visible()
    found = ask_torch(environment) if driver else None
    count = len(found.cards) if found else 0
    names = visible_devices(device, environment, count)
    index = int(device.partition(":")[2] or 0)
    kind = container_kind(environment)
    if device != "auto" and (not names or index >= count):
        raise DeviceError(explain_absence(device, found, driver, kind, environment))
    return names


def driver_version() -> str | None:
    """Return the version of the NVIDIA driver by nvidia-smi, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.split()[0] if answer.returncode == 0 and answer.stdout.split() else None
