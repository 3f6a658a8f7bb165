# SPDX-License-Identifier: Apache-2.0
"""Find images that an earlier run finished with the same inputs, options and weights."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.bids.past_runs import WITH_NETWORK, last_items, last_record_time, log_folder
from bids_moediff.preprocessing.as_written import open_image
from bids_moediff.preprocessing.conform import check_length
from bids_moediff.settings import Settings
from bids_moediff.workflows.made_with import OTHERS, VERSION, made_with


@dataclass(frozen=True)
class Finished:
    """Remaining work of a participant.

    Parameters
    ----------
    participant
        With the images to be processed.
    done
        Record of each image that an earlier run finished, by its key.
    again
        For images whose result is outdated: why, in words.
    report_missing
        Whether everything is done except the page.
    """

    participant: Participant
    done: Mapping[str, dict[str, Any]]
    again: Mapping[str, str]
    report_missing: bool = False


def find_finished(participant: Participant, settings: Settings, model: str) -> Finished:
    """Return the remaining work of a participant.

    Parameters
    ----------
    participant
        With images that were checked.
    settings, model
        Options of the run, and its model.
    """
    folder = log_folder(settings.output_dir, participant.label)
    last = last_items(folder)
    done, again = {}, {}
    only_combined = _members(participant.groups) if settings.combine_only else frozenset()
    for image in participant.results:
        item = last.get(image.key, {})
        if item.get("status") != "done" or item.get("source") != image.relative_path:
            continue
        before = item.get("made_with") or {}
        if reason := _why_again(before, made_with(image, settings, model)):
            again[image.key] = reason
        elif image.key in only_combined or _whole(settings.output_dir, item):
            done[image.key] = item
        else:
            again[image.key] = "an output of the earlier run is missing or cut off"
    # What is combined is made from the results of the same run: all of it, or nothing.
    for group in participant.groups:
        keys = {group.key, *_members([group])}
        if not keys <= done.keys():
            done = {key: item for key, item in done.items() if key not in keys}
    images = tuple(image for image in participant.images if image.key not in done)
    groups = tuple(group for group in participant.groups if group.key not in done)
    page = settings.output_dir / f"sub-{participant.label}.html"
    stale = not page.is_file() or page.stat().st_mtime < last_record_time(folder)
    missing = settings.stage == "all" and bool(done) and not images and stale
    return Finished(replace(participant, images=images, groups=groups), done, again, missing)


def _members(groups: Iterable[AnatomicalImage]) -> frozenset[str]:
    """Return the keys of the scans that are combined."""
    return frozenset(scan.key for group in groups for scan in group.members)


def _why_again(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return why an earlier result is outdated; empty if it is not."""
    if before.get(VERSION) != now[VERSION]:
        return f"version {before.get(VERSION, 'unknown')} of bids_moediff made the earlier result"
    changed = [name for name in OTHERS if before.get(name) != now[name]]
    return f"{' and '.join(changed)} changed since the last run" if changed else ""


def _whole(output_dir: Path, item: Mapping[str, Any]) -> bool:
    """Return True if every file that the record names exists in its full length."""
    products = item.get("products") or {}
    paths = [*products.values(), *(item.get("further") or ())]
    return bool({"sr", "srcombined"} & set(products)) and all(
        _complete(output_dir / path) for path in paths
    )


def _complete(path: Path) -> bool:
    """Return True if a product was not cut off since (a copy that stopped, a full quota)."""
    if not path.is_file() or not path.with_name(f"{path.name.split('.')[0]}.json").is_file():
        return False
    try:
        check_length(path, open_image(path))
    except Exception:  # whatever is wrong with it: it is made anew
        return False
    return True


def words_on_finished(found: Counter[str], skipped: int) -> list[str]:
    """Print what is skipped and what is done again, by reasons."""
    words = [
        f"{count} {'image is' if count == 1 else 'images are'} done again: {reason}."
        for reason, count in sorted(found.items())
    ]
    if skipped:
        they = "image was" if skipped == 1 else "images were"
        words.append(
            f"{skipped} {they} finished by an earlier run with the same inputs, options and "
            "weights, and skipped; --rerun processes finished images again."
        )
    return words


def applies(settings: Settings) -> bool:
    """Return True if finished images may be skipped in this run."""
    only = settings.rerun or settings.reports_only or settings.boilerplate_only
    return settings.stage in WITH_NETWORK and not only
