# SPDX-License-Identifier: Apache-2.0
"""Explain each picture and each number of a report, for its reader."""

from bids_moediff.bids.products import PREPARATION, PRODUCTS, Product

# What compares input and result; the other pictures are those of the rows of products.
COMPARISONS = {
    "crops": (
        "Zoom into cortex",
        "Squares of 44 mm with the most edges of the input; the bar is 10 mm. Every structure in "
        "the third column should have its trace in the first. Sharper structures are expected, "
        "new ones are suspicious. The fourth column is the third minus the second.",
    ),
    "reference": (
        "Reference contrast",
        "The image that guided the restoration, as stored and after registration, with outlines "
        "of the restored image over all panels. In the right column the outlines should run "
        "along the edges of the reference; where they do not, its detail was of no use.",
    ),
    "difference": (
        "What was added to interpolation",
        "Super-resolved image minus cubic interpolation of the input, in units of the input; the "
        "colour scale is centred on zero and ends at the 99.5th percentile in the brain. Expect "
        "thin lines along edges. Extended areas of one colour would be a shift of contrast.",
    ),
    "profile": (
        "A line across cortex",
        "Intensities along the line in the small picture. Grey steps are the scanner's voxels, "
        "the dashed line is cubic interpolation, the solid line is the result. The mean of the "
        "solid line over each step stays close to the step.",
    ),
    "histogram": (
        "Intensities before and after",
        "Intensities inside the brain mask. The two curves should have their peaks at the same "
        "places, because the output keeps the units and the contrast of the input; narrower peaks "
        "mean less partial volume.",
    ),
}
COMPARE_CAPTION = (
    "Same slices, same grey window, same scale. The input is drawn with its own voxels, nothing "
    "is smoothed. L and R are the patient's left and right (radiological view)."
)
PAIR_CAPTION = (
    "Each scan in the slices of the combined image, before registration (where its header places "
    "it) and after. Point at a picture, or choose it with the Tab key, and it alternates with the "
    "combined image: after registration edges must stay where they are."
)


def drawn_products() -> list[Product]:
    """Return the products that have a picture, results before the preparation."""
    rows = [row for row in PRODUCTS.values() if row.figure is not None]
    return sorted(rows, key=lambda row: row.made_by == PREPARATION)


def figures() -> dict[str, tuple[str, str]]:
    """Return title and caption of every picture of a page, by name and in order."""
    rows = {
        row.key: (row.figure.title, row.figure.caption) for row in drawn_products() if row.figure
    }
    return COMPARISONS | rows


# What the table of quality figures shows first: name, label, unit.
MAIN_FIGURES = (
    ("snr_brain", "Signal-to-noise ratio in the brain", ""),
    ("snr_total", "Signal-to-noise ratio of tissues (mean)", ""),
    ("cnr", "Contrast-to-noise ratio of white to grey matter", ""),
    ("cjv", "Coefficient of joint variation", ""),
    ("efc", "Entropy focus criterion", ""),
    ("fber", "Foreground-to-background energy ratio", ""),
    ("qi_1", "Artefacts in the air", ""),
    ("fwhm_avg", "Smoothness (mean width)", "mm"),
    ("noise_sigma", "Variation in flat tissue (noise and fine anatomy)", "input units"),
    ("distance_from_training", "Distance from the training images", ""),
    ("brain_volume", "Volume of the brain mask", "ml"),
)
