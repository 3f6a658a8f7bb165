# SPDX-License-Identifier: Apache-2.0
"""Describe the distribution of one figure over a group: median, outliers, and dots of the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FAR = 3.5  # modified z-score that makes an outlier (Iglewicz and Hoaglin, 1993)
FEWEST = 5  # images from which on outliers are named
MOST_LISTED = 2000  # images of a contrast that a page lists; more make a browser slow


@dataclass(frozen=True)
class Spread:
    """One figure of all images of a group.

    Attributes
    ----------
    places
        Rows of the table that have the figure.
    values
        The figure in these rows.
    far
        Whether each of the values is an outlier.
    """

    label: str
    places: list[int]
    values: np.ndarray
    far: np.ndarray

    @property
    def varies(self) -> bool:
        """Whether the values differ; a strip of equal ones is useless."""
        return bool(np.ptp(self.values) > 0)

    def furthest(self) -> list[int]:
        """Return the positions in ``values`` of the outliers, furthest from the median first."""
        order = np.argsort(-np.abs(self.values - np.median(self.values)))
        return [int(position) for position in order if self.far[position]]


@dataclass(frozen=True)
class Strip:
    """Distribution of one figure: dots along the strip, outliers with their names.

    A dot is (row of the page's table, fraction of the way from the lowest to the highest value,
    height). Only images that the page lists have one; everything else is of all images.
    """

    label: str
    low: str
    middle: str
    high: str
    centre: float
    dots: list[tuple[int, float, float]]
    far: list[int]
    outliers: list[tuple[str, str, str]]
    further: int  # outliers that are not named

    @property
    def far_dots(self) -> list[tuple[int, float, float]]:
        """Dots of the outliers."""
        far = set(self.far)
        return [dot for dot in self.dots if dot[0] in far]


def spread(name: str, label: str, rows: Sequence[Mapping[str, Any]]) -> Spread | None:
    """Return the distribution of a figure over the rows of a table; None for fewer than five."""
    places = [index for index, row in enumerate(rows) if isinstance(row[name], (int, float))]
    if len(places) < FEWEST:
        return None
    values = np.array([rows[place][name] for place in places], dtype=float)
    return Spread(label, places, values, outliers(values))


def outliers(values: np.ndarray) -> np.ndarray:
    """Return which values are further than 3.5 robust standard deviations from the median.

    None are if there are fewer than five values, or if most values are the same.
    """
    distance = np.abs(values - np.median(values))
    deviation = 1.4826 * np.median(distance)
    if len(values) < FEWEST or deviation == 0:
        return np.zeros(len(values), dtype=bool)
    return distance > FAR * deviation


def choose(count: int, spreads: Sequence[Spread], most: int = MOST_LISTED) -> list[int]:
    """Return the rows that a page lists: all, or of too many the most informative ones.

    Half of the room is for the images furthest from the median of each figure, the rest for every
    n-th image, so that the dots still show the distribution.
    """
    if count <= most:
        return list(range(count))
    share = most // 2 // max(1, len(spreads))
    chosen = {found.places[i] for found in spreads for i in found.furthest()[:share]}
    step = math.ceil(count / (most - len(chosen)))
    return sorted(chosen | set(range(0, count, step)))


def strip(found: Spread, rows: Sequence[Mapping[str, Any]], listed: Mapping[int, int]) -> Strip:
    """Return the strip of a figure.

    Parameters
    ----------
    found
        The figure in all rows.
    rows
        Rows of the table.
    listed
        Row of the table to row of the page's table, for those that the page lists.
    """
    values, places = found.values, found.places
    low, middle, high = (float(f(values)) for f in (np.min, np.median, np.max))
    share = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    # Dots are spread over the height in a fixed pattern, so that equal values stay visible.
    dots = [
        (listed[place], round(float(share[i]), 4), round((i * 0.618034) % 1, 2))
        for i, place in enumerate(places)
        if place in listed
    ]
    far = [listed[places[i]] for i in np.nonzero(found.far)[0] if places[i] in listed]
    furthest = found.furthest()
    named = [
        (rows[places[i]]["bids_name"], rows[places[i]]["participant"], f"{values[i]:.4g}")
        for i in furthest[:3]
    ]
    centre = (middle - low) / (high - low) if high > low else 0.5
    numbers = (f"{low:.4g}", f"{middle:.4g}", f"{high:.4g}")
    return Strip(
        found.label, *numbers, round(centre, 4), dots, far, named, len(furthest) - len(named)
    )
