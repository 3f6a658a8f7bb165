# SPDX-License-Identifier: Apache-2.0
"""Process one image in the child process, report progress, and stop on request."""

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TextIO

import nibabel as nib
import numpy as np
import torch

from bids_moediff.converters import to_device
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.families.choice import choose
from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.imaging.noise_level import NoiseReading, read_noise
from bids_moediff.options import Options
from bids_moediff.preprocessing.measured_voxels import (
    Declared,
    Measured,
    declared_acquisition,
    estimated_acquisition,
    find_measured,
    slice_axis_remark,
    thickness_remark,
)
from bids_moediff.runtime.device_lock import hold_device

from .pose import Inputs
from .request import ImageRequest, Request
from .super_resolver import Result, Store, SuperResolver
from .warnings import estimate_remark, residual_warning

# Share of the brightness that may be anatomy in a reading of the noise, where the air agrees with
# it, and where there is no air or it disagrees.
DOUBT = {"spectrum and air": 0.01, "spectrum": 0.02}

TERMINATED = 128 + signal.SIGTERM
STOP = threading.Event()


def stop(_signal: int, _frame: Any) -> None:
    """Handle a signal: exit once every ``finally`` has run."""
    # Python drops an exception that is raised while it collects garbage; the flag outlives that.
    STOP.set()
    check_stop()


def check_stop() -> None:
    """Exit if a signal asked the process to stop."""
    if STOP.is_set():
        raise SystemExit(TERMINATED)


class ProgressLines:
    """Write progress as JSON lines with key, stage and fraction (0 to 1), one per percent."""

    def __init__(self, stream: TextIO, *, follow_parent: bool) -> None:
        self._stream = stream
        self._parent = os.getppid() if follow_parent else None
        self._last: tuple[Any, ...] = ()

    def __call__(self, key: str | None, stage: str, fraction: float) -> None:
        """Report progress of an image; exit if the parent process has gone."""
        check_stop()
        if self._parent is not None and os.getppid() != self._parent:
            raise SystemExit(TERMINATED)
        if (line := (key, stage, int(100 * fraction))) != self._last:
            self._last = line
            text = json.dumps({"key": key, "stage": stage, "fraction": round(fraction, 4)})
            print(text, file=self._stream, flush=True)


def named_devices(choice: str) -> list[str]:
    """Return the devices of a list with commas.

    Raises
    ------
    UsageError
        For a word that is not the name of a device.
    """
    try:
        return [to_device(device.strip()) for device in choice.split(",")]
    except ValueError as error:
        raise UsageError(f"--device: {error}.") from error


def held_device(
    choice: str, progress: Callable[[str | None, str, float], None]
) -> AbstractContextManager[str]:
    """Return a context that yields the device to run on.

    It waits while every GPU of the list is in use.

    Parameters
    ----------
    choice
        ``"auto"``, or names of devices with commas.
    progress
        Called with None, the stage and a fraction while it waits.
    """
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    devices = named_devices(choice)
    if devices[0] == "cpu":
        return nullcontext("cpu")
    return hold_device(devices, on_wait=lambda: progress(None, "waiting for a device", 0.0))


@dataclass(frozen=True)
class Loaded:
    """A network on its device, the options, and the reason for this model."""

    resolver: SuperResolver
    options: Options
    model: str
    model_reason: str


def load(request: Request, device: str) -> Loaded:
    """Load the model of a request; ``auto`` is decided here, where the device is known."""
    choice = choose(request.options, device)
    resolver = SuperResolver.from_pretrained(
        choice.model, device=device, precision=request.options.precision
    )
    return Loaded(resolver, request.options, choice.model, request.model_reason or choice.reason)


@dataclass(frozen=True)
class Scan:
    """A conformed scan with mask and bias field on its grid; an aligned reference on any grid."""

    image: nib.Nifti1Image
    mask: nib.Nifti1Image | None = None
    bias_field: nib.Nifti1Image | None = None
    reference: nib.Nifti1Image | None = None
    reference_weight: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """A scan on the voxels that were measured, its acquisition, and its noise.

    ``likelihood`` is the likelihood of each acquisition that was compared. ``remarks`` are
    sentences about statements of the sidecar.
    """

    measured: Measured
    sampling: Declared
    noise: NoiseReading
    likelihood: Mapping[str, float]
    remarks: tuple[str, ...] = ()


def prepare(scan: Scan, told: ImageRequest, options: Options) -> Prepared:
    """Find the measured voxels of a scan, its acquisition and its noise.

    Parameters
    ----------
    scan
        Conformed scan.
    told
        Its ``acquisition`` counts first, then the options, then the sidecar in its ``metadata``.
    options
        Acquired resolution, slice profile, slice thickness and noise.
    """
    measured = find_measured(scan.image, scan.mask, scan.bias_field, options.acquired_resolution)
    if told.acquisition:
        sampling = Declared(Acquisition.from_dict(told.acquisition), "option")
    else:
        sampling = declared_acquisition(
            measured, told.metadata, options.slice_profile, options.slice_thickness
        )
    noise = _noise(measured, options.noise)
    weights: dict[str, float] = {}
    if sampling.source != "option":
        sampling, weights = estimated_acquisition(sampling, measured, told.metadata, noise.sigma)
    remarks = [
        slice_axis_remark(told.metadata, measured.zooms),
        thickness_remark(measured, told.metadata, sampling, options.slice_thickness),
    ]
    if sampling.source == "estimated":
        remarks.append(estimate_remark(sampling.acquisition, weights))
    return Prepared(measured, sampling, noise, weights, tuple(filter(None, remarks)))


def enhance_image(
    resolver: SuperResolver,
    scan: Scan,
    told: ImageRequest,
    options: Options,
    progress: Callable[[str, float], None] | None = None,
    store: Store | None = None,
) -> Result:
    """Super-resolve a scan from the voxels that were measured (:func:`prepare`).

    Parameters
    ----------
    resolver
        The network.
    scan
        Conformed scan.
    told
        Sidecar, acquisition and reference record of the scan.
    options
        What decides the result; ``auto`` resolution counts from the stored voxels.
    progress
        Called with the stage and the fraction done.
    store
        Called with the key and the image of each sample.
    """
    # Before voxels are brought back to the acquired ones: no axis gets coarser than it came.
    options = options.for_image(voxel_sizes(scan.image.affine))
    prepared = prepare(scan, told, options)
    scan = replace(scan, reference_weight=told.reference_record.get("Weight", 1.0))
    result = enhance_prepared(resolver, scan, prepared, options, progress, store)
    if told.reference_record:
        result.record["Reference"] = dict(told.reference_record)
        if not told.reference_record["Used"]:
            result.record["Warnings"].append(told.reference_record["Reason"])
    return result


def enhance_prepared(
    resolver: SuperResolver,
    scan: Scan,
    prepared: Prepared,
    options: Options,
    progress: Callable[[str, float], None] | None = None,
    store: Store | None = None,
) -> Result:
    """Super-resolve a prepared scan; arguments as for :func:`enhance_image`."""
    measured, sampling, noise = prepared.measured, prepared.sampling, prepared.noise
    data = np.asarray(measured.image.dataobj, dtype=np.float32)
    inputs = Inputs(
        measured.mask,
        measured.bias_field,
        sampling.acquisition,
        noise.sigma if sampling.acquisition.erases_detail else certain_noise(noise, data),
        scan.reference,
        scan.reference_weight,
    )
    result = resolver.enhance(measured.image, options, inputs, progress, store)
    result.record["Warnings"] += prepared.remarks
    if sentence := residual_warning(data, noise.sigma, result.residual):
        result.record["Warnings"].append(sentence)
    result.record.update(
        InputVoxelSize=[round(size, 6) for size in voxel_sizes(scan.image.affine)],
        AcquiredVoxelSize=[round(size, 6) for size in measured.zooms],
        AcquiredVoxelSizeFrom=measured.source,
        SamplingProfiles=[
            axis | {"fwhm": round(axis["fwhm"], 4)}
            for axis in sampling.acquisition.to_dict()["axes"]
        ],
        SamplingProfilesFrom=sampling.source,
        SamplingProfilesLikelihood=dict(prepared.likelihood),
        EstimatedNoise=_rounded(noise.sigma),
        NoiseSource=noise.source,
        NoiseUncertainty=_rounded(noise.uncertainty),
    )
    return result


def _noise(measured: Measured, wanted: str | float) -> NoiseReading:
    """Estimate the noise of a scan, or take that of the option."""
    data = np.asarray(measured.image.dataobj, dtype=np.float32)
    if wanted != "auto":
        sigma = 0.0 if wanted == "none" else float(wanted)
        brightest = float(data.max())
        if sigma > brightest / 2:
            raise ImageError(
                f"--noise {sigma:g} is more than half of the brightest voxel ({brightest:g}): it "
                "is the standard deviation of the noise in the units of this image."
            )
        return NoiseReading(sigma, "option", 0.0)
    return read_noise(data, measured.zooms)


def certain_noise(noise: NoiseReading, data: np.ndarray) -> float:
    """Return the part of a noise estimate that is certainly noise, in the units of the scan.

    The result agrees with the scan within this noise. Fine anatomy reads as noise of about 1 % of
    the brightness, on some sharp heads 2.8 %, and so may ghosts in the air. Agreement within such
    a reading would give up measured detail. So only a given number counts, noise of one level all
    over flat tissue, what two agreeing estimates have beyond 1 %, and what the spectrum alone has
    beyond 2 % where flat tissue is not full of detail.

    Parameters
    ----------
    noise
        Estimate of the noise.
    data
        The scan (x, y, z).
    """
    if noise.source == "option" or noise.even:
        return noise.sigma
    if noise.source not in DOUBT or noise.detailed or not (data > 0).any():
        return 0.0
    brightness = float(np.percentile(data[data > 0], 99.5))
    return math.sqrt(max(0.0, noise.sigma**2 - (DOUBT[noise.source] * brightness) ** 2))


def _rounded(value: float) -> float:
    """Return a value with four digits: images have units from 1e-6 to 1e6."""
    return float(f"{value:.4g}")


def with_typed(request: Request, typed: dict[str, Any], device: str | None) -> Request:
    """Return the request with the options of the command line in place of its own."""
    options = replace(request.options, **typed)
    return replace(request, options=options, device=device or request.device)
