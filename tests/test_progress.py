# SPDX-License-Identifier: Apache-2.0
"""What the terminal says while networks run: progress never goes back, the time left is right."""

import io
import json
import re
import sys

import pytest

from bids_moediff.execution.progress import (
    PATTERN,
    PREPARING,
    REPORTING,
    BarDisplay,
    Clock,
    PlainDisplay,
    ProgressReader,
    ProgressWatcher,
    overall,
)
from bids_moediff.runtime.progress_bar import ProgressBar, track

MOEDIFF = [("interpolate", 0.0), ("interpolate", 1.0), ("mean", 0.5), ("mean", 1.0)]
MOEDIFF += [("experts", 0.0), ("experts", 1.0), ("done", 1.0)]
STUDENT = [("interpolate", 1.0), ("student", 0.0), ("student", 1.0), ("done", 1.0)]


@pytest.mark.parametrize("stages", [MOEDIFF, STUDENT])
def test_progress_never_goes_back_and_ends_at_one(stages):
    parts = [overall(*stage) for stage in stages]
    assert parts == sorted(parts)
    assert parts[0] < 0.05
    assert parts[-2] < 1
    assert parts[-1] == 1


def test_time_left_is_that_of_an_even_pace():
    seconds = iter([0.0, 10.0, 25.0, 50.0, 100.0])
    clock = Clock(lambda: next(seconds))
    said = [clock.left("a", done) for done in (0.0, 0.1, 0.25, 0.5, 1.0)]
    assert said == ["", "about 1:30 left", "about 1:15 left", "about 0:50 left", ""]


def test_images_have_clocks_of_their_own():
    seconds = iter([0.0, 60.0, 70.0])
    clock = Clock(lambda: next(seconds))
    assert clock.left("a", 0.0) == ""
    assert clock.left("b", 0.0) == ""
    assert clock.left("b", 0.5) == "about 0:10 left"


def test_plain_lines_tell_of_the_preparation_and_of_every_tenth():
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.begin(PREPARING)
    for step in range(101):
        display.show({"key": "sub-01", "stage": "student", "fraction": step / 100})
    display.show({"key": "sub-01", "stage": "done", "fraction": 1.0})
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("preparing")
    assert [line.split()[1] for line in lines[1:]] == [str(10 * tenth) for tenth in range(11)]


def test_bars_end_whatever_was_shown():
    stream = io.StringIO()
    display = BarDisplay(stream)
    display.begin(PREPARING)
    display.close()
    display = BarDisplay(stream)
    display.begin(PREPARING)
    display.show({"key": "sub-01", "stage": "mean", "fraction": 0.5})
    display.show({"key": "sub-01", "stage": "done", "fraction": 1.0})
    display.close()
    assert "sub-01" in stream.getvalue()
    assert "100%" in stream.getvalue()


def test_a_run_that_makes_reports_only_does_not_say_that_it_prepares(tmp_path):
    stream = io.StringIO()
    with ProgressWatcher(tmp_path, stream, REPORTING):
        pass
    assert stream.getvalue().splitlines() == [REPORTING]


def test_time_left_counts_from_where_the_display_came_in():
    seconds = iter([0.0, 10.0])
    clock = Clock(lambda: next(seconds))
    assert clock.left("a", 0.5) == ""
    assert clock.left("a", 0.75) == "about 0:10 left"


def test_a_node_that_is_run_again_shows_its_progress(tmp_path):
    """It writes its file from the start: shorter at first than what was read of the run before."""
    path = tmp_path / PATTERN.replace("*", "sub_01")
    path.parent.mkdir(parents=True)
    reader = ProgressReader(tmp_path)
    lines = [json.dumps({"key": "sub-01", "fraction": part}) + "\n" for part in (0.1, 0.2, 0.3)]
    path.write_text("".join(lines[:2]))
    assert [item["fraction"] for item in reader] == [0.1, 0.2]
    assert list(reader) == []
    path.write_text(lines[2])
    assert [item["fraction"] for item in reader] == [0.3]
    path.write_text("".join([lines[2], lines[0]]))
    assert [item["fraction"] for item in reader] == [0.1]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_one_bar_at_a_time_on_a_terminal(monkeypatch):
    """It goes to standard error, shows count, total and note as they are, and is taken away."""
    shown, other = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdout", other)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    with ProgressBar("Reading", 7, done=2) as bar:
        bar.update(3, "[b]x")
        bar.expect(9)
        assert list(track(iter("ab"), "Within", 2)) == ["a", "b"]
        with ProgressBar("Within", 1) as second:
            second.update()
    text = shown.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "Reading" in plain and "5/9" in plain and "[b]x" in plain and "-:--" in plain
    assert "Within" not in plain and other.getvalue() == ""
    assert text.endswith("\x1b[1A\x1b[2K"), "its line is taken away"
    list(track(iter("ab"), "Later", 2))
    assert "Later" in shown.getvalue() and "2/2" in shown.getvalue()
    before = shown.getvalue()
    list(track(iter("ab"), "Never", 2, shown=False))
    assert shown.getvalue() == before
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    list(track(iter("ab"), "Never", 2))
    assert sys.stderr.getvalue() == ""
