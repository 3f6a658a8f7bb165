# SPDX-License-Identifier: Apache-2.0
"""Check images before any work; run and dry run make the same checks.

Any error with one image here, expected or not, becomes a sentence on that image.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_moediff.bids.discover import (
    discover_participant,
    near_participants,
    participant_folders,
    words_on_passed,
)
from bids_moediff.bids.groups import find_groups
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.bids.listing import readable
from bids_moediff.bids.names import longest_name
from bids_moediff.bids.products import wanted_products
from bids_moediff.bids.query import LEFT_OUT
from bids_moediff.bids.statements import Sidecars
from bids_moediff.errors import ImageError, MoediffError
from bids_moediff.families.cost import Estimate, estimate
from bids_moediff.runtime.given_files import read_text
from bids_moediff.settings import Settings

LONGEST_NAME = 255  # bytes, where the file system does not say
MOST_NAMED = 5


@dataclass(frozen=True)
class Refusal:
    """An image (or a participant, without an image) that cannot be processed, and why.

    ``log`` is the traceback of an unexpected error.
    """

    label: str
    image: AnatomicalImage | None
    message: str
    log: str = ""


@dataclass(frozen=True)
class Checked:
    """A participant with the images that can be processed, and those that cannot."""

    participant: Participant
    refusals: tuple[Refusal, ...] = ()


class Remarks:
    """Remarks on the terminal, each once in a run: sidecars at the root apply to all."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, words: Sequence[str]) -> int:
        """Print new remarks on standard error and return their number."""
        new = [sentence for sentence in dict.fromkeys(words) if sentence not in self._told]
        self._told.update(new)
        for sentence in new:
            print(f"bids_moediff: {sentence}", file=sys.stderr)
        return len(new)


def check_participants(settings: Settings, labels: Sequence[str]) -> Iterator[Checked]:
    """Find participants and read the header of each image, one participant at a time.

    A run that only makes reports, or writes the methods text, needs no image.
    """
    looks = settings.stage != "report" and not settings.boilerplate_only
    sidecars = Sidecars(settings.bids_dir)
    twins = Twins(settings)
    for label in labels:
        if words := twins.of_participant(label):
            yield Checked(Participant(label, ()), (Refusal(label, None, words),))
            continue
        try:
            participant = discover_participant(settings, label, sidecars)
        except MoediffError as error:
            yield Checked(Participant(label, ()), (Refusal(label, None, str(error)),))
            continue
        refusals = [Refusal(label, None, words) for words in participant.problems]
        images = []
        for image in participant.images:
            if words := twins.of_image(image, participant.images):
                refusals.append(Refusal(label, image, words))
                continue
            try:
                images.append(check_image(image, settings) if looks else image)
            except Exception as error:
                refusals.append(refusal(label, image, error))
        found = replace(participant, images=tuple(images))
        if looks:
            found = _regrouped(found, refusals, settings)
            refusals += _lost_groups(participant, found, refusals)
        yield Checked(found, tuple(refusals))


def _regrouped(
    participant: Participant, refusals: Sequence[Refusal], settings: Settings
) -> Participant:
    """Return the participant with the groups that the remaining images form."""
    if settings.combine == "off":
        return participant
    images = list(participant.images)
    bad = [(item.image, item.message) for item in refusals]
    images += [replace(image, problem=words) for image, words in bad if image is not None]
    groups, remarks = find_groups(images, settings.combine)
    notices = tuple(dict.fromkeys((*participant.notices, *remarks)))
    return replace(participant, groups=tuple(group.image for group in groups), notices=notices)


def _lost_groups(
    before: Participant, after: Participant, refusals: Sequence[Refusal]
) -> list[Refusal]:
    """Return groups with fewer than two scans left."""
    left = {image.key for image in after.images}
    groups = {group.key for group in after.groups}
    lost = []
    for group in before.groups:
        reasons = [item.message for item in refusals if item.image in group.members]
        usable = [scan.key for scan in group.members if scan.key in left]
        if group.key not in groups:
            count = "one scan could be used" if usable else "no scan could be used"
            words = (
                f"{'; '.join(words.rstrip('.') for words in reasons)}; {count}: no combination."
            )
            lost.append(Refusal(before.label, group, words))
    return lost


def refusal(label: str, image: AnatomicalImage | None, error: Exception) -> Refusal:
    """Return the refusal for an image that an error stops; with a log if it was unexpected."""
    if isinstance(error, MoediffError):
        return Refusal(label, image, str(error))
    where = image.relative_path if image else f"sub-{label}"
    reason = readable(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    return Refusal(label, image, f"{where} cannot be used ({reason}).", traceback.format_exc())


def check_image(image: AnatomicalImage, settings: Settings) -> AnatomicalImage:
    """Return the image with matrix and voxel size.

    Raises
    ------
    ImageError
        For a file or header that cannot be processed, and for a name too long for its outputs.
    """
    from bids_moediff.preprocessing.conform import check_header

    if image.problem is not None:
        raise ImageError(image.problem)
    shape, zooms = check_header(image.path)
    size = settings.output_zooms(zooms)
    length = longest_name(image, wanted_products(settings, image), size)
    limit = name_limit(settings.output_dir)
    if length > limit:
        raise ImageError(
            f"{image.relative_path}: the name has {len(image.path.name)} characters, names of "
            f"outputs would have {length}, and the output folder takes {limit}; shorten a label."
        )
    return replace(image, shape=shape, zooms=zooms)


class Twins:
    """Names that differ in upper and lower case only, for an output folder that takes them as one.

    Parameters
    ----------
    settings
        Input, output and working directory.
    """

    def __init__(self, settings: Settings) -> None:
        folders = (settings.output_dir, settings.work_folder)
        self._places = [folder for folder in folders if ignores_case(folder)]
        self._first: dict[str, str] = {}
        if self._places:
            for label in sorted(participant_folders(settings.bids_dir)):
                self._first.setdefault(label.casefold(), label)

    def of_participant(self, label: str) -> str:
        """Return why a participant cannot be processed beside another; empty if it can."""
        first = self._first.get(label.casefold(), label)
        return "" if first == label else self._words(f"sub-{label}", f"sub-{first}")

    def of_image(self, image: AnatomicalImage, images: Sequence[AnatomicalImage]) -> str:
        """Return why an image cannot be processed beside others; empty if it can."""
        if not self._places:
            return ""
        own = image.relative_path
        same = (one.relative_path for one in images)
        first = next(name for name in same if name.casefold() == own.casefold())
        return "" if first == own else self._words(own, first)

    def _words(self, name: str, first: str) -> str:
        return (
            f"{readable(name)} differs from {readable(first)} in upper and lower case only, and "
            f"{self._places[0]} takes both for one name; give a folder on another file system."
        )


def ignores_case(folder: Path) -> bool:
    """Return whether upper and lower case are the same in a folder that need not exist yet.

    Nothing is written: a name that is there is looked up in the other case.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        names = {path.name for path in existing.iterdir()}
    except OSError:
        return False
    name = next((name for name in sorted(names) if name.swapcase() != name), "")
    return bool(name) and name.swapcase() not in names and (existing / name.swapcase()).exists()


def name_limit(folder: Path) -> int:
    """Return the longest file name (bytes) in a folder that need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        return min(os.pathconf(existing, "PC_NAME_MAX"), LONGEST_NAME)
    except (OSError, ValueError):
        return LONGEST_NAME


def cost_of(
    image: AnatomicalImage, settings: Settings, model: str, device: str, threads: int = 1
) -> Estimate:
    """Return the estimated memory and time of an image that was checked."""
    if image.shape is None or image.zooms is None:
        raise ValueError(f"{image.relative_path} was not checked")
    return estimate(
        image.shape, image.zooms, settings, model=model, device=device, threads=threads
    )


def closing_remarks(settings: Settings, participants: Sequence[Participant]) -> list[str]:
    """Print once what was skipped: contrasts, participants without an image."""
    unasked = [_not_left_out(item) for item in participants]
    remarks = [words] if (words := words_on_passed(unasked)) else []
    without = [item.label for item in participants if not item.images and not item.problems]
    if without:
        some = " ".join(f"sub-{readable(label)}" for label in without[:MOST_NAMED])
        more = f" and {len(without) - MOST_NAMED} more" if len(without) > MOST_NAMED else ""
        remarks.append(f"Without an image to process: {some}{more}.")
    if not settings.participant_label and (near := near_participants(settings.bids_dir)):
        more = f" and {len(near) - MOST_NAMED} more" if len(near) > MOST_NAMED else ""
        remarks.append(
            f"Not looked at: {' '.join(near[:MOST_NAMED])}{more}; BIDS calls the folder of a "
            "participant sub-LABEL."
        )
    if _patterns(settings.bids_dir / ".bidsignore"):
        remarks.append(
            "The .bidsignore of the data set is for validators and was not applied; to leave "
            "images out use --exclude-participant-label, --session-label or --bids-filter-file."
        )
    return remarks


def _not_left_out(participant: Participant) -> Participant:
    """Return the number of images, without those that the user left out."""
    passed = {key: count for key, count in participant.passed.items() if LEFT_OUT not in key}
    return replace(participant, passed=passed)


def _patterns(path: Path) -> list[str]:
    """Return the patterns of an ignore file."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError):
        return []
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
