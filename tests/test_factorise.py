# SPDX-License-Identifier: Apache-2.0
"""Reduced-rank regression with some inputs free, against what it must recover."""

import numpy as np
import torch

from bids_moediff.training.factorise import reduced_regression


def moments(inputs: np.ndarray, targets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.hstack([inputs, np.ones((len(inputs), 1))])
    return torch.from_numpy(rows.T @ rows), torch.from_numpy(rows.T @ targets)


def applied(found, bound: np.ndarray, free: np.ndarray) -> np.ndarray:
    parts = [part.numpy() for part in found]
    coefficients, basis, rest, constant = parts
    return bound @ coefficients @ basis.T + free @ rest + constant


def test_low_rank_beside_a_full_part_is_recovered() -> None:
    """Correlated inputs: neither part can be found without the other."""
    rng = np.random.default_rng(0)
    free = rng.standard_normal((4000, 5)) + 1.0
    bound = rng.standard_normal((4000, 12)) + free @ rng.standard_normal((5, 12)) - 2.0
    low = rng.standard_normal((12, 3)) @ rng.standard_normal((3, 7))
    targets = bound @ low + free @ rng.standard_normal((5, 7)) + rng.standard_normal(7)
    found = reduced_regression(*moments(np.hstack([bound, free]), targets), 3, free=5)
    assert found.coefficients.shape == (12, 3)
    error = applied(found, bound, free) - targets
    assert np.abs(error).max() < 0.02 * targets.std()
    fewer = reduced_regression(*moments(np.hstack([bound, free]), targets), 2, free=5)
    assert (applied(fewer, bound, free) - targets).std() > 10 * error.std()


def test_full_rank_is_ordinary_least_squares() -> None:
    rng = np.random.default_rng(1)
    inputs, targets = rng.standard_normal((500, 9)), rng.standard_normal((500, 4))
    found = reduced_regression(*moments(inputs, targets), 4, free=3)
    rows = np.hstack([inputs, np.ones((500, 1))])
    expected = rows @ np.linalg.lstsq(rows, targets, rcond=None)[0]
    np.testing.assert_allclose(applied(found, inputs[:, :6], inputs[:, 6:]), expected, atol=1e-3)


def test_the_low_rank_is_the_best_one() -> None:
    """As good as the first components of the fitted values (Izenman 1975)."""
    rng = np.random.default_rng(2)
    inputs, targets = rng.standard_normal((500, 9)), rng.standard_normal((500, 6))
    found = reduced_regression(*moments(inputs, targets), 2)
    ours = targets - applied(found, inputs, np.zeros((500, 0)))
    centred, wanted = inputs - inputs.mean(0), targets - targets.mean(0)
    fitted = centred @ np.linalg.lstsq(centred, wanted, rcond=None)[0]
    strongest = np.linalg.svd(fitted, full_matrices=False)[2][:2]
    best = wanted - fitted @ strongest.T @ strongest
    np.testing.assert_allclose(np.square(ours).sum(), np.square(best).sum(), rtol=1e-6)
