# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the smaller commands: one sentence for a mistake, threads, a progress bar."""

import argparse
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from bids_moediff.errors import GraphError, MoediffError, UsageError, closest
from bids_moediff.runtime import progress_bar
from bids_moediff.runtime.streams import tolerate_streams

INTERRUPTED = 130
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_command(name: str, work: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    """Run ``work`` on the arguments; print an expected failure as one sentence.

    Returns
    -------
    int
        Exit code.
    """
    try:
        return _run_guarded(name, work, argv)
    finally:
        if argv is None:  # a command: Python answers an interrupt at its very end by a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run_guarded(name: str, work: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    tolerate_streams()
    # What nibabel puts right in odd headers, without the name of the file: conform says it.
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    try:
        return work(list(sys.argv[1:] if argv is None else argv))
    except MoediffError as error:
        for remark in getattr(error, "remarks", ()):
            print(f"{name}: {remark}", file=sys.stderr)
        return _fail(name, str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(name, "Interrupted.", INTERRUPTED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(name, f"{where}{error.strerror or error}.", MoediffError.exit_code)
    except Exception as error:
        # Nobody foresaw this one: the traceback is for the bug report.
        traceback.print_exc()
        what = type(error).__name__
        return _fail(
            name, f"Unexpected {what}; please report the lines above.", GraphError.exit_code
        )


def _fail(name: str, sentence: str, code: int) -> int:
    print(f"{name}: {sentence}", file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, as those of the app, instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with what is missing and how to write it."""
        if lacking := re.fullmatch(
            r"argument (\S+): expected (?:one|at least one) argument", message
        ):
            flag = lacking[1].split("/")[-1]
            (action,) = (action for action in self._actions if flag in action.option_strings)
            value = action.metavar or (action.dest or "value").upper()
            raise UsageError(f"{flag} needs a value: {flag} {value}.")
        sentence = message.removeprefix("argument ")
        raise UsageError(f"{sentence[:1].upper()}{sentence[1:]}; see {self.prog} --help.")


# Options under names that people try first.
_MEANT = {
    "device": ("gpu", "cuda"),
    "participant-label": ("subject", "subjects", "sub", "participant", "participants"),
    "output-resolution": ("resolution", "voxel-size", "voxel-sizes", "zooms", "spacing"),
    "omp-nthreads": ("threads", "num-threads"),
    "nprocs": ("n-cpus", "cpus", "ncpus", "jobs"),
    "mem": ("memory", "mem-gb", "mem-mb"),
    "dry-run": ("dryrun",),
}
# Options of other BIDS Apps that have no counterpart, and why.
_NOT_NEEDED = {
    "fs-license-file": "no licence is needed",
    "fs-license": "no licence is needed",
    "fs-no-reconall": "FreeSurfer is never run",
    "anat-only": "only anatomical images are processed",
    "notrack": "nothing is ever sent anywhere",
    "no-sub": "nothing is ever sent anywhere",
    "skull-strip-template": "the brain mask needs no template",
}


def unknown_option(word: str, parser: argparse.ArgumentParser) -> UsageError:
    """Return the error for a word that a parser does not know, with the closest option."""
    known = [flag for action in parser._actions for flag in action.option_strings]
    what = "option" if word.startswith("-") else "argument"
    name = word.lstrip("-").lower().replace("_", "-")
    if reason := _NOT_NEEDED.get(name):
        return UsageError(f"Unknown {what} {word}; leave it out: {reason}.")
    meant = next((new for new, names in _MEANT.items() if name in names), "")
    hint = closest(f"--{meant}" if f"--{meant}" in known else word, known) if name[1:] else ""
    return UsageError(f"Unknown {what} {word}{hint}.")


def set_threads(count: int) -> None:
    """Set the number of threads of every numerical library; call before importing any of them."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(count)
    import torch

    torch.set_num_threads(count)


class ProgressBar:
    """Show a bar on a terminal and lines elsewhere, both on stderr."""

    def __init__(self, total: int, unit: str) -> None:
        self._bar = progress_bar.ProgressBar(f"{unit}s", total)

    def __call__(self, line: str = "") -> None:
        """Count one more; ``line`` describes its result."""
        if line:
            print(line, file=sys.stderr, flush=True)
        self._bar.update()

    def close(self) -> None:
        """Close the bar and leave it on the terminal."""
        self._bar.close()
