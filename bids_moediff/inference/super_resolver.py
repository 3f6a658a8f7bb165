# SPDX-License-Identifier: Apache-2.0
"""Super-resolve a volume: the class behind the command line and the workflow.

The steps: scale intensities, interpolate consistently with the acquisition, run the restorer of
the model, undo the scaling, make the result agree with the measurement.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import torch

from bids_moediff.errors import DeviceError, ImageError
from bids_moediff.families import family
from bids_moediff.families.in_plane_refit import STAGE as REFIT
from bids_moediff.families.in_plane_refit import TOO_SMALL, has_fine_plane, without_refit
from bids_moediff.families.load import fastest_precision, load_model, make_restorer
from bids_moediff.families.protocol import Problem, Restored, Settled
from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.options import Options
from bids_moediff.preprocessing.measured_voxels import Measured, declared_acquisition

from .pose import Inputs, Posed, pose
from .self_ensemble import left_right_axis, restore_mirrored
from .uncertainty import (
    NO_DEVIATION,
    NO_SAMPLES,
    OTHER_WEIGHTS,
    Restoration,
    Spread,
    Uncertainty,
    sampler,
)

Progress = Callable[[str, float], None]
Store = Callable[[str, nib.Nifti1Image], None]
CONSISTENCIES = ("end", "each-step", "off")
# Keys of the record that say nothing where no network ran.
SAMPLING = ("NumberOfSteps", "NumberOfSamples", "SlicePlanes", "SelfEnsemble", "InPlaneRefit")

NO_KERNELS = "This model does not describe images by kernels: no map of kernels was made."


@dataclass(frozen=True)
class Result:
    """Result for one image.

    Parameters
    ----------
    image
        Restored image (X, Y, Z), float32, in the units of the input.
    maps
        Further images on the output grid by the key of their product. ``"gates"`` (X, Y, Z,
        experts) sums to one. ``"srstd"`` is the expected error, or the deviation over samples, in
        the units of the input. ``"sample_1"`` and so on are samples, ``"srexpert1"`` and so on
        what each expert added to the first of them.
    residual
        Relative consistency residual ||A x - y|| / ||y||.
    record
        What ran, by the keys of a sidecar.
    """

    image: nib.Nifti1Image
    maps: Mapping[str, nib.Nifti1Image]
    residual: float
    record: dict[str, Any]

    @property
    def gates(self) -> nib.Nifti1Image | None:
        """Weights of the experts (X, Y, Z, experts), or None."""
        return self.maps.get("gates")

    @property
    def standard_deviation(self) -> nib.Nifti1Image | None:
        """Expected error (X, Y, Z) in the units of the input, or None."""
        return self.maps.get("srstd")


def without_expected_error(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its statements on the map of the expected error."""
    kept = {key: value for key, value in record.items() if not key.startswith("ExpectedError")}
    about_map = (NO_DEVIATION, OTHER_WEIGHTS)
    kept["Warnings"] = [words for words in record["Warnings"] if words not in about_map]
    return kept


def sample_key(number: int) -> str:
    """Return the product key of a sample; samples count from 1."""
    return f"sample_{number}"


def assumed_acquisition(image: nib.Nifti1Image, options: Options) -> Acquisition:
    """Return the acquisition assumed without a sidecar: that of the options, or of the voxels."""
    as_stored = Measured(image, None, None, (False, False, False), "header")
    return declared_acquisition(
        as_stored, {}, options.slice_profile, options.slice_thickness
    ).acquisition


def open_device(device: str) -> torch.device:
    """Return the torch device of a name.

    Parameters
    ----------
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    DeviceError
        If the device is not there; the message names the missing flag.
    """
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
    """A loaded model that restores any number of images.

    Examples
    --------
    >>> import nibabel
    >>> from bids_moediff import SuperResolver
    >>> from bids_moediff.options import Options
    >>> resolver = SuperResolver.from_pretrained("student")  # doctest: +SKIP
    >>> result = resolver.enhance(nibabel.load("in.nii.gz"), Options())  # doctest: +SKIP
    >>> result.image.to_filename("out.nii.gz")  # doctest: +SKIP
    """

    def __init__(self, model: LoadedModel, device: torch.device, precision: str = "auto") -> None:
        self.precision = fastest_precision(model, device) if precision == "auto" else precision
        self.model, self.device = model, device
        self.restorer = make_restorer(model, device, self.precision)
        self.uncertainty = Uncertainty(model, self.precision)

    @classmethod
    def from_pretrained(
        cls, name_or_dir: str | Path, device: str = "cpu", precision: str = "auto"
    ) -> "SuperResolver":
        """Load a model.

        Parameters
        ----------
        name_or_dir
            Name of a model that comes with the package, or a model folder.
        device
            ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        precision
            ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"int8"``.

        Raises
        ------
        WeightsError
            If the weights are missing, unreadable or do not match their checksum.
        DeviceError
            If the device is not there.
        """
        place = open_device(device)
        return cls(load_model(name_or_dir, place), place, precision)

    def enhance(
        self,
        image: nib.Nifti1Image,
        options: Options,
        inputs: Inputs | None = None,
        progress: Progress | None = None,
        store: Store | None = None,
    ) -> Result:
        """Super-resolve one 3-D image.

        The output keeps the units, shading and field of view of the input. Averaged over the
        measured voxels it equals the input, exactly or within the noise of ``inputs``. The same
        arguments give the same bytes.

        Parameters
        ----------
        image
            3-D image (x, y, z).
        options
            Its ``output_zooms`` are the voxel size of the output in mm. ``consistency="off"``
            leaves out the agreement with the scan, for experiments.
        inputs
            Mask, bias field, acquisition, noise and reference of the image, if they are known.
        progress
            Called with the stage and the fraction done (0 to 1).
        store
            Called with the key and the image of each sample; without it, samples are kept in the
            maps of the result.

        Returns
        -------
        Result
            Image, maps, consistency residual and record.

        Raises
        ------
        ImageError
            If the image cannot be super-resolved; the message gives the reason.
        """
        ran, report = _noted(progress)
        made, restored, settled = self.restore(image, options, inputs or Inputs(), report)
        networks = _networks(ran, restored)
        posed = made.posed
        maps = {key: posed.image(data) for key, data in restored.maps.items()}
        told, notes = self._uncertain(made, options, maps, store, report)
        asked, words = _followed(settled.options, networks, ran, maps)
        report("done", 1.0)
        residual = posed.residual(made.image)
        return Result(
            posed.image(made.image * posed.scale),
            maps,
            residual,
            self._record(posed, made.problem, asked, networks)
            | {"ConsistencyResidual": round(residual, 8), "ExpertEvaluations": restored.counts}
            | told
            | self._experts_record("gates" in maps)
            | ({"LabelTables": dict(restored.tables)} if restored.tables else {})
            | {"Warnings": [*posed.warnings, *filter(None, [settled.left_out]), *notes, *words]},
        )

    def restore(
        self, image: nib.Nifti1Image, options: Options, inputs: Inputs, report: Progress
    ) -> tuple[Restoration, Restored, Settled]:
        """Restore an image on scaled intensities, before maps and records are made.

        Parameters
        ----------
        image, options, inputs
            As for :meth:`enhance`.
        report
            Called with the stage and the fraction done (0 to 1).

        Returns
        -------
        made
            The finished image with its problem.
        restored
            Output of the restorer.
        settled
            Options that the model followed.

        Raises
        ------
        ImageError
            If the image cannot be super-resolved; the message gives the reason.
        """
        kind = family(self.model.config["family"])
        if inputs.reference is not None and not kind.takes_reference:
            raise ImageError("this model takes no reference contrast; use --model crfm.")
        if options.consistency not in CONSISTENCIES:
            raise ValueError(f"consistency is one of {CONSISTENCIES}, not {options.consistency!r}")
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
        settled = self.restorer.settle(replace(options, num_samples=1), problem)
        if options.in_plane_refit and not (kind.refits_in_plane and has_fine_plane(problem)):
            settled = without_refit(settled)
        if options.self_ensemble and not problem.nothing_to_gain:
            axis = left_right_axis(image.affine)
            restored = restore_mirrored(self.restorer, problem, settled.options, report, axis)
        else:
            restored = next(iter(self.restorer.restore(problem, settled.options, report)))
        finished = posed.finish(restored.image, options.consistency != "off")
        if options.non_negative:
            finished = posed.non_negative(finished, options.consistency != "off")
        return Restoration(finished, posed, problem), restored, settled

    def _uncertain(
        self,
        made: Restoration,
        options: Options,
        maps: dict[str, nib.Nifti1Image],
        store: Store | None,
        report: Progress,
    ) -> tuple[dict[str, Any], list[str]]:
        """Add the expected error and the samples to ``maps``; return record and warnings."""
        record: dict[str, Any] = {}
        notes: list[str] = []
        nothing = made.problem.nothing_to_gain
        if options.draws_samples and not nothing:
            record, notes = self._sample(made, options, maps, store or maps.__setitem__, report)
        if options.wants_expected_error and "srstd" not in maps:
            deviation, told, said = self.uncertainty.expected(made)
            record, notes = record | told, [*notes, *said]
            if deviation is not None:
                maps["srstd"] = made.posed.image(deviation)
        return record, list(dict.fromkeys(notes))

    def _sample(
        self,
        made: Restoration,
        options: Options,
        maps: dict[str, nib.Nifti1Image],
        store: Store,
        report: Progress,
    ) -> tuple[dict[str, Any], list[str]]:
        """Draw samples, and store them if the options ask for it."""
        found = self.uncertainty.scale(made)
        if found is None:
            return {"NumberOfSamples": 0}, [NO_SAMPLES]
        sampling = sampler(self.restorer, made, found, options)
        posed = made.posed
        spread = Spread()
        for number in range(options.num_samples):
            error = sampling.draw(options.random_seed + number)
            spread.add(error)
            if options.writes_samples:
                sample = posed.image((made.image + error) * posed.scale)
                store(sample_key(number + 1), sample)
            report("samples", (number + 1) / options.num_samples)
        for number, change in enumerate(sampling.changes(), 1):
            maps[f"srexpert{number}"] = posed.image(change * posed.scale)
        record = {
            "NumberOfSamples": spread.count,
            "Sample": options.sample or "posterior",
            "SamplesFrom": sampling.name,
            **sampling.record(),
            "SampleScaleFrom": found.source,
            **found.record,
        }
        deviation = spread.deviation
        if deviation is not None and options.sample != "texture":  # that is no uncertainty
            maps["srstd"] = posed.image(deviation * posed.scale)
            record["ExpectedErrorFrom"] = f"{spread.count} samples"
            record |= self.uncertainty.bound_record(spread.count)
        return record, []

    def _experts_record(self, written: bool) -> dict[str, Any]:
        """Return the names of the experts, if gate maps are written."""
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


def _noted(progress: Progress | None) -> tuple[dict[str, None], Progress]:
    """Stages that were reported, in order, and what reports them (to `progress` as well)."""
    ran: dict[str, None] = {}

    def report(stage: str, fraction: float) -> None:
        ran[stage] = None
        if progress is not None:
            progress(stage, fraction)

    return ran, report


def _followed(
    options: Options, networks: Sequence[str], ran: Iterable[str], maps: Iterable[str]
) -> tuple[Options, list[str]]:
    """Return the options as they were followed, by what ran, and a sentence on each that was not.

    ``networks`` and ``ran`` are networks and stages that ran, ``maps`` what was made.
    """
    words = []
    if "kernels" in options.outputs and "kernels" not in maps:
        words.append(NO_KERNELS)
    if options.in_plane_refit and networks and REFIT not in ran:
        options = replace(options, in_plane_refit=False)
        words.append(TOO_SMALL)
    return options, words


def _networks(stages: Iterable[str], last: Restored) -> tuple[str, ...]:
    """Return the parts of the network that ran, out of all stages that reported progress."""
    idle = {"interpolate", REFIT}
    if last.counts is not None and not last.counts.get("evaluated"):
        idle.add("experts")  # the gate gave them no place to work
    return tuple(stage for stage in stages if stage not in idle)
