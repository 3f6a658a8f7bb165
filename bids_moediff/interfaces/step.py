# SPDX-License-Identifier: Apache-2.0
"""Base class of the steps on one image: one bad image never stops the others.

Nipype drops everything downstream of a node that raises, and the network of a participant is
downstream of all its images: one unreadable file would stop the whole participant. So a step does
not raise. It puts one sentence into its output ``failure``, and the steps after it pass it on.
"""

import traceback
from pathlib import Path
from typing import Any

from nipype import config, logging
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    SimpleInterface,
    TraitedSpec,
    traits,
)

from bids_moediff.errors import ImageError, MoediffError
from bids_moediff.runtime.allocation import is_out_of_memory
from bids_moediff.runtime.text import one_line, without_folders

LOGGER = logging.getLogger("nipype.interface")
IN_THE_WAY = (NotADirectoryError, IsADirectoryError, FileExistsError)
TRACEBACK_FILE = "traceback.txt"
# Marks a folder whose result must not be reused by a later run.
FAILED_FILE = "failed.txt"
# Measured peak of a step over the size of the image as float32.
COPIES_IN_MEMORY = 12


class ImageStepInputSpec(BaseInterfaceInputSpec):
    """Failures of earlier steps. Files are never mandatory, since a failed step has none.

    A step after two independent others has a sentence of each.
    """

    failure = traits.Str("", usedefault=True, desc="one sentence if an earlier step failed")
    failure_beside = traits.Str("", usedefault=True, desc="the same, of a second step before")


class ImageStepOutputSpec(TraitedSpec):
    """Failure so far, if any."""

    failure = traits.Str(desc="one sentence if this or an earlier step failed, else empty")


class ImageStep(SimpleInterface):
    """A step that turns every failure into a sentence; subclasses define :meth:`_process`."""

    input_spec = ImageStepInputSpec
    output_spec = ImageStepOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        """Do the work in ``folder`` and return the outputs; may raise anything."""
        raise NotImplementedError

    @property
    def before(self) -> str:
        """Return the first earlier failure, or an empty text."""
        return str(self.inputs.failure or self.inputs.failure_beside)

    def _gigabytes(self) -> float:
        """Return the memory that the step needs, by its largest input file (float32)."""
        paths = [Path(value) for value in self.inputs.get().values() if isinstance(value, str)]
        sizes = [path.stat().st_size for path in paths if path.suffix == ".nii" and path.is_file()]
        return 0.4 + COPIES_IN_MEMORY * max(sizes, default=0) / 1e9

    def _run_interface(self, runtime: Any) -> Any:
        failure = self.before
        if not failure:
            try:
                self._results.update(self._process(Path(runtime.cwd)))
            except MoediffError as error:
                failure = one_line(error)
            except Exception as error:
                failure = unexpected(type(self).__name__, error, self._gigabytes())
                (Path(runtime.cwd) / TRACEBACK_FILE).write_text(traceback.format_exc())
        if failure and not self.before:
            LOGGER.warning("%s: %s", type(self).__name__, failure)
            (Path(runtime.cwd) / FAILED_FILE).write_text(f"{failure}\n", encoding="utf-8")
            if config.getboolean("execution", "stop_on_first_crash"):
                raise ImageError(failure)
        self._results["failure"] = failure
        return runtime


def _in_the_way(error: OSError) -> str:
    """Return the name of the file or folder that is where another kind should be; or ""."""
    names = [Path(name) for name in (error.filename2, error.filename) if name]
    found = (path for name in names for path in (name, *name.parents) if path.exists())
    return next(found, Path()).name


def unexpected(step: str, error: BaseException, gigabytes: float = 0.0) -> str:
    """Return a sentence for an unexpected failure; ``gigabytes`` is the need, if known."""
    if isinstance(error, IN_THE_WAY) and (name := _in_the_way(error)):
        return f"{step} failed: {name} is in the way in the output folder; remove it."
    reason = one_line(without_folders(str(error))) or "no reason given"
    if is_out_of_memory(error):
        needs = f": it needs about {gigabytes:.1f} GB" if gigabytes else ""
        return (
            f"{step} ran out of memory{needs}; give the run more memory or fewer processes at a "
            f"time (--nprocs)."
        )
    return f"{step} failed unexpectedly ({type(error).__name__}: {reason})."
