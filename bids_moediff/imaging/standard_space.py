# SPDX-License-Identifier: Apache-2.0
"""Find a template on disk, register a brain to it, and resample the image once.

Templates come from TemplateFlow's folder and are never downloaded: its client lists the files in
the folder, without updating it and without the network.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from scipy import ndimage

from bids_moediff.errors import ImageError, UsageError, closest

LEVELS = (4.0, 2.5)  # mm, voxel sizes of the registration
BINS = 32
SAMPLED_SHARE = 0.25  # of the voxels, regularly spaced: nothing is drawn by chance
FLEXIBLE_SPACING = 45.0  # mm between the control points of the flexible part
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Template:
    """A template on disk."""

    space: str
    image: Path
    mask: Path | None


def find_template(space: str, suffix: str = "T1w", home: Path | None = None) -> Template:
    """Return the template of a space at 1 mm (else 2 mm) in TemplateFlow's folder.

    Parameters
    ----------
    space
        TemplateFlow identifier, ``MNI152NLin2009cAsym``.
    suffix
        Preferred contrast; the T1w template is used if it is absent.
    home
        TemplateFlow's folder; default ``$TEMPLATEFLOW_HOME``, else ``~/.cache/templateflow``.

    Raises
    ------
    UsageError
        If the template is missing; the message says how to provide it.
    """
    if not re.fullmatch(r"[A-Za-z0-9]+", space):
        raise UsageError(f"--output-spaces {space}: not the name of a TemplateFlow template")
    if home is None:
        default = Path.home() / ".cache" / "templateflow"
        home = Path(os.environ.get("TEMPLATEFLOW_HOME") or default)
    for contrast in dict.fromkeys((suffix, "T1w")):
        for resolution in (1, 2):
            for description in (None, "brain"):
                wanted = {"suffix": contrast, "desc": description, "resolution": resolution}
                if (image := _listed(home, space, **wanted)) is not None:
                    wanted |= {"suffix": "mask", "desc": "brain"}
                    return Template(space, image, _listed(home, space, **wanted))
    known = [path.name[4:] for path in home.glob("tpl-*")]
    near = "" if space in known else closest(space, known, 0.7)
    fetch = f"from templateflow import api; api.get('{space}', resolution=1)"
    raise UsageError(
        f"--output-spaces {space}: the template is not in TemplateFlow's folder{near}, and "
        f'nothing is downloaded here. On a connected machine run python -c "{fetch}", copy its '
        "folder and set TEMPLATEFLOW_HOME to it."
    )


def _listed(home: Path, space: str, **entities: Any) -> Path | None:
    """Return the one file with content in TemplateFlow's folder for these entities, or None."""
    folder = home / f"tpl-{space}"
    # TemplateFlow takes seconds to list what it has: not for a folder of empty files.
    if not any(_has_content(path) for path in folder.rglob("*.nii.gz")):
        return None
    # At its import it fills an empty default folder with a skeleton; this one is not empty.
    os.environ.setdefault("TEMPLATEFLOW_HOME", str(home))
    from templateflow.client import TemplateFlowClient

    client = TemplateFlowClient(root=home, autoupdate=False)
    found = client.ls(space, extension=".nii.gz", cohort=None, **entities)
    # Files that nobody fetched yet are there, and empty.
    return next((Path(path) for path in found if _has_content(Path(path))), None)


def _has_content(path: Path) -> bool:
    """Return True for a real file: TemplateFlow leaves empty ones for files not yet fetched."""
    return path.is_file() and path.stat().st_size > 0


def register(
    image: nib.Nifti1Image, mask: nib.Nifti1Image, template: Template, flexible: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Return the transform from template to image coordinates, for :func:`to_template`.

    Twelve parameters, then a coarse B-spline, both by mutual information of the two brains, so any
    contrast fits a T1-weighted template. The result does not depend on the number of threads.

    Parameters
    ----------
    image, mask
        3-D image, and its brain mask.
    template
        As :func:`find_template` returns it.
    flexible
        Whether the B-spline step runs.

    Returns
    -------
    transform
        A SimpleITK transform: world coordinates of the template to those of the image (LPS).
    record
        ``space``, ``transform`` (its parts), ``mutual_information`` and ``warnings``.

    Raises
    ------
    ImageError
        If the registration fails.
    """
    fixed_image = nib.Nifti1Image.from_filename(template.image)
    if template.mask:
        fixed_mask = nib.Nifti1Image.from_filename(template.mask)
    else:
        fixed_mask = _positive(fixed_image)
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        transform: Any = None
        for level, zoom in enumerate(LEVELS):
            fixed, moving = _brain(fixed_image, fixed_mask, zoom), _brain(image, mask, zoom)
            transform = _affine_step(fixed, moving, transform, level)
        parts, value = ["affine"], float("nan")
        fixed, moving = (
            _brain(fixed_image, fixed_mask, LEVELS[0]),
            _brain(image, mask, LEVELS[0]),
        )
        if flexible:
            transform = _flexible_step(fixed, moving, transform)
            parts.append("B-spline")
        value = _similarity(fixed, moving, transform)
    except RuntimeError as error:
        raise ImageError(f"the image could not be registered to {template.space}") from error
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    remarks = []
    if value < 0.15:
        remarks.append(f"the registration to {template.space} is poor: check it")
    record = {"space": template.space, "transform": parts, "mutual_information": round(value, 3)}
    return transform, record | {"warnings": remarks}


def to_template(
    image: nib.Nifti1Image, transform: Any, template: Template, zooms: tuple[float, float, float]
) -> nib.Nifti1Image:
    """Return the image on the field of view of the template, interpolated once.

    Parameters
    ----------
    image, transform, template
        The image, and the results of :func:`register` and :func:`find_template`.
    zooms
        Voxel size in mm.
    """
    from bids_moediff.imaging.grid import output_grid

    reference = nib.Nifti1Image.from_filename(template.image)
    shape, affine = output_grid(reference.shape, reference.affine, zooms)
    blank = nib.Nifti1Image(np.zeros(shape, np.uint8), affine)
    resampled = SimpleITK.Resample(
        to_itk(image), to_itk(blank), transform, SimpleITK.sitkBSpline, 0.0
    )
    data = SimpleITK.GetArrayFromImage(resampled).T.astype(np.float32)
    result = nib.Nifti1Image(np.ascontiguousarray(data), affine)
    result.header.set_xyzt_units("mm")
    result.set_sform(affine, 4)  # NIfTI's code of the MNI 152 space
    result.set_qform(affine, 4)
    return result


def _positive(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8), image.affine)


def to_itk(image: nib.Nifti1Image) -> SimpleITK.Image:
    """Return a SimpleITK image of the same voxels in the same place."""
    result = SimpleITK.GetImageFromArray(np.asarray(image.dataobj, dtype=np.float32).T)
    affine = _TO_LPS @ image.affine
    zooms = nib.affines.voxel_sizes(affine)
    result.SetSpacing(zooms.tolist())
    result.SetDirection((affine[:3, :3] / zooms).ravel().tolist())
    result.SetOrigin(affine[:3, 3].tolist())
    return result


def _brain(image: nib.Nifti1Image, mask: nib.Nifti1Image, zoom: float) -> SimpleITK.Image:
    """Return the brain alone, sampled at about ``zoom`` mm, brightness in [0, 1]."""
    inside = np.asarray(mask.dataobj) > 0
    data = np.where(inside, np.asarray(image.dataobj, dtype=np.float32), 0.0)
    low, high = np.percentile(data[inside], [1.0, 99.0])
    data = np.clip((data - low) / max(float(high - low), 1e-6), 0.0, 1.0) * inside
    zooms = nib.affines.voxel_sizes(image.affine)
    sigma = np.sqrt(np.maximum((0.42 * zoom) ** 2 - (0.42 * zooms) ** 2, 0.0)) / zooms
    smooth = ndimage.gaussian_filter(data, sigma)
    step = np.maximum(1, np.round(zoom / zooms)).astype(int)
    affine = image.affine @ np.diag([*step, 1.0])
    sampled = smooth[:: step[0], :: step[1], :: step[2]]
    return to_itk(nib.Nifti1Image(sampled.astype(np.float32), affine))


def _method(optimizer_scales: bool = True) -> Any:
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(SAMPLED_SHARE, 1)
    method.SetInterpolator(SimpleITK.sitkLinear)
    if optimizer_scales:
        method.SetOptimizerScalesFromPhysicalShift()
    return method


def _affine_step(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, start: Any, level: int
) -> SimpleITK.AffineTransform:
    if start is None:
        start = SimpleITK.AffineTransform(
            SimpleITK.CenteredTransformInitializer(
                fixed,
                moving,
                SimpleITK.AffineTransform(3),
                SimpleITK.CenteredTransformInitializerFilter.MOMENTS,
            )
        )
    method = _method()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=4.0 / (1 + 3 * level),
        minStep=0.02,
        numberOfIterations=(100, 40)[level],
        relaxationFactor=0.6,
    )
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    return start


def _flexible_step(
    fixed: SimpleITK.Image, moving: SimpleITK.Image, affine: SimpleITK.Transform
) -> SimpleITK.CompositeTransform:
    extent = [size * step for size, step in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True)]
    mesh = [max(1, round(length / FLEXIBLE_SPACING)) for length in extent]
    spline = SimpleITK.BSplineTransformInitializer(fixed, mesh, order=3)
    method = _method(optimizer_scales=False)
    method.SetMovingInitialTransform(affine)
    method.SetInitialTransform(spline, inPlace=True)
    method.SetOptimizerAsLBFGSB(
        numberOfIterations=15, maximumNumberOfCorrections=5, gradientConvergenceTolerance=1e-5
    )
    method.Execute(fixed, moving)
    composite = SimpleITK.CompositeTransform(3)
    composite.AddTransform(affine)
    composite.AddTransform(spline)  # applied first: template -> spline -> affine -> image
    return composite


def _similarity(fixed: SimpleITK.Image, moving: SimpleITK.Image, transform: Any) -> float:
    method = _method()
    method.SetInitialTransform(transform)
    return -float(method.MetricEvaluate(fixed, moving))
