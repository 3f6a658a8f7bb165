# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-superres``: restore images by one network, in its own process.

Two ways to call it: ``--request request.json --results results.json`` for all images of a
participant (the model is loaded once; the app does this), or ``IN.nii.gz OUT.nii.gz`` as a plain
tool. Several inputs are combined into one output.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_moediff import __version__
from bids_moediff.cli.common import Parser, run_command, unknown_option
from bids_moediff.cli.parser import add_old_spelling, add_options, given
from bids_moediff.cli.places import (
    BESIDE,
    remove_earlier,
    require_image_name,
    require_places,
    require_record,
    same_file,
    sidecar_of,
    stem,
)
from bids_moediff.converters import from_noise_strength
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.options import Options
from bids_moediff.settings import Settings

PROGRAM = "bids_moediff-superres"
CALL = f"{PROGRAM} IN.nii.gz OUT.nii.gz"
RESTORATION = (
    "output_resolution", "acquired_resolution", "slice_profile", "slice_thickness", "noise",
    "random_seed", "num_steps", "num_samples", "sample", "sampler", "planes", "consistency",
    "self_ensemble", "in_plane_refit", "non_negative", "output_dtype",
)  # fmt: skip
MODEL = ("model", "weights", "precision", "batch_size")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command; imports nothing heavy."""
    parser = Parser(
        prog=PROGRAM,
        description="Super-resolve one image, or a batch of images described by a request file.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="IN ... OUT",
        help="NIfTI image, or several scans of one subject and contrast, which are combined; last "
        "the image to write",
    )
    batch = parser.add_argument_group("batch of images")
    batch.add_argument("--request", type=Path, help="JSON file that lists the images")
    batch.add_argument("--results", type=Path, help="JSON file to write, one entry an image")
    one = parser.add_argument_group("one image")
    one.add_argument("--mask", type=Path, help="brain mask on the grid of the image")
    one.add_argument(
        "--reference",
        dest="reference_file",
        type=Path,
        metavar="FILE",
        help="another contrast of the same subject, on any grid, that guides --model crfm",
    )
    one.add_argument(
        "--carry",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="MAP",
        help="masks, label maps or fractions on the grid of IN, written beside OUT on its grid; "
        "takes every name that follows, so IN and OUT come first",
    )
    one.add_argument(
        "--json-progress",
        action="store_true",
        help="progress as lines of JSON on standard error, for programs",
    )
    add_options(one, RESTORATION)
    add_old_spelling(one, "--zooms", "output_resolution", nargs="+")
    add_old_spelling(one, "--seed", "random_seed")
    add_old_spelling(one, "--noise-strength", "sample", convert=from_noise_strength)
    both = parser.add_argument_group("model and device")
    add_options(both, MODEL)
    add_options(both, ("device",), of=Settings)
    parser.add_argument(
        "--check-model", action="store_true", help="load the model, say what it is, and stop"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(PROGRAM, _run, argv)


def _run(argv: list[str]) -> int:
    from bids_moediff.runtime.platform import (
        PARENT_VARIABLE,
        die_with_parent,
        keep_freed_memory,
    )

    parser = build_parser()
    namespace, unknown = parser.parse_known_args(argv)
    if namespace.carry and len(namespace.paths) < 2 and not namespace.request:
        raise UsageError(
            "--carry takes every name that follows it, so IN and OUT come first: "
            f"{CALL} --carry MAP ..."
        )
    if unknown:
        raise UsageError(f"{unknown_option(unknown[0], parser)} The call is {CALL}.")
    *namespace.inputs, namespace.output = namespace.paths or [None]
    if namespace.request or namespace.check_model:
        waiting = int(os.environ.get(PARENT_VARIABLE, "0"))
        die_with_parent(waiting or None)  # before torch is loaded, which takes seconds
    else:  # mistakes in names need no torch to be noticed
        _check_swallowed(namespace)
        _check_places(namespace)
    from bids_moediff.inference.worker import STOP, stop

    keep_freed_memory()
    STOP.clear()
    signal.signal(signal.SIGTERM, stop)
    typed = _typed(namespace)
    if namespace.check_model:
        return check_model(typed)
    if namespace.request:
        return run_batch(namespace, typed)
    if len(namespace.inputs) > 1:
        return run_several(namespace, typed)
    return run_single(namespace, typed)


def _check_swallowed(namespace: argparse.Namespace) -> None:
    """UsageError if an option that takes several words has taken the files too."""
    for name, value in vars(namespace).items():
        words = [str(word) for word in value] if isinstance(value, list) else []
        both = [word for word in words[-2:] if word.endswith((".nii", ".nii.gz"))]
        if not namespace.paths and len(words) > 2 and len(both) == 2 and name != "paths":
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} takes every word that follows, the files too; write the files first: "
                f"{PROGRAM} {' '.join(both)} {option} {' '.join(words[:-2])}."
            )


def _typed(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the options that were given; UsageError for a wrong one."""
    from bids_moediff.inference.worker import named_devices

    named_devices(namespace.device or "auto")
    words = given(namespace, Options.names())
    if "model" in words and "/" in words["model"]:
        print(f"{PROGRAM}: --model FOLDER is now called --weights FOLDER.", file=sys.stderr)
        words["weights"] = words.pop("model")
    options = Options.from_dict(words, "")
    return {name: getattr(options, name) for name in words}


def check_model(typed: dict[str, Any]) -> int:
    """Print the model; a separate process keeps torch out of the one that forks."""
    from bids_moediff.families.choice import choose
    from bids_moediff.families.load import load_model

    model = load_model(choose(Options(**typed), "cpu").model)
    version = model.config.get("version", "unknown")
    print(f"{model.name}, version {version}, SHA-256 {model.sha256[:12]}…")
    return 0


def run_batch(namespace: argparse.Namespace, typed: dict[str, Any]) -> int:
    """Process a request file; return 0 if every image was done, 1 if some failed."""
    from bids_moediff.inference.batch import run_request
    from bids_moediff.inference.request import Request
    from bids_moediff.inference.worker import ProgressLines, with_typed

    if not namespace.results:
        raise UsageError("--request needs --results FILE as well.")
    request = with_typed(Request.read(namespace.request), typed, namespace.device)
    return run_request(request, namespace.results, ProgressLines(sys.stdout, follow_parent=True))


def run_single(namespace: argparse.Namespace, typed: dict[str, Any]) -> int:
    """Restore one image and write it with its record: the plain tool."""
    options = _with_samples(Options(**typed))
    _check_places(namespace, options.num_samples)
    (source,), output = namespace.inputs, namespace.output
    from bids_moediff.imaging.grid import NOT_RESTORED
    from bids_moediff.imaging.map_images import carry_images
    from bids_moediff.inference.simple import restore
    from bids_moediff.inference.worker import Scan
    from bids_moediff.preprocessing.conform import conform
    from bids_moediff.runtime.sink import write_json, write_nifti

    image, remarks = conform(source)
    statements, unusable = _sidecar(source)
    mask = _mask(namespace.mask, image) if namespace.mask else None
    maps = _maps_to_carry(namespace, image)
    progress, close = _progress(namespace.json_progress)
    try:
        result = restore(
            Scan(image, mask),
            options,
            metadata=statements,
            device=namespace.device or "auto",
            progress=progress,
            key=source.name,
            reference=conform(namespace.reference_file)[0] if namespace.reference_file else None,
        )
    finally:
        close()
    result.record["Warnings"] = [*remarks, *unusable, *result.record["Warnings"]]
    step = _storage_step(result, options.output_dtype)
    write_nifti(result.image, output, step=step)
    if step is not None:
        result.record["IntensityStep"] = step
    # Samples, their standard deviation, and carried maps.
    beside = {
        output.with_name(f"{stem(output)}_{key}.nii.gz"): result.maps[key] for key in result.maps
    }
    beside |= dict(zip(maps, carry_images(list(maps.values()), result.image), strict=True))
    for path, made in beside.items():
        write_nifti(made, path)
    remove_earlier(output, list(beside), _reads(namespace))
    result.record[BESIDE] = [path.name for path in beside]
    write_json(result.record, sidecar_of(output))
    for words in result.record["Warnings"]:
        print(f"Warning: {words}", file=sys.stderr)
    size = " x ".join(f"{zoom:.4g}" for zoom in result.record["OutputVoxelSize"])
    untouched = NOT_RESTORED in result.record["Warnings"]
    how = "not restored" if untouched else f"by {result.record['Model']}"
    print(f"{output}: {size} mm, {how}", file=sys.stderr)
    return 0


def _with_samples(options: Options) -> Options:
    """Return the options with the samples that are drawn written."""
    if options.num_samples > 1:
        return replace(options, sample=options.sample or "posterior")
    return options


def _storage_step(result: Any, wanted: str) -> float | None:
    """Return the step in which the noise allows a result to be stored; None for floats."""
    import numpy as np

    from bids_moediff.imaging.storage import storage_step

    if wanted != "auto":
        return None
    largest = float(np.abs(np.asarray(result.image.dataobj)).max())
    return storage_step(result.record.get("EstimatedNoise", 0.0), largest)


def run_several(namespace: argparse.Namespace, typed: dict[str, Any]) -> int:
    """Combine scans of one subject and contrast; write volume, record and count of scans."""
    sources, output = namespace.inputs, namespace.output
    _check_places(namespace)
    if os.path.lexists(output):
        raise UsageError(
            f"{output} exists. The last of several images is the one to write: name another one, "
            "or remove it."
        )
    if namespace.mask or namespace.carry or namespace.reference_file:
        raise UsageError(
            "--mask, --carry and --reference go with one image; several are combined without."
        )
    if Options(**typed).draws_samples:
        raise UsageError("--num-samples and --sample go with one image; several are combined.")
    from bids_moediff.inference.simple import restore_several
    from bids_moediff.inference.worker import Scan
    from bids_moediff.preprocessing.conform import conform
    from bids_moediff.runtime.sink import write_json, write_nifti

    conformed = [conform(source) for source in sources]
    sidecars = [_sidecar(source) for source in sources]
    progress, close = _progress(namespace.json_progress)
    try:
        result = restore_several(
            [Scan(image) for image, _ in conformed],
            Options(**typed),
            metadata=[statements for statements, _ in sidecars],
            device=namespace.device or "auto",
            progress=progress,
            keys=_keys(sources),
        )
    finally:
        close()
    remarks = [
        f"{source.name}: {words}"
        for source, (_, found), (_, unusable) in zip(sources, conformed, sidecars, strict=True)
        for words in (*found, *unusable)
    ]
    result.record["Warnings"] = [*remarks, *result.record["Warnings"]]
    write_nifti(result.combined.image, output)
    write_nifti(result.combined.count, output.with_name(f"{stem(output)}_srcount.nii.gz"))
    write_json(result.record, sidecar_of(output))
    for words in result.record["Warnings"]:
        print(f"Warning: {words}", file=sys.stderr)
    size = " x ".join(f"{zoom:.4g}" for zoom in result.record["OutputVoxelSize"])
    used = sum(scan.kept for scan in result.combined.scans)
    print(f"{output}: {size} mm, from {used} of {len(sources)} scans", file=sys.stderr)
    return 0


def _keys(sources: Sequence[Path]) -> list[str]:
    """Return the names of scans: those of the files, or whole paths if two are alike."""
    names = [source.name for source in sources]
    return names if len(set(names)) == len(names) else [str(source) for source in sources]


def _check_places(namespace: argparse.Namespace, samples: int = 0) -> None:
    """Raise UsageError for a missing file, or for an output that would replace an input."""
    from bids_moediff.bids.dataset import holds_dicom, is_dicom

    sources, output = namespace.inputs, namespace.output
    if not sources or not output:
        raise UsageError(f"Two files are needed: {CALL}.")
    require_image_name(output)
    for source in sources:
        if holds_dicom(source) if source.is_dir() else is_dicom(source):
            raise UsageError(f"{source} is DICOM. Convert it first, for example with dcm2niix.")
        if source.is_dir():
            raise UsageError(
                f"{source} is a folder: name one NIfTI file of it. For a BIDS data set there is "
                f"bids_moediff {source} OUT participant."
            )
        if not os.path.lexists(source) and output.exists():
            raise UsageError(f"{source} does not exist, but {output} does. The input comes first.")
    for path in filter(None, [*sources, namespace.mask, namespace.reference_file]):
        if not os.path.lexists(path):
            raise ImageError(f"{path} does not exist.")
    several = len(sources) > 1
    for place, source in enumerate(sources):
        if os.path.realpath(source) in map(os.path.realpath, sources[:place]):
            raise UsageError(
                f"{source} is named twice among the scans to combine: name each scan once."
            )
    reference = namespace.reference_file
    if reference and any(same_file(source, reference) for source in sources):
        raise UsageError(
            f"{reference} is the input: a reference is another contrast of the same subject."
        )
    beside = ["srcount"] if several else [stem(path) for path in namespace.carry]
    beside += [f"sample_{number + 1}" for number in range(min(samples, 1000))]
    beside += ["srstd"] if samples > 1 else []
    names = dict.fromkeys(f"{stem(output)}_{name}.nii.gz" for name in beside)
    require_places(_reads(namespace), [output, sidecar_of(output), *map(output.with_name, names)])
    require_record(output, "OutputVoxelSize")


def _reads(namespace: argparse.Namespace) -> dict[Path, str]:
    """Return what each file is that a call reads."""
    sources = namespace.inputs
    reads = dict.fromkeys(sources, "the input")
    reads |= dict.fromkeys(map(sidecar_of, sources), "the sidecar of the input")
    reads |= dict.fromkeys(namespace.carry, "a map to carry")
    if namespace.mask:
        reads[namespace.mask] = "the mask"
    if namespace.reference_file:
        reads[namespace.reference_file] = "the reference"
    return reads


def _mask(path: Path, image: Any) -> Any:
    """Return the brain mask on the grid of the image.

    Raises
    ------
    UsageError
        For a mask on another grid, or an image that is not a mask.
    """
    import numpy as np

    from bids_moediff.preprocessing.conform import conform

    mask = conform(path, scan=False)[0]
    if mask.shape != image.shape or not np.allclose(mask.affine, image.affine, atol=0.01):
        sizes = [" x ".join(map(str, grid.shape)) for grid in (mask, image)]
        if mask.shape == image.shape:
            raise UsageError(
                f"The mask {path.name} has the matrix of the image, but by its header it lies "
                "elsewhere (another affine): resample it to the grid of the image."
            )
        raise UsageError(
            f"The mask {path.name} ({sizes[0]}) is not on the grid of the image ({sizes[1]})."
        )
    values = np.unique(np.asarray(mask.dataobj))
    if len(values) > 2 and (values[0] < 0 or values[-1] > 1):
        raise UsageError(f"{path.name} has {len(values):,} different values; a mask has 0 and 1.")
    return mask


def _sidecar(source: Path) -> tuple[dict[str, Any], list[str]]:
    """Return statements of the BIDS sidecar beside an image, and a remark on each unusable one."""
    from bids_moediff.bids.statements import read_statements

    path = sidecar_of(source)
    return read_statements(path, path.name) if os.path.lexists(path) else ({}, [])


def _progress(
    as_json: bool,
) -> tuple[Callable[[str | None, str, float], None], Callable[[], None]]:
    """Return functions for the progress and for the end: bars, or lines for programs."""
    if as_json:
        from bids_moediff.inference.worker import ProgressLines

        return ProgressLines(sys.stderr, follow_parent=False), lambda: None
    from bids_moediff.execution.progress import open_display
    from bids_moediff.inference.worker import check_stop

    display = open_display(sys.stderr)

    def show(key: str | None, stage: str, fraction: float) -> None:
        check_stop()
        if key is not None:
            display.show({"key": key, "stage": stage, "fraction": fraction})

    return show, display.close


def _maps_to_carry(namespace: argparse.Namespace, image: Any) -> dict[Path, Any]:
    """Return maps of ``--carry`` by the path to write, ``OUT_<name of the map>``.

    Other maps are named on the terminal.
    """
    from bids_moediff.imaging.map_images import read_map

    start, maps = stem(namespace.output), {}
    for source in namespace.carry:
        path = namespace.output.with_name(f"{start}_{stem(source)}.nii.gz")
        if not source.is_file():
            raise UsageError(f"--carry {source}: not a file.")
        if path in maps:
            raise UsageError(f"--carry: two maps have the name {source.name}.")
        try:
            maps[path] = read_map(source, image.shape, image.affine)
        except ImageError as error:
            print(f"{PROGRAM}: not carried: {error}.", file=sys.stderr)
    return maps


if __name__ == "__main__":
    sys.exit(main())
