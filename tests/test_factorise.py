# SPDX-License-Identifier: Apache-2.0
"""Reduced-rank regression with a prior, against what it must recover."""

import numpy as np
import torch

from bids_moediff.families.student.training.factorise import reduced_regression

RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((600, 9)) + 1.0
TARGETS = INPUTS @ RNG.standard_normal((9, 6)) + RNG.standard_normal((600, 6)) - 2.0


def fitted(inputs: np.ndarray, targets: np.ndarray, rank: int, prior: np.ndarray) -> np.ndarray:
    rows = np.hstack([inputs, np.ones((len(inputs), 1))])
    gram, cross = torch.from_numpy(rows.T @ rows), torch.from_numpy(rows.T @ targets)
    found = reduced_regression(gram, cross, rank, torch.from_numpy(prior))
    coefficients, basis, constant = (part.numpy() for part in found)
    assert coefficients.shape[1] == basis.shape[1] == rank
    return inputs @ coefficients @ basis.T + constant


def least_squares(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    centred = inputs - inputs.mean(0)
    return np.linalg.lstsq(centred, targets - targets.mean(0), rcond=None)[0]


def test_the_low_rank_is_the_best_one() -> None:
    """As good as the first components of the fitted values (Izenman 1975)."""
    solution = least_squares(INPUTS, TARGETS)
    ours = TARGETS - fitted(INPUTS, TARGETS, 2, solution)
    wanted = TARGETS - TARGETS.mean(0)
    values = (INPUTS - INPUTS.mean(0)) @ solution
    strongest = np.linalg.svd(values, full_matrices=False)[2][:2]
    best = wanted - values @ strongest.T @ strongest
    np.testing.assert_allclose(np.square(ours).sum(), np.square(best).sum(), rtol=1e-6)


def test_what_few_places_do_not_tell_comes_from_the_prior() -> None:
    """Directions in which the inputs do not vary keep the coefficients of the prior."""
    kernel = RNG.standard_normal((9, 6))
    flat = INPUTS.copy()
    flat[:, 5:] = flat[:, :1]  # five inputs alike: only their sum is determined
    seen, unseen = flat, INPUTS
    outputs = seen @ kernel
    rows = np.hstack([seen, np.ones((len(seen), 1))])
    moments = torch.from_numpy(rows.T @ rows), torch.from_numpy(rows.T @ outputs)

    def error(prior: np.ndarray) -> float:
        found = reduced_regression(*moments, 6, torch.from_numpy(prior))
        coefficients, basis, constant = (part.numpy() for part in found)
        return float(np.abs(unseen @ coefficients @ basis.T + constant - unseen @ kernel).max())

    assert error(kernel) < 1e-6
    assert error(np.zeros((9, 6))) > 1.0
