# SPDX-License-Identifier: Apache-2.0
"""Names: order of entities, distinctness and the way back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import (
    RESERVED,
    derivative_path,
    figure_path,
    parse_name,
    resolution_label,
)
from bids_moediff.bids.products import PRODUCTS, find_product, wanted_products
from bids_moediff.errors import ImageError
from bids_moediff.execution import preflight
from bids_moediff.settings import Settings
from generated import dataset, head

ZOOMS = (0.7, 0.7, 0.7)
KEYS = [key for key, row in PRODUCTS.items() if row.each is None]
KEYS += [f"{key}_Label" for key, row in PRODUCTS.items() if row.each is not None]


def source(suffix="T1w", **entities):
    return AnatomicalImage(Path("/x"), "x", {"sub": "01", **entities}, suffix, {})


def path(image, product, zooms=ZOOMS, extension=".nii.gz"):
    wanted = zooms if find_product(product).on_output_grid else None
    return derivative_path(image, product, wanted, extension)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("sr", "sub-01_ses-a_acq-x_run-01_res-0p7mm_desc-sr_T1w.nii.gz"),
        ("preproc", "sub-01_ses-a_acq-x_run-01_desc-preproc_T1w.nii.gz"),
        ("mask", "sub-01_ses-a_acq-x_run-01_desc-brain_mask.nii.gz"),
        ("srmask", "sub-01_ses-a_acq-x_run-01_res-0p7mm_desc-brain_mask.nii.gz"),
        ("gates", "sub-01_ses-a_acq-x_run-01_seg-moegate_res-0p7mm_probseg.nii.gz"),
        ("expert", "sub-01_ses-a_acq-x_run-01_seg-moegate_res-0p7mm_dseg.nii.gz"),
        ("srstd", "sub-01_ses-a_acq-x_run-01_res-0p7mm_desc-srstd_T1w.nii.gz"),
        ("standard_MNI", "sub-01_ses-a_acq-x_run-01_space-MNI_res-0p7mm_desc-sr_T1w.nii.gz"),
    ],
)
def test_names_of_the_table(product, name):
    image = source(ses="a", acq="x", run="01")
    assert path(image, product).as_posix() == f"sub-01/ses-a/anat/{name}"


def test_masks_of_two_contrasts_of_a_session_differ():
    assert path(source("T2w"), "mask").name == "sub-01_space-T2w_desc-brain_mask.nii.gz"
    gates = path(source("FLAIR"), "gates").name
    assert gates == "sub-01_space-FLAIR_seg-moegate_res-0p7mm_probseg.nii.gz"


def test_resolution_label():
    assert resolution_label((0.7, 0.7, 0.7)) == "0p7mm"
    assert resolution_label((0.7, 0.7, 1.0)) == "0p7x0p7x1mm"
    assert resolution_label((0.8594, 0.8594, 10)) == "0p8594x0p8594x10mm"


label = st.from_regex(r"[A-Za-z0-9]{1,4}", fullmatch=True)
ENTITIES = ("ses", "acq", "ce", "rec", "dir", "run", "echo", "part", "chunk")
entities = st.fixed_dictionaries(
    {"sub": label},
    optional=dict.fromkeys(ENTITIES, label),
)
sources = st.builds(
    lambda keys, suffix: AnatomicalImage(Path("/x"), "x", keys, suffix, {}),
    entities,
    st.sampled_from(["T1w", "T2w", "FLAIR", "PDw", "UNIT1"]),
)


@settings(max_examples=300)
@given(st.lists(sources, min_size=2, max_size=6), st.tuples(*[st.sampled_from((0.7, 1.0))] * 3))
def test_distinct_sources_get_distinct_names_that_parse_back(images, zooms):
    distinct = {(tuple(sorted(i.entities.items())), i.suffix): i for i in images}.values()
    names = [path(image, product, zooms) for image in distinct for product in KEYS]
    names += [figure_path(image, "sr") for image in distinct]
    assert len(set(names)) == len(names)
    for image in distinct:
        for product in KEYS:
            row = find_product(product)
            found, suffix, extension = parse_name(path(image, product, zooms).name)
            added = {key: found[key] for key in RESERVED & set(found)}
            assert {k: v for k, v in found.items() if k not in added} == dict(image.entities)
            assert {**added, **row.entities} == added
            assert suffix == (row.suffix or image.suffix)
            assert extension == ".nii.gz"


def test_figures():
    figure = figure_path(source("T2w", ses="a", run="2"), "mask", ".png")
    assert figure.as_posix() == "sub-01/figures/sub-01_ses-a_run-2_desc-mask_T2w.png"
    with pytest.raises(ValueError, match="label"):
        figure_path(source(), "a_b")
    with pytest.raises(ValueError, match="jpg"):
        figure_path(source(), "mask", ".jpg")


def test_strictness():
    with pytest.raises(ValueError, match="unknown product"):
        derivative_path(source(), "super")
    with pytest.raises(ValueError, match="needs a label"):
        derivative_path(source(), "standard", ZOOMS)
    with pytest.raises(ValueError, match="has no label"):
        derivative_path(source(), "sr_MNI", ZOOMS)
    with pytest.raises(ValueError, match="needs output_zooms"):
        derivative_path(source(), "sr")
    with pytest.raises(ValueError, match="has no output_zooms"):
        derivative_path(source(), "mask", ZOOMS)
    with pytest.raises(ValueError, match=r"no \.tsv"):
        path(source(), "sr", extension=".tsv")
    with pytest.raises(ImageError, match="derivative already"):
        path(source(desc="x"), "sr")
    with pytest.raises(ImageError, match="not a BIDS entity"):
        path(source(foo="x"), "sr")


@pytest.mark.parametrize(
    "name",
    [
        *["T1w.nii.gz", "sub-01_run-1_ses-a_T1w.nii", "sub-01_sub-01_T1w.nii", "sub-01_T1w"],
        *["sub-01_foo-1_T1w.nii.gz", "sub-0 1_T1w.nii.gz"],
    ],
)
def test_names_that_are_none(name):
    with pytest.raises(ImageError):
        parse_name(name)


def test_masks_of_a_series_are_told_apart_and_valid():
    entities = {"sub": "01", "flip": "2", "mt": "on", "echo": "3"}
    image = AnatomicalImage(Path("/x"), "x", entities, "MPM", {})
    assert derivative_path(image, "mask").name == (
        "sub-01_echo-3_space-MPMflip2mton_desc-brain_mask.nii.gz"
    )
    assert derivative_path(image, "preproc").name == (
        "sub-01_echo-3_flip-2_mt-on_desc-preproc_MPM.nii.gz"
    )


def test_the_longest_name_that_fits_is_taken(tmp_path: Path, monkeypatch) -> None:
    root = dataset(tmp_path / "bids", {"sub-01_T1w": head((8, 8, 8), (20.0, 20.0, 20.0))})
    path = root / "sub-01/anat/sub-01_T1w.nii.gz"
    image = AnatomicalImage(path, "sub-01/anat/sub-01_T1w.nii.gz", {"sub": "01"}, "T1w", {})
    chosen = Settings(bids_dir=root, output_dir=tmp_path / "out")
    size = chosen.output_zooms((20.0, 20.0, 20.0))
    length = preflight.longest_name(image, wanted_products(chosen, image), size)
    monkeypatch.setattr(preflight, "name_limit", lambda folder: length)
    assert preflight.check_image(image, chosen).shape == (8, 8, 8)
    monkeypatch.setattr(preflight, "name_limit", lambda folder: length - 1)
    with pytest.raises(ImageError, match="shorten a label"):
        preflight.check_image(image, chosen)
