# SPDX-License-Identifier: Apache-2.0
"""Every bounded option at its edges: the last value that is taken, the first that is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bids_moediff.converters import to_number
from bids_moediff.errors import UsageError
from bids_moediff.options import DEFAULT_SUFFIXES, Options, converted
from bids_moediff.settings import Settings, load_settings

NAN, INF = float("nan"), float("inf")
FIELDS = {field.name: field.metadata["convert"] for field in dataclasses.fields(Settings)}

WHOLE_FROM_ONE = ((1, 1), ("1", 1), ("12", 12)), (0, "0", -1, 1.0, "1.5", True, "", "one")
TAKEN_REFUSED: dict[str, tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]] = {
    "num_steps": WHOLE_FROM_ONE,
    "num_samples": WHOLE_FROM_ONE,
    "batch_size": WHOLE_FROM_ONE,
    "nprocs": WHOLE_FROM_ONE,
    "omp_nthreads": WHOLE_FROM_ONE,
    "random_seed": (((0, 0), ("0", 0), (2**40, 2**40)), (-1, "-1", 0.0, False)),
    "sample": ((("posterior", "posterior"), ("texture", "texture")), ("mean", "", 1)),
    "output_dtype": ((("auto", "auto"), ("float32", "float32")), ("int16", "FLOAT32", "", 1)),
    "sampler": (
        tuple((s, s) for s in ("auto", "gaussian", "experts", "expert-1", "expert-12")),
        ("expert", "expert-0", "expert-", "expert-1 ", "Gaussian", "", 1),
    ),
    "planes": (((1, 1), ("3", 3)), (0, 2, 4, "2", "1.0", 1.5)),
    "slice_thickness": (((0.2, 0.2), ("20", 20)), (0.199, 20.01, 0, -1, NAN, "5mm")),
    "noise": (
        (("auto", "auto"), ("none", "none"), ("1e-9", 1e-9), (7, 7)),
        (0, "0", -1, NAN, INF, "some", True),
    ),
    "output_resolution": (
        (("auto", "auto"), (0.2, (0.2,) * 3), ("20", (20,) * 3), ([0.2, 20, 1], (0.2, 20, 1))),
        (0.199, 20.01, [1, 1], [1, 1, 1, 1], [1, 1, 0.1], [21, 1, 1], "header", [], NAN),
    ),
    "acquired_resolution": (
        (("auto", "auto"), ("header", "header"), (["header"], "header"), ("1 2 3", (1, 2, 3))),
        (0.199, 20.01, ["auto", "header"], [1, 1], "some"),
    ),
    "slice_profile": ((("auto", "auto"), ("kspace", "kspace"), ("box", "box")), ("hann", "", 1)),
    "consistency": ((("end", "end"), ("each-step", "each-step")), ("each_step", "never")),
    "precision": (tuple((p, p) for p in ("auto", "fp32", "bf16", "int8")), ("int4", "FP32")),
    "outputs": (
        (("gates", ("gates",)), (["uncertainty", "gates", "gates"], ("uncertainty", "gates"))),
        ("gate", ["gates", "all"]),
    ),
    "device": (
        tuple((d, d) for d in ("auto", "cpu", "cuda", "cuda:0", "cuda:12")),
        ("cuda:", "cuda:a", "gpu", "CPU", "mps", "cpu:0", "xcuda", "cudax"),
    ),
    "participant_label": (
        (("sub-01 02,02", ("01", "02")), (["a+b"], ("a+b",)), ([], ())),
        ("a_b", "a-b", ["é"], ["01", ""]),
    ),
    "session_label": ((("ses-a", ("a",)), (["b", "ses-b"], ("b",))), ("sub-a",)),
    "skip_bids_validation": (
        ((True, True), ("YES", True), ("on", True), (1, True), ("0", False), ("off", False),
         ("False", False), ("no", False)), (2, "", "y", None.__class__)
    ),
    "stage": (tuple((s, s) for s in ("all", "preproc", "sr", "report")), ("", "prep")),
    "mem": ((("8", 8), ("8GB", 8), ("8000MB", 8), (0.5, 0.5)), ("0", -1, "8XB", NAN, "")),
    "weights": (
        (("/a", Path("/a")), ("~", Path.home()), (Path("/b"), Path("/b"))), ("", 3, ["a"])
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN_REFUSED)
def test_edges(name: str) -> None:
    convert = FIELDS[name]
    taken, refused = TAKEN_REFUSED[name]
    for written, value in taken:
        assert converted(convert, written, name) == value, written
    for written in refused:
        with pytest.raises(UsageError, match=f"^{name}: "):
            converted(convert, written, name)
    assert converted(convert, None, name) is None


def test_every_option_with_a_converter_of_its_own_is_at_its_edges() -> None:
    free = {
        "bids_dir", "output_dir", "analysis_level", "model", "reference", "modalities",
    }  # paths and choices, whose converters are above under other names  # fmt: skip
    unbounded = {"Path", "bool"}
    for field in dataclasses.fields(Options):
        kinds = str(field.type)
        if field.name not in free and not any(kind in kinds for kind in unbounded):
            assert field.name in TAKEN_REFUSED, field.name


@pytest.mark.parametrize(
    ("zooms", "sizes"),
    [
        ((0.69, 0.7, 0.71), (0.69, 0.7, 0.7)),
        ((0.699999988, 3.0, 0.43), (0.7, 0.7, 0.43)),
        ((0.123456789, 1, 1), (0.12346, 0.7, 0.7)),
    ],
)
def test_the_output_size_nobody_asked_for(
    zooms: tuple[float, float, float], sizes: tuple[float, float, float]
) -> None:
    options = Options()
    assert options.output_zooms(zooms) == sizes
    assert options.for_image(zooms).zooms == sizes
    assert Options(output_resolution=(1, 2, 3)).output_zooms(zooms) == (1, 2, 3)
    with pytest.raises(ValueError, match="for_image"):
        _ = options.zooms


@pytest.mark.parametrize(
    ("samples", "outputs", "wanted"),
    [(1, (), False), (2, (), True), (1, ("gates",), False), (1, ("uncertainty",), True)],
)
def test_who_gets_an_expected_error(samples: int, outputs: tuple[str, ...], wanted: bool) -> None:
    assert Options(num_samples=samples, outputs=outputs).wants_expected_error is wanted


@pytest.mark.parametrize(
    ("options", "drawn", "written"),
    [
        (Options(), False, False),
        (Options(num_samples=2), True, False),
        (Options(outputs=("samples",)), True, True),
        (Options(sample="texture"), True, True),
    ],
)
def test_who_gets_samples(options: Options, drawn: bool, written: bool) -> None:
    assert (options.draws_samples, options.writes_samples) == (drawn, written)


def test_defaults_are_the_documented_ones() -> None:
    found = Options().to_dict()
    assert found == {
        "output_resolution": "auto", "acquired_resolution": "auto", "slice_profile": "auto",
        "slice_thickness": None, "noise": "auto", "model": "auto", "weights": None,
        "num_steps": None, "num_samples": 1, "sample": None, "sampler": "auto", "random_seed": 0,
        "planes": 1, "self_ensemble": False, "in_plane_refit": False,
        "consistency": "end", "reference": None, "outputs": (), "precision": "auto",
        "batch_size": None, "non_negative": False, "output_dtype": "auto",
    }  # fmt: skip
    assert "T1map" not in DEFAULT_SUFFIXES and "T1w" in DEFAULT_SUFFIXES


def test_options_survive_the_request_and_reach_the_sidecar() -> None:
    made = Options(weights=Path("/m"), num_steps=5, sample="texture", planes=3, random_seed=4)
    assert Options.from_dict(made.to_dict(), "request") == made
    assert made.record() == {
        "NumberOfSteps": 5, "NumberOfSamples": 1, "RandomSeed": 4, "SlicePlanes": 3,
        "DataConsistency": "end", "NonNegative": False, "SelfEnsemble": False,
        "InPlaneRefit": False,
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"request: 'plane' is not an option .*planes"):
        Options.from_dict({"plane": 1}, "request")
    with pytest.raises(UsageError, match=r"^--num-steps: "):
        Options.from_dict({"num_steps": 0}, "")
    with pytest.raises(UsageError, match=r"^there: num_steps: "):
        Options.from_dict({"num_steps": 0}, "there")
    settings = load_settings({"check": True, "planes": 3, "nprocs": 2}, None, {})
    assert settings.alone() == Options(planes=3)


@pytest.mark.parametrize(
    ("typed", "hint"), [("0,7", "write 0.7"), ("1mm", "write 1"), ("0.7 mm", "write 0.7")]
)
def test_a_number_that_is_nearly_one_is_told_how_to_write_it(typed: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        converted(to_number, typed, "x")
