# SPDX-License-Identifier: Apache-2.0
"""Offer right and wrong references as a user would: registered first, then refused or used.

    python -m research.references.door SHARED_DATA MODEL [--subject sub-01] [--labels NAME ...]

For each image: each reference is registered from both sides, its edges are compared, and the gain
over the model without a reference is measured in the middle of the head. Prints tab-separated
rows: image, reference, overlap, weight, gain if it counts in full, gain with its weight as in the
product (0 where it is refused).
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib

from bids_moediff.evaluation.benchmark import Task
from bids_moediff.imaging.metrics import psnr
from bids_moediff.imaging.reference import use_reference
from bids_moediff.inference.super_resolver import SuperResolver

from .measure import Pair, Remembered, rendered_pairs, restore, sessions, wrong

STRANGERS = ("niimath_T1w",)


@dataclass(frozen=True)
class Offer:
    """An image as it was scanned, its middle block with the truth, and references for it."""

    name: str
    scan: nib.Nifti1Image
    task: Task
    references: Mapping[str, nib.Nifti1Image]


def real_offers(shared: Path, subject: str, side: int) -> Iterator[Offer]:
    """Yield every image but the T1w, four times coarser in plane, with the T1w and wrong ones."""
    strangers = {name: nib.nifti1.load(shared / f"t1w/{name}.nii.gz") for name in STRANGERS}
    for session in sessions(shared / "bids_mini" / subject, side):
        task, right = session.task(), session.reference
        references = {"right": right} | wrong(Pair("", task, right, right))
        del references["another subject's"]
        yield Offer(session.name, session.scan, task, references | strangers)


def rendered_offers(shared: Path, names: list[str], side: int) -> Iterator[Offer]:
    """Yield label maps in two contrasts each."""
    for pair in rendered_pairs(shared, side, names):
        references = {"right": pair.reference} | wrong(pair)
        yield Offer(pair.name, pair.task.coarse_image, pair.task, references)


def judge(resolver: SuperResolver, offer: Offer) -> None:
    """Print a row for each reference."""
    task = offer.task

    def value(reference: nib.Nifti1Image | None, weight: float = 1.0) -> float:
        return psnr(restore(resolver, task, reference, weight), task.truth, task.mask)

    base = value(None)
    for name, reference in offer.references.items():
        choice = use_reference(offer.scan, reference)
        overlap, weight = (choice.record.get(key, 0.0) for key in ("EdgeOverlap", "Weight"))
        moved = None if choice.aligned is None else choice.aligned.image
        gains = [value(moved, share) - base for share in (1.0, weight)]
        print(
            f"{offer.name}\t{name}\t{overlap:.3f}\t{weight:.2f}\t"
            + "\t".join(f"{gain:+.3f}" for gain in gains),
            flush=True,
        )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("model")
    parser.add_argument("--subject", nargs="*", default=[])
    parser.add_argument("--labels", nargs="*", default=[])
    parser.add_argument("--side", type=int, default=72)
    options = parser.parse_args()
    resolver = SuperResolver.from_pretrained(options.model, "cpu")
    resolver.restorer.base = Remembered(resolver.restorer.base)  # type: ignore[attr-defined]
    for subject in options.subject:
        side = 2 * options.side if subject == "sub-03" else options.side
        for offer in real_offers(options.shared, subject, side):
            judge(resolver, offer)
    for offer in rendered_offers(options.shared, options.labels, options.side):
        judge(resolver, offer)


if __name__ == "__main__":
    main()
