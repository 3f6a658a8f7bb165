# SPDX-License-Identifier: Apache-2.0
"""Maps of other apps: which belong to an image, their names, sidecars and tables."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.carried_maps import (
    carried_before,
    carried_path,
    carried_sidecar,
    check_carried,
    find_maps,
    label_table,
    maps_elsewhere,
    partitions,
    remove_map,
)
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path
from bids_moediff.errors import UsageError
from bids_moediff.imaging.grid import output_grid
from bids_moediff.interfaces.carried_maps import FRACTIONS, LABELS, CarryMaps, maps_on_grid

ZOOMS = (1.0, 1.0, 1.0)


def image(folder: Path, name: str = "sub-01_T1w.nii.gz", **entities: str) -> AnatomicalImage:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    suffix = name.split(".")[0].rsplit("_", 1)[1]
    return AnatomicalImage(path, f"sub-01/anat/{name}", {"sub": "01", **entities}, suffix, {})


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / "sub-01" / "anat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(maps: tuple[Path, ...]) -> list[str]:
    return [path.name for path in maps]


def test_the_maps_of_an_image_and_of_no_other(tmp_path):
    maps = touch(
        tmp_path / "maps",
        "sub-01_desc-lesion_mask.nii.gz",
        "sub-01_label-GM_probseg.nii.gz",
        "sub-01_atlas-Schaefer_scale-200_dseg.nii.gz",
        "sub-01_desc-aseg_dseg.nii",
        "sub-01_space-FLAIR_desc-lesion_mask.nii.gz",
        "sub-01_space-MNI152NLin6Asym_label-GM_probseg.nii.gz",
        "sub-01_res-2_desc-lesion_mask.nii.gz",
        "sub-01_desc-brain_mask.nii.gz",
        "sub-01_seg-moegate_probseg.nii.gz",
        "sub-01_desc-preproc_T1w.nii.gz",
        "notes_mask.nii.gz",
    )
    own = ["sub-01_atlas-Schaefer_scale-200_dseg.nii.gz"]
    own += ["sub-01_desc-aseg_dseg.nii", "sub-01_desc-lesion_mask.nii.gz"]
    own.append("sub-01_label-GM_probseg.nii.gz")
    assert names(find_maps(image(tmp_path / "raw"), maps)) == own
    flair = image(tmp_path / "raw", "sub-01_FLAIR.nii.gz")
    assert names(find_maps(flair, maps)) == ["sub-01_space-FLAIR_desc-lesion_mask.nii.gz"]


def test_entities_may_be_left_out_where_one_image_fits(tmp_path):
    maps = touch(tmp_path / "maps", "sub-01_desc-lesion_mask.nii.gz")
    first = image(tmp_path / "raw", "sub-01_run-1_T1w.nii.gz", run="1")
    assert names(find_maps(first, maps)) == ["sub-01_desc-lesion_mask.nii.gz"]
    image(tmp_path / "raw", "sub-01_run-2_T1w.nii.gz", run="2")
    assert find_maps(first, maps) == ()
    touch(
        tmp_path / "maps",
        *(f"sub-01_run-{number}_desc-lesion_mask.nii.gz" for number in (1, 2)),
    )
    assert names(find_maps(first, maps)) == ["sub-01_run-1_desc-lesion_mask.nii.gz"]


def test_maps_in_another_space_are_named_once(tmp_path):
    maps = touch(
        tmp_path / "maps",
        "sub-01_space-MNI152NLin6Asym_label-GM_probseg.nii.gz",
        "sub-01_space-FLAIR_desc-lesion_mask.nii.gz",
        "sub-01_res-2_desc-lesion_mask.nii.gz",
        "sub-01_desc-lesion_mask.nii.gz",
        "sub-01_run-2_space-MNI152NLin6Asym_dseg.nii.gz",
    )
    first = image(tmp_path / "raw")
    flair = image(tmp_path / "raw", "sub-01_FLAIR.nii.gz")
    words = maps_elsewhere(first, maps)
    assert "sub-01_space-MNI152NLin6Asym_label-GM_probseg.nii.gz" in words
    assert "sub-01_res-2_desc-lesion_mask.nii.gz" in words
    assert words.count(".nii.gz") == 2
    assert maps_elsewhere(flair, maps) == ""
    alone = image(tmp_path / "other", "sub-01_T2w.nii.gz")
    assert maps_elsewhere(alone, maps).count("sub-01_") == 4  # MNI, and of T1w and FLAIR
    assert maps_elsewhere(first, touch(tmp_path / "plain", "sub-01_dseg.nii.gz")) == ""


def test_names_get_the_resolution():
    path = Path("sub-01_ses-b_label-GM_desc-x_probseg.nii")
    assert carried_path(path, (0.7, 0.7, 1.0)).as_posix() == (
        "sub-01/ses-b/anat/sub-01_ses-b_res-0p7x0p7x1mm_label-GM_desc-x_probseg.nii.gz"
    )


def test_a_folder_with_nothing_to_carry_is_named(tmp_path):
    with pytest.raises(UsageError, match="--carry"):
        check_carried(tmp_path / "missing")
    touch(tmp_path / "maps", "sub-01_T1w.nii.gz", "notes.txt")
    with pytest.raises(UsageError, match="no sub-"):
        check_carried(tmp_path / "maps")
    check_carried(touch(tmp_path / "maps", "sub-01_dseg.nii"))


@pytest.fixture
def derivatives(tmp_path) -> Path:
    """A segmentation with its table at the root, a lesion, and a map on another grid."""
    folder = tmp_path / "maps"
    anat = folder / "sub-01" / "anat"
    anat.mkdir(parents=True)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    labels = np.zeros((10, 10, 10), np.int16)
    labels[2:8, 2:8, 2:8] = 17
    nib.save(nib.Nifti1Image(labels, affine), anat / "sub-01_desc-aseg_dseg.nii.gz")
    lesion = nib.Nifti1Image((labels[:9] > 0).astype(np.uint8), affine)
    nib.save(lesion, anat / "sub-01_desc-lesion_mask.nii.gz")
    fractions = nib.Nifti1Image(labels.astype(np.float32) / 34, affine)
    nib.save(fractions, anat / "sub-01_label-GM_probseg.nii.gz")
    (folder / "desc-aseg_dseg.tsv").write_text("index\tname\n17\thippocampus\n")
    (folder / "desc-other_dseg.tsv").write_text("index\tname\n1\tnothing\n")
    (anat / "sub-01_desc-aseg_dseg.json").write_text('{"LabelMap": {"x": 17}, "Secret": "/a/b"}')
    return folder


@pytest.fixture
def carry(derivatives, tmp_path):
    """A function that carries the maps of the source to its result."""
    source = image(tmp_path / "raw")
    scan = nib.Nifti1Image(np.zeros((10, 10, 10), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    shape, affine = output_grid(scan.shape, scan.affine, ZOOMS)
    nib.save(scan, tmp_path / "scan.nii")
    result = tmp_path / "out" / derivative_path(source, "sr", ZOOMS)
    result.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), affine), result)

    def run() -> list[str]:
        step = CarryMaps(
            source=source.to_json(), maps=[str(path) for path in find_maps(source, derivatives)],
            folder=str(derivatives), image=str(tmp_path / "scan.nii"),
            output_dir=str(tmp_path / "out"), output_resolution=ZOOMS,
        )  # fmt: skip
        written = step.run(cwd=str(tmp_path)).outputs
        assert written.failure == ""
        return written.paths

    return run


def test_a_map_on_another_grid_is_named(derivatives, tmp_path):
    scan = nib.Nifti1Image(np.zeros((10, 10, 10), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    found = find_maps(image(tmp_path / "raw"), derivatives)
    maps, remarks = maps_on_grid([str(path) for path in found], scan)
    assert len(maps) == 2
    assert len(remarks) == 1
    assert "sub-01_desc-lesion_mask.nii.gz is not on the grid" in remarks[0]


def test_a_map_that_is_not_here_is_named(derivatives, tmp_path, carry):
    """As DataLad leaves it before its content is fetched; and a folder with the name of a map."""
    anat = derivatives / "sub-01" / "anat"
    (anat / "sub-01_desc-lesion_mask.nii.gz").unlink()
    (anat / "sub-01_desc-lesion_mask.nii.gz").symlink_to("missing")
    (anat / "sub-01_desc-folder_mask.nii.gz").mkdir()
    (anat / "sub-01_desc-old_mask.nii.gz.bak").touch()
    scan = nib.Nifti1Image(np.zeros((10, 10, 10), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    found = find_maps(image(tmp_path / "raw"), derivatives)
    remarks = maps_on_grid([str(path) for path in found], scan)[1]
    assert [remark.split(" is not ")[0] for remark in remarks] == [
        "sub-01_desc-folder_mask.nii.gz", "sub-01_desc-lesion_mask.nii.gz",
    ]  # fmt: skip
    assert len(carry()) == 2


def test_maps_are_written_with_their_words(carry, tmp_path):
    assert len(carry()) == 2
    stem = tmp_path / "out" / "sub-01" / "anat" / "sub-01_res-1mm_desc-aseg_dseg"
    carried = nib.Nifti1Image.from_filename(f"{stem}.nii.gz")
    assert np.count_nonzero(np.asarray(carried.dataobj) == 17) == 6**3 * 8
    sidecar = json.loads(Path(f"{stem}.json").read_text())
    assert sidecar["LabelMap"] == {"x": 17}
    assert sidecar["Resolution"] == "1 mm isotropic"
    assert "Secret" not in sidecar
    assert Path(f"{stem}.tsv").read_text().endswith("17\thippocampus\n")
    probability = stem.with_name("sub-01_res-1mm_label-GM_probseg.nii.gz")
    assert np.asarray(nib.Nifti1Image.from_filename(probability).dataobj).sum() == pytest.approx(
        0.5 * 6**3 * 8, rel=0.01
    )
    said = json.loads(stem.with_name("sub-01_res-1mm_label-GM_probseg.json").read_text())
    assert sidecar["CarriedBy"] == LABELS and said["CarriedBy"] == FRACTIONS


def test_a_sidecar_says_in_whose_space_and_what_kind_of_mask(tmp_path):
    source = image(tmp_path, "sub-01_FLAIR.nii.gz")
    uri = "bids:raw:sub-01/anat/sub-01_FLAIR.nii.gz"
    own = {"Sources": [uri], "Resolution": "1 mm isotropic", "CarriedBy": "how"}
    for name, record, more in (
        ("sub-01_space-FLAIR_mask", {}, {"SpatialReference": uri, "Type": "ROI"}),
        ("sub-01_desc-x_mask", {"Type": "Lesion", "Sources": ["a"]}, {"Type": "Lesion"}),
        ("sub-01_dseg", {"Manual": True}, {"Manual": True}),
    ):
        path = tmp_path / f"{name}.nii.gz"
        path.with_name(f"{name}.json").write_text(json.dumps(record))
        found = carried_sidecar(source, path, ZOOMS, "how")
        assert found == own | more | {"CarriedFrom": path.name}


def test_maps_may_lie_in_the_output_folder(derivatives, tmp_path, carry):
    carry()
    out = tmp_path / "out"
    lesion = "sub-01_desc-lesion_mask.nii.gz"
    (out / "sub-01" / "anat" / lesion).touch()
    source = image(tmp_path / "raw")
    assert names(find_maps(source, out)) == [lesion]
    assert maps_elsewhere(source, out) == ""


def test_a_rerun_leaves_no_old_map(carry, derivatives, tmp_path):
    carry()
    anat, before = tmp_path / "out" / "sub-01" / "anat", derivatives / "sub-01" / "anat"
    stem = "sub-01_res-1mm_desc-aseg_dseg"
    kept = [*anat.glob("*_T1w.nii.gz"), *anat.glob("*_probseg.*")]
    kept += [
        anat / "sub-01_res-1mm_desc-mine_mask.nii.gz",
        anat / f"{stem}.nii.gz".replace("1mm", "2mm"),
    ]
    for path in kept[-2:]:
        path.write_bytes((anat / f"{stem}.nii.gz").read_bytes())
    (kept[-1].with_name(f"{stem}.json".replace("1mm", "2mm"))).write_bytes(
        (anat / f"{stem}.json").read_bytes()
    )
    (derivatives / "desc-aseg_dseg.tsv").unlink()
    carry()
    assert sorted(path.suffix for path in anat.glob(f"{stem}.*")) == [".gz", ".json"]
    (before / "sub-01_desc-aseg_dseg.nii.gz").unlink()
    carry()
    assert not list(anat.glob(f"{stem}.*"))
    assert all(path.is_file() for path in kept)


def test_files_of_tissues_are_carried_together_and_others_are_not():
    names = ["sub-01_label-GM_probseg.nii.gz", "sub-01_dseg.nii.gz"]
    names += ["sub-01_label-WM_probseg.nii.gz", "sub-01_label-WM_desc-x_probseg.nii.gz"]
    groups = [[path.name for path in group] for group in partitions(names)]
    assert groups == [[names[0], names[2]], [names[1]], [names[3]]]


def test_at_most_five_maps_elsewhere_are_named(tmp_path):
    first = image(tmp_path / "raw")
    maps = [f"sub-01_space-MNI_label-{letter}_probseg.nii.gz" for letter in "ABCDEF"]
    words = maps_elsewhere(first, touch(tmp_path / "five", *maps[:5]))
    assert f": {', '.join(maps[:5])}. Not carried" in words
    words = maps_elsewhere(first, touch(tmp_path / "six", *maps))
    assert f": {', '.join(maps[:5])} and 1 more. Not carried" in words


def test_maps_that_earlier_runs_carried(tmp_path):
    """Those of this image, on this grid, and written by this app."""
    source = image(tmp_path / "raw", "sub-01_ses-b_T1w.nii.gz", ses="b")
    folder = tmp_path / "out" / "sub-01" / "ses-b" / "anat"
    folder.mkdir(parents=True)
    uri = "bids:raw:sub-01/anat/sub-01_ses-b_T1w.nii.gz"
    own = {"CarriedFrom": "x", "Sources": [uri]}
    for name, record in (
        ("res-0p7x0p7x1mm_desc-a_mask", own), ("res-1mm_desc-b_mask", own),
        ("res-0p7x0p7x1mm_desc-c_mask", {"Sources": [uri]}),
        ("res-0p7x0p7x1mm_desc-d_mask", {**own, "Sources": [uri, "more"]}),
        ("res-0p7x0p7x1mm_desc-e_mask", None), ("res-0p7x0p7x1mm_desc-f_mask", [1]),
        ("res-0p7x0p7x1mm_desc-g_T1w", own),
    ):  # fmt: skip
        (folder / f"sub-01_ses-b_{name}.nii.gz").touch()
        if record is not None:
            (folder / f"sub-01_ses-b_{name}.json").write_text(json.dumps(record))
    (found,) = carried_before(source, tmp_path / "out", (0.7, 0.7, 1.0))
    assert found == folder / "sub-01_ses-b_res-0p7x0p7x1mm_desc-a_mask.nii.gz"
    table = found.with_name("sub-01_ses-b_res-0p7x0p7x1mm_desc-a_mask.tsv")
    table.touch()
    before = set(folder.iterdir())
    remove_map(found)
    gone = {found, table, table.with_suffix(".json")}
    assert before - set(folder.iterdir()) == gone
    remove_map(found)


def test_the_table_of_labels_lies_beside_the_map_or_above_it(tmp_path):
    anat = tmp_path / "up" / "maps" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    folder, path = tmp_path / "up" / "maps", anat / "sub-01_atlas-A_desc-x_dseg.nii.gz"
    for table in (tmp_path / "dseg.tsv", tmp_path / "up" / "dseg.tsv", folder / "probseg.tsv",
                  folder / "atlas-B_dseg.tsv", anat / "sub-02_dseg.tsv"):  # fmt: skip
        table.touch()
    assert label_table(path, folder) is None
    for nearer in (
        folder / "desc-x_dseg.tsv", folder / "atlas-A_dseg.tsv", anat.parent / "sub-01_dseg.tsv",
        anat.parent / "sub-01_atlas-A_desc-x_dseg.tsv",
        anat / "atlas-A_desc-x_dseg.tsv", anat / "sub-01_atlas-A_desc-x_dseg.tsv",
    ):  # fmt: skip
        nearer.touch()
        assert label_table(path, folder) == nearer
