# SPDX-License-Identifier: Apache-2.0
"""Write the record of a run and the report from it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    InputMultiObject,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bids_moediff import __version__
from bids_moediff.bids.carried_maps import carried_before
from bids_moediff.bids.earlier_products import further_files
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path
from bids_moediff.bids.past_runs import (
    PREPARED,
    STOPPED,
    last_items,
    last_record,
    log_folder,
    read_past,
)
from bids_moediff.bids.products import PRODUCTS
from bids_moediff.runtime.locks import locked
from bids_moediff.runtime.sink import write_json

from .files import read_json
from .step import unexpected

Zooms = tuple[float, float, float]
PACKAGES = ("torch", "nipype", "niworkflows", "pybids", "nibabel", "SimpleITK", "numpy")


class _StatusInputSpec(BaseInterfaceInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    stage = traits.Enum("all", "preproc", "sr", "report", usedefault=True)
    output_dir = traits.Str(mandatory=True, desc="root of the derivatives")
    zooms = traits.Tuple(traits.Float, traits.Float, traits.Float, mandatory=True)
    failure = traits.Str("", usedefault=True)
    notes = File(desc="remarks of the preparation")
    mask_record = File(desc="how the brain mask was made")
    results = File(desc="results of the network")
    quality = File(desc="quality figures")
    doubts = File(desc="what is unusual about the scan")
    bias_correction = traits.Bool(True, usedefault=True, desc="whether N4 ran")
    unwarping = traits.Bool(False, usedefault=True, desc="whether gradient distortion was undone")
    run_id = traits.Str(mandatory=True, desc="makes the node run anew in every run")
    made_with = traits.Dict(desc="what decides the result (execution.finished.made_with)")


class _StatusOutputSpec(TraitedSpec):
    status = File(exists=True, desc="JSON file: all that is known of the image")


class ImageStatus(SimpleInterface):
    """Collect the outcome of one image; never fails."""

    input_spec = _StatusInputSpec
    output_spec = _StatusOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        source = AnatomicalImage.from_json(self.inputs.source)
        output_dir = Path(self.inputs.output_dir)
        try:
            reports = self.inputs.stage == "report"
            zooms = self.inputs.zooms
            item = previous_item(output_dir, source, zooms) if reports else self._item(source)
            known = recorded_products(output_dir, item) if reports else {}
            item["products"] = known or existing_products(output_dir, source, zooms)
            if not reports:
                carried = carried_before(source, output_dir, zooms)
                item["further"] = [
                    *further_files(source, output_dir, zooms),
                    *(path.relative_to(output_dir).as_posix() for path in carried),
                ]
        except Exception as error:  # it would cost the other images of the participant
            item = empty_item(source) | {"message": unexpected(type(self).__name__, error)}
        path = write_json(item, Path(runtime.cwd) / "status.json")
        self._results["status"] = str(path)
        return runtime

    def _item(self, source: AnatomicalImage) -> dict[str, Any]:
        key = source.key
        item = empty_item(source)
        item["made_with"] = dict(self.inputs.made_with) if isdefined(self.inputs.made_with) else {}
        item["message"] = self.inputs.failure
        item["status"] = "failed" if self.inputs.failure else "done"
        if isdefined(self.inputs.notes):
            item["warnings"] += read_json(self.inputs.notes)
        if isdefined(self.inputs.mask_record):
            mask = read_json(self.inputs.mask_record)
            item["warnings"] += mask.get("warnings", [])
            item["preparation"] = {
                "BrainMask": mask["method"],
                "BiasCorrection": self.inputs.bias_correction,
                "GradientUnwarping": self.inputs.unwarping,
            }
        if isdefined(self.inputs.doubts):
            item["warnings"] += read_json(self.inputs.doubts)
        if isdefined(self.inputs.quality):
            item["quality"] = read_json(self.inputs.quality)
        if isdefined(self.inputs.results):
            result = read_json(self.inputs.results).get(key, {})
            if result.get("status") == "failed" and not self.inputs.failure:
                item |= {"status": "failed", "message": result["message"]}
            record = result.get("record", {})
            item["record"] = record
            item["warnings"] += record.get("Warnings", [])
            item |= {
                name: result[name]
                for name in ("seconds", "peak_memory_gb", "exit_code")
                if name in result
            }
        return item


def empty_item(source: AnatomicalImage) -> dict[str, Any]:
    """Return the record of an image of which only the name is known."""
    item = {
        "key": source.key,
        "source": source.relative_path,
        "suffix": source.suffix,
        "status": "failed",
        "message": "",
        "preparation": {},
        "record": {},
        "quality": {},
        "warnings": [],
    }
    scans = {"scans": [scan.relative_path for scan in source.members]} if source.members else {}
    return item | scans


def existing_products(output_dir: Path, source: AnatomicalImage, zooms: Zooms) -> dict[str, str]:
    """Return products of an image on disk, relative to the output folder."""
    products = {}
    for name, row in PRODUCTS.items():
        if row.each is not None or row.of_group != bool(source.members):
            continue
        path = derivative_path(source, name, zooms if row.on_output_grid else None)
        if (output_dir / path).exists():
            products[name] = str(path)
    return products


def recorded_products(output_dir: Path, item: Mapping[str, Any]) -> dict[str, str]:
    """Return the products on disk that the record of an image names, at its own voxel size."""
    recorded = item.get("products")
    if not isinstance(recorded, dict):
        return {}
    return {
        name: path
        for name, path in recorded.items()
        if name in PRODUCTS and isinstance(path, str) and (output_dir / path).is_file()
    }


def previous_item(output_dir: Path, source: AnatomicalImage, zooms: Zooms) -> dict[str, Any]:
    """Return the record of the latest run that processed the image."""
    item = empty_item(source)
    past = read_past(log_folder(output_dir, source.entities["sub"]))
    found = past.items.get(source.key)
    if found is not None:
        return item | found
    if {"sr", "srcombined"} & set(existing_products(output_dir, source, zooms)):
        return {**item, "status": "done"}
    known = past.note if past.note != STOPPED else ""  # this run has no record either
    return {**item, "message": known or PREPARED}


class _CollectInputSpec(BaseInterfaceInputSpec):
    label = traits.Str(mandatory=True, desc="participant without sub-")
    stage = traits.Enum("all", "preproc", "sr", "report", usedefault=True)
    settings = traits.Dict(traits.Str, traits.Str, desc="settings that the report shows")
    statuses = InputMultiObject(File(exists=True), desc="from ImageStatus")
    refused = traits.List(traits.Dict, desc="records of images that no step works on")
    run_file = traits.Str(mandatory=True, desc="where the record goes")


class _CollectOutputSpec(TraitedSpec):
    run_file = File(exists=True, desc="record of the run")


class CollectRun(SimpleInterface):
    """Write the record of a participant's run."""

    input_spec = _CollectInputSpec
    output_spec = _CollectOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        statuses = self.inputs.statuses if isdefined(self.inputs.statuses) else []
        run_file = Path(self.inputs.run_file)
        record = {
            "participant": self.inputs.label,
            "stage": self.inputs.stage,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "settings": self.inputs.settings,
            "images": sorted(
                [*(read_json(path) for path in statuses), *self.inputs.refused],
                key=lambda item: str(item["source"]),
            ),
        }
        if self.inputs.stage == "report":  # of another job, on another device
            worked = last_record(run_file.parents[1])
            record |= {name: worked[name] for name in ("versions", "settings") if name in worked}
        self._results["run_file"] = str(write_json(record, run_file))
        return runtime


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of this app, of Python and of the main libraries."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"bids_moediff": __version__, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class _ReportInputSpec(BaseInterfaceInputSpec):
    label = traits.Str(mandatory=True, desc="participant without sub-")
    output_dir = traits.Str(mandatory=True, desc="root of the derivatives")
    run_file = File(exists=True, mandatory=True, desc="from CollectRun")
    raw_dir = traits.Str(desc="raw data set, where results keep the shading of the scan")


class _ReportOutputSpec(TraitedSpec):
    report = File(exists=True, desc="HTML report")


class ParticipantReport(SimpleInterface):
    """Write the HTML report of a participant."""

    input_spec = _ReportInputSpec
    output_spec = _ReportOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        output_dir = Path(self.inputs.output_dir)
        with locked(log_folder(output_dir, self.inputs.label)):
            self._results["report"] = str(self._write(output_dir))
        return runtime

    def _write(self, output_dir: Path) -> Path:
        """Write the page with all images of the participant that any run processed."""
        from bids_moediff.bids.dataset import with_references
        from bids_moediff.reports.methods import methods_text
        from bids_moediff.reports.participant import write_participant_report

        run = read_json(self.inputs.run_file)
        run["images"] = with_earlier(run["images"], output_dir, self.inputs.label)
        run["methods"] = with_references(methods_text(run["images"]))
        run["errors"] = [
            f"{item['key']}: {item['message']}"
            for item in run["images"]
            if item["status"] == "failed"
        ]
        raw_dir = Path(self.inputs.raw_dir) if isdefined(self.inputs.raw_dir) else None
        return write_participant_report(output_dir, self.inputs.label, run, raw_dir=raw_dir)


def with_earlier(
    images: Sequence[dict[str, Any]], output_dir: Path, label: str
) -> list[dict[str, Any]]:
    """Return the records of a run and, for other images, those of the last run that had them.

    Sessions may be processed one after the other, or as simultaneous jobs.
    """
    own = {item["key"] for item in images}
    earlier = last_items(log_folder(output_dir, label)).values()
    others = [item for item in earlier if item["key"] not in own and item.get("source")]
    return sorted([*images, *others], key=lambda item: str(item["source"]))
