# SPDX-License-Identifier: Apache-2.0
"""Made-up headers, sidecars, names, filters, settings and records: an answer or one sentence.

`make test-long` makes many more of them (BIDS_MOEDIFF_TEST_EXAMPLES for each test).
"""

import gzip
import json
import os
import struct
import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bids_moediff.bids.discover import discover_participant
from bids_moediff.bids.past_runs import last_items, last_record
from bids_moediff.bids.query import ENTITIES, Name, load_filters, why_not
from bids_moediff.bids.statements import read_statements
from bids_moediff.errors import ImageError, MoediffError, UsageError
from bids_moediff.options import ANATOMICAL_SUFFIXES
from bids_moediff.preprocessing.conform import check_header, conform
from bids_moediff.preprocessing.intensities import sound_intensities
from bids_moediff.settings import Settings, load_settings

fuzz = settings(
    max_examples=int(os.environ.get("BIDS_MOEDIFF_TEST_EXAMPLES", "60")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1e30, 1e-30, 2**31, 2**63, 1e308, 1e400]),
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
SMALL = nib.Nifti1Image(
    np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9), np.diag([1.0, 2.0, 3.0, 1.0])
)
SMALL.set_qform(SMALL.affine, 1)
# Offset and format of fields of a NIfTI-1 header.
FIELDS = {
    "dim": (40, "8h"), "intent": (56, "3f"), "datatype": (70, "2h"), "pixdim": (76, "8f"),
    "vox_offset": (108, "f"), "scale": (112, "2f"), "units": (123, "B"), "forms": (252, "2h"),
    "quaternion": (256, "6f"), "sform": (280, "12f"), "magic": (344, "4s"), "size": (0, "i"),
}  # fmt: skip
SHORTS = st.integers(-(2**15), 2**15 - 1)
FLOATS = st.floats(width=32) | st.sampled_from([0.0, -1.0, 1.0, 1e30, 1e-30])


@st.composite
def headers(draw):
    """A NIfTI file in which one to three fields, or some bytes, hold something else."""
    content = bytearray(SMALL.to_bytes())
    for name in draw(st.lists(st.sampled_from([*FIELDS]), min_size=1, max_size=3, unique=True)):
        offset, layout = FIELDS[name]
        old = list(struct.unpack_from(f"<{layout}", content, offset))
        kind = layout[-1]
        made = {"h": SHORTS, "f": FLOATS, "B": st.integers(0, 255)}
        made |= {"s": st.binary(min_size=4, max_size=4), "i": st.integers(-(2**31), 2**31 - 1)}
        for place in draw(st.lists(st.integers(0, len(old) - 1), min_size=1, max_size=len(old))):
            old[place] = draw(made[kind])
        struct.pack_into(f"<{layout}", content, offset, *old)
    for place, value in draw(
        st.dictionaries(st.integers(0, 351), st.integers(0, 255), max_size=2)
    ).items():
        content[place] = value
    return bytes(content[: draw(st.integers(300, len(content)) | st.just(len(content)))])


@fuzz
@given(content=headers(), packed=st.booleans())
def test_headers(content, packed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("sub-1_T1w.nii.gz" if packed else "sub-1_T1w.nii")
        path.write_bytes(gzip.compress(content, 1) if packed else content)
        try:
            shape, zooms = check_header(path)
        except ImageError as error:
            refused = str(error)
        else:
            refused = ""
            assert min(shape) >= 6
            assert all(0 < zoom < 1000 for zoom in zooms)
        try:
            image, remarks = conform(path)
        except ImageError as error:
            assert len(str(error)) < 500
        else:
            assert not refused, "the run does what the dry run says it cannot"
            assert image.shape == shape
            assert np.allclose(nib.affines.voxel_sizes(image.affine), zooms, rtol=1e-5)
            assert np.isfinite(np.asarray(image.dataobj)).all()
            assert all(isinstance(words, str) for words in remarks)


@st.composite
def contents(draw):
    """Values of a small image in which planes, or all, hold something that nobody measured."""
    shape = draw(st.tuples(*[st.integers(6, 24)] * 3))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    head = np.linalg.norm(np.indices(shape).T / np.array(shape) - 0.5, axis=-1).T
    data = draw(st.sampled_from([np.exp(-9 * head**2), head, random.normal(size=shape), 0 * head]))
    data = data * draw(st.sampled_from([1.0, -1.0, 300.0, 4e4, 1e-14, 9e14]))
    for _ in range(draw(st.integers(0, 4))):
        planes = np.moveaxis(data, draw(st.integers(0, 2)), 0)
        place = draw(st.integers(0, len(planes) - 1))
        part = planes[place : place + draw(st.integers(1, 9))]
        part *= draw(st.sampled_from([0.0, 1.0, -1.0, 0.3, 20.0]))
        part += draw(st.sampled_from([0.0, 1.0, 1e3])) * random.normal(size=part.shape)
    if draw(st.booleans()):
        data = np.round(data) % draw(st.sampled_from([2, 16, 256, 4096, 65536]))
    return data.astype(np.float32)


@fuzz
@given(
    data=contents(),
    slope=st.sampled_from([1.0, -1.0, 0.1, 1e-9]),
    intercept=st.sampled_from([0.0, -1024.0, 0.5]),
)
@example(np.random.default_rng(0).normal(0, 5e18, (8, 8, 8)).astype(np.float32), 1.0, 0.0)
def test_intensities(data, slope, intercept):
    remarks = []
    before = data.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            values = sound_intensities(data, slope, intercept, remarks)
        except ImageError as error:
            assert len(str(error)) < 500
            return
    assert values.shape == data.shape and values.dtype == np.float32
    assert np.isfinite(values).all()
    assert np.array_equal(data, before), "the input was changed in place"
    assert remarks or np.array_equal(values, data)


@fuzz
@given(content=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b'{"a": ' * 50_000)
@example('{"Köln": "\\ud800"}'.encode("utf-16"))
def test_sidecars(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_bytes(content)
        statements, remarks = read_statements(path, "x.json")
    json.dumps(statements, ensure_ascii=False, allow_nan=False).encode()
    assert all(len(words) < 300 and words.isprintable() for words in remarks)


VALUES = JSON | st.lists(st.sampled_from(["01", 1, None, "*", "mag"]))
QUERIES = st.dictionaries(st.sampled_from([*ENTITIES, "sesion"]), VALUES)
KEYS = st.sampled_from(["t1w", "t2w", "flair", "mp2rage", "bold", "T1w"])


@fuzz
@given(content=JSON | st.dictionaries(KEYS, QUERIES | JSON))
def test_filter_files(content):
    name = Name({"sub": "01", "run": "01", "part": "mag"}, "T1w", ".nii.gz")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "filters.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            queries = load_filters(path)
        except UsageError as error:
            assert str(error)
            return
    assert isinstance(why_not(name, Settings(), queries), str)


WORDS = st.text(max_size=12) | st.sampled_from(
    ["0.7", "0,7", "nan", "inf", "-1", "1e9", "auto", "8GB", "cuda:99", "T1w", "sub-", "true"]
)
GIVEN = st.dictionaries(
    st.sampled_from([*Settings.__dataclass_fields__]),
    WORDS | st.lists(WORDS, max_size=4) | NUMBERS | st.booleans(),
    max_size=4,
)


@fuzz
@given(typed=GIVEN, variables=st.dictionaries(st.sampled_from(["DEVICE", "MEM", "X"]), WORDS))
def test_settings(typed, variables):
    folders = {"bids_dir": "/in", "output_dir": "/out", "analysis_level": "participant"}
    environment = {f"BIDS_MOEDIFF_{name}": word for name, word in variables.items()}
    try:
        found = load_settings({**folders, **typed}, None, environment)
    except UsageError as error:
        assert str(error)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.toml"
        path.write_text(found.to_toml(), encoding="utf-8")
        assert load_settings({}, path, {}) == found


LETTERS = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=20)
PARTS = st.sampled_from(
    ["sub-01", "sub-02", "ses-a", "run-01", "acq-B1+", "part-phase", "x-1", ""]
)
NAMES = LETTERS | st.builds(
    lambda parts, suffix, end: "_".join([*parts, suffix]) + end,
    st.lists(PARTS, max_size=4),
    st.sampled_from([*ANATOMICAL_SUFFIXES, "t1w", "bold", "ÄT1w", "\udcff"]),
    st.sampled_from([".nii.gz", ".nii", ".json", ".NII", ".mgz", "", ".nii.gz~"]),
)


@fuzz
@given(names=st.lists(NAMES, max_size=6), session=st.booleans())
def test_names(names, session):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        anat = root / "sub-01" / ("ses-a/anat" if session else "anat")
        anat.mkdir(parents=True)
        for name in names:
            try:
                (anat / name).write_bytes(b"stub")
            except (OSError, UnicodeError):  # "..", or too long
                continue
        given_words = {"bids_dir": root, "output_dir": "/out", "analysis_level": "participant"}
        found = discover_participant(load_settings(given_words, None, {}), "01")
    keys = [image.key for image in found.images]
    assert len(set(keys)) == len(keys)
    assert all(words.isprintable() for words in (*found.notices, *found.problems))


@fuzz
@given(
    record=JSON | st.fixed_dictionaries({"stage": st.just("all"), "images": JSON}),
    plan=JSON | st.fixed_dictionaries({"needed_gb": JSON, "available_gb": JSON}),
)
def test_records_of_earlier_runs(record, plan):
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, content) in enumerate((("run.json", record), ("plan.json", plan))):
            run = Path(folder) / str(number)
            run.mkdir()
            (run / name).write_text(json.dumps(content))
        items = last_items(Path(folder))
        last_record(Path(folder))
    assert all(isinstance(item["status"], str) for item in items.values())
    assert issubclass(UsageError, MoediffError)
