# SPDX-License-Identifier: Apache-2.0
"""The table of products: whoever it names is there, and what fails is handed on."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from nipype.interfaces import utility as niu
from nipype.interfaces.base import traits
from nipype.pipeline import engine as pe

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.products import NETWORK, PREPARATION, PRODUCTS, find_product
from bids_moediff.errors import ImageError
from bids_moediff.imaging.grid import output_grid
from bids_moediff.interfaces.network import SelectResult
from bids_moediff.interfaces.products import (
    MAKERS,
    ResampleMask,
    SidecarRecord,
    WriteProduct,
    _reached,
)
from bids_moediff.interfaces.step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec
from bids_moediff.reports.figures import DRAW
from bids_moediff.settings import Settings
from bids_moediff.workflows.chain import FAILURES, Chain
from bids_moediff.workflows.products import remove_earlier, write_products

IMAGE = AnatomicalImage(Path("/x"), "sub-01/anat/sub-01_T1w.nii", {"sub": "01"}, "T1w", {})


def test_rows_and_drawers_know_each_other() -> None:
    assert {row.figure.draw for row in PRODUCTS.values() if row.figure} == set(DRAW)


def test_rows_and_steps_know_each_other() -> None:
    made = {row.made_by for row in PRODUCTS.values()}
    assert made == {NETWORK, PREPARATION, *MAKERS}
    known = {*PRODUCTS, *Settings.names(), *FAILURES, "source", "record", "label"}
    for row in PRODUCTS.values():
        if row.made_by in MAKERS:
            step = MAKERS[row.made_by]
            assert row.key in step.output_spec().copyable_trait_names()
            unknown = set(step.input_spec().copyable_trait_names()) - known
            assert not unknown, f"{row.made_by} asks for {unknown}"


def test_a_product_comes_after_what_it_is_made_of() -> None:
    keys = list(PRODUCTS)
    for number, row in enumerate(PRODUCTS.values()):
        if row.made_by in MAKERS:
            asked = set(MAKERS[row.made_by].input_spec().copyable_trait_names()) & set(keys)
            later = {key for key in asked if PRODUCTS[key].made_by in MAKERS} - set(keys[:number])
            assert not later, f"{row.key} is made of {later}"


def test_keys_leave_the_underscore_to_labels() -> None:
    assert not [key for key in PRODUCTS if "_" in key]
    assert find_product("standard_a_b").label == "a_b"


def write_all(folder: Path, wanted: list[str]) -> set[str]:
    """Write what a model without experts gives; names of all files in the output folder then."""
    if not (folder / "sr.nii").exists():  # else the steps are those of an earlier run
        nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.float32), np.eye(4)), folder / "sr.nii")
        results = {"x": {"status": "done", "files": {"sr": "sr.nii"}}}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "record.json").write_text("{}")
    given_keys = [key for key in wanted if find_product(key).made_by == NETWORK]
    select = pe.Node(SelectResult(products=given_keys), name="select")
    select.inputs.trait_set(results=str(folder / "results.json"), key="x")
    given = pe.Node(niu.IdentityInterface(fields=["record"]), name="given")
    given.inputs.record = str(folder / "record.json")
    workflow = pe.Workflow(name="products_wf", base_dir=str(folder / "work"))
    products = [find_product(key) for key in wanted]
    sources = {key: (select, key) for key in given_keys} | {"record": (given, "record")}
    settings = Settings(output_dir=folder / "out", output_resolution=(1.0, 1.0, 1.0))
    chain = Chain(workflow, select)
    write_products(chain, products, sources, settings, IMAGE)
    remove_earlier(chain, products, settings, IMAGE)
    graph = workflow.run(plugin="Linear")
    (last,) = [node for node in graph.nodes() if node.name == chain.end[0].name]
    assert last.result.outputs.failure == ""
    return {path.name for path in (folder / "out").rglob("*") if path.is_file()}


WRITTEN = {"sub-01_res-1mm_desc-sr_T1w.nii.gz", "sub-01_res-1mm_desc-sr_T1w.json"}


def test_only_what_the_model_gives_is_selected_made_and_written(tmp_path: Path) -> None:
    """A model without experts that was asked for gates."""
    assert write_all(tmp_path, ["sr", "gates", "expert"]) == WRITTEN


def test_what_an_earlier_run_wrote_for_the_image_and_this_one_does_not_goes(
    tmp_path: Path,
) -> None:
    own = json.dumps({"Sources": ["bids:raw:sub-01/anat/sub-01_T1w.nii"]})
    other = json.dumps({"Sources": ["bids:raw:sub-01/anat/sub-01_acq-b_T1w.nii"]})
    old = [f"res-1mm_desc-{name}_T1w" for name in ("sr", "srstd", "srsample1", "srsample12")]
    old += ["space-MNI152NLin6Asym_res-1mm_desc-sr_T1w", "seg-moegate_res-1mm_probseg"]
    kept = {
        "sub-01_res-2mm_desc-srstd_T1w": own,  # another result
        "sub-01_acq-b_res-1mm_desc-srsample1_T1w": other,
        "sub-01_res-1mm_desc-srsample1_dseg": own,  # made of a sample by another program
        "sub-01_res-1mm_desc-srsample7_T1w": "{}",
        "sub-01_desc-preproc_T1w": own,
    }
    anat, figures = (tmp_path / "out" / "sub-01" / name for name in ("anat", "figures"))
    anat.mkdir(parents=True)
    figures.mkdir()
    for stem, sidecar in {**{f"sub-01_{stem}": own for stem in old}, **kept}.items():
        (anat / f"{stem}.json").write_text(sidecar)
        (anat / f"{stem}.nii.gz").touch()
    for name in ("srstd", "gates", "difference"):
        (figures / f"sub-01_desc-{name}_T1w.png").touch()
    stay = {stem + extension for stem in kept for extension in (".json", ".nii.gz")}
    stay.add("sub-01_desc-difference_T1w.png")
    assert write_all(tmp_path, ["sr", "gates"]) == WRITTEN | stay


def test_a_file_that_is_gone_is_written_again_from_a_kept_working_directory(
    tmp_path: Path,
) -> None:
    assert write_all(tmp_path, ["sr"]) == WRITTEN
    for path in (tmp_path / "out").rglob("*.*"):
        path.unlink()
    assert write_all(tmp_path, ["sr"]) == WRITTEN


def test_the_mask_on_the_output_grid_is_that_of_a_linear_interpolation(tmp_path: Path) -> None:
    """Only the part of the grid around the mask is interpolated."""
    data = np.zeros((20, 22, 24), np.uint8)
    data[7:12, 5:15, 9:20] = 1
    mask = nib.Nifti1Image(data, nib.affines.from_matvec(np.diag([-2.0, 2.0, 2.0]), [9, -5, 3]))
    shape, affine = output_grid(mask.shape, mask.affine, (0.7, 0.7, 0.7))
    grid = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    for image, name in ((mask, "mask.nii"), (grid, "sr.nii")):
        nib.save(image, tmp_path / name)
    step = ResampleMask(mask=str(tmp_path / "mask.nii"), sr=str(tmp_path / "sr.nii"))
    found = nib.load(step.run(cwd=str(tmp_path)).outputs.srmask)
    soft = resample_from_to(nib.Nifti1Image(data.astype(np.float32), mask.affine), grid, order=1)
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(soft.dataobj) >= 0.5)


@pytest.mark.parametrize(
    ("box", "reached"),
    [
        ((slice(7, 12), slice(0, 6), slice(18, 24)), [(12, 25), (0, 13), (34, 47)]),
        ((slice(0, 20), slice(0, 22), slice(0, 24)), [(0, 39), (0, 43), (0, 47)]),
        ((slice(19, 20), slice(21, 22), slice(0, 1)), [(36, 39), (40, 43), (0, 3)]),
    ],
)
def test_the_part_of_a_grid_that_a_mask_reaches(box, reached):
    """A voxel of the mask beyond it on each side, and nothing beyond the grid."""
    data = np.zeros((20, 22, 24), np.uint8)
    data[box] = 1
    mask = nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0]))
    shape, affine = output_grid(mask.shape, mask.affine, (1.0, 1.0, 1.0))
    found = _reached(mask, nib.Nifti1Image(np.zeros(shape, np.uint8), affine))
    assert [(axis.start, axis.stop - 1) for axis in found] == reached


@pytest.mark.parametrize(("dtype", "kind"), [("auto", np.int16), ("float32", np.float32)])
def test_intensities_are_stored_as_asked_for(tmp_path: Path, dtype: str, kind: type) -> None:
    data = np.linspace(0, 1000, 216).reshape(6, 6, 6).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "sr.nii")
    (tmp_path / "record.json").write_text('{"EstimatedNoise": 20.0}')
    step = WriteProduct(
        source=IMAGE.to_json(), output_dir=str(tmp_path / "out"), product="sr",
        content=str(tmp_path / "sr.nii"), record=str(tmp_path / "record.json"),
        output_resolution=(1.0, 1.0, 1.0), output_dtype=dtype,
    )  # fmt: skip
    place = tmp_path / "out" / step.run(cwd=str(tmp_path)).outputs.path
    assert nib.load(place).get_data_dtype() == kind
    sidecar = json.loads(place.with_name("sub-01_res-1mm_desc-sr_T1w.json").read_text())
    assert ("IntensityStep" in sidecar) == (dtype == "auto")


def test_a_sidecar_has_every_remark_once_in_the_order_of_the_work(tmp_path: Path) -> None:
    content = {
        "notes": ["a"], "mask_record": {"method": "network", "warnings": ["b", "a"]},
        "quality": {"cnr": 3.0}, "doubts": ["c"],
        "result": {"record": {"Model": "x", "Warnings": ["b", "d"]}},
    }  # fmt: skip
    for name, value in content.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    step = SidecarRecord(**{name: str(tmp_path / f"{name}.json") for name in content})
    record = json.loads(Path(step.run(cwd=str(tmp_path)).outputs.record).read_text())
    assert record == {
        "Model": "x", "BrainMask": {"method": "network"}, "Quality": {"cnr": 3.0},
        "Warnings": ["a", "b", "c", "d"],
    }  # fmt: skip


class _InputSpec(ImageStepInputSpec):
    wrong = traits.Str("", usedefault=True)


class Saying(ImageStep):
    """A step that fails with the sentence it is given."""

    input_spec = _InputSpec
    output_spec = ImageStepOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        if self.inputs.wrong:
            raise ImageError(self.inputs.wrong)
        return {}


@pytest.mark.parametrize(
    ("sentences", "failure"),
    [
        ({}, ""),
        ({"first": "one"}, "one"),
        ({"second": "two"}, "two"),
        ({"beside": "aside"}, "aside"),
        ({"second": "two", "beside": "aside"}, "two"),
        ({"last": "end"}, "end"),
    ],
)
def test_a_chain_hands_on_the_first_sentence_of_both_ways(
    tmp_path: Path, sentences: dict[str, str], failure: str
) -> None:
    names = ("first", "second", "beside", "last")
    nodes = {name: pe.Node(Saying(wrong=sentences.get(name, "")), name=name) for name in names}
    workflow = pe.Workflow(name="chain_wf", base_dir=str(tmp_path))
    chain = Chain(workflow, nodes["first"])
    beside = chain.beside().step(nodes["beside"])
    chain.step(nodes["second"]).join(beside).step(nodes["last"])
    assert chain.end[0] is nodes["last"]
    graph = workflow.run(plugin="Linear")
    (last,) = [node for node in graph.nodes() if node.name == "last"]
    assert last.result.outputs.failure == failure
