# SPDX-License-Identifier: Apache-2.0
"""``--dry-run``: print a table of the work; headers are read, nothing is written."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bids_moediff.bids.discover import (
    find_participants,
    nothing_to_process,
    require_sessions,
    with_others,
)
from bids_moediff.bids.groups import ScanGroup, group_scans
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.errors import ImageError
from bids_moediff.execution.preflight import (
    Refusal,
    Remarks,
    check_participants,
    closing_remarks,
    cost_of,
    refusal,
)
from bids_moediff.execution.run import check_files
from bids_moediff.families.choice import choose, takes_reference
from bids_moediff.imaging.grid import NOT_RESTORED, gets_finer
from bids_moediff.networks.model_folder import resolve
from bids_moediff.runtime.devices import require_devices
from bids_moediff.runtime.resources import memory_warning, plan
from bids_moediff.runtime.text import counted
from bids_moediff.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

Triple = tuple[int, int, int]
Zooms = tuple[float, float, float]
NON_TERMINAL_WIDTH = 140
COARSER = "Output voxels are coarser than the input's on an axis, as asked for: it loses detail."


@dataclass(frozen=True)
class PlannedImage:
    """One row: input, output and cost of an image, or why it cannot be processed."""

    name: str
    matrix_in: Triple | None = None
    zooms_in: Zooms | None = None
    matrix_out: Triple | None = None
    gigabytes: float = 0.0
    seconds: float = 0.0
    disk_gigabytes: float = 0.0
    problem: str | None = None
    source: AnatomicalImage | None = None
    zooms_out: Zooms | None = None

    @property
    def scans(self) -> tuple[AnatomicalImage, ...]:
        """Scans that it is combined from; empty for a single image."""
        return self.source.members if self.source is not None else ()


def print_plan(settings: Settings) -> int:
    """Print the table and totals; return 0 if every image can be done, 1 if not, 66 for none."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=NON_TERMINAL_WIDTH)
    labels = find_participants(settings)
    require_sessions(settings, labels)
    check_files(settings)
    # A plan may be made where the card that will be used is not there.
    device = require_devices("auto")[0] if settings.device == "auto" else settings.device
    choice = choose(settings, device)
    # A folder of weights may be on the machine that will run.
    absent = settings.weights is not None and not settings.weights.exists()
    if not absent:
        resolve(choice.model)
    participants: list[Participant] = []
    rows = list(plan_images(settings, labels, device, choice.model, participants))
    if not rows:
        raise nothing_to_process(settings, participants)
    console.print(_table(rows, settings))
    console.print(f"Model {Path(choice.model).name}, {choice.reason}.", markup=False)
    if absent:
        console.print(
            f"--weights {settings.weights}: not on this machine, so not checked.", markup=False
        )
    good = [row for row in rows if row.problem is None]
    if good:
        peak = max(row.gigabytes for row in good)
        minutes = sum(row.seconds for row in good) / 60
        size = sum(row.disk_gigabytes for row in good)
        console.print(
            f"{counted(len(good), 'image')}, at most {peak:.1f} GB at a time, "
            f"about {minutes:.0f} min of super-resolution, {size:.1f} GB of results. Nothing was "
            "written."
        )
    if takes_reference(choice.model):
        for words in _references(good, settings):
            console.print(words, highlight=False, markup=False)
    for words in (*_remarks(good, settings), *closing_remarks(settings, participants)):
        console.print(words, highlight=False, markup=False)
    failed = [row for row in rows if row.problem is not None]
    for row in failed:
        print(f"bids_moediff: {row.problem}", file=sys.stderr)
    return ImageError.exit_code if failed else 0


def _references(rows: list[PlannedImage], settings: Settings) -> Iterator[str]:
    """Return one line for each image: its reference, or why it has none."""
    from bids_moediff.bids.references import choose_reference
    from bids_moediff.preprocessing.conform import file_zooms

    images = [row.source for row in rows if row.source is not None and not row.source.members]
    others: dict[str, Participant] = {}
    for image in images:
        label = image.entities["sub"]
        if label not in others:
            others[label] = with_others(settings, Participant(label, ()))
        choice = choose_reference(
            image,
            others[label].others,
            settings.reference or "auto",
            lambda one: file_zooms(one.path),
        )
        words = choice.reason if choice.image is None else f"guided by {choice.reason}."
        yield f"{image.key}: {words}"


def _remarks(rows: list[PlannedImage], settings: Settings) -> Iterator[str]:
    """Return remarks on the output voxel size, one line for all images that it concerns."""
    untouched, coarser = [], []
    images = [row for row in rows if row.source is not None and not row.scans]
    for row in images:
        zooms = row.zooms_in or (1.0, 1.0, 1.0)
        target = settings.output_zooms(zooms)
        if not gets_finer(zooms, target):
            untouched.append(row.name)
        if gets_finer(target, zooms):
            coarser.append(row.name)
    for names, words in ((untouched, NOT_RESTORED), (coarser, COARSER)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"{names[0]}{more}: {words}"
    for row in rows:
        if row.scans:
            yield f"{row.name}: combined from {', '.join(scan.key for scan in row.scans)}."
    if rows:
        largest = max(rows, key=lambda row: row.gigabytes)
        available = plan(settings.nprocs, settings.omp_nthreads, settings.mem).memory_gb
        if words := memory_warning(largest.gigabytes, Path(largest.name).name, available):
            yield words
    if settings.combine == "off":
        yield from _to_combine([row.source for row in images if row.source is not None])


def _to_combine(images: list[AnatomicalImage]) -> Iterator[str]:
    """Return a line on the scans that could be combined."""
    subjects: dict[str, list[AnatomicalImage]] = {}
    for image in images:
        subjects.setdefault(image.entities["sub"], []).append(image)
    groups: list[ScanGroup] = []
    remarks: list[str] = []
    for scans in subjects.values():
        found, words = group_scans(scans)
        groups += found
        remarks += words
    if groups:
        more = f" (and {len(groups) - 1} more sets)" if len(groups) > 1 else ""
        names = [image.relative_path for image in groups[0].images]
        files = " ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        yield (
            f"{groups[0].name}{more}: {len(groups[0].images)} scans of one contrast ({files}). "
            "To combine them to one image: --combine auto."
        )
    yield from remarks


def plan_images(
    settings: Settings,
    labels: Sequence[str],
    device: str,
    model: str,
    participants: list[Participant],
) -> Iterator[PlannedImage]:
    """One row per image, participant by participant; these are added to ``participants``."""
    threads = plan(settings.nprocs, settings.omp_nthreads, settings.mem).omp_nthreads
    remarks = Remarks()
    for checked in check_participants(settings, labels):
        remarks.tell(checked.participant.notices)
        if not any(item.image is None for item in checked.refusals):
            participants.append(checked.participant)
        for image in checked.participant.results:
            try:
                if image.members:
                    yield _plan_group(image, settings, device, model)
                else:
                    yield _plan_image(image, settings, device, model, threads)
            except Exception as error:  # it costs one row
                yield _refused(refusal(checked.participant.label, image, error))
        yield from map(_refused, checked.refusals)


def _refused(item: Refusal) -> PlannedImage:
    name = item.image.relative_path if item.image else f"sub-{item.label}"
    return PlannedImage(name, problem=item.message)


def _plan_image(
    image: AnatomicalImage, settings: Settings, device: str, model: str, threads: int
) -> PlannedImage:
    cost = cost_of(image, settings, model, device, threads)
    zooms = image.zooms or (1.0, 1.0, 1.0)
    return PlannedImage(
        image.relative_path,
        image.shape,
        zooms,
        cost.shape,
        cost.job_gigabytes,
        cost.seconds,
        cost.disk_gigabytes,
        source=image,
        zooms_out=settings.output_zooms(zooms),
    )


def _plan_group(
    group: AnatomicalImage, settings: Settings, device: str, model: str
) -> PlannedImage:
    from bids_moediff.workflows.sizes import output_voxels, result_cost

    cost = result_cost(group, settings, model, device)
    return PlannedImage(
        group.key,
        matrix_out=cost.shape,
        gigabytes=cost.job_gigabytes,
        seconds=cost.seconds,
        disk_gigabytes=cost.disk_gigabytes,
        source=group,
        zooms_out=output_voxels(group, settings),
    )


def _table(rows: list[PlannedImage], settings: Settings) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"What would be done in {settings.output_dir}"))
    table.add_column("image", overflow="fold")
    for heading in ("matrix in", "voxel in (mm)", "matrix out", "voxel out (mm)", "GB", "min"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.problem is not None:
            table.add_row(Text(row.name), "cannot be done")
            continue
        table.add_row(
            Text(row.name),
            " x ".join(map(str, row.matrix_in or ())) or f"{len(row.scans)} scans",
            " x ".join(f"{zoom:.4g}" for zoom in row.zooms_in or ()),
            " x ".join(map(str, row.matrix_out or ())),
            " x ".join(f"{zoom:.4g}" for zoom in row.zooms_out or ()),
            f"{row.gigabytes:.1f}",
            f"{row.seconds / 60:.1f}",
        )
    return table
