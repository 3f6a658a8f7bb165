# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-superres IN OUT``: one image, its record, and the maps carried along."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from bids_moediff import super_resolve
from bids_moediff.cli.places import remove_earlier, require_record
from bids_moediff.cli.superres import main
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.imaging.map_images import read_map
from bids_moediff.runtime import sink


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small head of 2 mm with a lesion mask, and a mask on another grid."""
    folder = tmp_path_factory.mktemp("plain")
    random = np.random.default_rng(0)
    offset = np.stack(np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij"))
    radius = np.sqrt((offset**2).sum(0))
    data = np.where(radius < 7, 100 - 3 * radius, 2) + random.normal(size=radius.shape)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    lesion = (radius < 3).astype(np.uint8)
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / "in.nii.gz")
    nib.save(nib.Nifti1Image(lesion, affine), folder / "lesion.nii.gz")
    nib.save(nib.Nifti1Image(lesion[1:], affine), folder / "elsewhere.nii.gz")
    return folder


def test_an_image_and_its_lesion(folder, capsys):
    maps = [str(folder / name) for name in ("lesion.nii.gz", "elsewhere.nii.gz")]
    words = [str(folder / "in.nii.gz"), str(folder / "out.nii.gz"), "--zooms", "1"]
    assert main([*words, "--device", "cpu", "--model", "student", "--carry", *maps]) == 0
    image = nib.Nifti1Image.from_filename(folder / "out.nii.gz")
    carried = nib.Nifti1Image.from_filename(folder / "out_lesion.nii.gz")
    lesion = nib.Nifti1Image.from_filename(folder / "lesion.nii.gz")
    assert carried.shape == image.shape == (32, 32, 32)
    np.testing.assert_allclose(carried.affine, image.affine)
    assert voxel_sizes(carried.affine) == (1, 1, 1)
    assert np.asarray(carried.dataobj).sum() == 8 * np.asarray(lesion.dataobj).sum()
    record = json.loads((folder / "out.json").read_text())
    assert record["Model"]
    assert record["NoiseSource"] in ("spectrum", "air", "spectrum and air", "tissue")
    assert "elsewhere.nii.gz is not on the grid" in capsys.readouterr().err
    assert not (folder / "out_elsewhere.nii.gz").exists()


def test_samples_that_are_drawn_are_written(folder, capsys):
    image, out = str(folder / "in.nii.gz"), folder / "drawn.nii.gz"
    words = ["--zooms", "1", "--model", "student", "--num-samples", "2"]
    assert main([image, str(out), *words]) == 0
    drawn = [nib.load(folder / f"drawn_sample_{number}.nii.gz").get_fdata() for number in (1, 2)]
    deviation = nib.load(folder / "drawn_srstd.nii.gz").get_fdata()
    np.testing.assert_allclose(deviation, np.std(drawn, axis=0, ddof=1), atol=1e-3)
    assert main([image, str(folder / "elsewhere.nii.gz"), str(folder / "two.nii.gz"), *words]) == 2
    assert "--num-samples and --sample go with one image" in capsys.readouterr().err
    with pytest.raises(UsageError, match="one image"):
        super_resolve(nib.load(image), 1, num_samples=2)
    # Beside a new image the old samples would be taken for its own.
    (folder / "drawn_sample_3.nii.gz").touch()  # of somebody else
    again = [image, str(out), "--zooms", "1", "--model", "student"]
    assert main([*again, "--carry", str(folder / "lesion.nii.gz")]) == 0
    beside = {path.name for path in folder.glob("drawn_*")}
    assert beside == {"drawn_sample_3.nii.gz", "drawn_lesion.nii.gz"}
    assert json.loads((folder / "drawn.json").read_text())["FilesBeside"] == [
        "drawn_lesion.nii.gz"
    ]


@pytest.mark.parametrize(
    ("record", "left"),
    [
        ({"FilesBeside": ["a_x.nii.gz", "a_old.nii.gz", "a_in.nii.gz", "gone"]}, "x in other"),
        ({"FilesBeside": ["../other", "a_old.nii.gz"]}, "x old in other"),
        ({"FilesBeside": [3]}, "x old in other"),
        ({"NumberOfSamples": 3}, "x old in other"),
        (["FilesBeside"], "x old in other"),
        (None, "x old in other"),
    ],
)
def test_what_an_earlier_call_wrote_goes_and_nothing_else(tmp_path, record, left):
    output = tmp_path / "sub" / "a.nii.gz"
    output.parent.mkdir()
    files = {name: output.with_name(f"a_{name}.nii.gz") for name in ("x", "old", "in")}
    files["other"] = tmp_path / "other"
    for path in (output, *files.values()):
        path.touch()
    if record is not None:
        output.with_name("a.json").write_text(json.dumps(record))
    remove_earlier(output, [files["x"]], [files["in"]])
    assert output.exists()
    assert [name for name, path in files.items() if path.exists()] == left.split()


@pytest.mark.parametrize(("word", "sigma"), [("2.5", 2.5), ("none", 0.0)])
def test_noise_that_is_known_is_not_read(folder, word, sigma):
    words = [str(folder / "in.nii.gz"), str(folder / "told.nii.gz"), "--zooms", "1"]
    assert main([*words, "--device", "cpu", "--model", "student", "--noise", word]) == 0
    record = json.loads((folder / "told.json").read_text())
    assert (record["EstimatedNoise"], record["NoiseSource"]) == (sigma, "option")


def test_noise_in_other_units_is_refused(folder, capsys):
    words = [str(folder / "in.nii.gz"), str(folder / "loud.nii.gz"), "--zooms", "1"]
    assert main([*words, "--device", "cpu", "--model", "student", "--noise", "1e9"]) == 1
    assert "units of this image" in capsys.readouterr().err
    assert not (folder / "loud.nii.gz").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--noise", "loud"], "superres: --noise: 'loud' is not auto, none or a number"),
        (["--device", "mps"], "Apple"),
        (["--carry", "a/x.nii", "b/x.nii"], "two maps"),
    ],
)
def test_what_is_refused(folder, capsys, words, sentence):
    image, out = str(folder / "in.nii.gz"), str(folder / "refused.nii.gz")
    words = [str(folder / "lesion.nii.gz") if "/" in word else word for word in words]
    assert main([image, out, "--zooms", "1", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / "refused.nii.gz").exists()


@pytest.mark.parametrize(
    "order", ["--carry lesion in out", "in --carry lesion out", "--carry lesion --carry in out"]
)
def test_maps_before_the_images_are_refused(folder, capsys, order):
    places = {"in": "in.nii.gz", "out": "swallowed.nii.gz", "lesion": "lesion.nii.gz"}
    words = [str(folder / places[word]) if word in places else word for word in order.split()]
    assert main(words) == 2
    assert "IN and OUT come first" in capsys.readouterr().err


def test_no_option_is_needed_and_people_see_progress(folder, capsys):
    (folder / "in.json").write_text('{"SliceThickness": 1.9, "MRAcquisitionType": "2D"}')
    assert main([str(folder / "in.nii.gz"), str(folder / "plain.nii.gz")]) == 0
    record = json.loads((folder / "plain.json").read_text())
    assert record["OutputVoxelSize"] == [0.7, 0.7, 0.7]
    assert record["SamplingProfilesFrom"] == "stated", "the sidecar beside the image is read"
    said = capsys.readouterr().err
    assert "in.nii.gz: 100 %" in said
    assert "{" not in said
    assert str(folder / "plain.nii.gz") in said


def test_programs_get_lines_of_json(folder, capsys):
    words = [str(folder / "in.nii.gz"), str(folder / "json.nii.gz"), "--json-progress"]
    assert main([*words, "--output-resolution", "1.5"]) == 0
    lines = [json.loads(x) for x in capsys.readouterr().err.splitlines() if x.startswith("{")]
    assert lines[-1]["fraction"] == 1
    assert {"key", "stage", "fraction"} == set(lines[0])


def test_python_gives_what_the_tool_writes(folder):
    image = nib.load(folder / "in.nii.gz")
    metadata = {"SliceThickness": 1.9, "MRAcquisitionType": "2D"}
    (folder / "in.json").write_text(json.dumps(metadata))
    options = {"output_resolution": 1.4, "device": "cpu", "model": "student"}
    restored = super_resolve(image, metadata=metadata, **options)
    words = ["--output-resolution", "1.4", "--device", "cpu", "--model", "student"]
    assert main([str(folder / "in.nii.gz"), str(folder / "tool.nii.gz"), *words]) == 0
    written = nib.load(folder / "tool.nii.gz")
    step = json.loads((folder / "tool.json").read_text())["IntensityStep"]
    stored = np.rint(np.asarray(restored.dataobj) / step) * step
    np.testing.assert_array_equal(stored, np.asarray(written.dataobj))
    np.testing.assert_allclose(restored.affine, written.affine)
    assert restored.get_data_dtype() == np.float32


def test_wrong_options_of_python_name_the_closest():
    image = nib.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4))
    with pytest.raises(UsageError, match="random_seed"):
        super_resolve(image, random_sed=3)
    with pytest.raises(UsageError, match=r"write 0\.7"):
        super_resolve(image, "0.7mm")


def test_importing_the_package_stays_cheap():
    code = "import bids_moediff, sys; assert 'SuperResolver' in dir(bids_moediff);"
    code += "assert not {'torch', 'numpy', 'nibabel'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("source", "output", "sentence"),
    [
        ("out.nii", "in.nii.gz", "The input comes first"),
        ("in.nii.gz", "in.nii.gz", "another output"),
        (".", "x.nii.gz", "bids_moediff"),
        ("in.nii.gz", "none/x.nii.gz", "does not exist"),
        ("in.nii.gz", ".nii.gz", "no name before its ending"),
    ],
)
def test_places_that_cannot_be_meant(folder, capsys, source, output, sentence):
    before = (folder / "in.nii.gz").read_bytes()
    assert main([str(folder / source), str(folder / output)]) == 2
    assert sentence in capsys.readouterr().err
    assert (folder / "in.nii.gz").read_bytes() == before


@pytest.fixture
def crowded(folder, tmp_path):
    """Files that a careless name of the output would replace, and some that are none."""
    for name in ("x.nii.gz", "y_x.nii.gz", "z_srcount.nii.gz", "other.nii"):
        shutil.copy(folder / "in.nii.gz", tmp_path / name)
    shutil.copy(folder / "lesion.nii.gz", tmp_path / "m.nii.gz")
    source = nib.load(folder / "in.nii.gz")
    labels = np.clip(np.asarray(source.dataobj) // 30, 0, 3).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, source.affine), tmp_path / "labels.nii.gz")
    (tmp_path / "other.json").write_text('{"EchoTime": 0.003}')
    (tmp_path / "link.nii.gz").symlink_to("x.nii.gz")
    (tmp_path / "hard.nii.gz").hardlink_to(tmp_path / "x.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "named.json").mkdir()
    os.mkfifo(tmp_path / "pipe.nii.gz")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("x.nii.gz m.nii.gz --mask m.nii.gz", "m.nii.gz is the mask"),
        ("x.nii.gz m.nii.gz --reference m.nii.gz", "m.nii.gz is the reference"),
        ("x.nii.gz o.nii.gz --reference x.nii.gz", "x.nii.gz is the input"),
        ("x.nii.gz o.nii.gz --reference hard.nii.gz", "hard.nii.gz is the input"),
        ("x.nii.gz m.nii.gz --carry m.nii.gz", "m.nii.gz is a map to carry"),
        ("y_x.nii.gz y.nii.gz --carry x.nii.gz", "y_x.nii.gz is the input"),
        ("m.nii.gz y.nii.gz --carry x.nii.gz y_x.nii.gz", "y_x.nii.gz is a map to carry"),
        ("x.nii.gz z_srcount.nii.gz z.nii.gz", "z_srcount.nii.gz is the input"),
        ("x.nii.gz y_x.nii.gz other.nii", "other.nii exists. The last of several images"),
        ("x.nii.gz y_x.nii.gz n.nii.gz --mask m.nii.gz", "--reference go with one image"),
        ("x.nii.gz link.nii.gz", "link.nii.gz is the input"),
        ("x.nii.gz hard.nii.gz", "hard.nii.gz is the input"),
        ("x.nii.gz link.nii.gz --mask m.nii.gz", "link.nii.gz is the input"),
        ("x.nii.gz folder.nii.gz", "is not a file"),
        ("x.nii.gz pipe.nii.gz", "is not a file"),
        ("x.nii.gz named.nii.gz", "named.json exists and is not a file"),
        ("x.nii.gz other.nii.gz", "other.json belongs to another image"),
        (f"x.nii.gz {'b' * 248}.nii", "characters, the file system allows"),
        (f"x.nii.gz {'b' * 300}.nii", "characters, the file system allows"),
        ("x.nii.gz o.nii.gz --mask x.nii.gz", "different values; a mask has 0 and 1"),
        ("x.nii.gz o.nii.gz --mask labels.nii.gz", "3 different values; a mask has 0 and 1"),
        (f"x.nii.gz o.nii.gz --random-seed {2**64}", "too large"),
    ],
)
def test_nothing_that_is_read_is_replaced(crowded, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(crowded)
    before = {path.name: path.read_bytes() for path in crowded.iterdir() if path.is_file()}
    assert main(words.split()) == 2
    assert sentence in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in crowded.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("pipe.nii.gz o.nii.gz", "pipe.nii.gz"),
        (f"{'b' * 300}.nii o.nii.gz", "File name too long"),
        ("packed.nii o.nii.gz", "it is compressed; name it .nii.gz"),
        ("plain.nii.gz o.nii.gz", "it is not compressed; name it .nii"),
        ("x.nii.gz o.nii.gz --mask pipe.nii.gz", "pipe.nii.gz"),
    ],
)
def test_what_cannot_be_read_is_said(crowded, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(crowded)
    shutil.copy("x.nii.gz", "packed.nii")
    (crowded / "plain.nii.gz").write_bytes(gzip.decompress((crowded / "x.nii.gz").read_bytes()))
    assert main(words.split()) == 1
    assert sentence in capsys.readouterr().err


def test_a_pipe_is_no_map_to_carry(crowded):
    with pytest.raises(ImageError, match="not a regular file"):
        read_map(crowded / "pipe.nii.gz", (16, 16, 16), np.eye(4))


def test_a_disk_that_is_full_is_said(folder, capsys, monkeypatch):
    def full(*words, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sink, "write_nifti", full)
    words = ["--output-resolution", "1.5", "--device", "cpu", "--model", "student"]
    assert main([str(folder / "in.nii.gz"), str(folder / "full.nii.gz"), *words]) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "Traceback" not in said


def test_a_mask_on_another_grid_is_refused(folder, capsys):
    words = [str(folder / "in.nii.gz"), str(folder / "m.nii.gz")]
    assert main([*words, "--mask", str(folder / "elsewhere.nii.gz")]) == 2
    assert "elsewhere.nii.gz (15 x 16 x 16) is not on the grid" in capsys.readouterr().err
    assert not (folder / "m.nii.gz").exists()


def test_a_mask_of_the_same_matrix_elsewhere_is_refused(folder, capsys):
    image = nib.load(folder / "in.nii.gz")
    moved = image.affine.copy()
    moved[0, 3] += 3
    data = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image((data > data.mean()).astype(np.uint8), moved), folder / "away.nii.gz")
    words = [str(folder / "in.nii.gz"), str(folder / "m.nii.gz"), "--device", "cpu"]
    assert main([*words, "--mask", str(folder / "away.nii.gz")]) == 2
    assert "by its header it lies elsewhere" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--output-resolution 1", "--acquired-resolution 2 2 2"])
def test_options_before_the_files(folder, capsys, option):
    files = [str(folder / name) for name in ("in.nii.gz", "m.nii.gz")]
    assert main([*option.split(), *files]) == 2
    assert f"write the files first: bids_moediff-superres {' '.join(files)} {option}" in (
        capsys.readouterr().err
    )


def test_the_sidecar_of_the_scan_is_not_replaced(folder, capsys):
    sidecar = folder / "in.json"
    sidecar.write_text('{"EchoTime": 0.003}')
    assert main([str(folder / "in.nii.gz"), str(folder / "in.nii")]) == 2
    assert "sidecar of the input" in capsys.readouterr().err
    assert sidecar.read_text() == '{"EchoTime": 0.003}'


def test_a_folder_that_takes_nothing_is_told_before_work(folder, capsys):
    assert main([str(folder / "in.nii.gz"), "/proc/x.nii.gz"]) == 2
    assert "Nothing can be written in /proc" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["null", "{", '{"SliceThickness": "4 mm"}'])
def test_a_sidecar_that_cannot_be_used_is_told_and_costs_nothing(folder, capsys, content):
    (folder / "in.json").write_text(content)
    words = ["--output-resolution", "1.5", "--device", "cpu", "--model", "student"]
    assert main([str(folder / "in.nii.gz"), str(folder / "odd.nii.gz"), *words]) == 0
    said = capsys.readouterr().err
    (words,) = (line for line in said.splitlines() if line.startswith("Warning: in.json"))
    record = json.loads((folder / "odd.json").read_text())
    assert words.removeprefix("Warning: ") in record["Warnings"]


def test_an_image_may_be_replaced_and_a_sidecar_alone_may_not(tmp_path):
    """A sidecar without its image belongs to another file of that name."""
    (tmp_path / "a.json").write_text('{"EchoTime": 0.003}')
    with pytest.raises(UsageError, match="belongs to another image"):
        require_record(tmp_path / "a.nii.gz", "Model")
    (tmp_path / "a.nii.gz").touch()
    require_record(tmp_path / "a.nii.gz", "Model")
    (tmp_path / "b.json").write_text('{"Model": "student"}')
    require_record(tmp_path / "b.nii.gz", "Model")
