# SPDX-License-Identifier: Apache-2.0
"""The demo, end to end: one real run of the console script on the data that ship."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.imaging.grid import covering_shape, voxel_sizes
from conftest import DEMO
from golden import check_numbers, described, read_table

SOURCE = DEMO / "sub-01" / "anat" / "sub-01_T1w.nii.gz"


def validate(folder: Path) -> dict[str, object]:
    """Findings of the BIDS validator about a data set, as its JSON."""
    tool = Path(sys.executable).with_name("bids-validator-deno")
    command = str(tool) if tool.is_file() else shutil.which("bids-validator-deno")
    if command is None:
        pytest.skip("needs bids-validator-deno: pip install -c constraints.txt -e .[test]")
    run = subprocess.run(
        [command, "--format", "json", str(folder)], capture_output=True, text=True, check=False
    )
    return json.loads(run.stdout)


def errors(folder: Path) -> list[str]:
    """One line for each error that the BIDS validator finds."""
    issues = validate(folder)["issues"]["issues"]  # type: ignore[index]
    return [
        f"{issue['code']} {issue.get('subCode', '')} {issue.get('location', '')}"
        for issue in issues
        if issue["severity"] == "error"
    ]


def test_demo_data_are_small_valid_and_licensed() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    assert errors(DEMO) == []
    assert "Apache License" in (DEMO / "LICENSE").read_text()
    assert "FNNDSC/data" in (DEMO / "README.md").read_text()
    description = json.loads((DEMO / "dataset_description.json").read_text())
    assert description["License"] == "Apache-2.0"


def test_the_validator_can_fail(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "demo")
    anat = tmp_path / "demo" / "sub-01" / "anat"
    (anat / "sub-01_T1w.nii.gz").rename(anat / "sub-01_rec-sr_wrong-1_T1w.nii.gz")
    assert errors(tmp_path / "demo")


def test_demo_head_is_thick_sliced_and_carries_no_names() -> None:
    image = nib.load(SOURCE)
    zooms = voxel_sizes(image.affine)
    assert np.allclose(zooms, (1.0, 1.1458, 2.2917), atol=1e-3)
    assert image.get_data_dtype() == np.int16
    assert not image.header["descrip"].tobytes().strip(b"\0")
    with SOURCE.open("rb") as stream:
        assert stream.read(10)[4:8] == b"\0\0\0\0", "the gzip header holds a time"


def test_demo_output_is_valid_bids(demo_output: Path) -> None:
    assert errors(demo_output) == []


def test_demo_image_covers_the_scan_at_one_millimetre(demo_output: Path) -> None:
    source = nib.load(SOURCE)
    (path,) = demo_output.rglob("*_desc-sr_T1w.nii.gz")
    assert path.relative_to(demo_output).as_posix() == (
        "sub-01/anat/sub-01_res-1mm_desc-sr_T1w.nii.gz"
    )
    image = nib.load(path)
    assert np.allclose(voxel_sizes(image.affine), 1, atol=1e-5)
    expected = covering_shape(source.shape, voxel_sizes(source.affine), (1, 1, 1))
    assert image.shape == expected
    corner = np.array([-0.5, -0.5, -0.5, 1])
    assert np.allclose(image.affine @ corner, source.affine @ corner, atol=1e-4)
    data, coarse = np.asarray(image.dataobj), np.asarray(source.dataobj)
    assert np.isfinite(data).all()
    # Units stay: the mean over the same field of view agrees.
    volume = np.prod(expected) / np.prod(np.array(source.shape) * voxel_sizes(source.affine))
    assert np.isclose(data.mean() * volume, coarse.mean(), rtol=0.02)


def test_demo_sidecars_have_no_path_of_this_machine(demo_output: Path) -> None:
    private = {str(DEMO.parents[2]), str(demo_output), str(Path.home())} - {"/"}
    texts = [
        path
        for path in demo_output.rglob("*")
        if path.suffix in {".json", ".tsv", ".html", ".svg", ".txt", ".md", ".tex", ".bib"}
        and "logs" not in path.relative_to(demo_output).parts
        and ".work" not in path.relative_to(demo_output).parts
    ]
    assert len(texts) >= 5
    found = [
        (path.name, text)
        for path in texts
        for text in private
        if text in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert found == []


def test_demo_compressed_files_carry_no_time(demo_output: Path) -> None:
    for path in demo_output.rglob("*.nii.gz"):
        with path.open("rb") as stream:
            head = stream.read(10)
        assert head[3] == 0, f"{path.name}: a name in the gzip header"
        assert head[4:8] == b"\0\0\0\0", f"{path.name}: a time in the gzip header"
        with gzip.open(path) as stream:
            assert len(stream.read(348)) == 348


def test_demo_has_reports(demo_output: Path) -> None:
    (report,) = demo_output.glob("sub-*.html")
    assert report.name == "sub-01.html"
    assert "sub-01" in report.read_text(encoding="utf-8")
    assert list(demo_output.glob("group*.html"))
    assert list(demo_output.glob("group_*.tsv"))


def test_memory_is_what_was_planned(demo_output: Path) -> None:
    """The plan of the run, which --dry-run prints, against the peak that the network measured."""
    (folder,) = (demo_output / "logs" / "sub-01").iterdir()
    (item,) = json.loads((folder / "run.json").read_text())["images"]
    needed = json.loads((folder / "plan.json").read_text())["needed_gb"][item["key"]]
    app = 0.4  # GB, the processes beside the network
    assert item["peak_memory_gb"] + app == pytest.approx(needed, abs=0.25)


# What depends on the processor, on versions and on the moment of the run, and wording.
CHANGING = re.compile(
    "(?i)sha256|version|seconds|memory|precision|device|processor|generatedby|residual"
)


def steady(content: object) -> object:
    """A sidecar without what changes from run to run."""
    if isinstance(content, dict):
        return {k: steady(v) for k, v in content.items() if not CHANGING.search(k)}
    return [steady(one) for one in content] if isinstance(content, list) else content


def test_the_numbers_of_the_demo(demo_output: Path) -> None:
    """Every sidecar and table, the size of every mask, brightness and spread of every image."""
    found: dict[str, object] = {}
    for path in sorted(demo_output.rglob("*")):
        name = path.relative_to(demo_output).as_posix()
        if name.startswith(("logs/", "descr", "dataset", "group_T1w.json")) or path.is_dir():
            continue
        if path.name.endswith(".nii.gz"):
            numbers = described(np.asarray(nib.load(path).dataobj))
            found[name] = {key: numbers[key] for key in ("shape", "mean", "deviation")}
        elif path.suffix == ".json":
            found[name] = steady(json.loads(path.read_text()))
        elif path.suffix == ".tsv":
            found[name] = [steady(row) for row in read_table(path)]
    check_numbers("demo.json", "demo", found, rel=0.02, abs=5e-3)
