# SPDX-License-Identifier: Apache-2.0
"""Settings: the order of the sources, refusal of misspelt names, and the TOML round trip."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bids_moediff.errors import UsageError
from bids_moediff.settings import Settings, load_settings

FOLDERS = {"bids_dir": "in", "output_dir": "out", "analysis_level": "participant"}


def load(options=None, config=None, environment=None):
    return load_settings({**FOLDERS, **(options or {})}, config, environment or {})


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_each_source_overrides_the_one_before(config):
    path = config("num_steps = 2\nrandom_seed = 2\nnum_samples = 2\n")
    environment = {"BIDS_MOEDIFF_RANDOM_SEED": "3", "BIDS_MOEDIFF_NUM_SAMPLES": "3"}
    settings = load({"num_samples": "4"}, path, environment)
    assert settings.batch_size is None
    assert (settings.num_steps, settings.random_seed, settings.num_samples) == (2, 3, 4)


def test_a_setting_under_its_earlier_name_works_with_a_notice(config, capsys):
    """--noise-strength of the last version."""
    assert load(config=config("noise_strength = 0.5\n")).sample == "texture"
    assert load(environment={"BIDS_MOEDIFF_NOISE_STRENGTH": "0"}).sample is None
    assert capsys.readouterr().err.count("is now called sample") == 2
    with pytest.raises(UsageError, match="not a number"):
        load(config=config('noise_strength = "much"\n'))


def test_every_field_can_be_set_from_all_three_sources(config):
    """One value per type, written as each source writes it, arrives the same."""
    cases = {
        "participant_label": ('["sub-01", "02"]', "sub-01 02", ["sub-01", "02"], ("01", "02")),
        "output_resolution": ("[0.8, 0.8, 1]", "0.8,0.8,1", ["0.8", "0.8", "1"], (0.8, 0.8, 1.0)),
        "mem": ('"8000MB"', "8000MB", "8000MB", 8.0),
        "keep_workdir": ("true", "yes", True, True),
        "weights": ('"/models/x"', "/models/x", "/models/x", Path("/models/x")),
        "device": ('"cuda:1"', "cuda:1", "cuda:1", "cuda:1"),
        "modalities": ('["T1w"]', "T1w", ["T1w"], ("T1w",)),
        "sample": ('"texture"', "texture", "texture", "texture"),
        "planes": ("3", "3", "3", 3),
    }
    for name, (toml, variable, option, expected) in cases.items():
        results = [
            load(config=config(f"{name} = {toml}\n")),
            load(environment={f"BIDS_MOEDIFF_{name.upper()}": variable}),
            load({name: option}),
        ]
        assert [getattr(result, name) for result in results] == [expected] * 3, name


text = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20)


@given(
    folder=text.filter(lambda word: "\0" not in word and not word.startswith("~")),
    labels=st.lists(st.from_regex(r"[A-Za-z0-9]{1,5}", fullmatch=True), unique=True),
    zooms=st.tuples(*[st.floats(0.2, 20)] * 3),
    mem=st.one_of(st.none(), st.floats(1e-3, 1e5)),
    flag=st.booleans(),
)
def test_printed_configuration_loads_back_equal(
    tmp_path_factory, folder, labels, zooms, mem, flag
):
    settings = dataclasses.replace(
        load(),
        work_dir=Path("/w") / folder,
        participant_label=tuple(labels),
        output_resolution=zooms,
        mem=mem,
        sloppy=flag,
    )
    path = tmp_path_factory.mktemp("config") / "settings.toml"
    path.write_text(settings.to_toml(), encoding="utf-8", newline="")
    assert load_settings({}, path, {}) == settings


def test_every_field_is_in_the_printed_configuration():
    text = load().to_toml()
    for field in dataclasses.fields(Settings):
        assert f"{field.name} " in text
    assert tomllib.loads(text)["model"] == "auto"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_stepz = 3", "num_steps"),
        ("participant-lable = ['01']", "participant_label"),
        ("num_steps = 2.5", "num_steps"),
        ("num_steps = true", "whole number"),
        ("device = 'gpu'", "auto, cpu, cuda"),
        ("device = 'mps'", "Apple"),
        ("modalities = ['T1W']", "T1w"),
        ("output_resolution = [1, 1]", "one or three"),
        ("output_resolution = 0.0", "one or three"),
        ("participant_label = ['a_b']", "a_b"),
        ("keep_workdir = 'ture'", "true"),
        ("= 3", "not valid TOML"),
    ],
)
def test_wrong_configuration_is_refused_in_one_sentence(config, text, words):
    with pytest.raises(UsageError) as caught:
        load(config=config(text))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_misspelt_variable_is_refused_and_others_are_left_alone():
    with pytest.raises(UsageError, match="BIDS_MOEDIFF_OMP_NTHREADS"):
        load(environment={"BIDS_MOEDIFF_OMP_NTREADS": "2"})
    load(environment={"BIDS_MOEDIFF_DOCKER_TAG": "1.0", "BIDS_MOEDIFF_SHARED": "/x", "OMP": "1"})


def test_settings_that_contradict_each_other():
    with pytest.raises(UsageError, match="BIDS_DIR, OUTPUT_DIR, ANALYSIS_LEVEL"):
        load_settings({}, None, {})
    with pytest.raises(UsageError, match="sub-02"):
        load({"participant_label": ["02"], "exclude_participant_label": ["sub-02"]})
    assert load_settings({"check": True}, None, {}).check


def test_paths_are_absolute_and_the_work_folder_is_hidden_in_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load()
    assert settings.bids_dir == tmp_path / "in"
    assert settings.work_folder == tmp_path / "out" / ".work"
    assert load({"work_dir": "/scratch/w"}).work_folder == Path("/scratch/w")


def test_an_empty_variable_sets_nothing(config):
    path = config("num_steps = 2\n")
    environment = {"BIDS_MOEDIFF_NUM_STEPS": "", "BIDS_MOEDIFF_WORK_DIR": ""}
    assert load(config=path, environment=environment) == load(config=path)
