# SPDX-License-Identifier: Apache-2.0
"""List every kind of output file, one row each.

A row has all properties of a product: its name on disk, its sidecar, its description, the step
that makes it, when it is wanted, and its picture in the report. The step is a word: the
preparation, the network (a map of that name), or a step of ``interfaces.products``. The picture is
a name in ``reports.figures.DRAW``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.settings import Settings

PREPARATION, NETWORK = "preparation", "network"
# Key of the record that names the volumes of the gate maps; sidecars have it as LabelMap.
EXPERTS = "Experts"
# The same of the experts that drew samples.
SAMPLE_EXPERTS = "SampleExperts"
# Key of a sidecar that names the one expert of its image.
EXPERT = "Expert"
# Key of the record with rows about the labels of maps, by product; they become its table.
TABLES = "LabelTables"
# Key of the record that says how the bias field was estimated.
BIAS_FIELD = "BiasFieldCorrection"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Parameters
    ----------
    title, caption
        Heading above and words below.
    draw
        Name of a function in ``reports.figures.DRAW``.
    words
        Words inside the picture.
    beside
        Keys of products that are drawn into the same picture.
    """

    title: str
    caption: str
    draw: str
    words: str = ""
    beside: Sequence[str] = ()


@dataclass(frozen=True)
class Several:
    """Labels of a product of which an image may have several files.

    Parameters
    ----------
    labels
        Returns the labels of the files of an image.
    entities
        Returns the entities of the file with a label, in addition to those of the row.
    """

    labels: Callable[[Settings, AnatomicalImage], Sequence[str]]
    entities: Callable[[str], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Product:
    """One kind of file.

    Parameters
    ----------
    key
        Its name in results of the network, run records and names of pictures. No underscore:
        ``key_label`` is one of several files.
    entities
        Entities that it adds to those of its source.
    suffix
        Suffix, or None for that of the source, if it is an image of the same contrast.
    on_output_grid
        Whether ``res-`` is written.
    extensions
        Extensions of its files, that of the content first.
    sidecar
        Returns its own keys from the record of the super-resolution, or, for products of the
        preparation, from that of the brain mask.
    description
        A few words, for ``descriptions.tsv`` and the documentation.
    made_by
        ``PREPARATION``, ``NETWORK`` or the name of a step of ``interfaces.products``.
    wanted
        Whether a run writes it.
    each
        Set if an image may have several.
    intensities
        Whether it holds the intensities of the image, whose noise decides the storage step.
    figure
        Its picture in the report, if any.
    of_group
        Whether it is made of several scans that are combined, not of one.
    """

    key: str
    entities: Mapping[str, str]
    suffix: str | None = None
    on_output_grid: bool = True
    extensions: tuple[str, ...] = (".nii.gz", ".json")
    sidecar: Callable[[Record], Record] = lambda record: record
    description: str
    made_by: str = NETWORK
    wanted: Callable[[Settings], bool] = lambda settings: True
    each: Several | None = None
    intensities: bool = False
    figure: Figure | None = None
    of_group: bool = False

    @property
    def label(self) -> str:
        """Label of one of several files, else empty."""
        return self.key.partition("_")[2]


def _experts(record: Record) -> Sequence[str]:
    return record.get(EXPERTS, ())


def _kernel_names(record: Record) -> Mapping[str, int]:
    return {row["name"]: row["index"] for row in record.get(TABLES, {}).get("kernels", ())}


def _without(record: Record, key: str) -> Record:
    return {name: value for name, value in record.items() if name != key}


def _wants_gates(settings: Settings) -> bool:
    return "gates" in settings.outputs


CHANGES_FIGURE = Figure(
    "Samples: changes by the experts that draw them",
    "What each of these networks added to the noise that the first sample started from, in units "
    "of the input and on one colour scale. With that noise they add up to the sample minus the "
    "super-resolved image; none of them changes what was measured. They are not the experts that "
    "refine the image: their gate is another one, and its weights are not written.",
    "changes",
    beside=("srexpert2", "srexpert3"),
)


def _change(number: int) -> Product:
    """Return the row of what an expert added to the first sample; experts count from 1."""
    return Product(
        key=f"srexpert{number}",
        entities={"desc": f"srexpert{number}"},
        sidecar=lambda record: {
            **_without_expected_error(record),
            EXPERT: dict(enumerate(record.get(SAMPLE_EXPERTS, ()), 1)).get(number, ""),
        },
        description=f"what expert {number} added to the first sample",
        wanted=lambda settings: _wants_gates(settings) and settings.draws_samples,
        figure=CHANGES_FIGURE if number == 1 else None,
    )


def _without_expected_error(record: Record) -> Record:
    return {key: value for key, value in record.items() if not key.startswith("ExpectedError")}


# In the order in which they are written.
_ROWS = (
    Product(
        key="preproc",
        entities={"desc": "preproc"},
        on_output_grid=False,
        sidecar=lambda record: {BIAS_FIELD: record.get(BIAS_FIELD, "none")},
        description="input image, conformed, on its own grid",
        made_by=PREPARATION,
    ),
    Product(
        key="mask",
        entities={"desc": "brain"},
        suffix="mask",
        on_output_grid=False,
        sidecar=lambda record: {"Type": "Brain", **_without(record, BIAS_FIELD)},
        description="brain mask",
        made_by=PREPARATION,
        figure=Figure(
            "Brain mask",
            "Outline of the brain mask used for quality figures and bias correction, on the "
            "input. It should follow the brain without cutting cortex; the super-resolved image "
            "itself is not cut by it.",
            "outline",
            "Brain mask on the input",
        ),
    ),
    Product(
        key="srmask",
        entities={"desc": "brain"},
        suffix="mask",
        sidecar=lambda record: {"Type": "Brain", **record.get("BrainMask", {})},
        description="brain mask",
        made_by="ResampleMask",
    ),
    Product(
        key="sr",
        entities={"desc": "sr"},
        description="super-resolved image",
        intensities=True,
    ),
    Product(
        key="srstd",
        entities={"desc": "srstd"},
        description="expected error (standard deviation) of sr",
        wanted=lambda settings: settings.wants_expected_error,
        figure=Figure(
            "Uncertainty",
            "How far the result is to be expected from the truth, as one standard deviation in "
            "units of the input: about 19 of 20 voxels lie within twice this value. Bright places "
            "are those where the input leaves open what the fine detail is and the network has "
            "added most.",
            "amount",
            "Expected error (one standard deviation)",
        ),
    ),
    Product(
        key="sample",
        entities={"desc": "srsample1"},
        sidecar=_without_expected_error,
        description="first sample of what the image may have looked like; srsample2 and so on",
        each=Several(
            lambda settings, image: [
                str(number + 1)
                for number in range(settings.num_samples if settings.writes_samples else 0)
            ],
            lambda label: {"desc": f"srsample{label}"},
        ),
    ),
    Product(
        key="gates",
        entities={"seg": "moegate"},
        suffix="probseg",
        sidecar=lambda record: {"LabelMap": list(_experts(record)), **record},
        description="weights of the experts that refine the image",
        wanted=_wants_gates,
        figure=Figure(
            "Image: weights of the experts that refine it",
            "Weight of each of these networks, 0 to 1; they add up to 1 in every voxel. Colour is "
            "the weight, brightness the anatomy. Samples are drawn by others, with another gate.",
            "expert weights",
        ),
    ),
    Product(
        key="expert",
        entities={"seg": "moegate"},
        suffix="dseg",
        extensions=(".nii.gz", ".json", ".tsv"),
        sidecar=lambda record: {
            "LabelMap": {name: number for number, name in enumerate(_experts(record), 1)},
            **record,
        },
        description="expert with the largest of these weights",
        made_by="WinningExpert",
        wanted=_wants_gates,
        figure=Figure(
            "Image: leading expert",
            "Colour shows which of the experts that refine the image has the largest weight, "
            "brightness the anatomy.",
            "leading expert",
            "Expert with the largest weight",
        ),
    ),
    *(_change(number) for number in (1, 2, 3)),
    Product(
        key="kernels",
        entities={"seg": "kernel"},
        suffix="dseg",
        extensions=(".nii.gz", ".json", ".tsv"),
        sidecar=lambda record: {"LabelMap": _kernel_names(record), **record},
        description="leading kernel in a region",
        wanted=lambda settings: "kernels" in settings.outputs,
        figure=Figure(
            "Kernels of a region",
            "A cube in the middle of the head; each colour is the part in which one kernel leads. "
            "Long and thin parts lie along edges. The table beside the map has each kernel's "
            "place, widths and direction.",
            "kernels",
            "Leading kernel",
        ),
    ),
    Product(
        key="standard",
        entities={"desc": "sr"},
        description="super-resolved image in a standard space",
        made_by="ToStandardSpace",
        intensities=True,
        each=Several(lambda settings, image: settings.output_spaces, lambda tpl: {"space": tpl}),
    ),
    Product(
        key="srcombined",
        entities={"desc": "srcombined"},
        description="super-resolved image, combined from several scans",
        of_group=True,
    ),
    Product(
        key="srcount",
        entities={"desc": "srcount"},
        description="number of scans that a voxel of srcombined was combined from",
        of_group=True,
    ),
)
PRODUCTS: Mapping[str, Product] = {row.key: row for row in _ROWS}


def find_product(key: str) -> Product:
    """Return the row of a product, or, for ``key_label``, that of one of several files.

    Raises
    ------
    ValueError
        For a product that is not in the table, and for a missing or unexpected label.
    """
    name, _, label = key.partition("_")
    row = PRODUCTS.get(name)
    if row is None:
        raise ValueError(f"unknown product {name!r}; known are {', '.join(PRODUCTS)}")
    if (row.each is None) == bool(label):
        raise ValueError(f"{name} {'has no' if label else 'needs a'} label")
    if row.each is None:
        return row
    return replace(row, key=key, entities={**row.entities, **row.each.entities(label)})


def wanted_products(settings: Settings, image: AnatomicalImage) -> Iterator[Product]:
    """Yield the products that a run writes for an image, in order."""
    for row in PRODUCTS.values():
        if row.of_group != bool(image.members):
            continue
        if row.each is None and row.wanted(settings):
            yield row
        elif row.each is not None:
            labels = row.each.labels(settings, image)
            yield from (find_product(f"{row.key}_{label}") for label in labels)


def descriptions() -> list[dict[str, str]]:
    """Return the rows of ``descriptions.tsv``: one for each value of ``desc-``."""
    found: dict[str, str] = {}
    for row in PRODUCTS.values():
        if "desc" in row.entities:
            found.setdefault(f"desc-{row.entities['desc']}", row.description)
    return [{"desc_id": key, "description": words} for key, words in found.items()]
