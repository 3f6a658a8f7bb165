# SPDX-License-Identifier: Apache-2.0
"""Find masks and label maps of other apps for an image, and name them on its new grid."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import build_name, parse_name, resolution_label
from bids_moediff.bids.sidecar import resolution_text, source_uri
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.runtime.given_files import read_json

EXTENSIONS = (".nii", ".nii.gz")
MAP_SUFFIXES = ("mask", "dseg", "probseg")
# What a map may have beside the entities of its image.
MAP_ENTITIES = frozenset({"space", "atlas", "seg", "scale", "label", "desc"})
# Brain masks on the output grid are made anew, and maps of experts and kernels are this app's own.
OWN = ({"desc": "brain"}, {"seg": "moegate"}, {"seg": "kernel"})
NAMED = 5  # maps that a remark names
# What a sidecar says of the labels themselves; the rest holds for the old grid.
KEPT_KEYS = ("Description", "Type", "LabelMap", "Manual", "Atlas")


def check_carried(folder: Path) -> None:
    """Check the folder of ``--carry`` before anything is computed.

    Raises
    ------
    UsageError
        If the folder does not exist or has no masks and label maps of participants.
    """
    if not folder.is_dir():
        raise UsageError(f"--carry {folder}: the folder does not exist.")
    places = (folder.glob(f"{where}/anat/*.nii*") for where in ("sub-*", "sub-*/ses-*"))
    if not any((parsed := _parse(path)) and parsed[1] in MAP_SUFFIXES for path in chain(*places)):
        raise UsageError(
            f"--carry {folder}: no sub-*/anat/*_mask.nii.gz, *_dseg.nii.gz or *_probseg.nii.gz "
            "there. Name the folder that has the participants."
        )


def find_maps(image: AnatomicalImage, folder: Path) -> tuple[Path, ...]:
    """Return the masks and label maps in a folder that belong to an image by their names.

    A map belongs to the image whose entities it has. Entities may be left out if the session has
    only one matching image of this contrast. Maps of any contrast but T1w have ``space`` with the
    contrast, as in this app's outputs. Maps with another ``space`` or with ``res`` are not taken.

    Parameters
    ----------
    image
        The source. The files beside it say which images there are.
    folder
        Root of the derivatives.
    """
    return tuple(path for path, entities in _maps(image, folder) if _belongs(entities, image))


def maps_elsewhere(image: AnatomicalImage, folder: Path) -> str:
    """Return one sentence that names the maps of an image in another space; empty if none.

    Maps with ``res`` are on another grid by their names. Maps in the space of another image of
    the session are that image's.
    """
    shown = {suffix for _, suffix in _images_beside(image)}
    # Maps in no image's space concern the T1w image, or all images where there is none.
    main = image.suffix == "T1w" or "T1w" not in shown
    found = []
    for path, entities in _maps(image, folder):
        space = entities.get("space", "T1w")
        strange = space not in shown
        if not (main if strange else "res" in entities and space == image.suffix):
            continue
        here = {key: value for key, value in entities.items() if key != "res"}
        # Carried maps are no remark where --carry names the output folder.
        if _belongs({**here, "space": image.suffix}, image) and not _carried(path):
            found.append(path.name)
    if not found:
        return ""
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return (
        f"In another space or on another grid by their names: {', '.join(found[:NAMED])}{more}. "
        "Not carried to the output grid. A map without space- is the T1w image's."
    )


def carried_before(
    image: AnatomicalImage, output_dir: Path, zooms: tuple[float, float, float]
) -> tuple[Path, ...]:
    """Return the maps that earlier runs have carried to the grid of a result, by their sidecars.

    Parameters
    ----------
    image
        The source image.
    output_dir
        Root of the app's derivatives.
    zooms
        Output voxel size in mm.
    """
    found = []
    for path, entities in _maps(image, output_dir):
        own = _carried(path) and _record(path).get("Sources") == [source_uri(image)]
        if own and entities.get("res") == resolution_label(zooms):
            found.append(path)
    return tuple(found)


def remove_map(path: Path) -> None:
    """Remove a carried map with its table and its sidecar, which comes last."""
    for one in (path, _beside(path, ".tsv"), _beside(path, ".json")):
        one.unlink(missing_ok=True)


def _maps(image: AnatomicalImage, folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Masks and label maps of the subject and session of an image, with their entities."""
    anat = folder / f"sub-{image.entities['sub']}"
    if "ses" in image.entities:
        anat /= f"ses-{image.entities['ses']}"
    for path in sorted(anat.glob("anat/*.nii*")):
        parsed = _parse(path)
        if parsed is None or parsed[1] not in MAP_SUFFIXES or not path.name.endswith(EXTENSIONS):
            continue
        if not any(own.items() <= parsed[0].items() for own in OWN):
            yield path, parsed[0]


def _images_beside(image: AnatomicalImage) -> list[tuple[dict[str, str], str]]:
    """Entities and suffix of the images in the folder of an image."""
    parsed = (_parse(path) for path in image.path.parent.glob("*.nii*"))
    return [item for item in parsed if item is not None]


def _belongs(entities: Mapping[str, str], image: AnatomicalImage) -> bool:
    if entities.get("space", "T1w") != image.suffix:
        return False
    of_image = {key: value for key, value in entities.items() if key not in MAP_ENTITIES}
    own = dict(image.entities)
    if of_image == own:
        return True
    if not of_image.items() <= own.items():
        return False
    beside = [entities for entities, suffix in _images_beside(image) if suffix == image.suffix]
    return sum(of_image.items() <= entities.items() for entities in beside) == 1


def _parse(path: Path) -> tuple[dict[str, str], str] | None:
    """Return entities and suffix of a file name, or None if it is not a BIDS name."""
    try:
        entities, suffix, _ = parse_name(path.name)
    except ImageError:
        return None
    return entities, suffix


def partitions(maps: Sequence[str]) -> tuple[tuple[Path, ...], ...]:
    """Group maps that differ by ``label`` only, as fractions of grey and white matter do."""
    groups: dict[str, list[Path]] = {}
    for path in map(Path, maps):
        entities, suffix, _ = parse_name(path.name)
        words = [f"{key}-{value}" for key, value in sorted(entities.items()) if key != "label"]
        groups.setdefault("_".join([*words, suffix]), []).append(path)
    return tuple(tuple(group) for group in groups.values())


def carried_path(path: Path, zooms: tuple[float, float, float]) -> PurePosixPath:
    """Return the path of a carried map, relative to the output folder: its name with ``res-``."""
    entities, suffix, _ = parse_name(path.name)
    name = build_name({**entities, "res": resolution_label(zooms)}, suffix, ".nii.gz")
    session = [f"ses-{entities['ses']}"] if "ses" in entities else []
    return PurePosixPath(f"sub-{entities['sub']}", *session, "anat", name)


def carried_sidecar(
    image: AnatomicalImage, path: Path, zooms: tuple[float, float, float], how: str
) -> dict[str, Any]:
    """Return the sidecar of a carried map.

    Parameters
    ----------
    image
        The source image.
    path
        The map as it was found.
    zooms
        Output voxel size in mm.
    how
        Property that was preserved.
    """
    earlier = _record(path)
    kept = {key: earlier[key] for key in KEPT_KEYS if key in earlier}
    content = {"Sources": [source_uri(image)], "Resolution": resolution_text(zooms)}
    if "space" in parse_name(path.name)[0]:
        content["SpatialReference"] = source_uri(image)
    if parse_name(path.name)[1] == "mask":
        kept.setdefault("Type", "ROI")
    return {**content, **kept, "CarriedFrom": path.name, "CarriedBy": how}


def label_table(path: Path, folder: Path) -> Path | None:
    """Return the table of labels of a map: beside it, or in a folder above (inheritance)."""
    own = _beside(path, ".tsv")
    if own.is_file():
        return own
    entities, suffix, _ = parse_name(path.name)
    for above in (parent for parent in path.parents if folder in (parent, *parent.parents)):
        for table in sorted(above.glob(f"*{suffix}.tsv")):
            words = [part.partition("-")[::2] for part in table.stem.split("_")[:-1]]
            if dict(words).items() <= entities.items():
                return table
    return None


def _carried(path: Path) -> bool:
    """Return True if this app has written a map, by its sidecar."""
    return "CarriedFrom" in _record(path)


def _record(path: Path) -> dict[str, Any]:
    """Return the sidecar of a map; empty where there is none that can be read."""
    try:
        record = read_json(_beside(path, ".json"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _beside(path: Path, extension: str) -> Path:
    return path.with_name(path.name.split(".")[0] + extension)
