# SPDX-License-Identifier: Apache-2.0
"""Draw how a reference is aligned to the image that it guides."""

import io
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage

from bids_moediff.imaging.grid import output_grid
from bids_moediff.imaging.reference import resample_reference
from bids_moediff.runtime.sink import write_bytes

DRAWN_AT = 1.5  # mm
HEADS = ("Image", "Reference as stored", "Reference, registered")
PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))
LINE = "#e69f00"


def write_reference(
    target: nib.Nifti1Image, before: nib.Nifti1Image, after: nib.Nifti1Image, path: Path
) -> Path:
    """Draw three planes of an image and its reference, outlines of the image over all of them.

    Parameters
    ----------
    target
        The image.
    before, after
        The reference, its affine as stored and as registered.
    path
        PNG to write.
    """
    shape, affine = output_grid(target.shape, target.affine, (DRAWN_AT,) * 3)
    views = [resample_reference(one, shape, affine) for one in (target, before, after)]
    smooth = ndimage.gaussian_filter(views[0], 1.0)
    positive = smooth[smooth > 0]
    levels = np.quantile(positive, (0.45, 0.8)) if positive.size else np.array([0.5, 1.0])
    figure = Figure(figsize=(9, 9), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 3)
    for row, (plane, axis) in enumerate(PLANES):
        place = shape[axis] // 2
        lines = np.take(smooth, place, axis).T
        for column, view in enumerate(views):
            panel = axes[row, column]
            panel.axis("off")
            top = float(np.percentile(view[view > 0], 99.5)) if (view > 0).any() else 1.0
            drawn = np.take(view, place, axis).T
            panel.imshow(drawn, cmap="gray", vmin=0, vmax=top, origin="lower")
            if levels[0] < levels[1] and lines.max() > levels[0]:
                panel.contour(lines, levels, colors=LINE, linewidths=0.5)
            if row == 0:
                panel.set_title(HEADS[column], color="white", fontsize=10)
            if column == 0:
                panel.text(2, 2, plane, color="white", fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return write_bytes(stream.getvalue(), path)
