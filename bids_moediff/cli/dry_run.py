# SPDX-License-Identifier: Apache-2.0
"""``--dry-run``: a table of what would be done; headers are read, nothing is written."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff.bids.discover import (
    discover_participant,
    find_participants,
    nothing_to_process,
    with_others,
)
from bids_moediff.bids.groups import group_scans
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.errors import ImageError, MoediffError
from bids_moediff.families.choice import choose, takes_reference
from bids_moediff.imaging.grid import NOT_RESTORED, gets_finer
from bids_moediff.networks.model_folder import resolve
from bids_moediff.runtime.devices import require_devices
from bids_moediff.runtime.resources import plan
from bids_moediff.settings import Settings

if TYPE_CHECKING:
    from rich.table import Table

Triple = tuple[int, int, int]
Zooms = tuple[float, float, float]
NON_TERMINAL_WIDTH = 140
COARSER = "Output voxels are coarser than the input's on an axis, as asked for: it loses detail."


@dataclass(frozen=True)
class PlannedImage:
    """One row: what goes in, what comes out, what it costs, or why it cannot be done."""

    name: str
    matrix_in: Triple | None = None
    zooms_in: Zooms | None = None
    matrix_out: Triple | None = None
    gigabytes: float = 0.0
    seconds: float = 0.0
    problem: str | None = None
    source: AnatomicalImage | None = None
    zooms_out: Zooms | None = None

    @property
    def scans(self) -> tuple[AnatomicalImage, ...]:
        """What it is to be combined from; nothing for an image."""
        return self.source.members if self.source is not None else ()


def print_plan(settings: Settings) -> int:
    """Print the table and totals; 0 if every image can be done, 1 if not, 66 if there is none."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=NON_TERMINAL_WIDTH)
    # A plan may be made where the card that will be used is not there.
    device = require_devices("auto")[0] if settings.device == "auto" else settings.device
    choice = choose(settings, device)
    if settings.weights is None:  # a folder may be on the machine that will run
        resolve(choice.model)
    rows = list(plan_images(settings, device, choice.model))
    if not rows:
        raise nothing_to_process(settings)
    console.print(_table(rows, settings))
    console.print(f"Model {Path(choice.model).name}, {choice.reason}.", markup=False)
    good = [row for row in rows if row.problem is None]
    if good:
        peak = max(row.gigabytes for row in good)
        minutes = sum(row.seconds for row in good) / 60
        console.print(
            f"{len(good)} images, at most {peak:.1f} GB at a time, "
            f"about {minutes:.0f} min of super-resolution. Nothing was written."
        )
    if takes_reference(choice.model):
        for words in _references(good, settings):
            console.print(words, highlight=False, markup=False)
    for words in _remarks(good, settings):
        console.print(words, highlight=False, markup=False)
    failed = [row for row in rows if row.problem is not None]
    for row in failed:
        print(f"bids_moediff: {row.problem}", file=sys.stderr)
    return ImageError.exit_code if failed else 0


def _references(rows: list[PlannedImage], settings: Settings) -> Iterator[str]:
    """One line for each image: what guides it, or why nothing does."""
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
    """What is unusual about the voxels asked for, one line for all images that it concerns."""
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
    if settings.combine == "off":
        yield from _to_combine([row.source for row in images if row.source is not None])


def _to_combine(images: list[AnatomicalImage]) -> Iterator[str]:
    """What could be combined."""
    groups, remarks = group_scans(images)
    if groups:
        more = f" (and {len(groups) - 1} more sets)" if len(groups) > 1 else ""
        files = " ".join(image.relative_path for image in groups[0].images)
        yield (
            f"{groups[0].name}{more}: {len(groups[0].images)} scans of one contrast ({files}). "
            "To combine them to one image: --combine auto."
        )
    yield from remarks


def plan_images(settings: Settings, device: str, model: str) -> Iterator[PlannedImage]:
    """One row per image, participant by participant."""
    threads = plan(settings.nprocs, settings.omp_nthreads, settings.mem).omp_nthreads
    for label in find_participants(settings):
        try:
            participant = discover_participant(settings, label)
        except ImageError as error:
            yield PlannedImage(f"sub-{label}", problem=str(error))
            continue
        for notice in participant.notices:
            print(f"bids_moediff: {notice}", file=sys.stderr)
        for image in participant.images:
            yield _plan_image(image, settings, device, model, threads)
        for group in participant.groups:
            yield _plan_group(group, settings, device, model)


def _plan_image(
    image: AnatomicalImage, settings: Settings, device: str, model: str, threads: int
) -> PlannedImage:
    try:
        shape, zooms = _header(image)
    except MoediffError as error:
        return PlannedImage(image.relative_path, problem=str(error))
    from bids_moediff.families.cost import estimate

    cost = estimate(
        shape,
        zooms,
        settings,
        model=model,
        device=device,
        threads=threads,
    )
    return PlannedImage(
        image.relative_path,
        shape,
        zooms,
        cost.shape,
        cost.job_gigabytes,
        cost.seconds,
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
        source=group,
        zooms_out=output_voxels(group, settings),
    )


def _header(image: AnatomicalImage) -> tuple[Triple, Zooms]:
    """Matrix and voxel size from the header.

    Raises
    ------
    ImageError
        if it cannot be read or is no single volume.
    """
    import nibabel as nib

    from bids_moediff.preprocessing.conform import stated_zooms

    if image.problem is not None:
        raise ImageError(image.problem)
    try:
        header: Any = nib.load(image.path).header
        shape = tuple(int(count) for count in header.get_data_shape())
        zooms = stated_zooms(header)
    except Exception as error:
        raise ImageError(
            f"{image.relative_path} is not a readable NIfTI image: {error}"
        ) from error
    if len(shape) < 3 or any(count != 1 for count in shape[3:]) or min(shape) < 1:
        raise ImageError(f"{image.relative_path} is not a single volume (matrix {shape}).")
    if not all(zoom > 0 for zoom in zooms):
        raise ImageError(f"{image.relative_path} has no voxel size in its header ({zooms}).")
    return (shape[0], shape[1], shape[2]), (zooms[0], zooms[1], zooms[2])


def _table(rows: list[PlannedImage], settings: Settings) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"What would be done in {settings.output_dir}"))
    table.add_column("image", overflow="fold")
    for heading in ("matrix in", "voxel in (mm)", "matrix out", "voxel out (mm)", "GB", "min"):
        table.add_column(heading, justify="right")
    for row in rows:
        if row.problem is not None:
            table.add_row(Text(row.name), "cannot be read")
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
