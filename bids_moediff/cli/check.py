# SPDX-License-Identifier: Apache-2.0
"""``--check``: report device, driver, weights and memory in plain words."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from bids_moediff.errors import DeviceError, MoediffError, UsageError, WeightsError
from bids_moediff.families.choice import choose
from bids_moediff.networks.model_folder import is_as_shipped, is_as_written, resolve
from bids_moediff.runtime import devices
from bids_moediff.runtime.platform import die_with_parent
from bids_moediff.runtime.resources import plan
from bids_moediff.runtime.temporary import require_temporary_folder
from bids_moediff.settings import Settings

MINIMUM_GIGABYTES = 6.0  # a whole head from 1 mm to 0.7 mm

Finding = tuple[bool, str, str, int]  # in order, subject, sentence, exit code if not


def check_weights(settings: Settings, device: str) -> None:
    """Check the model of a run before anything is written.

    Files that are as shipped were loaded by the tests, and this version can load what it wrote;
    others are loaded once.

    Raises
    ------
    WeightsError
        As for :func:`require_weights`.
    """
    model = choose(settings, device).model
    if not (is_as_shipped(model) or is_as_written(model)):
        require_weights(settings, device)


def require_weights(settings: Settings, device: str) -> str:
    """Load the model once, so that wrong weights are found before anything is written.

    This runs in another process, since a process that has used torch must not be forked.

    Returns
    -------
    str
        The model in words.

    Raises
    ------
    WeightsError
        For a missing folder or file, a wrong checksum, an unknown family or wrong shapes.
    """
    choice = choose(settings, device)
    resolve(choice.model)  # a folder that is not there needs no torch to be noticed
    command = [sys.executable, "-m", "bids_moediff.cli.superres", "--check-model"]
    flag = "--model" if settings.weights is None else "--weights"
    answer = subprocess.run(
        [*command, flag, choice.model],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    if answer.returncode < 0:
        raise WeightsError(
            f"The check of the weights was ended by signal {-answer.returncode}"
            + (", most likely for want of memory." if answer.returncode == -9 else ".")
        )
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise WeightsError(last.removeprefix("bids_moediff-superres: "))
    return f"{answer.stdout.strip()}, {choice.reason}"


def print_check(settings: Settings) -> int:
    """Print one line per finding; return the exit code of the first problem."""
    code = 0
    for good, subject, sentence, finding_code in findings(settings):
        print(f"{'ok' if good else 'NOT OK':7} {subject}: {sentence}", file=sys.stdout)
        code = code or (0 if good else finding_code)
    return code


def findings(settings: Settings) -> Iterator[Finding]:
    """Yield what works and what does not."""
    limits = plan(settings.nprocs, settings.omp_nthreads, settings.mem)
    yield True, "processors", f"{limits.nprocs}, {limits.omp_nthreads} threads per process", 0
    enough = limits.memory_gb >= MINIMUM_GIGABYTES
    needed = f"; a whole head wants about {MINIMUM_GIGABYTES:.0f} GB"
    yield enough, "memory", f"{limits.memory_gb:.1f} GB{'' if enough else needed}", 1
    try:
        require_temporary_folder()
    except UsageError as error:
        # What else is asked of torch would fail for the same reason, in other words.
        yield False, "temporary folder", str(error), UsageError.exit_code
        return
    yield from _devices(settings)
    try:
        device = devices.require_devices(settings.device)[0]
    except DeviceError:
        device = "cpu"  # said above
    try:
        yield True, "weights", require_weights(settings, device), 0
    except MoediffError as error:
        yield False, "weights", str(error), WeightsError.exit_code


def _devices(settings: Settings) -> Iterator[Finding]:
    driver = devices.driver_is_visible()
    version = devices.driver_version()
    if driver:
        yield True, "driver", f"NVIDIA {version or '(version unknown: no nvidia-smi)'}", 0
    try:
        found = devices.ask_torch()
    except DeviceError as error:
        yield False, "torch", str(error), DeviceError.exit_code
        return
    yield True, "torch", f"{found.torch}, {f'CUDA {found.cuda}' if found.cuda else 'CPU only'}", 0
    for index, card in enumerate(found.cards):
        yield from _card(index, card, found.architectures)
    try:
        names = devices.require_devices(settings.device)
    except DeviceError as error:
        yield False, "device", str(error), DeviceError.exit_code
        return
    remark = ""
    if names == ["cpu"] and settings.device == "auto":
        kind = devices.container_kind(os.environ)
        reason = devices.reason_of_absence(found, driver, kind, os.environ)
        remark = f" (no GPU will be used: {reason})"
    yield True, "device", f"{', '.join(names)}{remark}", 0


def _card(index: int, card: devices.Card, architectures: tuple[str, ...]) -> Iterator[Finding]:
    label = f"GPU {index}"
    words = f"{card.name}, {card.gigabytes:.0f} GB"
    if supported(card.capability, architectures):
        yield True, label, words, 0
        return
    capability = ".".join(map(str, card.capability))
    sentence = f"{words}: this torch was not built for it (compute capability {capability})"
    yield False, label, sentence, DeviceError.exit_code


def supported(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Return True if code built for these architectures (``sm_80``, ``compute_90``) runs on a GPU.

    Binary code (sm) runs on the same major version from its own minor version on; intermediate
    code (compute) is compiled for anything newer.
    """
    for name in architectures:
        kind, _, number = name.partition("_")
        digits = number.rstrip("af")
        if not digits.isdigit():
            continue
        major, minor = divmod(int(digits), 10)
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return False
