# SPDX-License-Identifier: Apache-2.0
"""Steered mixture-of-experts regression: the continuous decoder of N-SMoE.

A block is K kernels. A point x belongs to kernel k with the softmax over k of
log w_k - 1/2 (x - mu_k)^T P_k (x - mu_k), where P_k = L_k L_k^T is a precision matrix by its
Cholesky factor. The value of kernel k at x is v_k + s_k^T x, and the value of the block is their
mean, weighted by the shares. There is no grid: a block can be rendered at any voxel size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kernels:
    """K steered kernels for each of B blocks in d = 2 or 3 dimensions.

    Parameters
    ----------
    centres
        (B, K, d), in units of half a block, its centre at 0.
    factors
        (B, K, d, d), lower triangular with a positive diagonal: Cholesky factors of the precision
        matrices.
    log_weights
        (B, K), any number.
    values, slopes
        (B, K) and (B, K, d): value of a kernel at the centre of the block, and its slope.
    """

    centres: Tensor
    factors: Tensor
    log_weights: Tensor
    values: Tensor
    slopes: Tensor

    def of(self, blocks: slice | Tensor) -> Kernels:
        """Return the kernels of some of the blocks."""
        parts = (self.centres, self.factors, self.log_weights, self.values, self.slopes)
        return Kernels(*(part[blocks] for part in parts))


def precisions(kernels: Kernels) -> Tensor:
    """Return the precision matrices P = L L^T, (B, K, d, d)."""
    return kernels.factors @ kernels.factors.transpose(-1, -2)


def steered(scales: Tensor, rotations: Tensor) -> Tensor:
    """Return the Cholesky factors of the precision of covariances R diag(scales)^2 R^T.

    Parameters
    ----------
    scales
        (..., d), standard deviations along the axes of the kernel.
    rotations
        (..., d, d), columns are these axes.
    """
    turned = rotations / scales[..., None, :]
    return torch.linalg.cholesky(turned @ turned.transpose(-1, -2))


def gates(kernels: Kernels, points: Tensor) -> Tensor:
    """Return the share of every kernel (B, M, K) at points (B, M, d); shares sum to one."""
    offset = points[:, :, None] - kernels.centres[:, None]
    along = torch.einsum("bmkd,bkde->bmke", offset, kernels.factors)  # L^T (x - mu)
    return torch.softmax(kernels.log_weights[:, None] - 0.5 * along.square().sum(-1), dim=-1)


def render(kernels: Kernels, points: Tensor) -> Tensor:
    """Return the values of the blocks (B, M) at points (B, M, d), by the definition."""
    said = kernels.values[:, None] + torch.einsum("bmd,bkd->bmk", points, kernels.slopes)
    return (gates(kernels, points) * said).sum(-1)


def polynomials(kernels: Kernels) -> tuple[Tensor, Tensor]:
    """Return the kernels as coefficients of :func:`basis`.

    The logarithms of the shares before the softmax, (B, K, 1 + d + d (d + 1) / 2), and the values
    of the kernels, (B, K, 1 + d).
    """
    precision = precisions(kernels)
    pulled = (precision @ kernels.centres[..., None])[..., 0]
    constant = kernels.log_weights - 0.5 * (pulled * kernels.centres).sum(-1)
    size = precision.shape[-1]
    rows, columns = torch.triu_indices(size, size)
    # Off the diagonal each product of coordinates stands for two entries.
    halves = precision.new_tensor([0.5 if i == j else 1.0 for i, j in zip(rows, columns)])  # noqa: B905
    quadratic = -precision[..., rows, columns] * halves
    shares = torch.cat([constant[..., None], pulled, quadratic], -1)
    return shares, torch.cat([kernels.values[..., None], kernels.slopes], -1)


def basis(points: Tensor) -> Tensor:
    """Return 1, the coordinates and their products at points (..., M, d), (..., terms, M)."""
    rows, columns = torch.triu_indices(points.shape[-1], points.shape[-1])
    products = points[..., rows] * points[..., columns]
    return torch.cat([torch.ones_like(points[..., :1]), points, products], -1).transpose(-1, -2)


def render_polynomials(shares: Tensor, said: Tensor, terms: Tensor) -> Tensor:
    """Return the values of :func:`render`, (B, M), from :func:`polynomials` and :func:`basis`.

    These are two matrix products, so that a processor's matrix units do the work. ``terms`` is
    (terms, M) if the blocks share their points, else (B, terms, M).
    """
    weights = torch.softmax(shares @ terms, dim=1)
    return (weights * (said @ terms[..., : said.shape[-1], :])).sum(1)
