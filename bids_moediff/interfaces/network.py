# SPDX-License-Identifier: Apache-2.0
"""Super-resolve prepared images in the child process.

The network runs as its own console script, one process for all images of a participant. A network
that the kernel kills inside a Nipype worker would hang the run, and the model is loaded once. If
the child dies, its current image gets a sentence and the child is started again for the rest.
"""

import json
import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    CommandLine,
    CommandLineInputSpec,
    DynamicTraitedSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.errors import ImageError
from bids_moediff.inference.request import (
    ACQUISITION_KEYS,
    ImageRequest,
    ImageResult,
    Request,
    read_results,
    write_results,
)
from bids_moediff.options import Options
from bids_moediff.runtime.platform import PARENT_VARIABLE
from bids_moediff.runtime.sink import write_json

from .files import read_json
from .groups import PlannedGroup, request_groups
from .step import FAILED_FILE, ImageStep, ImageStepInputSpec, ImageStepOutputSpec

ANY_EXIT_CODE = range(-64, 256)
# Exit codes that concern the whole call, not one image.
FATAL_EXIT_CODES = (2, 69, 78)


class _DescribeInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    image = File(desc="conformed image")
    mask = File(desc="brain mask")
    bias_field = File(desc="bias field, if one was estimated")
    reference = File(desc="aligned reference, if there is one that may be used")
    reference_record = File(desc="JSON: how it was chosen and aligned")


class _DescribeOutputSpec(ImageStepOutputSpec):
    entry = File(desc="JSON file: the image's entry of the request, or why there is none")


class DescribePrepared(ImageStep):
    """Write one file about what is ready for the network, also if nothing is."""

    input_spec = _DescribeInputSpec
    output_spec = _DescribeOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        source = AnatomicalImage.from_json(self.inputs.source)
        entry: dict[str, Any] = {"failure": self.before, "key": source.key}
        if not self.before:
            bias_field, reference = self.inputs.bias_field, self.inputs.reference
            chosen = self.inputs.reference_record
            prepared = ImageRequest(
                key=source.key,
                image=self.inputs.image,
                out_dir=source.key,
                mask=self.inputs.mask,
                bias_field=bias_field if isdefined(bias_field) else None,
                metadata={k: source.metadata[k] for k in ACQUISITION_KEYS if k in source.metadata},
                reference=reference if isdefined(reference) else None,
                reference_record=read_json(chosen) if isdefined(chosen) else {},
            )
            entry |= asdict(prepared)
        self._results["entry"] = str(write_json(entry, Path(runtime.cwd) / "entry.json"))
        self._results["failure"] = self.before
        return runtime


class _RequestInputSpec(BaseInterfaceInputSpec):
    entries = InputMultiObject(File(exists=True), mandatory=True, desc="from DescribePrepared")
    options = traits.Dict(mandatory=True, desc="what decides the result (Options.to_dict)")
    model_reason = traits.Str(usedefault=True, desc="why this model, for the record")
    groups = traits.List(traits.Dict, [], usedefault=True, desc="PlannedGroup.to_dict of each")
    combine_only = traits.Bool(False, usedefault=True, desc="no results of single scans of groups")
    weights = traits.Str(usedefault=True, desc="digest, so that other weights are another request")


class _RequestOutputSpec(TraitedSpec):
    request = File(exists=True, desc="request file of bids_moediff-superres")


class WriteRequest(SimpleInterface):
    """Collect the entries of all images of a participant, and groups of them, in one request."""

    input_spec = _RequestInputSpec
    output_spec = _RequestOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        prepared, lost = {}, {}
        for path in self.inputs.entries:
            entry = json.loads(Path(path).read_text(encoding="utf-8"))
            if failure := entry.pop("failure"):
                lost[entry["key"]] = failure
            else:
                prepared[entry["key"]] = ImageRequest(**entry)
        options = Options.from_dict(self.inputs.options, "The workflow")
        planned = [PlannedGroup(**group) for group in self.inputs.groups]
        images, groups = request_groups(prepared, lost, planned, options, self.inputs.combine_only)
        request = Request(
            options=options,
            images=tuple(images),
            groups=tuple(groups),
            model_reason=self.inputs.model_reason,
        )
        path = request.write(Path(runtime.cwd) / "request.json")
        self._results["request"] = str(path)
        return runtime


class _SuperResolveInputSpec(CommandLineInputSpec):
    request = File(exists=True, mandatory=True, argstr="--request %s")
    results = File("results.json", usedefault=True, argstr="--results %s")
    device = traits.Str(
        "auto", usedefault=True, argstr="--device %s", desc="commas between several"
    )
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="for Nipype's GPU slots")
    gigabytes = traits.Float(
        0.0, usedefault=True, nohash=True, desc="estimated need, for messages"
    )


class _SuperResolveOutputSpec(TraitedSpec):
    results = File(exists=True, desc="one entry an image, in the manner of cli/superres.py")


class SuperResolve(CommandLine):
    """Run ``bids_moediff-superres`` on a request until every image has a result."""

    input_spec = _SuperResolveInputSpec
    output_spec = _SuperResolveOutputSpec
    _cmd = f"{shlex.quote(sys.executable)} -m bids_moediff.cli.superres"
    _terminal_output = "file_split"

    @property
    def cmdline(self) -> str:
        """The command; it replaces the shell, so the step waits for it directly."""
        return f"exec {super().cmdline}"

    def _run_interface(self, runtime: Any, correct_return_codes: Any = ANY_EXIT_CODE) -> Any:
        results = Path(runtime.cwd) / self.inputs.results
        results.unlink(missing_ok=True)
        keys = [item.key for item in Request.read(Path(self.inputs.request)).items]
        settled: dict[str, ImageResult] = {}
        log = []
        while pending := [key for key in keys if key not in settled]:
            runtime.environ[PARENT_VARIABLE] = str(os.getpid())
            runtime = super()._run_interface(runtime, correct_return_codes=correct_return_codes)
            log.append(runtime.stderr)
            settled = _settle(results, pending, runtime, self.inputs.gigabytes)
            write_results(settled, results)
        failures = [item.message for item in settled.values() if not item.done]
        if failures:
            (results.parent / FAILED_FILE).write_text("\n".join(failures), encoding="utf-8")
        runtime.returncode = 0
        runtime.stderr = "\n".join(log)
        if not keys:
            write_results({}, results)
        return runtime

    def _list_outputs(self) -> dict[str, Any]:
        return {"results": str(Path(self.inputs.results).absolute())}


def _settle(
    results: Path, pending: list[str], runtime: Any, gigabytes: float
) -> dict[str, ImageResult]:
    """Return results that need no further attempt; at least one more than before."""
    items = read_results(results)
    settled = {key: item for key, item in items.items() if item.settled}
    if runtime.returncode in (0, 1) and all(key in settled for key in pending):
        return settled
    message = end_sentence(runtime.returncode, runtime.stderr or "", gigabytes)
    failed = ImageResult(status="failed", message=message, exit_code=runtime.returncode)
    victims = [key for key, item in items.items() if not item.settled]
    if runtime.returncode in FATAL_EXIT_CODES or not victims:
        victims = [key for key in pending if key not in settled]
    return settled | dict.fromkeys(victims, failed)


def end_sentence(code: int, errors: str, gigabytes: float) -> str:
    """Return why the child ended, in one sentence."""
    lines = [line for line in errors.splitlines() if line.strip()]
    last = lines[-1].removeprefix("bids_moediff-superres: ") if lines else ""
    if code in FATAL_EXIT_CODES and last:
        return last
    number = -code if code < 0 else code - 128
    if number == signal.SIGKILL:
        return (
            "Super-resolution was killed, most likely for want of memory: the image needs about "
            f"{gigabytes:.1f} GB; give it more memory, a smaller --batch-size or coarser output "
            "voxels."
        )
    if 0 < number < 65:
        return f"Super-resolution was ended by signal {number}."
    return f"Super-resolution ended with code {code}{': ' + last if last else ''}."


class _SelectInputSpec(ImageStepInputSpec):
    results = File(exists=True, mandatory=True)
    key = traits.Str(mandatory=True)
    products = traits.List(traits.Str, desc="what to give, where the model has it")


class _SelectOutputSpec(DynamicTraitedSpec):
    """And each product under its key."""

    failure = traits.Str(desc="one sentence if this or an earlier step failed, else empty")
    result = File(desc="JSON file: record, seconds and peak memory")


class SelectResult(ImageStep):
    """Select one image's products from the results of its participant."""

    input_spec = _SelectInputSpec
    output_spec = _SelectOutputSpec

    def _outputs(self) -> Any:
        outputs = super()._outputs()
        for key in self.inputs.products:
            outputs.add_trait(key, File())
        return outputs

    def _process(self, folder: Path) -> dict[str, Any]:
        results = Path(self.inputs.results)
        item = read_results(results).get(self.inputs.key)
        if item is None or not item.done:
            raise ImageError((item and item.message) or "The image was not super-resolved.")
        outputs = {
            key: str(results.parent / item.files[key])
            for key in self.inputs.products
            if key in item.files
        }
        outputs["result"] = str(write_json(item.to_dict(), folder / "result.json"))
        return outputs
