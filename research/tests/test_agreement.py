# SPDX-License-Identifier: Apache-2.0
"""The comparison of a device's image with the processor's, on the processor itself."""

from pathlib import Path

import pytest

from research.measurements import agreement
from test_model_choice import student_folder


def test_what_agrees_and_what_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(student_folder(tmp_path / "student"))
    assert agreement.differences(folder, 16, "cpu", "fp32") == (0.0, 0.0)
    words = ["--models", folder, "--device", "cpu", "--precision", "bf16", "--size", "16"]
    monkeypatch.setattr(agreement, "LARGEST", 1.0)
    monkeypatch.setattr(agreement, "ROOT_MEAN_SQUARE", 1.0)
    assert agreement.main(words) == 0
    monkeypatch.setattr(agreement, "ROOT_MEAN_SQUARE", 0.0)
    assert agreement.main(words) == 1
    assert "agrees" in (printed := capsys.readouterr().out) and "DIFFERS" in printed
