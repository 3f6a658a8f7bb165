# SPDX-License-Identifier: Apache-2.0
"""List images from a pybids database on disk, without listing a slow file system."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bids_moediff.bids.listing import IMAGE_EXTENSIONS
from bids_moediff.errors import UsageError

if TYPE_CHECKING:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

# What pybids must not look at, as patterns of paths relative to the root.
IGNORED = [
    re.compile(pattern)
    for pattern in (
        r"^/(?!sub-)[^/]+/",
        r"/\.",
        r"\.json$",
        r"^/(code|derivatives|sourcedata|stimuli|models)$",
        r"^/sub-[^/]+/(?!ses-[^/]+$|ses-[^/]+/|anat$|anat/)",
        r"^/sub-[^/]+/ses-[^/]+/(?!anat$|anat/)",
        r"/anat/[^/]+/",  # a link that leads back would go on for ever
    )
]


class _BelowRoot:
    """A pybids entity that matches the path below the root of the data set only.

    pybids searches the whole path, so that a data set in ``/scratch/sub-01/`` would have images of
    that participant only.
    """

    def __init__(self, entity: Any, root: Path) -> None:
        self.entity, self.root = entity, root
        self.name, self.mandatory, self._dtype = entity.name, entity.mandatory, entity._dtype

    def match_file(self, file: Any) -> Any:
        """Return the value of the entity in the path of a file, or None."""
        relative = Path(file.path).relative_to(self.root).as_posix()
        return self.entity.match_file(SimpleNamespace(path=f"/{relative}"))


def _indexer(root: Path) -> "BIDSLayoutIndexer":
    """Return an indexer that lists the images of a data set."""
    from bids.layout import BIDSLayoutIndexer

    class Indexer(BIDSLayoutIndexer):
        """Reads no sidecar."""

        def _index_file(self, abs_fn: Any, entities: Any) -> tuple[Any, list]:
            below = {name: _BelowRoot(item, root) for name, item in entities.items()}
            return super()._index_file(abs_fn, below)

    return Indexer(validate=False, ignore=IGNORED, index_metadata=False)


def images_in_database(root: Path, folder: Path, label: str) -> list[Path]:
    """Return the images of one participant, sorted; a missing database is created.

    Parameters
    ----------
    root
        Root of the data set.
    folder
        Folder of the database.
    label
        Participant without ``sub-``.

    Raises
    ------
    UsageError
        For a database of another data set.
    """
    layout = _database(root, folder)
    try:
        found = layout.get(subject=label, datatype="anat", extension=[*IMAGE_EXTENSIONS])
        return sorted(Path(file.path) for file in found)
    finally:
        # Without this a run over many participants keeps every one of their indices.
        layout.connection_manager.session.close()
        layout.connection_manager.engine.dispose()


def _database(root: Path, folder: Path) -> "BIDSLayout":
    """Return the layout of a database on disk; a missing one is created for the whole data set.

    It is created under another name and renamed, so jobs that start together do not damage it.
    """
    from bids.layout import BIDSLayout

    if not folder.is_dir() or not any(folder.iterdir()):
        temporary = folder.parent / f".{folder.name}.{os.getpid()}.part"
        folder.parent.mkdir(parents=True, exist_ok=True)
        layout = BIDSLayout(root, validate=False, indexer=_indexer(root), database_path=temporary)
        layout.connection_manager.engine.dispose()
        try:
            temporary.replace(folder)
        except OSError:  # another job was faster
            for file in temporary.iterdir():
                file.unlink()
            temporary.rmdir()
    layout = BIDSLayout(root, validate=False, database_path=folder)
    if Path(layout.root).resolve() != root.resolve():
        raise UsageError(
            f"The database {folder} was made for another data set, {layout.root}; "
            "give another --bids-database-dir or delete it."
        )
    return layout
