# SPDX-License-Identifier: Apache-2.0
"""All options that decide a result, each defined once.

:func:`option` makes a dataclass field whose metadata holds the converter, the sentence of
``--help`` with its group and placeholder, and the key of the sidecar. The parsers of all commands,
the settings file, the environment, the request to the child process and the sidecar are made from
it.
"""

# ruff: noqa: RUF009 (option is dataclasses.field with a converter)

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from bids_moediff.converters import (
    Convert,
    one_of,
    several_of,
    to_acquired,
    to_flag,
    to_millimetres,
    to_model,
    to_noise,
    to_output,
    to_path,
    to_planes,
    to_reference,
    to_sampler,
    whole,
)
from bids_moediff.errors import UsageError, closest

# Contrasts that are super-resolved unless --modalities says otherwise; maps only when asked for.
DEFAULT_SUFFIXES = (
    "T1w", "T2w", "FLAIR", "PDw", "PDT2", "T2starw", "inplaneT1", "inplaneT2", "T1rho", "UNIT1",
)  # fmt: skip
ANATOMICAL_SUFFIXES = (
    *DEFAULT_SUFFIXES, "T1map", "T2map", "T2star", "PDmap", "FLASH", "PD", "angio",
    "MESE", "MEGRE", "MP2RAGE", "MPM", "VFA", "MTS", "MTR", "IRT1",
)  # fmt: skip
# Free of the coils' shading: ratios, and quantities that were fitted.
UNSHADED_SUFFIXES = frozenset({"UNIT1", "T1map", "T2map", "T2star", "PDmap"})

MODELS = ("auto", "moediff", "student", "crfm", "nsmoe")

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")

FINEST_DEFAULT = 0.7  # mm: the voxel size of --output-resolution auto

RESTORATION = "super-resolution"
OUTPUTS = "stages and outputs"
RESOURCES = "resources"


def option(
    default: Any,
    convert: Convert,
    description: str,
    *,
    group: str = "",
    metavar: str = "",
    many: bool = False,
    record: str = "",
) -> Any:
    """Return a dataclass field for one option.

    Parameters
    ----------
    default
        Value if none is given.
    convert
        Converts a given value (:mod:`bids_moediff.converters`).
    description
        Sentence for ``--help``.
    group, metavar
        Heading in ``--help``, and the placeholder of its value.
    many
        Whether several words may follow.
    record
        Key of the sidecar that holds it, if any.
    """
    about = {
        "convert": convert,
        "help": description,
        "group": group,
        "metavar": metavar,
        "many": many,
        "record": record,
    }
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that decide the result of one image on a given device."""

    output_resolution: str | tuple[float, float, float] = option(
        "auto",
        to_output,
        "voxel size in mm: auto (0.7, but no axis coarser than the input's voxels), one number, "
        "or three in the input's axis order (default: auto)",
        group=RESTORATION,
        metavar="MM",
        many=True,
    )
    acquired_resolution: str | tuple[float, float, float] = option(
        "auto",
        to_acquired,
        "voxel size that was measured, where the stored one was interpolated: auto (found from "
        "the spectrum), header (as stored), or one or three sizes in mm",
        group=RESTORATION,
        metavar="MM",
        many=True,
    )
    slice_profile: str = option(
        "auto",
        one_of("auto", "kspace", "gaussian", "box"),
        "shape of the slices along the coarsest axis (auto: what the image shows; where that is "
        "not clear a box as thick as the sidecar says, or three quarters of the slice distance)",
        group=RESTORATION,
        metavar="{auto,kspace,gaussian,box}",
    )
    slice_thickness: float | None = option(
        None,
        to_millimetres,
        "slice thickness, 0.2 to 20 mm, where the sidecar does not say or is wrong",
        group=RESTORATION,
        metavar="MM",
    )
    noise: str | float = option(
        "auto",
        to_noise,
        "standard deviation of the noise in the image's units: auto (read from the image), none, "
        "or a number for all images of the run",
        group=RESTORATION,
        metavar="{auto,none,SIGMA}",
    )
    model: str = option(
        "auto",
        to_model(*MODELS),
        "network to use; auto chooses by device",
        group=RESTORATION,
        metavar="{" + ",".join(MODELS) + "}",
    )
    weights: Path | None = option(
        None,
        to_path,
        "folder of a model (config.json, model.safetensors) to use instead",
        group=RESTORATION,
        metavar="DIR",
    )
    num_steps: int | None = option(
        None,
        whole(1),
        "sampling steps (default: the model's)",
        group=RESTORATION,
        metavar="N",
        record="NumberOfSteps",
    )
    num_samples: int = option(
        1,
        whole(1),
        "samples to draw of what the image may have looked like; with several, the expected error "
        "is their standard deviation",
        group=RESTORATION,
        metavar="N",
        record="NumberOfSamples",
    )
    sample: str | None = option(
        None,
        one_of("posterior", "texture"),
        "draw and write samples (see --num-samples): posterior (as uncertain as the result is) or "
        "texture (as sharp as a scan, nearer to the truth than a posterior sample)",
        group=RESTORATION,
        metavar="{posterior,texture}",
    )
    sampler: str = option(
        "auto",
        to_sampler,
        "what draws posterior samples: gaussian (noise of the learned scale), experts (three "
        "networks of moediff), expert-N (one of them), or auto (what measured better)",
        group=RESTORATION,
        metavar="{auto,gaussian,experts,expert-N}",
    )
    random_seed: int = option(
        0,
        whole(0),
        "seed; same seed and device, same bytes",
        group=RESTORATION,
        metavar="N",
        record="RandomSeed",
    )
    planes: int = option(
        1,
        to_planes,
        "3: average slices cut along each axis (where voxel sizes allow)",
        group=RESTORATION,
        metavar="{1,3}",
        record="SlicePlanes",
    )
    consistency: str = option(
        "end",
        one_of("end", "each-step"),
        "when to make the result agree with the scan",
        group=RESTORATION,
        metavar="{end,each-step}",
        record="DataConsistency",
    )
    self_ensemble: bool = option(
        False,
        to_flag,
        "average the result with that of the image mirrored left to right (twice the time)",
        group=RESTORATION,
        record="SelfEnsemble",
    )
    in_plane_refit: bool = option(
        False,
        to_flag,
        "refit the last layer of moediff or student to the fine plane of thick slices (twice the "
        "time; for slices thinner than their distance)",
        group=RESTORATION,
        record="InPlaneRefit",
    )
    reference: str | None = option(
        None,
        to_reference(ANATOMICAL_SUFFIXES),
        "sharper contrast of the same subject that guides --model crfm: auto (the finest other "
        "contrast, of the same session if there is one), a suffix, or entities and a suffix such "
        "as ses-01_acq-mprage_T1w",
        group=RESTORATION,
        metavar="{auto,SUFFIX}",
    )
    outputs: tuple[str, ...] = option(
        (),
        several_of("gates", "uncertainty", "samples", "kernels"),
        "further outputs: gates (expert maps), uncertainty (expected error of each voxel), "
        "samples (each one that --num-samples draws), kernels (of --model nsmoe, in a region, "
        "with a table)",
        group=OUTPUTS,
        metavar="KIND",
        many=True,
    )
    non_negative: bool = option(
        False,
        to_flag,
        "no value below zero (agreement with the scan is kept where it has signal)",
        group=RESTORATION,
        record="NonNegative",
    )
    output_dtype: str = option(
        "auto",
        one_of("auto", "float32"),
        "how intensities are stored: auto (16-bit integers in steps of a small part of the noise, "
        "less than half of the size) or float32",
        group=OUTPUTS,
        metavar="{auto,float32}",
    )
    precision: str = option(
        "auto",
        one_of(*PRECISIONS),
        "arithmetic of the networks",
        group=RESOURCES,
        metavar="{" + ",".join(PRECISIONS) + "}",
    )
    batch_size: int | None = option(
        None,
        whole(1),
        "slices per call on a GPU (default: 16)",
        group=RESOURCES,
        metavar="N",
    )

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the options, in the order of their definition."""
        return tuple(item.name for item in fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> "Options":
        """Return options from plain values, the inverse of :meth:`to_dict`.

        Parameters
        ----------
        values
            Given values by the name of the option.
        where
            Where they come from, for messages; empty if they come from the command line.

        Raises
        ------
        UsageError
            For an unknown name (with the closest one) or a wrong value; the message names
            ``where``, or the flag.
        """
        known = {item.name: item for item in fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(f"{where}: {name!r} is not an option{closest(name, known)}.")
        return cls(**{
            name: converted(
                known[name].metadata["convert"],
                value,
                f"{where}: {name}" if where else f"--{name.replace('_', '-')}",
            )
            for name, value in values.items()
        })  # fmt: skip

    def alone(self) -> "Options":
        """Return these options without the fields of a subclass."""
        return Options(**{name: getattr(self, name) for name in Options.names()})

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values, for the request to the child."""
        values = {name: getattr(self, name) for name in Options.names()}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    def record(self) -> dict[str, Any]:
        """Return the options that belong into the sidecar, by its keys."""
        keys = {item.name: item.metadata["record"] for item in fields(Options)}
        return {key: getattr(self, name) for name, key in keys.items() if key}

    def output_zooms(self, zooms: Sequence[float]) -> tuple[float, float, float]:
        """Return the output voxel size in mm for an image with voxels of ``zooms`` mm."""
        if isinstance(self.output_resolution, tuple):
            return self.output_resolution
        # Headers hold 32-bit numbers: 0.7 reads as 0.699999988.
        first, second, third = (min(FINEST_DEFAULT, round(float(z), 5)) for z in zooms)
        return (first, second, third)

    def for_image(self, zooms: Sequence[float]) -> Self:
        """Return the options with the output voxel size of one image in place of ``auto``."""
        return replace(self, output_resolution=self.output_zooms(zooms))

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Output voxel size in mm, once it is known (:meth:`for_image`)."""
        if not isinstance(self.output_resolution, tuple):
            raise ValueError("the output voxel size depends on the image: use for_image first")
        return self.output_resolution

    def sampling_expert(self, names: Sequence[str]) -> int | None:
        """Return the index of the one expert that ``--sampler`` names, or None for all.

        Parameters
        ----------
        names
            Experts of the model that sample.

        Raises
        ------
        UsageError
            For an expert that the model does not have; the message lists those it has.
        """
        known = [f"expert-{number}" for number in range(1, len(names) + 1)]
        if self.sampler in known:
            return known.index(self.sampler)
        if self.sampler == "experts" and names:
            return None
        if not names:
            raise UsageError(
                f"--sampler {self.sampler}: this model has no experts that sample; use --model "
                "moediff or --sampler gaussian."
            )
        pairs = [f"{word} ({name})" for word, name in zip(known, names, strict=True)]
        raise UsageError(
            f"--sampler {self.sampler}: the experts of this model are {', '.join(pairs)}, or "
            "experts for all."
        )

    @property
    def draws_samples(self) -> bool:
        """Whether samples are drawn."""
        return self.num_samples > 1 or self.writes_samples

    @property
    def writes_samples(self) -> bool:
        """Whether samples are written."""
        return self.sample is not None or "samples" in self.outputs

    @property
    def wants_expected_error(self) -> bool:
        """Whether a map of the expected error is written."""
        return self.num_samples > 1 or "uncertainty" in self.outputs


def converted(convert: Callable[[Any], Any], value: Any, where: str) -> Any:
    """Return ``convert(value)``, or None for None; UsageError names the place."""
    if value is None:
        return None
    try:
        return convert(value)
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
