# SPDX-License-Identifier: Apache-2.0
"""Write the folder of ``bids_moediff-degrade``: a raw BIDS data set with a description."""

import csv
from typing import Any

from bids_moediff import __version__
from bids_moediff.bids.dataset import maker_names, read_description
from bids_moediff.errors import UsageError
from bids_moediff.runtime.given_files import read_text
from bids_moediff.runtime.sink import table_text, write_bytes, write_json, write_text
from bids_moediff.settings import Settings

# Keys of the source's description that hold for every data set made from it.
KEPT = ("BIDSVersion", "License", "Authors", "Acknowledgements", "EthicsApprovals", "Funding")
COPIED = ("LICENSE", "participants.json", "CITATION.cff")
README = """\
# {name}

Anatomical images of another data set that were made coarser by `{maker}`, version {version}.
The key `Degradation` in the sidecar of every image tells voxel sizes, profiles and noise.
"""


def check_raw_output(settings: Settings, maker: str) -> None:
    """Raise UsageError for a folder with any other content, or one inside the input."""
    source, target = settings.bids_dir.resolve(), settings.output_dir.resolve()
    if target == source or source in target.parents:
        raise UsageError(f"The output folder {settings.output_dir} lies inside the input.")
    if target.exists() and not target.is_dir():
        raise UsageError(f"The output folder {settings.output_dir} is a file.")
    description = read_description(target)
    makers = maker_names(description)
    occupied = target.is_dir() and any(not p.name.startswith(".") for p in target.iterdir())
    if occupied and maker not in makers:
        raise UsageError(
            f"The output folder {settings.output_dir} has other data; give another folder."
        )


def prepare_raw(settings: Settings, maker: str) -> None:
    """Write description, README and licence; the description first."""
    source, target = settings.bids_dir, settings.output_dir
    description = read_description(source)
    name = f"{description.get('Name') or 'BIDS data set'}, made coarser"
    content: dict[str, Any] = {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    content |= {key: description[key] for key in KEPT if key in description}
    content["GeneratedBy"] = [{"Name": maker, "Version": __version__}]
    if doi := description.get("DatasetDOI"):
        content["SourceDatasets"] = [{"DOI": str(doi)}]
    write_json(content, target / "dataset_description.json")
    write_text(README.format(name=name, maker=maker, version=__version__), target / "README.md")
    for file in COPIED:
        if (source / file).is_file():
            write_bytes((source / file).read_bytes(), target / file)


def finish_raw(settings: Settings) -> None:
    """Write the rows of participants.tsv for existing folders (jobs may share the output)."""
    try:
        lines = read_text(settings.bids_dir / "participants.tsv").splitlines()
    except (OSError, ValueError):  # the images do not need it
        return
    rows: list[dict[str, Any]] = list(csv.DictReader(lines, delimiter="\t"))
    present = {path.name for path in settings.output_dir.glob("sub-*")}
    kept = [row for row in rows if row.get("participant_id") in present]
    if kept:
        text = table_text(kept, [column for column in kept[0] if column])
        write_text(text, settings.output_dir / "participants.tsv")
