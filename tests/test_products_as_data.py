# SPDX-License-Identifier: Apache-2.0
"""Name and sidecar of every product of every kind of image, as text beside this file.

An entity that is lost, a key in the wrong sidecar or a product that nobody asked for changes a
line of ``tests/data/products.txt`` (see ``golden.py``).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from bids_moediff.bids.groups import ScanGroup
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path, figure_path, longest_name
from bids_moediff.bids.products import (
    PREPARATION,
    PRODUCTS,
    descriptions,
    find_product,
    wanted_products,
)
from bids_moediff.bids.sidecar import build_sidecar, label_table
from bids_moediff.errors import ImageError
from bids_moediff.settings import Settings
from golden import check


def image(name: str) -> AnatomicalImage:
    *parts, suffix = name.split("_")
    entities = dict(part.split("-") for part in parts)
    folder = f"ses-{entities['ses']}/" if "ses" in entities else ""
    path = f"sub-{entities['sub']}/{folder}anat/{name}.nii.gz"
    return AnatomicalImage(Path("/raw") / path, path, entities, suffix, {})


IMAGES = [
    image(name)
    for name in (
        "sub-01_T1w", "sub-01_ses-a_acq-x_run-02_T2w", "sub-01_inv-2_part-mag_MP2RAGE",
        "sub-01_echo-1_flip-3_mt-on_MTS",
    )
]  # fmt: skip
GROUP = ScanGroup((image("sub-01_acq-ax_T2w"), image("sub-01_acq-sag_T2w"))).image
MASK = {"method": "nonzero", "volume_ml": 1.5, "BiasFieldCorrection": "N4"}
RECORD = {
    "Model": "m", "Experts": ["smooth", "cortex"], "SampleExperts": ["a", "b", "c"],
    "ExpectedErrorFactor": 1.4, "BrainMask": {"method": "network", "volume_ml": 2.5},
    "LabelTables": {"kernels": [{"index": 1, "name": "k1", "x": 0.5}]},
    "Reference": {"Used": True, "Source": "sub-01/anat/sub-01_FLAIR.nii.gz"},
}  # fmt: skip
LABELS = {"sample": ["1", "12"], "standard": ["MNI152NLin6Asym"]}
WANTED = {
    "default": {}, "samples": {"num_samples": 2, "sample": "posterior"},
    "several": {"num_samples": 3}, "one sample": {"sample": "texture"},
    "error": {"outputs": ("uncertainty",)},
    "gates": {"outputs": ("gates",)}, "kernels": {"outputs": ("kernels",)},
    "all": {"outputs": ("gates", "samples"), "num_samples": 2, "output_spaces": ("A", "B")},
}  # fmt: skip


def described(source: AnatomicalImage) -> list[str]:
    lines = [f"{source.key}:"]
    for row in PRODUCTS.values():
        if row.of_group != bool(source.members):
            continue
        for label in LABELS.get(row.key, [""]):
            key = f"{row.key}_{label}" if label else row.key
            sizes = (0.7, 0.7, 1.25) if source.suffix == "T1w" else (0.8, 0.8, 0.8)
            zooms = sizes if row.on_output_grid else None
            names = [
                str(derivative_path(source, key, zooms, extension)) for extension in row.extensions
            ]
            lines.append(f"  {key}: {' '.join(names)}")
            if row.figure is not None:
                lines.append(f"    picture {figure_path(source, row.key, '.png')}")
            record: dict[str, Any] = MASK if row.made_by == PREPARATION else RECORD
            sidecar = build_sidecar(source, key, zooms, record)
            lines.append(f"    {json.dumps(sidecar)}")
            if ".tsv" in row.extensions:
                rows = RECORD["LabelTables"].get(row.key, ())
                lines += [f"    {line!r}" for line in label_table(sidecar, rows).splitlines()]
    return lines


def test_names_and_sidecars_of_all_products():
    lines = [line for source in (*IMAGES, GROUP) for line in described(source)]
    for name, options in WANTED.items():
        settings = Settings(**options)
        for source in (IMAGES[0], GROUP):
            keys = " ".join(row.key for row in wanted_products(settings, source))
            lines.append(f"{name}, {source.key}: {keys}")
    for row in PRODUCTS.values():
        lines.append(
            f"{row.key}: by {row.made_by}, intensities {row.intensities}, "
            f"drawn {row.figure and (row.figure.draw, *row.figure.beside)}"
        )
    check("products.txt", "\n".join(lines) + "\n")


def test_the_longest_name_is_that_of_the_longest_product():
    settings = Settings(outputs=("gates", "samples"), num_samples=12, output_spaces=("MNI",))
    for source in IMAGES:
        rows = list(wanted_products(settings, source))
        zooms = (0.7, 0.7, 1.25)
        names = [
            derivative_path(source, row.key, zooms if row.on_output_grid else None, end).name
            for row in rows
            for end in row.extensions
        ]
        assert longest_name(source, rows, zooms) == max(map(len, names))
    assert find_product("sample_3").entities == {"desc": "srsample3"}


def test_a_sidecar_names_its_reference_only_where_it_was_used():
    for reference in ({}, None, {"Used": False, "Source": "x"}):
        record = {"Reference": reference} if reference is not None else {}
        sidecar = build_sidecar(IMAGES[0], "sr", (1.0, 1.0, 1.0), record)
        assert sidecar["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]


def test_each_kind_of_file_is_described_once():
    rows = {row["desc_id"]: row["description"] for row in descriptions()}
    wanted = {
        f"desc-{row.entities['desc']}" for row in PRODUCTS.values() if "desc" in row.entities
    }
    assert set(rows) == wanted and len(rows) == len(descriptions())
    assert rows["desc-sr"] == PRODUCTS["sr"].description


@pytest.mark.parametrize(
    "entity", ["space", "atlas", "seg", "scale", "res", "den", "label", "desc"]
)
def test_a_derivative_is_no_source(entity):
    source = AnatomicalImage(Path("/x"), "x", {"sub": "01", entity: "a"}, "T1w", {})
    with pytest.raises(ImageError, match=rf"is a derivative already \({entity}-\)"):
        derivative_path(source, "preproc")
