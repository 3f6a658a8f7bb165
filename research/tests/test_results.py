# SPDX-License-Identifier: Apache-2.0
"""Result tables: means, intervals and people of a benchmark's rows."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bids_moediff.cli import calibration, coverage, evaluate, sampling
from research import evaluation_tables, results
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
        command = shown(wanted.words)
        assert "secret" not in command
        assert "--data DATA" in command or "--heads ds002748_sub-60_T1w.nii.gz" in command


@pytest.mark.parametrize("data", [None, Path("/data")])
def test_what_is_measured_again_is_what_the_commands_take(data: Path | None) -> None:
    parsers = {
        "benchmark": evaluate.benchmark_parser, "hallucination": evaluate.hallucination_parser,
        "calibration": calibration.calibration_parser, "coverage": coverage.coverage_parser,
        "sampling": sampling.sampling_parser,
    }  # fmt: skip
    for wanted in measurements(data):
        parsers[wanted.words[0]]().parse_args(list(wanted.words[1:]))
    assert sum(wanted.minutes for wanted in measurements(data)) <= (90 if data else 10)


def test_every_table_that_can_be_made_is_measured_again() -> None:
    made = {wanted.table for wanted in measurements(Path("/data"))}
    assert made == {"benchmark", *evaluation_tables.KINDS}


def tsv(path: Path, *rows: dict[str, Any]) -> Path:
    names = list(rows[0])
    lines = ["\t".join(names), *("\t".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path.parent


def test_lesions_become_rows_by_size_and_sums_over_heads(tmp_path: Path) -> None:
    size = {"protocol": "x2iso-kspace", "diameter_mm": 4, "lesions": 9, "worst": 0.5}
    size |= {f"over_back_projection{end}": 0.1 for end in ("", "_low", "_high")}
    methods = {"cubic": 0.7, "back-projection": 0.8, "net": 0.9}
    tsv(
        tmp_path / "sizes.tsv", *(size | {"method": m, "recovered": r} for m, r in methods.items())
    )
    head = {"protocol": "x2iso-kspace", "invented": 1, "outside_rms": 0.1, "outside_max": 1.5}
    head |= {"null_correlation": 0.5, "mirror_difference": 0.4, "version": "abc int8"}
    rows = [
        head | {"head": name, "method": method, "false_positives": found}
        for method in methods
        for name, found in (("a_T1w", 2), ("a_T2w", 5))
    ]
    found = evaluation_tables.lesions(tsv(tmp_path / "heads.tsv", *rows), "net")
    assert (found["images"], found["people"], found["precision"]) == (2, 1, "int8")
    assert found["interval"].endswith("over 9 lesions of each size")
    assert [found["values"][f"x2.4mm.{name}"] for name in ("cubic", "back", "own")] == [
        0.7,
        0.8,
        0.9,
    ]
    assert found["values"]["x2.net.false_positives"] == 7
    away = next(row for row in found["rows"] if row.get("key") == "x2.net")
    assert (away["false_positives_text"], away["largest"]) == ("2, 5", "1.5")


def test_spans_are_of_one_model_and_of_one_contrast(tmp_path: Path) -> None:
    names = ("factor", "within_two", "risk_half", "ideal_half", "gain")
    rows = [
        {"head": head, "model": model, **dict.fromkeys(names, value)}
        for head, model, value in (
            ("a_T1w", "net", 0.5), ("b_T1w", "net", 0.75), ("b_T2w", "net", 0.9),
            ("a_T1w", "other", 9.0),
        )
    ]  # fmt: skip
    found = evaluation_tables.calibration(tsv(tmp_path / "calibration.tsv", *rows), "net")
    assert (found["images"], found["people"]) == (3, 2)
    assert [row["factor"] for row in found["rows"]] == ["0.50 to 0.75", "0.90"]
    assert found["rows"][0]["within_two"] == "50 % to 75 %"
    assert found["values"]["T1w.factor_high"] == 0.75


def test_an_image_holds_if_its_worst_measurement_does(tmp_path: Path) -> None:
    rows = [
        {"head": head, "model": "net", "map": "map", "within": share}
        for head, share in (("ds002748_1_T1w", 0.97), ("ds002748_1_T1w", 0.94), ("c_T1w", 0.96),
                            ("c_T2w", 0.9))
    ]  # fmt: skip
    found = evaluation_tables.coverage(tsv(tmp_path / "coverage.tsv", *rows), "net")
    assert [(row["hold"], row["of"]) for row in found["rows"]] == [(0, 1), (1, 1), (0, 1)]
    assert found["rows"][0]["within"] == "94.0 % to 97.0 %"


def test_samples_are_compared_with_the_image_and_the_baseline(tmp_path: Path) -> None:
    base = {"head": "a_T1w", "protocol": "x2iso-kspace", "model": "net", "correlation": 0.6}
    base |= {"energy_percent": -1.25, "crps_percent": 1, "psnr_image": 30, "psnr_mean": 29}
    base |= {"band": 0.9, "v_dark": 0.6, "v_middle": 1, "v_bright": 1.31}
    rows = [
        base | {"sampler": name, "v": v, "psnr_sample": psnr}
        for name, v, psnr in (("by hand", 0.5, 28), ("learned", 0.9, 27), ("own: x", 1.1, 26))
    ]
    found = evaluation_tables.sampling(tsv(tmp_path / "sampling.tsv", *rows), "net")
    spans, tissues = found["rows"][:3], found["rows"][3]
    assert [row["v_hand"] for row in spans] == ["0.50"] * 3
    assert [row["one"] for row in spans] == ["-2.0 dB", "-3.0 dB", "-4.0 dB"]
    assert (tissues["whole"], tissues["fluid"], tissues["white"]) == (1.1, 0.6, 1.31), "of its own"
    assert (found["values"]["v.tissues_within"], found["values"]["v.heads_within"]) == (1, 1)
    assert found["values"]["T1w.x2iso-kspace.own.one_low"] == -4
    assert found["views"]["spans"]["where"] == {"sampler": ["Gaussian noise", "experts"]}
    turned = [row | {"head": "a_T2w", "v": 1.5} for row in rows[:2]]
    found = evaluation_tables.sampling(tsv(tmp_path / "sampling.tsv", *turned), "net")
    assert (found["rows"][-1]["white"], found["values"]["v.heads_within"]) == (0.6, 0)
