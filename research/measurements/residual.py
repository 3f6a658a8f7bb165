# SPDX-License-Identifier: Apache-2.0
"""Does a result, measured again, give the scan back? On every head, without and with noise.

``python -m research.measurements.residual DATA [OUT.tsv]`` makes every head of DATA/manifest.tsv
coarse, gives the engine's projection an image that is wrong on purpose (cubic interpolation with
a texture of a tenth of the range), and measures the relative residual ||A x - y|| / ||y||. With
noise the residual is stated over the noise that the engine estimates from the coarse scan. No
network takes part: the projection is the last step of every model.
"""

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_moediff.errors import ImageError
from bids_moediff.evaluation.benchmark import Task, make_task
from bids_moediff.evaluation.truth import Loaded, TruthHead
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.metrics import intensity_range
from bids_moediff.imaging.noise import tissue_noise
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.runtime.sink import table_text, write_text

from .interpolated import find_files

Row = dict[str, Any]
PROTOCOLS = ("x2iso-box", "x2iso-kspace", "x4slices-box", "x4slices-kspace", "x2iso-gaussian")
WRONG = 0.1  # texture added before the projection, of the range
NOISE = 0.03  # standard deviation, of the range


def noise_free(task: Task, scale: float) -> float:
    """Relative residual after the exact projection of a wrong image."""
    result = task.operator.project(wrong_image(task, scale), task.measured)
    return _relative(task.operator, result, task.measured)


def wrong_image(task: Task, scale: float) -> torch.Tensor:
    """Cubic interpolation with white texture, seeded."""
    cubic = interpolate(task.measured, task.coarse_zooms, task.operator.fine_shape, task.zooms)
    generator = torch.Generator().manual_seed(0)
    return cubic + WRONG * scale * torch.randn(cubic.shape, generator=generator)


def with_noise(task: Task, scale: float) -> Row:
    """Residual on a noisy scan of overlapping slices, where the projection is damped.

    The slice profile is a Gaussian of 1.6 voxels on the coarsest axis: the engine then stops at
    the estimated noise. Gives the residual's standard deviation over that estimate.
    """
    axis = int(np.argmax(task.ratios))
    axes = [Axis("kspace")] * 3
    axes[axis] = Axis("gaussian", 1.6)
    acquisition = Acquisition((axes[0], axes[1], axes[2]))
    shape = task.measured.shape
    coarse = (shape[0], shape[1], shape[2])
    operator = Operator.between(
        task.operator.fine_shape, task.zooms, coarse, task.coarse_zooms, acquisition
    )
    generator = torch.Generator().manual_seed(1)
    clean = operator.forward(torch.from_numpy(task.truth))
    noisy = clean + NOISE * scale * torch.randn(coarse, generator=generator)
    array = noisy.numpy()
    estimate = tissue_noise(array, array > 0.1 * scale) or 0.0
    result = operator.project(wrong_image(task, scale), noisy, estimate)
    residual = float((operator.forward(result) - noisy).std())
    return {"noise": NOISE * scale, "estimate": estimate, "over_noise": residual / estimate}


def _relative(operator: Operator, image: torch.Tensor, measured: torch.Tensor) -> float:
    residual = operator.forward(image) - measured
    return float(residual.norm() / measured.norm().clamp_min(1e-12))


def evaluate(loaded: Loaded) -> list[Row]:
    """One row per protocol: the relative residual; and one with noise."""
    scale = intensity_range(loaded.truth, loaded.mask)
    rows: list[Row] = []
    task: Task | None = None
    for key in PROTOCOLS:
        protocol = parse_protocol(key)
        # Every axis that is long enough, interpolated or not: this is about algebra, not detail.
        axes = [k for k, size in enumerate(loaded.truth.shape) if size >= 16 * protocol.factor]
        ratios = protocol.ratios(axes or (0, 1, 2))
        task = make_task(
            loaded.truth, loaded.mask, loaded.zooms, loaded.affine, ratios, protocol.profile
        )
        rows.append({"protocol": key, "residual": noise_free(task, scale), "over_noise": None})
    assert task is not None
    rows.append({"protocol": "noisy", "residual": None, **with_noise(task, scale)})
    return [{"head": loaded.head.name, **row} for row in rows]


def markdown(rows: list[Row]) -> str:
    """Largest values over heads, by protocol."""
    lines = ["| protocol | heads | largest relative residual | median |", "|---|---|---|---|"]
    for key in PROTOCOLS:
        values = [row["residual"] for row in rows if row["protocol"] == key]
        lines.append(f"| {key} | {len(values)} | {max(values):.1e} | {np.median(values):.1e} |")
    noisy = [row["over_noise"] for row in rows if row["protocol"] == "noisy"]
    lines += [
        "",
        f"With noise: residual over the estimated noise at most {max(noisy):.2f}, median "
        f"{np.median(noisy):.2f} ({len(noisy)} heads).",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Print the table and write every row."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for path in find_files(Path(arguments[0])):
        try:
            rows += evaluate(TruthHead(path).load())
        except (ImageError, nib.filebasedimages.ImageFileError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
    if len(arguments) > 1:
        columns = ["head", "protocol", "residual", "noise", "estimate", "over_noise"]
        write_text(table_text(rows, columns), Path(arguments[1]))
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
