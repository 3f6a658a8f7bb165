# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-degrade``: make fine scans coarse, for training pairs and for evaluation.

``bids_moediff-degrade BIDS_DIR OUT_DIR --resolution 1 1 4 --profile kspace kspace gaussian`` makes
a raw BIDS data set; ``bids_moediff-degrade IN.nii.gz OUT.nii.gz --factor 2`` makes one image.
"""

import argparse
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff import __version__
from bids_moediff.bids.statements import read_statements
from bids_moediff.cli.common import Parser, ProgressBar, run_command, set_threads
from bids_moediff.cli.parser import add_old_spelling, add_threads
from bids_moediff.cli.places import require_image_name, require_places, sidecar_of
from bids_moediff.errors import ImageError, MoediffError, UsageError

if TYPE_CHECKING:
    from bids_moediff.bids.image import AnatomicalImage
    from bids_moediff.evaluation.degradation import Coarsening
    from bids_moediff.settings import Settings

PROGRAM = "bids_moediff-degrade"
EPILOG = """\
Numbers given three times follow the voxel axes of the image. Noise: standard deviation = median of
the head in the coarse image / SNR, Rician; the same seed gives the same bytes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(PROGRAM, _run, argv)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command; imports nothing heavy."""
    parser = Parser(
        prog=PROGRAM,
        description="Make scans coarse the way a scanner would: a BIDS data set or one image.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("input", type=Path, metavar="IN", help="BIDS data set or NIfTI image")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder or NIfTI image to write")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--resolution", type=float, nargs="+", metavar="MM", help="voxel size: one or three"
    )
    size.add_argument(
        "--factor", type=float, nargs="+", metavar="F", help="voxel ratio: one or three"
    )
    how = parser.add_argument_group("acquisition")
    how.add_argument(
        "--profile",
        nargs="+",
        default=["kspace"],
        metavar="NAME",
        help="kspace (default), gaussian or box: one or three",
    )
    how.add_argument("--thickness", type=float, metavar="MM", help="slice thickness")
    how.add_argument("--gap", type=float, metavar="MM", help="gap between slices")
    how.add_argument("--add-noise", type=float, metavar="SNR", help="add Rician noise")
    add_old_spelling(how, "--noise", "add_noise", convert=float)
    how.add_argument(
        "--random-seed", type=int, default=0, metavar="N", help="of the noise (default 0)"
    )
    add_old_spelling(how, "--seed", "random_seed", convert=int)
    which = parser.add_argument_group("which images of a data set")
    which.add_argument("--participant-label", nargs="+", metavar="LABEL", default=[])
    which.add_argument("--session-label", nargs="+", metavar="LABEL", default=[])
    which.add_argument("--modalities", nargs="+", metavar="SUFFIX", default=[])
    which.add_argument("--skip-bids-validation", action="store_true")
    add_threads(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _run(argv: list[str]) -> int:
    options = build_parser().parse_intermixed_args(argv)
    recipe_values = _recipe_values(options)
    set_threads(options.omp_nthreads)
    from bids_moediff.evaluation.degradation import Coarsening

    recipe = Coarsening(**recipe_values)
    if options.input.name.endswith((".nii", ".nii.gz")) and not options.input.is_dir():
        return run_image(options, recipe)
    return run_dataset(options, recipe)


def _three(values: Sequence[Any] | None, name: str) -> tuple[Any, Any, Any] | None:
    if values is None:
        return None
    if len(values) not in (1, 3):
        raise UsageError(f"{name} takes one value or three, not {len(values)}.")
    first, second, third = [*values] * 3 if len(values) == 1 else values
    return (first, second, third)


def _recipe_values(options: argparse.Namespace) -> dict[str, Any]:
    """Return fields of the recipe, checked before anything heavy is imported."""
    resolution, factors = (
        _three(options.resolution, "--resolution"),
        _three(options.factor, "--factor"),
    )
    profiles = _three(options.profile, "--profile")
    for profile in profiles or ():
        if profile not in ("kspace", "gaussian", "box"):
            raise UsageError(f"--profile {profile}: choose kspace, gaussian or box.")
    if resolution and not all(0.1 <= size <= 50 for size in resolution):
        raise UsageError("--resolution: voxel sizes must lie between 0.1 and 50 mm.")
    if factors and not all(1 <= factor <= 20 for factor in factors):
        raise UsageError("--factor: ratios must lie between 1 and 20.")
    if options.thickness is not None and options.gap is not None:
        raise UsageError("Give --thickness or --gap, not both.")
    if options.thickness is not None and not options.thickness > 0:
        raise UsageError("--thickness must be a positive number of mm.")
    if options.gap is not None and not options.gap >= 0:
        raise UsageError("--gap must not be negative.")
    if options.add_noise is not None and not options.add_noise > 0:
        raise UsageError("--add-noise is a signal-to-noise ratio: a positive number.")
    if options.random_seed < 0 or options.omp_nthreads < 1:
        raise UsageError("--random-seed must be at least 0, --omp-nthreads at least 1.")
    return {
        "resolution": resolution,
        "factors": factors,
        "profiles": profiles,
        "thickness": options.thickness,
        "gap": options.gap,
        "signal_to_noise": options.add_noise,
        "seed": options.random_seed,
    }


def run_image(options: argparse.Namespace, recipe: "Coarsening") -> int:
    """Make one image coarse and write it with a sidecar."""
    require_image_name(options.output)
    sidecar = sidecar_of(options.input)
    reads = {options.input: "the input", sidecar: "the sidecar of the input"}
    require_places(reads, [options.output, sidecar_of(options.output)])
    metadata: dict[str, Any] = {}
    if os.path.lexists(sidecar):
        metadata, remarks = read_statements(sidecar, sidecar.name)
        for words in remarks:
            print(f"Warning: {words}", file=sys.stderr)
    _write(options.input, options.output, recipe, metadata, 0)
    return 0


def _write(
    source: Path, target: Path, recipe: "Coarsening", metadata: dict[str, Any], key: int
) -> None:
    from bids_moediff.evaluation.degradation import degrade, updated_sidecar
    from bids_moediff.preprocessing.conform import conform
    from bids_moediff.runtime.sink import write_json, write_nifti

    image, _ = conform(source)
    coarse, record = degrade(image, recipe, key)
    write_json(updated_sidecar(metadata, record), sidecar_of(target))
    write_nifti(coarse, target)


def run_dataset(options: argparse.Namespace, recipe: "Coarsening") -> int:
    """Make all anatomical images of a data set coarse; return 1 if some failed."""
    from bids_moediff.bids.dataset import check_input
    from bids_moediff.bids.discover import (
        discover_participant,
        find_participants,
        nothing_to_process,
    )
    from bids_moediff.bids.raw_dataset import check_raw_output, finish_raw, prepare_raw

    settings = _settings(options)
    check_input(settings)
    check_raw_output(settings, PROGRAM)
    labels = find_participants(settings)
    images: list[AnatomicalImage] = []
    problems: list[str] = []
    for label in labels:
        try:
            found = discover_participant(settings, label)
            images += found.images
            problems += found.problems
        except ImageError as error:
            problems.append(f"sub-{label}: {error}")
    if not images and not problems:
        raise nothing_to_process(settings)
    prepare_raw(settings, PROGRAM)
    progress = ProgressBar(len(images), "image")
    for image in images:
        try:
            if image.problem:
                raise ImageError(image.problem)
            relative = image.relative_path.removesuffix(".gz") + ".gz"
            key = zlib.crc32(image.relative_path.encode())
            _write(image.path, settings.output_dir / relative, recipe, dict(image.metadata), key)
            progress(image.relative_path)
        except Exception as error:  # whatever it is, it costs this image alone
            words = error if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
            problems.append(f"{image.relative_path}: {words}")
            progress()
    progress.close()
    finish_raw(settings)
    for problem in problems:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
    return MoediffError.exit_code if problems else 0


def _settings(options: argparse.Namespace) -> "Settings":
    from bids_moediff.settings import load_settings

    given = {
        "bids_dir": options.input,
        "output_dir": options.output,
        "analysis_level": "participant",
        "participant_label": options.participant_label,
        "session_label": options.session_label,
        "modalities": options.modalities,
        "skip_bids_validation": options.skip_bids_validation,
    }
    return load_settings(given, environment={})


if __name__ == "__main__":
    sys.exit(main())
