# SPDX-License-Identifier: Apache-2.0
"""Compute the null space of an acquisition, as three small matrices.

R = A^+ A keeps the measured part of a fine image, P = I - R the rest. The operator A is separable,
so R is a Kronecker product of one matrix for each axis. So is R o R, its elementwise square, which
gives the variance of projected noise in closed form.
"""

import torch

from .acquisition import Operator, _along

# Singular values below this share of the largest count as not measured, as in Operator.project.
SMALLEST_SHARE = 1e-3


class NullSpace:
    """The two complementary projections of an operator.

    Parameters
    ----------
    operator
        From the fine grid to the measured one.
    """

    def __init__(self, operator: Operator) -> None:
        self.matrices = operator.measured_projections(SMALLEST_SHARE)
        self._squares = [None if m is None else m.square() for m in self.matrices]

    def measured(self, fine: torch.Tensor) -> torch.Tensor:
        """Return R x (X, Y, Z): the part of an image that the acquisition determines."""
        return _along(fine, self.matrices)

    def project(self, fine: torch.Tensor) -> torch.Tensor:
        """Return P x (X, Y, Z): the part of an image that the acquisition does not determine."""
        return fine - self.measured(fine)

    def measured_variance(self, variance: torch.Tensor) -> torch.Tensor:
        """Return the variance (X, Y, Z) of R (s n), n white noise, of the variance s^2."""
        return _along(variance, self._squares)

    def variance(self, variance: torch.Tensor) -> torch.Tensor:
        """Return the variance (X, Y, Z) of P (s n), n white noise, of the variance s^2.

        d^2 = (1 - 2 r) s^2 + (R o R) s^2, with r the diagonal of R.
        """
        return variance - 2 * self.diagonal * variance + self.measured_variance(variance)

    @property
    def diagonal(self) -> torch.Tensor:
        """Diagonal of R, ready to be broadcast to (X, Y, Z)."""
        product: torch.Tensor = torch.ones(1, 1, 1)
        for axis, matrix in enumerate(self.matrices):
            if matrix is not None:
                shape = [1, 1, 1]
                shape[axis] = -1
                product = product.to(matrix) * matrix.diagonal().reshape(shape)
        return product
