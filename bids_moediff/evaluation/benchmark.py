# SPDX-License-Identifier: Apache-2.0
"""The protocols of docs/science.md on whole heads: degrade, restore, compare.

Every method gets the same measurement and the same declared acquisition. Gains are stated over
cubic B-spline and over cubic with back-projection (10 iterations, same operator).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_moediff.engine.acquisition import Acquisition, Operator
from bids_moediff.engine.enhance import SuperResolver
from bids_moediff.engine.grid import Triple, covering_shape, output_grid, voxel_sizes
from bids_moediff.engine.interpolation import back_projection, initial_estimate, interpolate
from bids_moediff.engine.masks import head_mask_array

from . import metrics


@dataclass(frozen=True)
class Protocol:
    """Voxel ratio per axis and slice profile; `slices` is the axis of the thick slices."""

    name: str
    ratios: Triple
    profile: str


PROTOCOLS = (
    Protocol("x2 isotropic, k-space", (2.0, 2.0, 2.0), "kspace"),
    Protocol("x2 isotropic, Gaussian", (2.0, 2.0, 2.0), "gaussian"),
    Protocol("x2 isotropic, box", (2.0, 2.0, 2.0), "box"),
    Protocol("x4 slices, Gaussian", (1.0, 1.0, 4.0), "gaussian"),
    Protocol("x4 slices, k-space", (1.0, 1.0, 4.0), "kspace"),
    Protocol("x2 slices, Gaussian", (1.0, 1.0, 2.0), "gaussian"),
    Protocol("x1.5 isotropic, k-space", (1.5, 1.5, 1.5), "kspace"),
)


@dataclass(frozen=True)
class Task:
    """One head under one protocol, ready to be restored; intensities in the file's units."""

    head: str
    protocol: Protocol
    truth: np.ndarray
    mask: np.ndarray
    measured: torch.Tensor
    operator: Operator
    coarse_zooms: Triple
    zooms: Triple
    affine: np.ndarray

    @property
    def coarse_image(self) -> nib.Nifti1Image:
        """The measurement as a NIfTI image."""
        _, affine = output_grid(self.truth.shape, self.affine, self.coarse_zooms)
        return nib.Nifti1Image(self.measured.numpy(), affine)


def make_task(path: Path, protocol: Protocol) -> Task:
    """Degrade one head without noise."""
    image = nib.nifti1.load(path)
    truth = np.asarray(image.dataobj, dtype=np.float32).squeeze()
    zooms = voxel_sizes(image.affine)
    ratios = protocol.ratios
    coarse_zooms = (zooms[0] * ratios[0], zooms[1] * ratios[1], zooms[2] * ratios[2])
    counts = [int(size / ratio + 1e-6) for size, ratio in zip(truth.shape, ratios, strict=True)]
    coarse = (counts[0], counts[1], counts[2])
    shape = covering_shape(coarse, coarse_zooms, zooms)
    truth = np.ascontiguousarray(truth[tuple(slice(0, size) for size in shape)])
    mask = head_mask_array(truth, zooms)
    operator = Operator.between(
        shape, zooms, coarse, coarse_zooms, Acquisition.uniform(protocol.profile)
    )
    measured = operator.forward(torch.from_numpy(truth))
    name = path.name.removesuffix(".nii.gz")
    return Task(name, protocol, truth, mask, measured, operator, coarse_zooms, zooms, image.affine)


Method = Callable[[Task], np.ndarray]


def baselines() -> dict[str, Method]:
    """Linear, cubic, cubic + back-projection, and cubic projected onto the data."""

    def spline(order: int) -> Method:
        return lambda t: interpolate(
            t.measured, t.coarse_zooms, t.operator.fine_shape, t.zooms, order
        ).numpy()

    def projected(task: Task) -> np.ndarray:
        cubic = torch.from_numpy(spline(3)(task))
        return back_projection(
            cubic, task.measured, task.operator, task.coarse_zooms, task.zooms
        ).numpy()

    return {
        "linear": spline(1),
        "cubic": spline(3),
        "back-projection": projected,
        "consistent": lambda t: initial_estimate(
            t.measured, t.operator, t.coarse_zooms, t.zooms
        ).numpy(),
    }


def model_method(resolver: SuperResolver, **options: Any) -> Method:
    """A loaded model as a method; `options` go to :meth:`SuperResolver.enhance`."""

    def restore(task: Task) -> np.ndarray:
        result = resolver.enhance(
            task.coarse_image,
            task.zooms,
            acquisition=Acquisition.uniform(task.protocol.profile),
            **options,
        )
        return np.asarray(result.image.dataobj)

    return restore


def score(task: Task, image: np.ndarray, *, full: bool = True) -> dict[str, float]:
    """All figures of one result; `full` adds the slow ones."""
    row = {
        "psnr": metrics.psnr(image, task.truth, task.mask),
        "nrmse": metrics.nrmse(image, task.truth, task.mask),
    }
    residual = task.operator.forward(torch.from_numpy(image)) - task.measured
    row["residual"] = float(residual.norm() / task.measured.norm())
    if full:
        row["ssim"] = metrics.ssim(image, task.truth, task.mask)
        row["hfen"] = metrics.hfen(image, task.truth, task.mask)
        row["flicker"] = max(metrics.flicker(image, task.truth, task.mask))
        spectrum = metrics.recovered_spectrum(image, task.truth, task.mask, task.protocol.ratios)
        row["band_correlation"] = spectrum["correlation"]
        row["band_power"] = spectrum["power"]
    return row


def run(
    paths: Iterable[Path],
    methods: dict[str, Method],
    protocols: Sequence[Protocol] = PROTOCOLS,
    *,
    full: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """One row per head, protocol and method."""
    rows = []
    for path in paths:
        for protocol in protocols:
            task = make_task(path, protocol)
            for name, method in methods.items():
                row: dict[str, Any] = {
                    "head": task.head,
                    "protocol": protocol.name,
                    "method": name,
                }
                row |= score(task, method(task), full=full)
                rows.append(row)
                if report is not None:
                    report(row)
    return rows


def gains(rows: Sequence[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Per protocol: mean PSNR gain with 95 % interval over cubic and over back-projection."""
    table = {(row["head"], row["protocol"], row["method"]): row["psnr"] for row in rows}
    summary = []
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        heads = [h for h, p, m in table if p == protocol and m == method]
        entry: dict[str, Any] = {"protocol": protocol, "heads": len(heads)}
        entry["psnr"] = float(np.mean([table[h, protocol, method] for h in heads]))
        for baseline, key in (("cubic", "over_cubic"), ("back-projection", "over_bp")):
            gain = [table[h, protocol, method] - table[h, protocol, baseline] for h in heads]
            low, high = metrics.bootstrap_interval(gain)
            entry |= {
                key: float(np.mean(gain)),
                f"{key}_low": low,
                f"{key}_high": high,
                f"{key}_worst": float(min(gain)),
            }
        summary.append(entry)
    return summary
