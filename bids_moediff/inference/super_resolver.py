# SPDX-License-Identifier: Apache-2.0
"""Volume in, super-resolved volume out: what the command line and the workflow call.

The walk: scale intensities, interpolate consistently with the acquisition, let the model's
restorer do its work, undo the scaling, make the result agree with the measurement.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import torch

from bids_moediff.errors import DeviceError, ImageError, WeightsError
from bids_moediff.families import family
from bids_moediff.families.load import load_model, make_restorer
from bids_moediff.families.protocol import Problem, Restored
from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.options import Options
from bids_moediff.preprocessing.measured_voxels import Measured, declared_acquisition
from bids_moediff.runtime.resources import has_bfloat16

from .expected_error import Calibration, expected_error
from .pose import HEAD, Inputs, Posed, pose

Progress = Callable[[str, float], None]
CONSISTENCIES = ("end", "each-step", "off")
# Keys of the record that say nothing where no network ran.
SAMPLING = ("NumberOfSteps", "NumberOfSamples", "NoiseStrength", "SlicePlanes")

NEVER_COMPARED = "This model was never compared with known truth: "
NO_DEVIATION = NEVER_COMPARED + "no map of the expected error was made."
SPREAD_ONLY = NEVER_COMPARED + "the map of the expected error holds the spread of samples only."
NO_KERNELS = "This model does not describe images by kernels: no map of kernels was made."
OTHER_WEIGHTS = (
    "The map of the expected error was calibrated with other weights than these: its size is "
    "approximate."
)


@dataclass(frozen=True)
class Result:
    """What one image became.

    Parameters
    ----------
    image : float32 on the output grid, in the units of the input
    maps : what else there is, on the output grid, by the key of its product: "gates" (X, Y, Z,
        experts) that sum to one; "srstd", the standard deviation to be expected between image and
        truth, in the units of the input (over samples where the model was never calibrated)
    residual : ||A x - y|| / ||y||, the relative consistency residual
    record : what ran, for the sidecar

    """

    image: nib.Nifti1Image
    maps: Mapping[str, nib.Nifti1Image]
    residual: float
    record: dict[str, Any]

    @property
    def gates(self) -> nib.Nifti1Image | None:
        """Weights of the experts, if there are any."""
        return self.maps.get("gates")

    @property
    def standard_deviation(self) -> nib.Nifti1Image | None:
        """Expected error, if it was asked for and could be given."""
        return self.maps.get("srstd")


def without_expected_error(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without what it says of a map of the expected error."""
    kept = {key: value for key, value in record.items() if not key.startswith("ExpectedError")}
    about_map = (NO_DEVIATION, SPREAD_ONLY, OTHER_WEIGHTS)
    kept["Warnings"] = [words for words in record["Warnings"] if words not in about_map]
    return kept


def assumed_acquisition(image: nib.Nifti1Image, options: Options) -> Acquisition:
    """Return how an image without a sidecar is taken to be sampled: the options, or its voxels."""
    as_stored = Measured(image, None, None, (False, False, False), "header")
    return declared_acquisition(
        as_stored, {}, options.slice_profile, options.slice_thickness
    ).acquisition


def open_device(device: str) -> torch.device:
    """Device by name; DeviceError names the missing flag."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise DeviceError(
                f"--device {device} was asked for, but no CUDA device is visible; start the "
                "container with `docker run --gpus all` or `apptainer run --nv`, or use "
                "--device cpu."
            )
        index = torch.device(device).index or 0
        if index >= torch.cuda.device_count():
            raise DeviceError(
                f"--device {device} was asked for, but there are only "
                f"{torch.cuda.device_count()} CUDA devices."
            )
    return torch.device(device)


class SuperResolver:
    """A loaded model, ready for any number of images."""

    def __init__(self, model: LoadedModel, device: torch.device, precision: str = "auto") -> None:
        fast = device.type == "cuda" or has_bfloat16()
        self.precision = ("bf16" if fast else "fp32") if precision == "auto" else precision
        self.model, self.device = model, device
        self.restorer = make_restorer(model, device, self.precision)
        known = model.calibration
        try:
            self.calibration = Calibration.from_dict(known) if known else None
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise WeightsError(
                f"the calibration of {model.name} makes no sense: {error}"
            ) from error

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | Path, device: str = "cpu", precision: str = "auto"
    ) -> "SuperResolver":
        """Load a model folder or a shipped model; WeightsError, DeviceError."""
        place = open_device(device)
        return cls(load_model(name_or_dir, place), place, precision)

    def enhance(
        self,
        image: nib.Nifti1Image,
        options: Options,
        inputs: Inputs | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Super-resolve one 3-D image.

        The output has voxels of ``options.output_zooms`` mm and keeps the input's units,
        shading and field of view; A(output) equals the input. Same arguments, same bytes.
        ``options.consistency`` may also be "off", to see what agreement with the scan is worth.

        Raises
        ------
        ImageError : the image cannot be super-resolved, with the reason

        """
        inputs = inputs or Inputs()
        kind = family(self.model.config["family"])
        if inputs.reference is not None and not kind.takes_reference:
            raise ImageError("this model takes no reference contrast; use --model crfm.")
        if options.consistency not in CONSISTENCIES:
            raise ValueError(f"consistency is one of {CONSISTENCIES}, not {options.consistency!r}")
        ran: dict[str, None] = {}

        def report(stage: str, fraction: float) -> None:
            ran[stage] = None
            if progress is not None:
                progress(stage, fraction)

        if inputs.acquisition is None:
            inputs = replace(inputs, acquisition=assumed_acquisition(image, options))
        target = options.output_zooms(voxel_sizes(image.affine))
        posed = pose(image, target, inputs, self.device)

        def start() -> torch.Tensor:
            report("interpolate", 0.0)
            interpolated = posed.start()
            report("interpolate", 1.0)
            return interpolated

        problem = replace(posed.problem(), start=start)
        settled = self.restorer.settle(options, problem)
        notes = [*posed.warnings, *filter(None, [settled.left_out])]
        samples = self.restorer.restore(problem, settled.options, report)
        mean, variance, last = _average(samples, posed, options.consistency != "off")
        if options.non_negative:
            mean = posed.non_negative(mean, options.consistency != "off")
        networks = _networks(ran, last)
        report("done", 1.0)
        deviation = None
        if "uncertainty" in options.outputs or variance is not None:
            deviation, said = self._deviation(mean, variance, posed)
            notes += said
        maps = {key: posed.image(data) for key, data in last.maps.items()}
        if "kernels" in settled.options.outputs and "kernels" not in maps:
            notes.append(NO_KERNELS)
        if deviation is not None:
            maps["srstd"] = posed.image(deviation)
        residual = posed.residual(mean)
        return Result(
            posed.image(mean * posed.scale),
            maps,
            residual,
            self._record(posed, problem, settled.options, networks)
            | {"ConsistencyResidual": round(residual, 8), "ExpertEvaluations": last.counts}
            | self._calibration_record(deviation is not None, posed.ratios)
            | self._experts_record("gates" in maps)
            | ({"LabelTables": dict(last.tables)} if last.tables else {})
            | {"Warnings": notes},
        )

    def _deviation(
        self, restored: torch.Tensor, variance: torch.Tensor | None, posed: Posed
    ) -> tuple[torch.Tensor | None, list[str]]:
        """Expected error (X, Y, Z) in input units, and remarks; without a calibration, that of
        the samples, if there are."""
        if self.calibration is None:
            if variance is None:
                return None, [NO_DEVIATION]
            return variance.clamp_min(0).sqrt() * posed.scale, [SPREAD_ONLY]
        same = self.calibration.sha256 in ("", self.model.sha256)
        start = posed.start()
        if posed.field_fine is not None:
            start = start * posed.field_fine
        head = (start > HEAD).cpu().numpy()
        added = (restored - start).cpu().numpy()
        spread = None if variance is None else variance.cpu().numpy()
        found = expected_error(added, head, self.calibration.at(posed.ratios), spread)
        return torch.from_numpy(found * posed.scale), [] if same else [OTHER_WEIGHTS]

    def _calibration_record(self, written: bool, ratios: Sequence[float]) -> dict[str, Any]:
        """How the expected error came about, for the sidecar."""
        if not written or self.calibration is None:
            return {}
        return {
            "ExpectedErrorFactor": round(self.calibration.at(ratios), 3),
            "ExpectedErrorFactorRange": self.calibration.spread,
            "ExpectedErrorMeasuredOn": list(self.calibration.heads),
        }

    def _experts_record(self, written: bool) -> dict[str, Any]:
        """Names of the volumes of the gate maps, where they are written."""
        config = self.model.config
        return {"Experts": list(family(config["family"]).experts(config))} if written else {}

    def _record(
        self, posed: Posed, problem: Problem, options: Options, networks: Sequence[str]
    ) -> dict[str, Any]:
        asked = options.record()
        if not networks:  # nothing was sampled
            asked = {key: value for key, value in asked.items() if key not in SAMPLING}
        return {
            "Model": self.model.name,
            "ModelFamily": str(self.model.config["family"]),
            "ModelVersion": str(self.model.config.get("version", "")),
            "ModelSHA256": self.model.sha256,
            "Sampler": self.restorer.sampler(problem, options),
            "NetworksRun": list(networks),
            **asked,
            "Precision": self.precision,
            "Device": self.device.type,
            "InputVoxelSize": [round(z, 6) for z in posed.coarse_zooms],
            "OutputVoxelSize": [round(z, 6) for z in posed.zooms],
            "EstimatedNoise": round(posed.noise * posed.scale, 6),
            "ConsistencyNoise": round(posed.noise * posed.scale, 6),
        }


def _networks(stages: Iterable[str], last: Restored) -> tuple[str, ...]:
    """Parts of the network that ran, of all stages that told their progress."""
    idle = {"interpolate"}
    if last.counts is not None and not last.counts.get("evaluated"):
        idle.add("experts")  # the gate gave them no place to work
    return tuple(stage for stage in stages if stage not in idle)


def _average(
    samples: Iterable[Restored], posed: Posed, consistent: bool
) -> tuple[torch.Tensor, torch.Tensor | None, Restored]:
    """Mean of the finished samples, their variance if there are several, and the last one."""
    total: torch.Tensor | None = None
    squares: torch.Tensor | None = None
    count = 0
    for sample in samples:
        finished = posed.finish(sample.image, consistent)
        count += 1
        if total is None:
            total = finished
            continue
        if squares is None:
            squares = total**2
        squares = squares + finished**2
        total = total + finished
    if total is None:
        raise ValueError("the restorer gave no sample")
    if squares is None:
        return total, None, sample
    mean = total / count
    return mean, (squares - count * mean**2) / (count - 1), sample
