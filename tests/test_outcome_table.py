# SPDX-License-Identifier: Apache-2.0
"""The table of outcomes and the exit codes, from run records and crash files."""

import json
from pathlib import Path

import pytest

from bids_moediff import errors
from bids_moediff.execution.outcome import (
    Outcome,
    crash_sentences,
    exit_code,
    failed,
    print_summary,
    read_outcomes,
)

CRASH = """Node: bids_moediff_wf.sub_{label}_wf.prepare_T1w_wf.{step}
Working directory: /w

Traceback (most recent call last):
  File "a.py", line 1, in run
{causes}
"""


def crash(folder: Path, label: str, step: str, causes: str, when: str = "1") -> None:
    folder.mkdir(exist_ok=True)
    text = CRASH.format(label=label, step=step, causes=causes)
    (folder / f"crash-{when}-root-{step}.txt").write_text(text)


def record(path: Path, *images: dict) -> Path:
    path.write_text(json.dumps({"images": images}))
    return path


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.MoediffError, 1), (errors.ImageError, 1), (errors.UsageError, 2),
        (errors.NothingToProcessError, 66), (errors.DeviceError, 69), (errors.GraphError, 70),
        (errors.WeightsError, 78),
    ],
)  # fmt: skip
def test_the_documented_codes(error: type[errors.MoediffError], code: int) -> None:
    assert error.exit_code == code
    assert issubclass(error, errors.MoediffError)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((), 0), ((0,), 0), ((1,), 1), ((0, 1), 1), ((2,), 2), ((69,), 69), ((78,), 78),
        ((1, 2), 2), ((2, 69), 69), ((78, 2, 1), 78), ((69, 78), 78), ((66,), 1), ((70, 1), 1),
    ],
)  # fmt: skip
def test_the_code_of_a_run(codes: tuple[int, ...], expected: int) -> None:
    outcomes = [
        Outcome("01", f"i{n}", "failed" if code else "done", exit_code=code)
        for n, code in enumerate(codes)
    ]
    assert exit_code(outcomes) == expected


def test_only_failures_count() -> None:
    assert exit_code([Outcome("01", "a", "done", exit_code=78)]) == 0
    assert failed("01", "a", "no") == Outcome("01", "a", "failed", "no", 1)


def test_a_record_becomes_rows_in_the_order_asked_for(tmp_path: Path) -> None:
    run = record(
        tmp_path / "run.json",
        {"key": "a", "status": "done", "warnings": ["Thick.", "Noisy.", "Thick."]},
        {"key": "b", "status": "failed", "message": "Cut short."},
        {"key": "c", "status": "failed", "message": "No weights.", "exit_code": 78},
        {"key": "d", "status": "failed", "message": "Odd.", "exit_code": 66},
        {"key": "e", "status": "done"},
    )
    assert read_outcomes("01", ["c", "a", "b", "d", "e"], run, tmp_path) == [
        failed("01", "c", "No weights.", 78),
        Outcome("01", "a", "done", warnings=("Thick.", "Noisy.")),
        failed("01", "b", "Cut short.", 1),
        failed("01", "d", "Odd.", 1),
        Outcome("01", "e", "done"),
    ]


def test_without_a_record_the_first_crash_is_the_reason_and_only_ones_own(tmp_path: Path) -> None:
    crash(tmp_path / "c", "02", "conform", "OSError: of another participant", "0")
    crash(tmp_path / "c", "01", "bias", "ValueError: first", "1")
    crash(tmp_path / "c", "01", "mask", "ValueError: second", "2")
    found = read_outcomes("01", ["a", "b"], tmp_path / "none.json", tmp_path / "c")
    reason = "Step bias failed: ValueError: first."
    assert found == [failed("01", "a", reason), failed("01", "b", reason)]
    nothing = read_outcomes("03", ["a"], tmp_path / "none.json", tmp_path / "c")
    assert nothing == [failed("03", "a", "The image was not processed.")]


def test_a_crash_after_all_images_fails_the_participant_with_all_sentences(tmp_path: Path) -> None:
    run = record(tmp_path / "run.json", {"key": "a", "status": "done"})
    crash(tmp_path / "c", "01", "report", "OSError: disk full", "1")
    crash(tmp_path / "c", "01", "collect", "OSError: really", "2")
    done, whole = read_outcomes("01", ["a"], run, tmp_path / "c")
    assert done == Outcome("01", "a", "done")
    assert (whole.participant, whole.image, whole.status) == ("01", "", "failed")
    assert whole.message == (
        "Step report failed: OSError: disk full. Step collect failed: OSError: really."
    )
    # An image without a record already carries the sentence.
    assert len(read_outcomes("01", ["a", "b"], run, tmp_path / "c")) == 2


@pytest.mark.parametrize(
    ("causes", "sentence"),
    [
        ("ValueError: outer\n\nscipy.linalg.LinAlgError: singular.", "LinAlgError: singular."),
        ("bids_moediff.errors.ImageError: a.nii.gz is empty", None),
        ("no exception here", "no reason given."),
    ],
)
def test_the_innermost_exception_counts(tmp_path: Path, causes: str, sentence: str | None) -> None:
    crash(tmp_path / "c", "01", "conform", causes)
    expected = f"Step conform failed: {sentence}" if sentence else "a.nii.gz is empty"
    assert crash_sentences(tmp_path / "c") == [expected]


def test_text_before_the_traceback_is_no_cause(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "crash-x.txt").write_text("Warning: not me\nNode inputs:\nfwhm: 2\n")
    assert crash_sentences(folder) == ["Step crash-x failed: no reason given."]


@pytest.mark.parametrize("warned", [1, 2, 3])
def test_warnings_are_shared_most_frequent_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], warned: int
) -> None:
    outcomes = [
        Outcome("01", f"i{n}", "done", warnings=("Often." if n else "Rare.",))
        for n in range(warned + 1)
    ]
    (tmp_path / "sub-01.html").write_text("x")
    print_summary(outcomes, tmp_path, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{warned + 1} of {warned + 1} images done."
    several = f" ({warned} images)" if warned > 1 else ""
    said = [line for line in lines if line.startswith("Warning")]
    rare, often = "Warning, i0: Rare.", f"Warning, i1{several}: Often."
    assert said == ([often, rare] if warned > 1 else [rare, often])
    assert not any(line.startswith("Next") for line in lines)
    assert lines[-1] == f"Report: {tmp_path / 'sub-01.html'}"


def test_the_summary_counts_images_not_participants(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("01", "02", "03"):
        (tmp_path / f"sub-{label}.html").write_text("x")
    outcomes = [
        Outcome("03", "c", "done"), Outcome("01", "a", "done"),
        failed("01", "", "No report."), Outcome("02", "b", "done"),
    ]  # fmt: skip
    print_summary(outcomes, tmp_path, "next", skipped=0)
    said = capsys.readouterr().err
    assert "3 of 3 images done." in said and "No report." in said
    assert f"{tmp_path / 'sub-01.html'} and 2 more beside it" in said
    assert "remarks" not in said


@pytest.mark.parametrize(
    ("word", "choices", "near"),
    [
        ("num_stepz", ["num_steps", "planes"], " (did you mean num_steps?)"),
        ("parti", ["particle_size", "participant_label"], " (did you mean particle_size?)"),
        ("part", ["participant_label"], ""),
        ("T1W", ["T1w", "T2w"], " (did you mean T1w?)"),
        ("modal", ["model", "modalities"], " (did you mean modalities?)"),
        ("moda", ["model", "modalities"], " (did you mean model?)"),
        ("xyz", ["planes"], ""),
        ("OUTPUT", ["output_resolution", "outputs"], " (did you mean output_resolution?)"),
    ],
)
def test_the_closest_name(word: str, choices: list[str], near: str) -> None:
    assert errors.closest(word, choices) == near
