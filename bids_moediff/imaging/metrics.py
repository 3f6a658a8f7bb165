# SPDX-License-Identifier: Apache-2.0
"""Figures of merit, in 3-D, in the head mask, with a fixed intensity range.

All take (X, Y, Z) arrays in the same units; ``mask`` is boolean. The range is the 99.5th
percentile of the truth in the mask, so that a bright vessel does not flatter a result.
"""

from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage
from skimage.metrics import structural_similarity


def intensity_range(truth: np.ndarray, mask: np.ndarray) -> float:
    """Return the 99.5th percentile of the truth in the mask.

    Parameters
    ----------
    truth, mask
        True image and boolean mask (X, Y, Z).
    """
    return float(np.percentile(truth[mask], 99.5))


def psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; the peak is :func:`intensity_range`.

    Parameters
    ----------
    image, truth, mask
        Result, true image and boolean mask (X, Y, Z).
    """
    error = (image - truth)[mask].astype(np.float64)
    return float(20 * np.log10(intensity_range(truth, mask)) - 10 * np.log10((error**2).mean()))


def nrmse(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Return the root-mean-square error over the root-mean-square of the truth.

    Parameters
    ----------
    image, truth, mask
        Result, true image and boolean mask (X, Y, Z).
    """
    error = (image - truth)[mask].astype(np.float64)
    return float(np.sqrt((error**2).sum() / (truth[mask].astype(np.float64) ** 2).sum()))


def ssim(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Return the 3-D structural similarity, averaged over the mask.

    Parameters
    ----------
    image, truth, mask
        Result, true image and boolean mask (X, Y, Z).

    References
    ----------
    Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE
    Transactions on Image Processing 13:600-612, 2004 (with their Gaussian window).
    """
    _, full = structural_similarity(
        truth,
        image,
        data_range=intensity_range(truth, mask),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return float(full[mask].mean())


def hfen(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Return the high-frequency error norm: the error of the Laplacian of Gaussian, relative.

    Parameters
    ----------
    image, truth, mask
        Result, true image and boolean mask (X, Y, Z). Sigma is 1.5 voxels, the norm the 2-norm.
    """
    edges = ndimage.gaussian_laplace(truth.astype(np.float32), 1.5)
    other = ndimage.gaussian_laplace(image.astype(np.float32), 1.5)
    return float(np.linalg.norm((other - edges)[mask]) / np.linalg.norm(edges[mask]))


def flicker(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """Return the mean |x_k - x_(k+1)| along each axis over that of the truth.

    Above one, slices flicker.

    Parameters
    ----------
    image, truth, mask
        Result, true image and boolean mask (X, Y, Z).
    """
    ratios = []
    for axis in range(3):
        inside = np.logical_and(
            np.take(mask, range(1, mask.shape[axis]), axis),
            np.take(mask, range(mask.shape[axis] - 1), axis),
        )
        of_image = np.abs(np.diff(image, axis=axis))[inside].mean()
        of_truth = np.abs(np.diff(truth, axis=axis))[inside].mean()
        ratios.append(float(of_image / of_truth))
    return (ratios[0], ratios[1], ratios[2])


def recovered_spectrum(
    image: np.ndarray, truth: np.ndarray, mask: np.ndarray, ratios: Sequence[float]
) -> dict[str, float]:
    """Return Fourier correlation and power ratio in the band between old and new Nyquist.

    A frequency belongs to the band if any axis exceeds the acquired Nyquist frequency 0.5 / ratio
    (cycles per fine voxel) while none exceeds 0.45.

    Parameters
    ----------
    image, truth, mask
        Result, true image and boolean mask (X, Y, Z).
    ratios
        Acquired over output voxel size, by axis.
    """
    window = ndimage.gaussian_filter(mask.astype(np.float32), 2.0)
    first = fft.rfftn(image * window, workers=1)
    second = fft.rfftn(truth * window, workers=1)
    frequencies = [fft.fftfreq(size) for size in truth.shape[:2]] + [fft.rfftfreq(truth.shape[2])]
    grid = np.meshgrid(*[np.abs(f) for f in frequencies], indexing="ij", sparse=True)
    outside = np.zeros(first.shape, bool)
    allowed = np.ones(first.shape, bool)
    for axis, ratio in enumerate(ratios):
        outside |= grid[axis] > 0.5 / ratio
        allowed &= grid[axis] <= 0.45
    band = outside & allowed
    if not band.any():
        return {"correlation": float("nan"), "power": float("nan")}
    a, b = first[band], second[band]
    power_a, power_b = float((np.abs(a) ** 2).sum()), float((np.abs(b) ** 2).sum())
    correlation = float((a * b.conj()).real.sum()) / max(np.sqrt(power_a * power_b), 1e-12)
    return {"correlation": correlation, "power": power_a / max(power_b, 1e-12)}


def slow_figures(
    image: np.ndarray, truth: np.ndarray, mask: np.ndarray, ratios: Sequence[float]
) -> dict[str, float]:
    """Return SSIM, HFEN, the worst flicker of the three axes, and the recovered band, by name.

    Parameters
    ----------
    image, truth, mask, ratios
        As for :func:`recovered_spectrum`.
    """
    spectrum = recovered_spectrum(image, truth, mask, ratios)
    return {
        "ssim": ssim(image, truth, mask),
        "hfen": hfen(image, truth, mask),
        "flicker": max(flicker(image, truth, mask)),
        "band_correlation": spectrum["correlation"],
        "band_power": spectrum["power"],
    }


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean.

    Parameters
    ----------
    values
        One for each head.
    level
        Coverage of the interval.
    draws
        Number of bootstrap samples.
    seed
        Seed of the draws.
    """
    array = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (draws, len(array)))].mean(axis=1)
    tail = (1 - level) / 2 * 100
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
