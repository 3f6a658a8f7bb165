# SPDX-License-Identifier: Apache-2.0
"""Register two images of one subject: six parameters of head movement.

Images of one contrast differ by noise and by what thick slices lost, so their correlation finds
the movement to a small fraction of a voxel. Images of two contrasts are registered by mutual
information. The result does not depend on the number of threads.
"""

from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
from scipy import ndimage

from bids_moediff.errors import ImageError
from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.standard_space import to_itk

LEVELS = (4.0, 2.0, 1.0)  # mm, voxel sizes of the registration
SAMPLED = (1.0, 0.5, 0.25)  # share of the voxels, regularly spaced: nothing is drawn by chance
FIRST_STEP = (3.0, 0.5, 0.1)  # mm
LAST_STEP = (0.1, 0.02, 0.002)
ITERATIONS = (60, 30, 20)
BINS = 32  # of the joint histogram, for mutual information
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def register(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    start: np.ndarray | None = None,
    *,
    other_contrast: bool = False,
    coarse: bool = False,
) -> np.ndarray:
    """Return the rigid transform from world coordinates of ``fixed`` to those of ``moving``.

    Parameters
    ----------
    fixed, moving
        Images of one subject, of any voxel size.
    start
        Approximate transform (4x4, mm); with it, only the finest level runs.
    other_contrast
        Whether the two differ in contrast; then mutual information is used.
    coarse
        Whether to leave out the finest level.

    Returns
    -------
    numpy.ndarray
        4x4, mm.

    Raises
    ------
    ImageError
        If the registration fails.
    """
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    loud = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    try:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # of images that do not overlap
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        return _register(fixed, moving, start, other_contrast, coarse)
    except RuntimeError as error:
        raise ImageError("the images could not be registered to one another.") from error
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(loud)


def _register(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    start: np.ndarray | None,
    other_contrast: bool,
    coarse: bool,
) -> np.ndarray:
    data = np.asarray(fixed.dataobj, dtype=np.float32)
    mask = head_mask_array(data, voxel_sizes(fixed.affine))
    if not mask.any():
        raise ImageError("an image shows no head: it cannot be registered.")
    inside = nib.Nifti1Image(mask.astype(np.uint8), fixed.affine)
    centre = _TO_LPS @ fixed.affine @ [*np.argwhere(mask).mean(axis=0), 1.0]
    transform = SimpleITK.Euler3DTransform()
    transform.SetCenter(centre[:3].tolist())
    if start is not None:
        _set_matrix(transform, start)
    levels = range(len(LEVELS)) if start is None else range(len(LEVELS) - 1, len(LEVELS))
    for level in levels[:-1] if coarse else levels:
        _refine(transform, (fixed, moving), inside, level, other_contrast)
    return _matrix(transform)


def _refine(
    transform: Any,
    images: tuple[nib.Nifti1Image, nib.Nifti1Image],
    inside: Any,
    level: int,
    other_contrast: bool,
) -> None:
    """Improve the transform at one voxel size."""
    fixed, moving = images
    method = SimpleITK.ImageRegistrationMethod()
    if other_contrast:
        method.SetMetricAsMattesMutualInformation(BINS)
    else:
        method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(SAMPLED[level], 1)
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetMetricFixedMask(SimpleITK.Cast(_sampled(inside, LEVELS[level]) > 0.5, 1))
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=FIRST_STEP[level],
        minStep=LAST_STEP[level],
        numberOfIterations=ITERATIONS[level],
        relaxationFactor=0.5,
    )
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(_sampled(fixed, LEVELS[level]), _sampled(moving, LEVELS[level]))


def _sampled(image: nib.Nifti1Image, zoom: float) -> SimpleITK.Image:
    """Return the image smoothed to and sampled at about ``zoom`` mm."""
    zooms = np.array(voxel_sizes(image.affine))
    sigma = np.sqrt(np.maximum((0.42 * zoom) ** 2 - (0.42 * zooms) ** 2, 0.0)) / zooms
    step = np.maximum(1, np.round(zoom / zooms)).astype(int)
    data = ndimage.gaussian_filter(np.asarray(image.dataobj, dtype=np.float32), sigma)
    affine = image.affine @ np.diag([*step, 1.0])
    return to_itk(nib.Nifti1Image(data[:: step[0], :: step[1], :: step[2]], affine))


def _matrix(transform: Any) -> np.ndarray:
    """Return the matrix in RAS world coordinates of a SimpleITK transform."""
    linear = np.eye(4)
    linear[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.array(transform.GetCenter())
    linear[:3, 3] = np.array(transform.GetTranslation()) + centre - linear[:3, :3] @ centre
    return _TO_LPS @ linear @ _TO_LPS


def _set_matrix(transform: Any, move: np.ndarray) -> None:
    """Set the matrix of a SimpleITK transform; its centre stays."""
    linear = _TO_LPS @ move @ _TO_LPS
    centre = np.array(transform.GetCenter())
    transform.SetMatrix(linear[:3, :3].ravel().tolist())
    shift = linear[:3, 3] - centre + linear[:3, :3] @ centre
    transform.SetTranslation(shift.tolist())
