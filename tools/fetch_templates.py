# SPDX-License-Identifier: Apache-2.0
"""Fetch standard spaces into TEMPLATEFLOW_HOME while an image is built.

    python fetch_templates.py MNI152NLin2009cAsym

Brings the 1 mm T1w template and its brain mask of each space named, and fails if a file is empty:
TemplateFlow lays out a tree of empty files and leaves them where a download fails. Without an
argument only that tree is laid out, which niworkflows needs to be imported.
"""

import sys

from templateflow import api


def main() -> None:
    """Fetch every space named on the command line."""
    for space in sys.argv[1:]:
        for query in ({"desc": None, "suffix": "T1w"}, {"desc": "brain", "suffix": "mask"}):
            path = api.get(space, resolution=1, extension=".nii.gz", **query)
            if isinstance(path, list) or path.stat().st_size == 0:
                raise SystemExit(f"no single {query['suffix']} of {space}: {path}")
            print(path)


if __name__ == "__main__":
    main()
