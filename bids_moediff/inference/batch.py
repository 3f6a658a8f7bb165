# SPDX-License-Identifier: Apache-2.0
"""Process a request: restore every image with one network, then combine groups of images.

The results file is rewritten after every image. A key that it holds as done or failed is not
processed again, so the same command continues a run that was killed. The key in progress reads
``"running"``.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from bids_moediff.errors import ImageError, MoediffError
from bids_moediff.families.cost import estimate
from bids_moediff.options import Options
from bids_moediff.runtime.allocation import is_out_of_memory
from bids_moediff.runtime.platform import peak_memory_gb
from bids_moediff.runtime.sink import write_json, write_nifti
from bids_moediff.runtime.text import without_folders

from .request import (
    GroupRequest,
    ImageRequest,
    ImageResult,
    Request,
    read_results,
    write_results,
)
from .several import Alone, combine_restored
from .super_resolver import without_expected_error
from .worker import Loaded, ProgressLines, Scan, enhance_image, held_device, load

MORE_MEMORY = "give it more memory, a smaller --batch-size or coarser output voxels."


def run_request(request: Request, results_file: Path, progress: ProgressLines) -> int:
    """Process every image and group of a request that has no result yet.

    Parameters
    ----------
    request
        Images, groups and options.
    results_file
        JSON file of results; it is created, or continued.
    progress
        Called with the key of an image, the stage and the fraction done (0 to 1).

    Returns
    -------
    int
        0 if every image and group is done, 1 if some failed.
    """
    results = read_results(results_file)

    def attempt(key: str, work: Callable[[], ImageResult], needed: Callable[[], str]) -> None:
        results[key] = ImageResult(status="running")
        write_results(results, results_file)
        results[key] = _attempt(work, needed)
        write_results(results, results_file)

    todo = [item for item in request.items if not _settled(item.key, results)]
    if todo:
        with held_device(request.device, progress) as device:
            progress(None, "loading", 0.0)
            loaded = load(request, device)
            for item in todo:
                if isinstance(item, ImageRequest):
                    work = partial(_process, loaded, item, progress)
                    attempt(item.key, work, partial(memory_sentence, loaded, item))
                else:
                    work = partial(_combine, loaded, item, request, results, progress)
                    attempt(item.key, work, lambda: f"Combining ran out of memory: {MORE_MEMORY}")
    return 0 if all(result.done for result in results.values()) else 1


def _settled(key: str, results: Mapping[str, ImageResult]) -> bool:
    return key in results and results[key].settled


def _attempt(work: Callable[[], ImageResult], needed: Callable[[], str]) -> ImageResult:
    """Return the result of one image or group; only a request to stop is raised."""
    started = time.monotonic()
    try:
        return replace(
            work(),
            seconds=round(time.monotonic() - started, 3),
            peak_memory_gb=peak_memory_gb(),
        )
    except MoediffError as error:
        return ImageResult(status="failed", message=str(error))
    except Exception as error:
        if is_out_of_memory(error):
            return ImageResult(status="failed", message=needed())
        traceback.print_exc()
        reason = " ".join(without_folders(str(error)).split())[:300]
        message = f"Super-resolution failed unexpectedly ({type(error).__name__}: {reason})."
        return ImageResult(status="failed", message=message)


def _process(loaded: Loaded, image: ImageRequest, progress: ProgressLines) -> ImageResult:
    options = _options_for(loaded.options, image)
    kept: dict[str, str] = {}

    def store(key: str, product: nib.Nifti1Image) -> None:
        kept[key] = _write(image.out_dir, key, product)

    report = partial(progress, image.key)
    result = enhance_image(loaded.resolver, _scan(image), image, options, report, store)
    record = {**result.record, "ModelChoice": loaded.model_reason}
    if not loaded.options.wants_expected_error:
        record = without_expected_error(record)
    done = _written(image.out_dir, {"sr": result.image, **result.maps}, record)
    progress(image.key, "done", 1.0)
    return replace(done, files={**done.files, **kept})


def _options_for(options: Options, image: ImageRequest) -> Options:
    """Return the options, changed by what the request sets for one image."""
    if image.zooms is not None:
        first, second, third = image.zooms
        options = replace(options, output_resolution=(first, second, third))
    if image.with_error:
        outputs = tuple(dict.fromkeys((*options.outputs, "uncertainty")))
        options = replace(options, outputs=outputs)
    return options


def _combine(
    loaded: Loaded,
    group: GroupRequest,
    request: Request,
    results: Mapping[str, ImageResult],
    progress: ProgressLines,
) -> ImageResult:
    """Combine the restored scans of a group; the record lists what happened to each."""
    images = {image.key: image for image in request.images}
    lost, scans = dict(group.lost), []
    for name, key in group.scans.items():
        if not results[key].done:
            lost[name] = results[key].message
            continue
        image, done = images[key], results[key]
        error = _open(done.files.get("srstd"))
        alone = Alone(_open(done.files["sr"]), error, done.record)
        scans.append((replace(image, key=name), _scan(image), alone))
    if len(scans) < 2:
        reasons = " ".join(f"{name}: {words}" for name, words in lost.items())
        count = "one scan" if scans else "no scan"
        raise ImageError(f"Nothing to combine, {count} could be used. {reasons}".strip())
    result = combine_restored(
        scans, group.zooms, loaded.options, partial(progress, group.key), lost
    )
    maps = {"srcombined": result.combined.image, "srcount": result.combined.count}
    done = _written(group.out_dir, maps, {**result.record, "ModelChoice": loaded.model_reason})
    progress(group.key, "done", 1.0)
    return done


def _written(
    out_dir: str, maps: Mapping[str, nib.Nifti1Image], record: Mapping[str, Any]
) -> ImageResult:
    files = {key: _write(out_dir, key, product) for key, product in maps.items()}
    write_json(record, Path(out_dir) / "record.json")
    return ImageResult(status="done", files=files, record=record)


def _write(out_dir: str, key: str, product: nib.Nifti1Image) -> str:
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.nii"  # read once, soon: packing takes longer
    write_nifti(product, path)
    return str(path)


def _scan(image: ImageRequest) -> Scan:
    paths = (image.image, image.mask, image.bias_field, image.reference)
    return Scan(*(_open(path) for path in paths))


def _open(path: str | None) -> Any:
    return nib.Nifti1Image.from_filename(path) if path else None


def memory_sentence(loaded: Loaded, image: ImageRequest) -> str:
    """Return a sentence with the memory that an image needs, for one that did not fit."""
    header = nib.Nifti1Image.from_filename(image.image).header
    needed = estimate(
        tuple(int(n) for n in header.get_data_shape()[:3]),
        tuple(float(z) for z in header.get_zooms()[:3]),
        _options_for(loaded.options, image),
        model=loaded.model,
        device=loaded.resolver.device.type,
    )
    return (
        "Super-resolution ran out of memory: the image needs about "
        f"{needed.gigabytes:.1f} GB; {MORE_MEMORY}"
    )
