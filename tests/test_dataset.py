# SPDX-License-Identifier: Apache-2.0
"""Files of the output data set, sidecars, and the judgement of the BIDS validator on all names."""

import dataclasses
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff import __version__
from bids_moediff.bids.dataset import (
    bibliography,
    check_input,
    check_output,
    prepare_output,
    write_citation,
)
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path, parse_name
from bids_moediff.bids.products import PRODUCTS, find_product
from bids_moediff.bids.sidecar import build_sidecar, label_table
from bids_moediff.errors import UsageError
from bids_moediff.runtime.sink import write_json, write_nifti, write_text
from bids_moediff.settings import load_settings

PACKAGE = Path(__file__).parents[1] / "bids_moediff"


@pytest.fixture
def settings(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    given = {"bids_dir": raw, "output_dir": tmp_path / "out", "analysis_level": "participant"}
    describe(raw, Name="Heads", BIDSVersion="1.10.0", License="CC0")
    return load_settings(given, None, {})


def describe(folder, **content):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "dataset_description.json").write_text(json.dumps(content))


def description(settings):
    return json.loads((settings.output_dir / "dataset_description.json").read_text())


def image_of(name):
    entities, suffix, _ = parse_name(name)
    session = f"ses-{entities['ses']}/" if "ses" in entities else ""
    relative = f"sub-{entities['sub']}/{session}anat/{name}"
    return AnatomicalImage(Path("/host") / relative, relative, entities, suffix, {})


SOURCES = (
    "sub-01_T1w.nii.gz",
    "sub-01_T2w.nii.gz",
    "sub-01_FLAIR.nii.gz",
    "sub-01_acq-x_ce-gd_rec-n_run-01_T1w.nii.gz",
    "sub-01_run-2_echo-1_part-mag_chunk-1_T2starw.nii.gz",
    "sub-02_ses-a_inplaneT2.nii.gz",
    "sub-02_ses-a_inplaneT1.nii.gz",
    "sub-02_ses-a_PDw.nii.gz",
    "sub-02_ses-a_PDT2.nii.gz",
    "sub-02_ses-b_UNIT1.nii.gz",
    "sub-02_ses-b_T1rho.nii.gz",
    "sub-02_ses-b_T1map.nii.gz",
    "sub-02_ses-b_angio.nii.gz",
)


def write_every_product(settings):
    prepare_output(settings, {})
    for name in SOURCES:
        for zooms in ((0.7, 0.7, 0.7), (0.7, 0.7, 1.0))[: 2 if name == SOURCES[0] else 1]:
            for key, row in PRODUCTS.items():
                product = key if row.each is None else f"{key}_MNI152NLin6Asym"
                wanted = zooms if row.on_output_grid else None
                _write_product(settings, image_of(name), product, wanted)
    write_text("x", settings.output_dir / "sub-01.html")
    write_text("x", settings.output_dir / "group.html")
    write_text("<svg/>", settings.output_dir / "sub-01/figures/sub-01_desc-sr_T1w.svg")
    write_text("a\tb\n1\t2\n", settings.output_dir / "group_T1w.tsv")
    write_json({"a": {"Description": "x"}}, settings.output_dir / "group_T1w.json")
    write_text("x", settings.output_dir / "logs/sub-01/some-id/run.json")
    write_text("x", settings.output_dir / ".work/sub-01/anything.nii.gz")
    write_citation(settings.output_dir, "By [@moediffsr].")


def _write_product(settings, image, product, zooms):
    shape = (4, 5, 6, 3) if product == "gates" else (4, 5, 6)
    integer = find_product(product).suffix in ("mask", "dseg")
    volume = nib.Nifti1Image(np.ones(shape, np.uint8 if integer else np.float32), np.eye(4))
    write_nifti(volume, settings.output_dir / derivative_path(image, product, zooms))
    record = {"Model": "moediff", "Warnings": [], "Experts": ["smooth", "cortex", "junction"]}
    sidecar = build_sidecar(image, product, zooms, record)
    write_json(sidecar, settings.output_dir / derivative_path(image, product, zooms, ".json"))
    if product == "expert":
        path = settings.output_dir / derivative_path(image, product, zooms, ".tsv")
        write_text(label_table(sidecar), path)


@pytest.fixture(scope="module")
def validator():
    path = shutil.which("bids-validator-deno") or Path(sys.executable).with_name(
        "bids-validator-deno"
    )
    if not Path(path).exists():
        pytest.skip("needs bids-validator-deno: pip install -c constraints.txt -e .[test]")

    def errors(folder):
        command = [str(path), "--format", "json", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        issues = json.loads(done.stdout)["issues"]["issues"]
        return [
            (issue["code"], issue.get("location"), issue.get("issueMessage"))
            for issue in issues
            if issue["severity"] == "error"
        ]

    return errors


def test_every_product_of_every_contrast_passes_the_validator(settings, validator):
    write_every_product(settings)
    assert validator(settings.output_dir) == []


def test_the_validator_would_have_seen_a_wrong_name(settings, validator):
    write_every_product(settings)
    folder = settings.output_dir / "sub-01/anat"
    (folder / "sub-01_res-0p7mm_desc-sr_T1w.nii.gz").rename(
        folder / "sub-01_rec-sr_foo_T1w.nii.gz"
    )
    (folder / "sub-01_desc-brain_mask.nii.gz").rename(folder / "sub-01_desc-a_res-b_mask.nii.gz")
    assert len(validator(settings.output_dir)) >= 2


def test_required_keys_of_sidecars():
    image, record = image_of("sub-02_ses-a_FLAIR.nii.gz"), {"Model": "moediff"}
    uri = "bids:raw:sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz"
    zooms = (0.7, 0.7, 1.0)
    assert build_sidecar(image, "sr", zooms, record) == {
        "Sources": [uri],
        "SkullStripped": False,
        "Resolution": "0.7 x 0.7 x 1 mm",
        "Model": "moediff",
    }
    assert build_sidecar(image, "preproc", None, {"method": "nonzero"})["SkullStripped"] is True
    mask = build_sidecar(image, "srmask", (1.0, 1.0, 1.0))
    assert (mask["Resolution"], mask["SpatialReference"]) == ("1 mm isotropic", uri)
    own = build_sidecar(image_of("sub-01_T1w.nii.gz"), "mask")
    assert own["SpatialReference"] == "bids:raw:sub-01/anat/sub-01_T1w.nii.gz"
    stripped = {**record, "BrainMask": {"method": "nonzero"}}
    assert build_sidecar(image, "sr", zooms, stripped)["SkullStripped"] is True
    two = {**record, "Experts": ["cortex", "smooth"]}
    assert build_sidecar(image, "gates", zooms, two)["LabelMap"] == ["cortex", "smooth"]
    labels = build_sidecar(image, "expert", zooms, two)
    assert label_table(labels).splitlines()[1:] == ["1\tcortex", "2\tsmooth"]
    assert "Experts" not in labels
    with pytest.raises(ValueError, match="output_zooms"):
        build_sidecar(image, "sr")


def test_no_host_path_in_any_output(settings, tmp_path):
    write_every_product(settings)
    for path in settings.output_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content, path
            assert b"/host" not in content, path


def test_what_the_input_says_of_itself_is_text(settings):
    odd = {"Name": "a\0b\x1b[31m\ud800\u202e", "License": ["CC0"], "DatasetDOI": {"a": 1}}
    describe(settings.bids_dir, BIDSVersion="1", **odd)
    prepare_output(settings, {})
    content = description(settings)
    assert content["Name"] == r"Super-resolved images of a\x00b\x1b[31m?\u202e"
    assert not {"License", "SourceDatasets"} & content.keys()


def test_description(settings):
    prepare_output(settings, {"BIDS_MOEDIFF_DOCKER_TAG": "1.2.3"})
    content = description(settings)
    maker = {"Name": "bids_moediff", "Version": __version__}
    assert content["GeneratedBy"] == [{**maker, "Container": {"Type": "docker", "Tag": "1.2.3"}}]
    assert (content["DatasetType"], content["License"]) == ("derivative", "CC0")
    assert "DatasetLinks" not in content  # /data of a container means nothing outside
    describe(settings.bids_dir, Name="Heads", BIDSVersion="1", DatasetDOI="doi:10.18112/x.v1")
    prepare_output(settings, {"APPTAINER_CONTAINER": "/x.sif"})
    content = description(settings)
    url = "https://doi.org/10.18112/x.v1"
    assert content["DatasetLinks"] == {"raw": url}
    assert content["SourceDatasets"] == [{"DOI": "doi:10.18112/x.v1", "URL": url}]


def test_links_to_the_input_are_short_or_absent(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("bids_moediff.bids.dataset.in_container", lambda environment: False)
    links = []
    for output in (tmp_path / "out", settings.bids_dir / "derivatives/x", tmp_path / "a/b/out"):
        changed = dataclasses.replace(settings, output_dir=output)
        prepare_output(changed, {})
        links.append(description(changed).get("DatasetLinks", {}).get("raw"))
    assert links == ["../raw", "../..", None]


def test_second_run_writes_nothing(settings):
    prepare_output(settings, {})
    before = {path: path.stat().st_mtime_ns for path in settings.output_dir.iterdir()}
    assert {path.name for path in before} == {
        *("dataset_description.json", ".bidsignore", "descriptions.tsv", "README")
    }
    prepare_output(settings, {})
    assert {path: path.stat().st_mtime_ns for path in settings.output_dir.iterdir()} == before


def test_a_readme_of_somebody_else_stays(settings):
    settings.output_dir.mkdir(parents=True)
    (settings.output_dir / "README.md").write_text("mine")
    prepare_output(settings, {})
    assert not (settings.output_dir / "README").exists()
    (settings.output_dir / "README.md").rename(settings.output_dir / "README")
    prepare_output(settings, {})
    assert (settings.output_dir / "README").read_text() == "mine"


def test_bidsignore_is_as_documented(settings):
    prepare_output(settings, {})
    ignored = (settings.output_dir / ".bidsignore").read_text()
    assert ignored == "*.html\nfigures\n*_xfm.*\ngroup_*.tsv\ngroup_*.json\n"


def _start_job(settings, gate):
    gate.wait()
    prepare_output(settings, {})
    for number in range(5):
        write_text("x" * 50_000, settings.output_dir / f"logs/CITATION{number}.md")


def test_twenty_jobs_start_in_one_folder(settings):
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    jobs = [context.Process(target=_start_job, args=(settings, gate)) for _ in range(20)]
    for job in jobs:
        job.start()
    gate.set()
    seen = set()
    while any(job.is_alive() for job in jobs):
        if settings.output_dir.exists():
            for path in settings.output_dir.glob("*.json"):
                seen.add(path.read_text())
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 20
    assert len(seen | {(settings.output_dir / "dataset_description.json").read_text()}) == 1
    files = sorted(path.name for path in settings.output_dir.rglob("*") if path.is_file())
    assert files == sorted(
        ["dataset_description.json", ".bidsignore", "descriptions.tsv", "README"]
        + [f"CITATION{number}.md" for number in range(5)]
    )
    for number in range(5):
        text = (settings.output_dir / f"logs/CITATION{number}.md").read_text()
        assert text == "x" * 50_000


def test_folders_of_others_are_refused(settings):
    describe(settings.output_dir, Name="x", BIDSVersion="1", GeneratedBy=[{"Name": "fMRIPrep"}])
    with pytest.raises(UsageError, match="results of fMRIPrep"):
        prepare_output(settings, {})
    describe(settings.output_dir, Name="Raw heads", BIDSVersion="1")
    with pytest.raises(UsageError, match="the data set Raw heads"):
        prepare_output(settings, {})
    (settings.output_dir / "dataset_description.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        prepare_output(settings, {})
    assert [path.name for path in settings.output_dir.iterdir()] == ["dataset_description.json"]


def _file(folder):
    return write_text("x", folder / "file")


@pytest.mark.parametrize("aim", ["nowhere", "link"])
@pytest.mark.parametrize("field", ["output_dir", "work_dir"])
def test_no_folder_is_made_behind_a_lost_link(settings, tmp_path, field, aim):
    (tmp_path / "link").symlink_to(aim)
    for path in (tmp_path / "link", tmp_path / "link" / "deep"):
        with pytest.raises(UsageError, match="link is a link to something that is not there"):
            check_output(dataclasses.replace(settings, **{field: path}))


def test_outputs_that_would_spoil_the_input(settings, tmp_path):
    def check(**changes):
        check_output(dataclasses.replace(settings, **changes))

    raw = settings.bids_dir
    link = tmp_path / "link"
    link.symlink_to(raw)
    for same in (raw, link):
        with pytest.raises(UsageError, match="same folder"):
            check(output_dir=same)
    with pytest.raises(UsageError, match="derivatives/"):
        check(output_dir=raw / "out")
    check(output_dir=raw / "derivatives" / "sr")
    for inside in (raw, raw / "work", link / "work", raw / "derivatives" / "work"):
        with pytest.raises(UsageError, match=r"working directory .* inside"):
            check(work_dir=inside)
    sr = raw / "derivatives" / "sr"
    for own in (sr, sr / "w", link / "derivatives" / "sr" / "w"):
        check(output_dir=sr, work_dir=own)
    with pytest.raises(UsageError, match="is a file"):
        check(output_dir=_file(tmp_path) / "x")
    with pytest.raises(UsageError, match="output folder /proc/x cannot be written"):
        check(output_dir=Path("/proc/x"))
    with pytest.raises(UsageError, match="working directory /proc/x/w cannot be written"):
        check(work_dir=Path("/proc/x/w"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "raw"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, 'no dataset_description.json.*"Name" and "BIDSVersion"'),
        ("{", "cannot be read as JSON"),
        ("[]", "is not a JSON object"),
        ('{"Name": "x"}', "lacks BIDSVersion"),
    ],
)
def test_inputs_that_are_no_data_set(settings, content, words):
    path = settings.bids_dir / "dataset_description.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=words):
        check_input(settings)


def test_input_that_is_not_there(settings):
    settings.bids_dir.with_name("rwa1").touch()  # nearer, and no folder
    with pytest.raises(UsageError, match=r"does not exist.*did you mean raw\?"):
        check_input(dataclasses.replace(settings, bids_dir=settings.bids_dir.with_name("rwa")))
    (settings.bids_dir / "dataset_description.json").unlink()
    check_input(dataclasses.replace(settings, skip_bids_validation=True))


def test_citation_lists_what_the_text_names(settings):
    write_citation(settings.output_dir, "By [@n4; @swin] and me@home.org.\n\n### References\n")
    text = (settings.output_dir / "logs/CITATION.md").read_text()
    listed = re.findall(r"^\* \[@(\w+)\]", text, re.M)
    assert listed == ["n4", "swin"]
    assert "Tustison" in text
    assert "10.1109/TMI.2010.2046908" in text
    assert (settings.output_dir / "logs/CITATION.bib").read_text().count("@article{n4,") == 1


def test_every_key_cited_in_the_package_is_in_the_bibliography():
    known = bibliography()
    assert len(known) == 13
    assert all(re.search(r"\(\d{4}\)\. \S", line) for line in known.values())
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        cited = {
            key
            for group in re.findall(r"\[(@[\w; @]+)\]", text)
            for key in re.findall(r"@(\w+)", group)
        }
        assert cited <= {*known, "key"}, path
