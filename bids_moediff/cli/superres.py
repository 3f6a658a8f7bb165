# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-superres``: images through one network, in a process of its own.

Two ways to call it: ``--request request.json --results results.json`` for all images of a
participant (the model is loaded once; this is what the app does), or ``IN.nii.gz OUT.nii.gz
--zooms 0.7`` as a plain tool.

The results file is rewritten after every image. A key that it already holds as done or failed
is not processed again, so a run that was killed half-way is continued by the same command; the
key that was under way reads ``"running"``.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff import __version__
from bids_moediff.errors import ImageError, MoediffError, UsageError

if TYPE_CHECKING:
    from bids_moediff.inference.super_resolver import Result, SuperResolver

DEFAULTS: dict[str, Any] = {
    "model": "auto",
    "model_reason": "",
    "device": "auto",
    "precision": "auto",
    "seed": 0,
    "num_steps": None,
    "num_samples": 1,
    "noise_strength": 0.0,
    "planes": 1,
    "consistency": "end",
    "batch_size": None,
    "want_gates": False,
    "want_deviation": False,
}
ENHANCE_OPTIONS = (
    "seed", "num_samples", "num_steps", "noise_strength", "planes", "consistency", "batch_size",
)  # fmt: skip
IMAGE_KEYS = ("key", "image", "zooms", "out_dir")
TERMINATED = 128 + signal.SIGTERM
STOP = threading.Event()


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command; imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="bids_moediff-superres",
        description="Super-resolve one image, or a batch of images described by a request file.",
    )
    parser.add_argument("input", nargs="?", type=Path, metavar="IN", help="NIfTI image")
    parser.add_argument("output", nargs="?", type=Path, metavar="OUT", help="NIfTI image to write")
    batch = parser.add_argument_group("batch of images")
    batch.add_argument("--request", type=Path, help="JSON file that lists the images")
    batch.add_argument("--results", type=Path, help="JSON file to write, one entry an image")
    one = parser.add_argument_group("one image")
    one.add_argument(
        "--zooms", type=float, nargs="+", metavar="MM", help="voxel size asked for: one or three"
    )
    one.add_argument("--mask", type=Path, help="brain mask on the grid of the image")
    one.add_argument(
        "--carry", type=Path, nargs="+", default=[], metavar="MAP",
        help="masks, label maps or fractions on the grid of IN, written beside OUT on its grid",
    )  # fmt: skip
    one.add_argument(
        "--acquired-resolution", nargs="+", metavar="MM",
        help="voxel size that was measured: auto (default), header, one or three sizes in mm",
    )  # fmt: skip
    one.add_argument("--slice-profile", help="auto, kspace, gaussian or box: the coarsest axis")
    one.add_argument("--slice-thickness", metavar="MM", help="slice thickness in mm")
    one.add_argument("--seed", type=int, help="random seed (default 0)")
    one.add_argument("--num-steps", type=int, help="sampling steps (default: the model's)")
    one.add_argument("--num-samples", type=int, help="samples to average (default 1)")
    one.add_argument("--noise-strength", type=float, help="0 (fidelity) to 1 (texture)")
    one.add_argument(
        "--planes", type=int, choices=(1, 3), help="slice orientations to average (default 1)"
    )
    one.add_argument(
        "--consistency",
        choices=("end", "each-step"),
        help="when to make the result agree with the scan (default end)",
    )
    both = parser.add_argument_group("model and device")
    both.add_argument("--model", help="name or folder of the model")
    both.add_argument("--device", help="auto, cpu, cuda, cuda:N or several of them with commas")
    both.add_argument("--precision", help="auto, fp32, bf16 or fp16")
    both.add_argument("--batch-size", type=int, help="slices at a time")
    parser.add_argument(
        "--check-model", action="store_true", help="load the model, say what it is, and stop"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; gives the exit code."""
    from bids_moediff.runtime.platform import keep_freed_memory

    options = build_parser().parse_args(argv)
    keep_freed_memory()
    STOP.clear()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if options.check_model:
            return check_model(options)
        if options.request:
            return run_request(options)
        return run_single(options)
    except MoediffError as error:
        print(f"bids_moediff-superres: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _terminate(_signal: int, _frame: Any) -> None:
    # An exception, so that every "finally" runs and no temporary file stays behind. Python drops
    # one that is raised while it collects garbage; the flag outlives that.
    STOP.set()
    check_stop()


def check_stop() -> None:
    """Leave if the process was told to."""
    if STOP.is_set():
        raise SystemExit(TERMINATED)


def check_model(options: argparse.Namespace) -> int:
    """Print what the model is; a process of its own keeps torch out of the one that forks."""
    from bids_moediff.families.choice import choose
    from bids_moediff.families.load import load_model

    model = load_model(choose(options.model or "auto", "cpu").model)
    version = model.config.get("version", "unknown")
    print(f"{model.name}, version {version}, SHA-256 {model.sha256[:12]}…")
    return 0


def run_request(options: argparse.Namespace) -> int:
    """Process a request file: 0 if every image was done, 1 if some failed."""
    if not options.results:
        raise UsageError("--request needs --results FILE as well.")
    request = load_request(options.request)
    request.update(_given(options))
    results = Results(options.results)
    progress = ProgressLines(sys.stdout, follow_parent=True)
    todo = [entry for entry in request["images"] if not results.settled(entry["key"])]
    if todo:
        with _device(request["device"], progress) as device:
            progress(None, "loading", 0.0)
            resolver = _load(request, device)
            for entry in todo:
                results.set(entry["key"], {"status": "running"})
                results.set(entry["key"], _attempt(resolver, request, entry, progress))
    failed = [key for key, item in results.items.items() if item["status"] != "done"]
    return 1 if failed else 0


def load_request(path: Path) -> dict[str, Any]:
    """Read and check a request file; options that are absent get their defaults."""
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The request file {path.name} cannot be read: {error}.") from error
    if not isinstance(request, dict) or not isinstance(request.get("images"), list):
        raise UsageError(f"The request file {path.name} has no list 'images'.")
    unknown = sorted(set(request) - set(DEFAULTS) - {"images"})
    if unknown:
        raise UsageError(f"The request file {path.name} has unknown keys: {', '.join(unknown)}.")
    for entry in request["images"]:
        missing = [key for key in IMAGE_KEYS if key not in entry]
        if missing:
            raise UsageError(f"An image of {path.name} lacks {', '.join(missing)}.")
    return {**DEFAULTS, **request}


class Results:
    """The results file, written whole and atomically at every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.items: dict[str, dict[str, Any]] = {}
        if path.exists():
            self.items = json.loads(path.read_text(encoding="utf-8"))

    def settled(self, key: str) -> bool:
        """Whether the image needs no further attempt."""
        return self.items.get(key, {}).get("status") in ("done", "failed")

    def set(self, key: str, item: dict[str, Any]) -> None:
        """Record one image and write the file."""
        from bids_moediff.runtime.sink import write_json

        self.items[key] = item
        write_json(self.items, self.path)


class ProgressLines:
    """One JSON object a line: key, stage, fraction (0 to 1); at most one line per percent."""

    def __init__(self, stream: Any, *, follow_parent: bool) -> None:
        self._stream = stream
        self._parent = os.getppid() if follow_parent else None
        self._last: tuple[Any, ...] = ()

    def __call__(self, key: str | None, stage: str, fraction: float) -> None:
        """Say how far the image is; leaves if the process that asked for it is gone."""
        check_stop()
        if self._parent is not None and os.getppid() != self._parent:
            raise SystemExit(TERMINATED)
        if (line := (key, stage, int(100 * fraction))) != self._last:
            self._last = line
            text = json.dumps({"key": key, "stage": stage, "fraction": round(fraction, 4)})
            print(text, file=self._stream, flush=True)


def _attempt(
    resolver: "SuperResolver",
    request: dict[str, Any],
    entry: dict[str, Any],
    progress: ProgressLines,
) -> dict[str, Any]:
    """Result entry of one image; nothing but a request to stop escapes."""
    try:
        return _enhance_entry(resolver, request, entry, progress)
    except MoediffError as error:
        return {"status": "failed", "message": str(error)}
    except Exception as error:
        if _is_out_of_memory(error):
            return {"status": "failed", "message": memory_sentence(request, entry)}
        import traceback

        traceback.print_exc()
        reason = " ".join(str(error).split())[:300]
        message = f"Super-resolution failed unexpectedly ({type(error).__name__}: {reason})."
        return {"status": "failed", "message": message}


def _enhance_entry(
    resolver: "SuperResolver",
    request: dict[str, Any],
    entry: dict[str, Any],
    progress: ProgressLines,
) -> dict[str, Any]:
    import nibabel as nib

    from bids_moediff.runtime.platform import peak_memory_gb
    from bids_moediff.runtime.sink import write_json, write_nifti

    key, folder = entry["key"], Path(entry["out_dir"])

    def optional(name: str) -> Any:
        return nib.Nifti1Image.from_filename(entry[name]) if entry.get(name) else None

    started = time.monotonic()
    image = nib.Nifti1Image.from_filename(entry["image"])
    result = _enhance(
        resolver,
        image,
        optional("mask"),
        optional("bias_field"),
        entry,
        want_gates=request["want_gates"],
        want_deviation=request["want_deviation"],
        progress=partial(progress, key),
        **{name: request[name] for name in ENHANCE_OPTIONS},
    )
    folder.mkdir(parents=True, exist_ok=True)
    products = {"sr": result.image, "gates": result.gates, "std": result.standard_deviation}
    files = {}
    for name, product in products.items():
        if product is not None:
            files[name] = str(folder / f"{name}.nii")  # read once, soon: packing takes longer
            write_nifti(product, Path(files[name]))
    record = {**result.record, "ModelChoice": request["model_reason"]}
    write_json(record, folder / "record.json")
    progress(key, "done", 1.0)
    seconds = round(time.monotonic() - started, 3)
    return {
        "status": "done",
        "message": "",
        "files": files,
        "record": record,
        "seconds": seconds,
        "peak_memory_gb": peak_memory_gb(),
    }


def _enhance(
    resolver: "SuperResolver",
    image: Any,
    mask: Any,
    bias_field: Any,
    entry: dict[str, Any],
    **options: Any,
) -> "Result":
    """From the voxels that were measured, sampled as the request or the sidecar's keys say."""
    import numpy as np

    from bids_moediff.imaging.acquisition import Acquisition
    from bids_moediff.imaging.grid import voxel_sizes
    from bids_moediff.inference.warnings import residual_warning
    from bids_moediff.preprocessing.measured_voxels import (
        Declared,
        declared_acquisition,
        find_measured,
    )

    measured = find_measured(image, mask, bias_field, entry.get("acquired") or "auto")
    if entry.get("acquisition"):
        told = Declared(Acquisition.from_dict(entry["acquisition"]), "option")
    else:
        told = declared_acquisition(
            measured,
            entry.get("metadata") or {},
            entry.get("slice_profile") or "auto",
            entry.get("slice_thickness"),
        )
    result = resolver.enhance(
        measured.image,
        tuple(entry["zooms"]),
        mask=measured.mask,
        bias_field=measured.bias_field,
        acquisition=told.acquisition,
        **options,
    )
    data = np.asarray(measured.image.dataobj, dtype=np.float32)
    inside = data > 0 if measured.mask is None else np.asarray(measured.mask.dataobj) > 0
    if sentence := residual_warning(data, inside, result.residual):
        result.record["Warnings"].append(sentence)
    result.record.update(
        InputVoxelSize=[round(size, 6) for size in voxel_sizes(image.affine)],
        AcquiredVoxelSize=[round(size, 6) for size in measured.zooms],
        AcquiredVoxelSizeFrom=measured.source,
        SamplingProfiles=told.acquisition.to_dict()["axes"],
        SamplingProfilesFrom=told.source,
    )
    return result


def _is_out_of_memory(error: BaseException) -> bool:
    # torch raises RuntimeError on the processor, OutOfMemoryError on a card.
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def memory_sentence(request: dict[str, Any], entry: dict[str, Any]) -> str:
    """What an image that did not fit would have needed."""
    import nibabel as nib

    from bids_moediff.families.cost import estimate

    header = nib.Nifti1Image.from_filename(entry["image"]).header
    needed = estimate(
        tuple(int(n) for n in header.get_data_shape()[:3]),
        tuple(float(z) for z in header.get_zooms()[:3]),
        tuple(entry["zooms"]),
        device=str(request["device"]),
        num_steps=request["num_steps"] or 1,
        num_samples=request["num_samples"],
        planes=request["planes"],
        model=request["model"],
    )
    return (
        f"Super-resolution ran out of memory: the image needs about {needed.gigabytes:.1f} GB; "
        "give it more memory, a smaller --batch-size or coarser output voxels."
    )


def _device(choice: str, progress: ProgressLines) -> Any:
    """Context that yields the device to run on; waits while every card asked for is in use."""
    from bids_moediff.converters import to_device
    from bids_moediff.runtime.device_lock import hold_device

    if choice == "auto":
        import torch

        choice = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        devices = [to_device(device.strip()) for device in choice.split(",")]
    except ValueError as error:
        raise UsageError(f"--device: {error}.") from error
    if devices[0] == "cpu":
        return nullcontext("cpu")
    return hold_device(devices, on_wait=lambda: progress(None, "waiting for a device", 0.0))


def _load(request: dict[str, Any], device: str) -> "SuperResolver":
    """The model of the request; ``auto`` is settled now that the device is known."""
    from bids_moediff.families.choice import choose
    from bids_moediff.inference.super_resolver import SuperResolver

    options = (
        "num_samples", "noise_strength", "num_steps", "want_gates", "want_deviation", "planes",
    )  # fmt: skip
    choice = choose(request["model"], device, **{name: request[name] for name in options})
    request["model"] = choice.model
    request["model_reason"] = request["model_reason"] or choice.reason
    return SuperResolver.from_pretrained(
        choice.model, device=device, precision=request["precision"]
    )


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Options typed on the command line; they win over the request file."""
    values = vars(options)
    return {name: values[name] for name in DEFAULTS if values.get(name) is not None}


def run_single(options: argparse.Namespace) -> int:
    """The plain tool: one image in, one image out, its record beside it."""
    from bids_moediff.imaging.label_maps import carry_image
    from bids_moediff.runtime.sink import write_json, write_nifti

    if not options.input or not options.output:
        raise UsageError("Give IN.nii.gz and OUT.nii.gz, or --request and --results.")
    if not str(options.output).endswith((".nii", ".nii.gz")):
        raise UsageError(f"{options.output.name} does not end in .nii or .nii.gz.")
    zooms = _zooms(options.zooms)
    request = {**DEFAULTS, **_given(options)}
    progress = ProgressLines(sys.stderr, follow_parent=False)
    from bids_moediff.preprocessing.conform import conform

    image = conform(options.input)[0]
    mask = conform(options.mask)[0] if options.mask else None
    maps = _maps_to_carry(options, image)
    with _device(request["device"], progress) as device:
        resolver = _load(request, device)
        result = _enhance(
            resolver,
            image,
            mask,
            None,
            {"zooms": zooms, **_sampling(options)},
            progress=partial(progress, options.input.name),
            **{name: request[name] for name in ENHANCE_OPTIONS},
        )
    write_nifti(result.image, options.output)
    stem = _stem(options.output)
    record = {**result.record, "ModelChoice": request["model_reason"]}
    write_json(record, options.output.with_name(f"{stem}.json"))
    for path, carried in maps.items():
        write_nifti(carry_image(carried, result.image.shape, result.image.affine), path)
    return 0


def _maps_to_carry(options: argparse.Namespace, image: Any) -> dict[Path, Any]:
    """Maps of ``--carry`` by the path to write, ``OUT_<name of the map>``; others are named."""
    from bids_moediff.imaging.label_maps import read_map

    stem, maps = _stem(options.output), {}
    for source in options.carry:
        path = options.output.with_name(f"{stem}_{_stem(source)}.nii.gz")
        if path in maps:
            raise UsageError(f"--carry: two maps have the name {source.name}.")
        try:
            maps[path] = read_map(source, image.shape, image.affine)
        except ImageError as error:
            print(f"bids_moediff-superres: not carried: {error}.", file=sys.stderr)
    return maps


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Acquired voxels, slice profile and thickness that were typed, as a request holds them."""
    from bids_moediff.settings import load_settings

    names = ("acquired_resolution", "slice_profile", "slice_thickness")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings = load_settings(given, environment={}, complete=False)
    return {
        "acquired": settings.acquired_resolution,
        "slice_profile": settings.slice_profile,
        "slice_thickness": settings.slice_thickness,
    }


def _zooms(values: Sequence[float] | None) -> tuple[float, float, float]:
    if values is None:
        raise UsageError("Say which voxel size you want: --zooms 0.7, or three numbers.")
    if len(values) not in (1, 3) or min(values) <= 0:
        raise UsageError("--zooms takes one or three positive numbers (mm).")
    first, second, third = [*values] * 3 if len(values) == 1 else values
    return (first, second, third)


if __name__ == "__main__":
    sys.exit(main())
