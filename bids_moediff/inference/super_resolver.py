# SPDX-License-Identifier: Apache-2.0
"""Volume in, super-resolved volume out: what the command line and the workflow call.

The walk: scale intensities, interpolate consistently with the acquisition, regression mean and
mixture of diffusion experts on slices (or the student in their place), undo the scaling, project
onto the measured data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_moediff.errors import DeviceError, ImageError
from bids_moediff.families.load import load_model
from bids_moediff.families.moediff.slices import gate_slices, restore_planes
from bids_moediff.families.student.network import StudentNetwork
from bids_moediff.families.whole_volume import apply_to_volume, within_head_box
from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.axes import orientations
from bids_moediff.imaging.consistency import agree, consistent_start
from bids_moediff.imaging.grid import Shape, Triple, output_grid, voxel_sizes
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.noise import tissue_noise
from bids_moediff.imaging.told import told_numbers
from bids_moediff.inference.warnings import ONE_STEP_ONLY
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.options import Options
from bids_moediff.preprocessing.measured_voxels import Measured, declared_acquisition
from bids_moediff.runtime.resources import has_bfloat16

from .expected_error import Calibration, expected_error
from .warnings import range_warnings

Progress = Callable[[str, float], None]
DEFAULT_STEPS = 4
HEAD = 0.1  # of the scale: brighter voxels belong to the head
CONSISTENCIES = ("end", "each-step", "off")

NEVER_COMPARED = "This model was never compared with known truth: "
NO_DEVIATION = NEVER_COMPARED + "no map of the expected error was made."
SPREAD_ONLY = NEVER_COMPARED + "the map of the expected error holds the spread of samples only."
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
    gates : (X, Y, Z, experts) float32 that sum to one, or None
    standard_deviation : to be expected between image and truth, in the units of the input; over
        samples where the model was never calibrated; or None
    residual : ||A x - y|| / ||y||, the relative consistency residual
    record : what ran, for the sidecar

    """

    image: nib.Nifti1Image
    gates: nib.Nifti1Image | None
    standard_deviation: nib.Nifti1Image | None
    residual: float
    record: dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What comes with an image: mask, bias field and reference on its grid; how it was sampled.

    Without an acquisition the image is taken as the app takes one without a sidecar. ``noise`` is
    the standard deviation of the image's noise in its units: the result agrees with the image
    within it, and exactly where it is None.
    """

    mask: nib.Nifti1Image | None = None
    bias_field: nib.Nifti1Image | None = None
    acquisition: Acquisition | None = None
    noise: float | None = None
    reference: nib.Nifti1Image | None = None


@dataclass
class _Problem:
    """One image on its way through the engine (intensities scaled to about [0, 1])."""

    measured: torch.Tensor
    scale: float
    zooms: Triple
    coarse_zooms: Triple
    shape: Shape
    affine: np.ndarray
    operator: Operator
    condition: torch.Tensor
    told: torch.Tensor
    noise: float
    field_coarse: torch.Tensor | None = None
    field_fine: torch.Tensor | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Size of a measured voxel over that of an output voxel, by axis."""
        pairs = zip(self.coarse_zooms, self.zooms, strict=True)
        return tuple(coarse / fine for coarse, fine in pairs)

    def start(self) -> torch.Tensor:
        """Cubic interpolation that agrees with the measurement: where the networks start."""
        coarse = self.measured if self.field_coarse is None else self.measured / self.field_coarse
        start = interpolate(coarse, self.coarse_zooms, self.shape, self.zooms)
        return consistent_start(self.operator, start, coarse, self.noise)


@dataclass(frozen=True)
class _Sampling:
    """How the experts run; names as the arguments of :meth:`SuperResolver.enhance`."""

    steps: int
    strength: float
    seed: int
    samples: int
    batch_size: int | None
    want_gates: bool
    planes: int
    consistency: str


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
        self.model = model
        self.device = device
        student = model.network if isinstance(model.network, StudentNetwork) else None
        # The student takes the place of the mean, and nothing comes after it.
        self.student = student
        self.mean = student or getattr(model.network, "mean", None)
        self.moediff = getattr(model.network, "moediff", None)
        fast = device.type == "cuda" or has_bfloat16()
        known = model.calibration
        self.calibration = Calibration.from_dict(known) if known else None
        self.precision = ("bf16" if fast else "fp32") if precision == "auto" else precision

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
        if inputs.reference is not None:
            raise ImageError("this model takes no reference contrast; use a crfm model.")
        if options.consistency not in CONSISTENCIES:
            raise ValueError(f"consistency is one of {CONSISTENCIES}, not {options.consistency!r}")
        report = progress or (lambda stage, fraction: None)
        if inputs.acquisition is None:
            inputs = replace(inputs, acquisition=assumed_acquisition(image, options))
        target = options.output_zooms(voxel_sizes(image.affine))
        problem = self._pose(image, target, inputs)
        report("interpolate", 0.0)
        start = problem.start()
        report("interpolate", 1.0)
        mean = self.run_mean(start, problem.told, report)
        del start
        sampling = self._sampling(options, problem)
        restored, variance, gates, counts = self._run_samples(mean, problem, sampling, report)
        residual = problem.operator.forward(restored) - problem.measured
        relative = float(residual.norm() / problem.measured.norm().clamp_min(1e-12))
        report("done", 1.0)
        deviation = None
        if "uncertainty" in options.outputs or variance is not None:
            deviation = self._deviation(restored, variance, problem)
        return Result(
            _image(restored * problem.scale, problem.affine, image),
            None if gates is None else _image(gates, problem.affine, image),
            None if deviation is None else _image(deviation, problem.affine, image),
            relative,
            self._record(problem, sampling, relative, counts)
            | self._calibration_record(deviation is not None, problem.ratios),
        )

    def _sampling(self, options: Options, problem: _Problem) -> _Sampling:
        """How the experts will run, with what this model leaves out."""
        samples, strength, steps = (
            options.num_samples, options.noise_strength, options.num_steps
        )  # fmt: skip
        planes, gates = options.planes, "gates" in options.outputs
        if self.student is not None:
            if gates or max(samples, steps or 1) > 1 or strength > 0:
                problem.warnings.append(ONE_STEP_ONLY)
            samples, strength, steps, planes = 1, 0.0, None, 1
        if samples > 1 and strength == 0:
            strength = 1.0
        # Without noise the first estimate is final, whatever the number of steps.
        noisy = strength > 0 or self._from_noise
        return _Sampling(
            steps or (DEFAULT_STEPS if noisy else 1),
            strength,
            options.random_seed,
            samples,
            options.batch_size,
            gates,
            planes,
            options.consistency,
        )

    def gates(
        self,
        image: nib.Nifti1Image,
        target_zooms: Sequence[float],
        acquisition: Acquisition | None = None,
    ) -> nib.Nifti1Image:
        """The gates that :meth:`enhance` would give with one plane, no expert being run.

        ImageError if the image cannot be super-resolved or the model has no gate.
        """
        if self.moediff is None:
            raise ImageError("this model has no experts, and so no gates.")
        problem = self._pose(image, target_zooms, Inputs(acquisition=acquisition))
        mean = self.run_mean(problem.start(), problem.told, lambda stage, fraction: None)
        with torch.inference_mode(), self._autocast():
            gates = gate_slices(self.moediff, mean, problem.condition)
        return _image(gates, problem.affine, image)

    def _pose(
        self,
        image: nib.Nifti1Image,
        target_zooms: Sequence[float],
        inputs: Inputs,
    ) -> _Problem:
        mask, bias_field = inputs.mask, inputs.bias_field
        data = np.asarray(image.dataobj, dtype=np.float32)
        if data.ndim != 3 or min(data.shape) < 2:
            raise ImageError(f"a 3-D image is needed, this one has the shape {data.shape}.")
        inside = data[np.asarray(mask.dataobj) > 0] if mask is not None else data[data > 0]
        scale = float(np.percentile(inside, 99.5)) if inside.size else 0.0
        if not np.isfinite(data).all() or scale <= 0:
            raise ImageError("the image holds no positive finite intensities.")
        affine = np.asarray(image.affine)
        acquisition = inputs.acquisition or Acquisition.uniform("kspace")
        measured, affine, zooms, notes = _reduce_finer_axes(
            torch.from_numpy(data / scale).to(self.device), affine, target_zooms, acquisition
        )
        shape, affine_out = output_grid(measured.shape, affine, target_zooms)
        fine = voxel_sizes(affine_out)
        coarse_shape = (measured.shape[0], measured.shape[1], measured.shape[2])
        operator = Operator.between(shape, fine, coarse_shape, zooms, acquisition, self.device)
        notes += range_warnings(zooms, fine, acquisition)
        # The estimate reads fine anatomy as noise, so it is not used where it is not needed.
        if inputs.noise is None:
            sigma = _noise(measured) if acquisition.erases_detail else 0.0
        else:  # averaging on the way to coarser voxels takes noise away
            averaged = [a / b for a, b in zip(voxel_sizes(image.affine), zooms, strict=True)]
            sigma = inputs.noise / scale * float(np.sqrt(np.prod(averaged)))
        numbers = acquisition.condition(fine, zooms)
        shares = [coarse / small for coarse, small in zip(zooms, fine, strict=True)]
        extra = told_numbers(acquisition, shares, measured, sigma)
        problem = _Problem(
            measured,
            scale,
            fine,
            zooms,
            shape,
            affine_out,
            operator,
            torch.tensor(numbers, device=self.device),
            torch.tensor(numbers + extra, device=self.device),
            sigma,
            warnings=notes,
        )
        if bias_field is not None:
            field_in = torch.from_numpy(np.asarray(bias_field.dataobj, dtype=np.float32))
            problem.field_coarse = interpolate(
                field_in.to(self.device), voxel_sizes(image.affine), coarse_shape, zooms, 1
            )
            problem.field_fine = interpolate(problem.field_coarse, zooms, shape, fine, 1)
        return problem

    def run_mean(
        self, start: torch.Tensor, condition: torch.Tensor, report: Progress
    ) -> torch.Tensor:
        """The regression mean of a consistent start (X, Y, Z), or the start without a mean."""
        if self.mean is None or _nothing_to_gain(condition):
            return start
        mean, stage = self.mean, "mean" if self.student is None else "student"
        return within_head_box(
            lambda volume: apply_to_volume(
                mean,
                volume,
                condition,
                lambda fraction: report(stage, fraction),
                precision=self.precision,
            ),
            start,
        )

    def _run_samples(
        self, mean: torch.Tensor, problem: _Problem, sampling: _Sampling, report: Progress
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, dict[str, int] | None]:
        """Mean of the finished samples, their variance if there are several, gates and counts."""
        count = sampling.samples
        total, squares, gates, counts = None, None, None, None
        for sample in range(count):
            restored, gates, counts = self._run_experts(
                mean,
                problem,
                sampling,
                sampling.seed + sample,
                lambda f, s=sample: report("experts", (s + f) / count),  # type: ignore[misc]
            )
            restored = self._finish(restored, problem, sampling.consistency != "off")
            total = restored if total is None else total + restored
            if count > 1:
                squares = restored**2 if squares is None else squares + restored**2
        assert total is not None
        if squares is None:
            return total, None, gates, counts
        average = total / count
        return average, (squares - count * average**2) / (count - 1), gates, counts

    def _run_experts(
        self,
        mean: torch.Tensor,
        problem: _Problem,
        sampling: _Sampling,
        seed: int,
        report: Callable[[float], None],
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, int] | None]:
        if self.moediff is None or (
            _nothing_to_gain(problem.condition) and not sampling.want_gates
        ):
            return mean, None, None

        def correct(image: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, enabled=False):
                fixed = self._finish(image.float(), problem)
                return fixed if problem.field_fine is None else fixed / problem.field_fine

        with torch.inference_mode(), self._autocast():
            return restore_planes(
                self.moediff,
                mean,
                problem.condition,
                planes=sampling.planes,
                correct=correct if sampling.consistency == "each-step" else None,
                num_steps=sampling.steps,
                noise_strength=sampling.strength,
                seed=seed,
                batch_size=sampling.batch_size,
                want_gates=sampling.want_gates,
                progress=report,
            )

    def _autocast(self) -> torch.autocast:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.bfloat16}
        return torch.autocast(
            self.device.type, kinds[self.precision], enabled=self.precision != "fp32"
        )

    @staticmethod
    def _finish(
        restored: torch.Tensor, problem: _Problem, consistent: bool = True
    ) -> torch.Tensor:
        """Shading put back, and made to agree with the measurement."""
        if problem.field_fine is not None:
            restored = restored * problem.field_fine
        if not consistent:
            return restored
        return agree(problem.operator, restored, problem.measured, problem.noise)

    def _deviation(
        self, restored: torch.Tensor, variance: torch.Tensor | None, problem: _Problem
    ) -> torch.Tensor | None:
        """Expected error (X, Y, Z) in input units; unknown: that of the samples, if there are."""
        if self.calibration is None:
            problem.warnings.append(NO_DEVIATION if variance is None else SPREAD_ONLY)
            return None if variance is None else variance.clamp_min(0).sqrt() * problem.scale
        if self.calibration.sha256 not in ("", self.model.sha256):
            problem.warnings.append(OTHER_WEIGHTS)
        start = problem.start()
        if problem.field_fine is not None:
            start = start * problem.field_fine
        head = (start > HEAD).cpu().numpy()
        added = (restored - start).cpu().numpy()
        spread = None if variance is None else variance.cpu().numpy()
        found = expected_error(added, head, self.calibration.at(problem.ratios), spread)
        return torch.from_numpy(found * problem.scale)

    def _calibration_record(self, written: bool, ratios: Sequence[float]) -> dict[str, Any]:
        """How the expected error came about, for the sidecar."""
        if not written or self.calibration is None:
            return {}
        return {
            "ExpectedErrorFactor": round(self.calibration.at(ratios), 3),
            "ExpectedErrorFactorRange": self.calibration.spread,
            "ExpectedErrorMeasuredOn": list(self.calibration.heads),
        }

    @property
    def _from_noise(self) -> bool:
        return self.moediff is not None and self.moediff.config.predicts_noise

    def _sampler(self, condition: torch.Tensor) -> str:
        if _nothing_to_gain(condition):
            return "none: no axis gets finer"
        if self.student is not None:
            return "one step of the distilled network"
        if self.moediff is None:
            return "none"
        if self._from_noise:
            return "deterministic diffusion from noise"
        start = "interpolated input" if self.mean is None else "regression mean"
        return f"deterministic residual shift from the {start}"

    def _record(
        self,
        problem: _Problem,
        sampling: _Sampling,
        residual: float,
        counts: dict[str, int] | None,
    ) -> dict[str, Any]:
        return {
            "Model": self.model.name,
            "ModelVersion": str(self.model.config.get("version", "")),
            "ModelSHA256": self.model.sha256,
            "Sampler": self._sampler(problem.condition),
            "NumberOfSteps": sampling.steps,
            "NumberOfSamples": sampling.samples,
            "NoiseStrength": sampling.strength,
            "RandomSeed": sampling.seed,
            "Precision": self.precision,
            "Device": self.device.type,
            "InputVoxelSize": [round(z, 6) for z in problem.coarse_zooms],
            "OutputVoxelSize": [round(z, 6) for z in problem.zooms],
            "ConsistencyResidual": round(residual, 8),
            "EstimatedNoise": round(problem.noise * problem.scale, 6),
            "ExpertEvaluations": counts,
            "SlicePlanes": len(orientations(problem.condition, sampling.planes)),
            "DataConsistency": sampling.consistency,
            "Warnings": list(problem.warnings),
        }


def _nothing_to_gain(condition: torch.Tensor) -> bool:
    """Whether no axis gets finer, so that the networks have nothing to do."""
    return bool((condition[:3].abs() < 1e-3).all())


def _reduce_finer_axes(
    measured: torch.Tensor,
    affine: np.ndarray,
    target: Sequence[float],
    acquisition: Acquisition,
) -> tuple[torch.Tensor, np.ndarray, Triple, list[str]]:
    """Bring axes that are finer than asked for to the asked-for voxel size first."""
    zooms = voxel_sizes(affine)
    finer = [old < new * (1 - 1e-4) for old, new in zip(zooms, target, strict=True)]
    if not any(finer):
        return measured, affine, zooms, []
    wanted = [new if f else old for f, old, new in zip(finer, zooms, target, strict=True)]
    shape, reduced = output_grid(measured.shape, affine, wanted)
    # The covering grid may exceed the input by part of a voxel, which repeats the last plane.
    counts = [
        max(1, int(n * old / new + 1e-3))
        for n, old, new in zip(measured.shape, zooms, wanted, strict=True)
    ]
    fits = (counts[0], counts[1], counts[2])
    sizes = voxel_sizes(reduced)
    source = (measured.shape[0], measured.shape[1], measured.shape[2])
    box = Acquisition.uniform("box")
    small = Operator.between(source, zooms, fits, sizes, box, measured.device).forward(measured)
    padding: list[int] = []
    for have, need in zip(reversed(fits), reversed(shape), strict=True):
        padding += [0, need - have]
    small = torch.nn.functional.pad(small[None, None], padding, mode="replicate")[0, 0]
    note = (
        "The output voxels asked for are coarser than the scan's on "
        f"{sum(finer)} of 3 axes ({', '.join(f'{z:.3g}' for z in zooms)} mm scanned): the network "
        "leaves these axes alone; they were averaged down and lose detail."
    )
    return small, reduced, sizes, [note]


def _noise(measured: torch.Tensor) -> float:
    array = measured.cpu().numpy()
    return tissue_noise(array, array > HEAD) or 0.0


def _image(data: torch.Tensor, affine: np.ndarray, source: nib.Nifti1Image) -> nib.Nifti1Image:
    """NIfTI image on the output grid with the source's coordinate codes."""
    image = nib.Nifti1Image(data.cpu().numpy().astype(np.float32), affine)
    code = int(source.header["sform_code"]) or int(source.header["qform_code"]) or 1
    image.set_sform(affine, code)
    image.set_qform(affine, int(source.header["qform_code"]) or code)
    image.header.set_xyzt_units("mm", "sec")
    return image
