# SPDX-License-Identifier: Apache-2.0
"""Result tables: means, intervals and people of a benchmark's rows."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from research import results
from research.remeasure import measurements, shown


def rows(gain: float = 2.0, version: str = "abc bf16") -> list[dict[str, Any]]:
    made = []
    for head, group, psnr in (
        ("a_T1w", "training sites", 20.0), ("b_T1w", "another site", 30.0),
        ("b_T2w", "another site", 34.0),
    ):  # fmt: skip
        base = {"head": head, "group": group, "protocol": "x2iso-kspace", "ratios": "2x2x2"}
        for method, more in (("linear", -1), ("cubic", 0), ("back-projection", 1), ("net", gain)):
            row = base | {"method": method, "psnr": psnr + more, "residual": 1e-7, "seconds": 1.0}
            made.append(row | {"version": version if method == "net" else "1", "nrmse": 0.1})
    return made


def test_a_benchmark_becomes_values_rows_and_views() -> None:
    found = results.of_benchmark(rows(), "net")
    assert (found["images"], found["people"], found["precision"]) == (3, 2, "bf16")
    assert found["values"]["x2iso-kspace.all.over_cubic"] == pytest.approx(2)
    assert found["values"]["x2iso-kspace.another.over_back_projection"] == pytest.approx(1)
    groups = [row["group"] for row in found["rows"] if row["kind"] == "mean"]
    assert groups == ["training sites", "another site", "all heads"]
    images = [row for row in found["rows"] if row["kind"] == "image"]
    assert [row["net"] for row in images] == [22, 32, 36]
    for view in found["views"].values():
        kind = view["where"]["kind"][0]
        row = next(row for row in found["rows"] if row["kind"] == kind)
        assert all(
            form.format(**row) for heading, form in view["columns"] if heading in ("PSNR", "site")
        )


def test_several_versions_are_refused() -> None:
    with pytest.raises(ValueError, match="2 versions"):
        results.of_benchmark([*rows(), *rows(version="def bf16")], "net")


def test_a_table_names_its_weights_and_day(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(results, "MODELS_FOLDER", tmp_path)
    content = {"command": "c", "images": 1, "people": 1, "values": {"a": 1.0}}
    table = json.loads(results.write_result("m", "t", content).read_text())
    assert table["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert table["date"][:2] == "20" and ":" in table["processor"]
    older = json.loads(results.write_result("m", "u", content | {"sha256": "1234"}).read_text())
    assert older["sha256"] == "1234"


def test_people_are_not_images() -> None:
    assert results.person("ds011_sub-09_T1w") == "ds011_sub-09"
    assert results.person("sub-03_T2w") == results.person("sub-03_T1w") == "sub-03"


def test_commands_show_no_place_of_the_machine() -> None:
    for wanted in measurements(Path("/secret/data")):
        assert "secret" not in shown(wanted.words) and "--data DATA" in shown(wanted.words)
