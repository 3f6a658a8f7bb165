# SPDX-License-Identifier: Apache-2.0
"""Write the files that make the output folder a data set: description, variants, ignore list.

``dataset_description.json`` is written first, so the folder is a valid data set at every moment.
Files with the right content are not rewritten, so many jobs may start in one folder.
"""

import os
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from bids_moediff import __version__
from bids_moediff.bids.products import descriptions
from bids_moediff.errors import UsageError, closest
from bids_moediff.runtime.devices import container_kind
from bids_moediff.runtime.given_files import read_json
from bids_moediff.runtime.sink import table_text, write_json, write_text
from bids_moediff.runtime.temporary import refuse_lost_links, require_writable
from bids_moediff.runtime.text import one_line
from bids_moediff.settings import PREFIX, Settings

NAME = "bids_moediff"
BIDS_VERSION = "1.11.1"
RAW = "raw"  # name of the input in BIDS URIs, bids:raw:sub-01/…
IGNORED = ("*.html", "figures", "*_xfm.*", "group_*.tsv", "group_*.json")
BIBLIOGRAPHY = Path(__file__).parents[1] / "data" / "boilerplate.bib"


def read_description(folder: Path) -> dict[str, Any]:
    """Return the content of ``dataset_description.json``, empty if there is none.

    Raises
    ------
    UsageError
        If it cannot be read or is not a JSON object.
    """
    path = folder / "dataset_description.json"
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object.")
    return content


SINGLE_FILES = "For single files there is bids_moediff-superres IN.nii.gz OUT.nii.gz."


def check_input(settings: Settings) -> None:
    """Check that the input folder is a BIDS data set.

    Raises
    ------
    UsageError
        The message says what the folder is instead, and what to do.
    """
    root = settings.bids_dir
    if root.is_file():
        raise UsageError(f"{root} is a file, not the folder of a BIDS data set. {SINGLE_FILES}")
    if not root.is_dir():
        near = closest(root.name, _neighbours(root), 0.6)
        raise UsageError(
            f"The input folder {root} does not exist{near}. In a container it must be mounted "
            "(docker -v, apptainer -B)."
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise UsageError(f"This user may not read the input folder {root}.")
    description = read_description(root)
    if settings.skip_bids_validation:
        return
    if not description:
        raise UsageError(_not_bids(root, settings.output_dir))
    missing = [key for key in ("Name", "BIDSVersion") if key not in description]
    if missing:
        raise UsageError(
            f"{root}/dataset_description.json lacks {missing[0]}; add it, or pass "
            "--skip-bids-validation."
        )


def _not_bids(root: Path, output: Path) -> str:
    """Return what a folder without a description is, as far as can be seen."""
    swapped = read_description(output) if output.is_dir() else {}
    if swapped and swapped.get("DatasetType", "raw") == "raw":
        return (
            f"{root} is not a BIDS data set, but {output} is one. The input comes first: "
            f"bids_moediff {output} {root} participant."
        )
    for folder in (root, *root.parents):
        if folder.name.startswith("sub-") and read_description(folder.parent):
            what = "is one participant" if folder == root else "lies inside one participant"
            return (
                f"{root} {what} of a BIDS data set. Pass the data set, {folder.parent}, "
                f"with --participant-label {folder.name.removeprefix('sub-')}."
            )
    if holds_dicom(root):
        return (
            f"{root} has DICOM files. Convert them first, to a BIDS data set "
            "(dcm2bids, heudiconv, BIDScoin) or to single files (dcm2niix)."
        )
    return (
        f"{root} is not a BIDS data set: it has no dataset_description.json. Write one with the "
        f'keys "Name" and "BIDSVersion", or pass --skip-bids-validation. {SINGLE_FILES}'
    )


def holds_dicom(folder: Path) -> bool:
    """Return True if one of the first 20 files below a folder is DICOM."""
    return any(map(is_dicom, islice(filter(Path.is_file, folder.rglob("*")), 20)))


def is_dicom(path: Path) -> bool:
    """Return True if a file starts as DICOM files do (PS3.10, section 7.1)."""
    if not path.is_file():  # a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _neighbours(path: Path) -> list[str]:
    try:
        return [item.name for item in path.parent.iterdir() if item.is_dir()]
    except OSError:
        return []


def check_output(settings: Settings) -> None:
    """Check that the output folder would not harm the input or another pipeline's results.

    Raises
    ------
    UsageError
        If it would.
    """
    for folder, what in (
        (settings.output_dir, "The output folder"),
        (settings.work_folder, "The working directory"),
    ):
        refuse_lost_links(folder, what)
    source, target = settings.bids_dir.resolve(), settings.output_dir.resolve()
    if target == source:
        raise UsageError(f"Input and output are the same folder, {source}; give another output.")
    if source in target.parents and target.relative_to(source).parts[0] != "derivatives":
        raise UsageError(
            f"The output folder {settings.output_dir} lies inside the input; there, only "
            f"{settings.bids_dir}/derivatives/ may hold outputs."
        )
    work = settings.work_folder.resolve()
    if (
        target != work
        and target not in work.parents
        and (source == work or source in work.parents)
    ):
        raise UsageError(
            f"The working directory {settings.work_folder} lies inside the input; give another."
        )
    require_writable(target, "The output folder")
    require_writable(work, "The working directory")
    _refuse_foreign(target)


def _refuse_foreign(folder: Path) -> None:
    description = read_description(folder)
    makers = maker_names(description)
    if description and NAME not in makers:
        who = f"results of {makers[0]}" if makers else f"the data set {description.get('Name')}"
        raise UsageError(f"The output folder {folder} has {who}; give another folder.")


def maker_names(description: Mapping[str, Any]) -> list[str]:
    """Return the names in ``GeneratedBy``; entries of another form are ignored."""
    made_by = description.get("GeneratedBy")
    makers = made_by if isinstance(made_by, list) else []
    return [str(maker.get("Name")) for maker in makers if isinstance(maker, dict)]


def in_container(environment: Mapping[str, str]) -> bool:
    """Return True if paths are those of a container, which mean nothing outside."""
    return container_kind(environment) is not None


def _container(environment: Mapping[str, str]) -> dict[str, str]:
    tag = environment.get(f"{PREFIX}DOCKER_TAG")
    url = environment.get(f"{PREFIX}SINGULARITY_URL")
    if url:
        return {"Type": "apptainer", "URI": url} | ({"Tag": tag} if tag else {})
    return {"Type": "docker", "Tag": tag} if tag else {}


def _raw_link(settings: Settings, source: Mapping[str, Any], container: bool) -> str | None:
    """Return the target of ``bids:raw:``: a short relative path, else the DOI, else nothing.

    A path is relative only from ``derivatives/`` of the input or from a folder beside it. A longer
    one would reveal the host, and a container's path (``/data``) does not exist for a reader.
    """
    source_dir, target = settings.bids_dir.resolve(), settings.output_dir.resolve()
    beside = source_dir.parent == target.parent and not container
    if source_dir in target.parents or beside:
        return Path(os.path.relpath(source_dir, target)).as_posix()
    doi = source.get("DatasetDOI")
    return _doi_url(str(doi)) if doi else None


def _doi_url(doi: str) -> str:
    return doi if doi.startswith("http") else f"https://doi.org/{doi.removeprefix('doi:')}"


def _text(value: object) -> str:
    """Return what is text of a description, on one line and without control characters."""
    if not isinstance(value, str):
        return ""
    return one_line(value.encode("utf-8", "replace").decode(), 2000)  # lone surrogates: ?


def description_of(settings: Settings, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of the output's ``dataset_description.json``."""
    source = read_description(settings.bids_dir)
    made_by: dict[str, Any] = {"Name": NAME, "Version": __version__}
    if container := _container(environment):
        made_by["Container"] = container
    content: dict[str, Any] = {
        "Name": f"Super-resolved images of {_text(source.get('Name')) or 'a BIDS data set'}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made_by],
        "HowToAcknowledge": "Cite what logs/CITATION.md names (bibliography: logs/CITATION.bib).",
    }
    if given := _text(source.get("License")):
        content["License"] = given
    if doi := _text(source.get("DatasetDOI")):
        content["SourceDatasets"] = [{"DOI": doi, "URL": _doi_url(doi)}]
    if link := _raw_link(settings, source, in_container(environment)):
        content["DatasetLinks"] = {RAW: link}
    return content


def prepare_output(settings: Settings, environment: Mapping[str, str] | None = None) -> None:
    """Make the output folder a valid, still empty data set, or check that it is one of this app.

    Raises
    ------
    UsageError
        If the folder cannot be used (see :func:`check_output`).
    """
    check_output(settings)
    environment = os.environ if environment is None else environment
    folder = settings.output_dir
    content = description_of(settings, environment)
    if read_description(folder) != content:
        write_json(content, folder / "dataset_description.json")
    _write_readme(folder)
    _write_if_new("".join(f"{line}\n" for line in IGNORED), folder / ".bidsignore")
    table = table_text(descriptions(), ["desc_id", "description"])
    _write_if_new(table, folder / "descriptions.tsv")


README = """\
Super-resolved images of the data set named in dataset_description.json, made by bids_moediff.

*_res-*_desc-sr_<contrast>.nii.gz   super-resolved image on the output grid
*_desc-preproc_<contrast>.nii.gz    input on its own grid, without the coils' shading
*_desc-brain_mask.nii.gz            brain mask on the grid of the input
*_res-*_desc-brain_mask.nii.gz      the same mask on the output grid
*.json                              how each was made, from what, and what to beware of
sub-*.html, group_*                 reports and tables
logs/CITATION.md                    text for a methods section

Images hold 16-bit integers where the noise allows: apply scl_slope, as every NIfTI reader does.
Values below zero are ripples of sharp edges, mostly in air.

Do not hand this folder to fmriprep --derivatives or smriprep --derivatives: they would find two
brain masks on two grids for one image, and take the maps of experts (seg-moegate) for a
segmentation of tissue. Hand them the super-resolved image as input instead, or single masks.
"""
READMES = ("README", "README.md", "README.rst", "README.txt")


def _write_readme(folder: Path) -> None:
    """Write a README, unless there is one."""
    path = folder / "README"
    others = [name for name in READMES if (folder / name).exists()]
    if not others or (path.is_file() and path.read_bytes().startswith(README[:40].encode())):
        _write_if_new(README, path)


def _write_if_new(text: str, path: Path) -> None:
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(text, path)


def bibliography() -> dict[str, str]:
    """Return one line of text per key of the bibliography."""
    entries = re.findall(
        r"@\w+\{(\w+),\n(.*?)\n\}", BIBLIOGRAPHY.read_text(encoding="utf-8"), re.S
    )
    return {key: _reference(body) for key, body in entries}


def _reference(body: str) -> str:
    fields = dict(re.findall(r"^\s*(\w+) = \{(.*)\},?$", body, re.M))
    plain = {name: re.sub(r"[{}]|\\['~]", "", value) for name, value in fields.items()}
    authors = plain["author"].split(" and ")
    who = f"{authors[0]} et al." if len(authors) > 3 else "; ".join(authors)
    where = " ".join(
        filter(None, (plain.get("journal") or plain.get("booktitle"), plain.get("volume")))
    )
    doi = f" https://doi.org/{plain['doi']}" if "doi" in plain else ""
    return f"{who} ({plain['year']}). {plain['title']}. {where}.{doi}"


def with_references(text: str) -> str:
    """Return Markdown with the references that it names as ``[@key]`` listed at its end."""
    references = bibliography()
    keys = dict.fromkeys(re.findall(r"@([A-Za-z]\w*)", text))
    lines = [f"* [@{key}] {references[key]}" for key in keys if key in references]
    return text.strip() + "\n\n" + "".join(f"{line}\n" for line in lines)


def write_citation(output_dir: Path, text: str) -> None:
    """Write the methods text and its bibliography to ``logs/CITATION.md`` and ``.bib``.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    text
        Methods in Markdown with keys as ``[@key]``; the references named are listed at its end.
    """
    _write_if_new(with_references(text), output_dir / "logs" / "CITATION.md")
    _write_if_new(BIBLIOGRAPHY.read_text(encoding="utf-8"), output_dir / "logs" / "CITATION.bib")
