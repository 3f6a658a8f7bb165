# SPDX-License-Identifier: Apache-2.0
"""Benchmark methods on whole heads: degrade, restore, compare.

Every method gets the same measurement and the same declared acquisition. Rows are kept on disk and
never computed twice. So an interrupted benchmark continues where it stopped, and all models share
the baselines.
"""

import csv
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_moediff.errors import ImageError, MoediffError, UsageError
from bids_moediff.families import family
from bids_moediff.imaging import metrics
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import Triple, output_grid
from bids_moediff.imaging.interpolation import (
    back_projection,
    bicubic,
    initial_estimate,
    interpolate,
)
from bids_moediff.imaging.protocols import STATED, Protocol
from bids_moediff.imaging.simulated_filters import add_rician_noise, filter_kspace
from bids_moediff.imaging.simulation import Grids, measure
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.request import ImageRequest
from bids_moediff.inference.super_resolver import Result, SuperResolver
from bids_moediff.inference.worker import Scan, enhance_image
from bids_moediff.options import Options
from bids_moediff.runtime.sink import table_text, write_text

from .truth import Loaded, TruthHead

KEY = ("head", "image", "protocol", "ratios", "method", "version")
FAST = ("psnr", "nrmse", "residual", "seconds")
SLOW = ("ssim", "hfen", "flicker", "band_correlation", "band_power")
COLUMNS = ("group", *KEY, *FAST, *SLOW)
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One head under one protocol, ready to be restored; intensities in the file's units.

    Parameters
    ----------
    truth, mask
        Intensities and head mask (X, Y, Z).
    measured
        Coarse measurement without noise (x, y, z).
    operator
        From truth to measurement.
    coarse_zooms, zooms
        Voxel sizes in mm.
    affine
        Affine of the truth.
    metadata
        Content of a sidecar, if the app is to estimate the acquisition.
    reference
        Another contrast on the grid of the truth (X, Y, Z), for methods that take one.
    """

    truth: np.ndarray
    mask: np.ndarray
    measured: torch.Tensor
    operator: Operator
    acquisition: Acquisition
    coarse_zooms: Triple
    zooms: Triple
    affine: np.ndarray
    metadata: Mapping[str, Any] | None = None
    reference: np.ndarray | None = None

    @property
    def ratios(self) -> Triple:
        """Coarse over fine voxel size, by axis."""
        first, second, third = (
            coarse / fine for coarse, fine in zip(self.coarse_zooms, self.zooms, strict=True)
        )
        return (first, second, third)

    @property
    def coarse_image(self) -> nib.Nifti1Image:
        """The measurement as a NIfTI image."""
        _, affine = output_grid(self.truth.shape, self.affine, self.coarse_zooms)
        return nib.Nifti1Image(self.measured.numpy(), affine)

    @property
    def reference_image(self) -> nib.Nifti1Image | None:
        """The reference as a NIfTI image."""
        return None if self.reference is None else nib.Nifti1Image(self.reference, self.affine)


def make_task(
    truth: np.ndarray,
    mask: np.ndarray,
    zooms: Triple,
    affine: np.ndarray,
    ratios: Triple,
    profile: str,
) -> Task:
    """Degrade a true image without noise; what does not fill a coarse voxel is cut off.

    Parameters
    ----------
    truth, mask
        Intensities and head mask (X, Y, Z).
    zooms, affine
        Voxel sizes in mm, and affine of the truth.
    ratios
        Coarse over fine voxel size, by axis.
    profile
        Slice or voxel profile.
    """
    grids = Grids.inside(truth.shape, zooms, ratios)
    if min(grids.coarse_shape) < 4:
        raise ImageError(f"at ratios {ratios} fewer than four voxels are left on a side.")
    acquisition = Acquisition.uniform(profile)
    made = measure(torch.from_numpy(np.ascontiguousarray(truth)), grids, acquisition)
    cut = np.ascontiguousarray(made.truth.numpy())
    mask = mask[tuple(slice(0, size) for size in cut.shape)]
    coarse_zooms = grids.coarse_zooms
    return Task(cut, mask, made.coarse, made.operator, acquisition, coarse_zooms, zooms, affine)


def protocol_task(loaded: Loaded, protocol: Protocol) -> Task:
    """Measure a head under a protocol, with the statements that the protocol makes about it."""
    ratios = protocol.ratios(loaded.axes)
    grids = Grids.inside(loaded.truth.shape, loaded.zooms, ratios)
    task = make_task(
        loaded.truth, loaded.mask, loaded.zooms, loaded.affine, ratios, protocol.profile
    )
    if loaded.reference is not None:
        box = tuple(slice(0, size) for size in task.truth.shape)
        task = replace(task, reference=np.ascontiguousarray(loaded.reference[box]))
    if protocol.plain:
        return task
    truth = torch.from_numpy(task.truth)
    true = protocol.acquisition(loaded.axes)
    made = measure(truth, grids, true)
    measured = bicubic(truth, grids.coarse_shape) if protocol.bicubic else made.coarse
    coarse = filter_kspace(measured.numpy(), protocol.filter)
    if protocol.noise:
        sigma = protocol.noise / 100 * float(np.percentile(task.truth[task.mask], 90))
        # Its mask decides a head's noise: the same for every method, with a lesion and without.
        coarse = add_rician_noise(coarse, sigma, zlib.crc32(task.mask.tobytes()))
    told: Acquisition = true
    metadata: dict[str, Any] | None = None
    if isinstance(protocol.told, Axis):
        told = protocol.acquisition(loaded.axes, protocol.told)
    elif protocol.told is not None:
        metadata = {"MRAcquisitionType": "3D" if protocol.isotropic else "2D"}
        if protocol.told == STATED:
            metadata["SliceThickness"] = max(grids.coarse_zooms) * protocol.axis.fwhm
    return replace(
        task,
        measured=torch.from_numpy(np.ascontiguousarray(coarse)),
        operator=made.operator,
        acquisition=told,
        metadata=metadata,
    )


Restore = Callable[[Task], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A way to restore a task; ``version`` separates results of different weights or options.

    ``guided``: whether it takes the reference of a task.
    """

    name: str
    version: str
    restore: Restore
    guided: bool = False


def _spline(order: int) -> Restore:
    def restore(task: Task) -> np.ndarray:
        shape = task.operator.fine_shape
        return interpolate(task.measured, task.coarse_zooms, shape, task.zooms, order).numpy()

    return restore


def _back_projected(task: Task) -> np.ndarray:
    cubic = torch.from_numpy(_spline(3)(task))
    return back_projection(
        cubic, task.measured, task.operator, task.coarse_zooms, task.zooms
    ).numpy()


def consistent(task: Task) -> np.ndarray:
    """Return cubic interpolation projected onto the measurement (X, Y, Z)."""
    return initial_estimate(task.measured, task.operator, task.coarse_zooms, task.zooms).numpy()


# "1" is the version of these definitions: raise it when one of them changes.
BASELINES = (
    Method("linear", "1", _spline(1)),
    Method("cubic", "1", _spline(3)),
    Method("back-projection", "1", _back_projected),
    Method("consistent", "1", consistent),
)


def restored(resolver: SuperResolver, task: Task, options: Options) -> Result:
    """Restore a task by a model, with the protocol's statements or as the app would."""
    reference = task.reference_image if is_guided(resolver) else None
    if task.metadata is None:
        inputs = Inputs(acquisition=task.acquisition, reference=reference)
        return resolver.enhance(task.coarse_image, options, inputs)
    told = ImageRequest(key="", image="", out_dir="", metadata=task.metadata)
    return enhance_image(resolver, Scan(task.coarse_image, reference=reference), told, options)


def is_guided(resolver: SuperResolver) -> bool:
    """Return True if the model takes a reference contrast."""
    return family(resolver.model.config["family"]).takes_reference


def model_method(resolver: SuperResolver, name: str = "", **options: Any) -> Method:
    """Return a loaded model as a method; ``options`` are fields of :class:`Options`."""

    def restore(task: Task) -> np.ndarray:
        asked = Options(output_resolution=task.zooms, **options)
        return np.asarray(restored(resolver, task, asked).image.dataobj, dtype=np.float32)

    words = [f"{key}={value}" for key, value in options.items() if value is not None]
    version = " ".join([resolver.model.sha256[:12], resolver.precision, *words])
    return Method(name or resolver.model.name, version, restore, is_guided(resolver))


def score(task: Task, image: np.ndarray, *, full: bool) -> dict[str, float]:
    """Return all figures of one result; ``full`` adds the slow ones.

    Parameters
    ----------
    task
        Head and protocol.
    image
        Result (X, Y, Z).
    full
        Whether SSIM, HFEN, flicker and the recovered band are computed.
    """
    if image.shape != task.truth.shape or not np.isfinite(image).all():
        raise ImageError(f"the result {image.shape} does not fit the truth {task.truth.shape}.")
    residual = task.operator.forward(torch.from_numpy(image)) - task.measured
    row = {
        "psnr": metrics.psnr(image, task.truth, task.mask),
        "nrmse": metrics.nrmse(image, task.truth, task.mask),
        "residual": float(residual.norm() / task.measured.norm()),
    }
    if full:
        row |= metrics.slow_figures(image, task.truth, task.mask, task.ratios)
    return row


class Rows:
    """The table of finished rows; it is written to disk after every row."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._rows: dict[tuple[str, ...], Row] = {}
        if path is not None and path.is_file():
            for row in read_rows(path):
                self._rows[_key(row)] = row

    def finished(self, key: Row, full: bool) -> bool:
        """Return True if the row is there, with the slow figures if they are wanted."""
        row = self._rows.get(_key(key))
        return row is not None and (not full or row.get("ssim") is not None)

    def add(self, row: Row) -> None:
        """Add a row."""
        self._rows[_key(row)] = row
        if self.path is not None:
            write_text(table_text([_rounded(row) for row in self.all()], [*COLUMNS]), self.path)

    def all(self) -> list[Row]:
        """Return every row, in the order of computation."""
        return list(self._rows.values())


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in KEY)


def _rounded(row: Row) -> Row:
    known = {k: v for k, v in row.items() if v == v}  # a figure that is not a number is missing
    return {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in known.items()}


def read_rows(path: Path) -> list[Row]:
    """Read rows of a table written by :class:`Rows`; UsageError for another kind of table."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows: list[Row] = list(csv.DictReader(stream, delimiter="\t"))
    try:
        for row in rows:
            for name in (*FAST, *SLOW):
                row[name] = None if row[name] == "n/a" else float(row[name])
            _key(row)
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} is not a table of this benchmark; move it away or give another folder."
        ) from error
    return rows


@dataclass
class BenchmarkPlan:
    """Heads, protocols and methods of a benchmark.

    Parameters
    ----------
    heads, protocols, methods
        Every combination of them is computed.
    full
        Whether the slow figures are wanted.
    all_axes
        Whether axes without truth are degraded, too.
    """

    heads: Sequence[TruthHead]
    protocols: Sequence[Protocol]
    methods: Sequence[Method]
    full: bool = False
    all_axes: bool = False

    def __len__(self) -> int:
        return len(self.heads) * len(self.protocols) * len(self.methods)


class HeadTable:
    """Known facts about each head, so that finished heads need not be read again."""

    columns = ("head", "group", "image", "voxel_mm", "axes", "note")

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._rows: dict[str, Row] = {}
        if path is not None and path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                self._rows = {row["image"]: row for row in csv.DictReader(stream, delimiter="\t")}

    def get(self, head: TruthHead) -> tuple[tuple[int, ...], str] | None:
        """Return axes that hold truth and why the others do not, if the head was read before."""
        row = self._rows.get(head.digest)
        if row is None:
            return None
        note = "" if row["note"] == "n/a" else row["note"]
        return tuple(int(axis) for axis in row["axes"].split(",")), note

    def add(self, loaded: Loaded) -> None:
        """Store the facts about a head."""
        head = loaded.head
        self._rows[head.digest] = {
            "head": head.name,
            "group": head.group,
            "image": head.digest,
            "voxel_mm": "x".join(f"{zoom:.4g}" for zoom in loaded.zooms),
            "axes": ",".join(map(str, loaded.axes)),
            "note": loaded.note or None,
        }
        if self.path is not None:
            write_text(table_text([*self._rows.values()], [*self.columns]), self.path)


Report = Callable[[Row | None, str], None]


def run(
    plan: BenchmarkPlan,
    rows: Rows,
    table: HeadTable,
    report: Report = lambda row, problem: None,
) -> tuple[list[Row], dict[str, str]]:
    """Compute the missing rows of a plan.

    Parameters
    ----------
    plan
        What is wanted.
    rows, table
        What is known.
    report
        Called with every finished row, or with None and a sentence for one that failed.

    Returns
    -------
    rows
        Those of the plan, new and kept.
    notes
        For each head, the axes that hold no truth and why.
    """
    wanted: list[Row] = []
    notes: dict[str, str] = {}
    for head in plan.heads:
        try:
            wanted += _run_head(plan, rows, table, head, report)
            notes[head.name] = (table.get(head) or ((), ""))[1]
        except MoediffError as error:
            for _ in range(len(plan.protocols) * len(plan.methods)):
                report(None, f"{head.name}: {error}")
    keys = {_key(row) for row in wanted}
    return [row for row in rows.all() if _key(row) in keys], notes


def _run_head(
    plan: BenchmarkPlan, rows: Rows, table: HeadTable, head: TruthHead, report: Report
) -> list[Row]:
    """Compute one head under all protocols; it is read only if a row is missing."""
    loaded: Loaded | None = None
    known = table.get(head)
    if known is None:
        loaded = head.load()
        table.add(loaded)
        known = (loaded.axes, loaded.note)
    wanted: list[Row] = []
    for protocol in plan.protocols:
        ratios = protocol.ratios((0, 1, 2) if plan.all_axes else known[0])
        keys = _keys(plan, head, protocol, ratios)
        wanted += keys
        if all(rows.finished(key, plan.full) for key in keys):
            for key in keys:
                report(key, "")
            continue
        loaded = loaded or head.load()
        _run_task(plan, rows, loaded, protocol, keys, ratios, report)
    return wanted


def _keys(plan: BenchmarkPlan, head: TruthHead, protocol: Protocol, ratios: Triple) -> list[Row]:
    base: Row = {
        "group": head.group,
        "head": head.name,
        "image": head.digest,
        "protocol": protocol.key,
        "ratios": "x".join(f"{ratio:g}" for ratio in ratios),
    }
    return [base | {"method": m.name, "version": m.version} for m in plan.methods]


def _run_task(
    plan: BenchmarkPlan,
    rows: Rows,
    loaded: Loaded,
    protocol: Protocol,
    keys: Sequence[Row],
    ratios: Triple,
    report: Report,
) -> None:
    """Compute the missing rows of one head under one protocol."""
    task: Task | None = None
    for key, method in zip(keys, plan.methods, strict=True):
        if rows.finished(key, plan.full):
            report(key, "")
            continue
        try:
            task = task or protocol_task(loaded, protocol)
            start = time.perf_counter()
            image = method.restore(task)
            seconds = round(time.perf_counter() - start, 2)
            row = key | score(task, image, full=plan.full) | {"seconds": seconds}
        except (MoediffError, MemoryError, RuntimeError) as error:
            # torch tells lack of memory by RuntimeError: the other tasks may fit.
            reason = " ".join(str(error).split())[:200]
            report(None, f"{loaded.head.name}, {protocol.name}, {method.name}: {reason}")
            continue
        rows.add(row)
        report(row, "")
