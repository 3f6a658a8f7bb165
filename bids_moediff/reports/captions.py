# SPDX-License-Identifier: Apache-2.0
"""What each picture and each number of a report means, in words for its reader."""

TITLES = {
    "crops": "Zoom into cortex",
    "difference": "What was added to interpolation",
    "profile": "A line across cortex",
    "histogram": "Intensities before and after",
    "srstd": "Uncertainty",
    "gates": "Who did what: weights of the experts",
    "expert": "Leading expert",
    "mask": "Brain mask",
}
CAPTIONS = {
    "crops": "Squares of 44 mm with the most edges of the input; the bar is 10 mm. Every "
    "structure in the third column should have its trace in the first: a structure that is "
    "sharper is what super-resolution is for, a structure that is new is a reason for doubt. The "
    "fourth column is the third minus the second.",
    "difference": "Super-resolved image minus cubic interpolation of the input, in units of the "
    "input; the colour scale is centred on zero and ends at the 99.5th percentile in the brain. "
    "Expect thin lines along edges. Extended areas of one colour would be a shift of contrast.",
    "profile": "Intensities along the line in the small picture. Grey steps are the scanner's "
    "voxels, the dashed line is cubic interpolation, the solid line is the result. The mean of "
    "the solid line over each step stays close to the step.",
    "histogram": "Intensities inside the brain mask. The two curves should have their peaks at "
    "the same places, because the output keeps the units and the contrast of the input; narrower "
    "peaks mean less partial volume.",
    "srstd": "How far the result is to be expected from the truth, as one standard deviation in "
    "units of the input: about 19 of 20 voxels lie within twice this value. Bright places are "
    "those where the input leaves open what the fine detail is and the network has added most.",
    "gates": "Weight of each expert network, 0 to 1; the three add up to 1 in every voxel. Colour "
    "is the weight, brightness the anatomy.",
    "expert": "Colour shows which expert has the largest weight, brightness the anatomy.",
    "mask": "Outline of the brain mask used for quality figures and bias correction, on the "
    "input. It should follow the brain without cutting cortex; the super-resolved image itself "
    "is not cut by it.",
}
COMPARE_CAPTION = (
    "Same slices, same grey window, same scale. The input is drawn with its own voxels, nothing "
    "is smoothed. L and R are the patient's left and right (radiological view)."
)

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
    ("noise_sigma", "Noise standard deviation", "input units"),
    ("distance_from_training", "Distance from the training heads", ""),
    ("brain_volume", "Volume of the brain mask", "ml"),
)
