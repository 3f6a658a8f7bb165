# SPDX-License-Identifier: Apache-2.0
"""The measurement of carried maps, on two small lesions."""

import numpy as np

from research.measurements import label_maps


def test_carried_lesions_are_no_worse_than_the_best_interpolation():
    truth = label_maps.lesion(5.0, seed=3)
    tables = [label_maps.scores(truth, zooms) for zooms in label_maps.SETTINGS.values()]
    for table in (*tables, label_maps.uneven_scores(label_maps.lesion(8.0, seed=1))):
        for kind in ("fractions", "labels"):
            dice, error, _ = table[kind, "carried"][0]
            usual = [table[kind, name][0, 0] for name in label_maps.USUAL]
            assert dice >= max(usual) - 0.01
            assert error <= 0.01


def test_a_lesion_has_about_the_diameter_asked_for():
    volumes = [label_maps.lesion(6.0, seed).sum() for seed in range(5)]
    np.testing.assert_allclose(np.mean(volumes), np.pi / 6 * 6**3, rtol=0.3)
