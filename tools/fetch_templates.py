# SPDX-License-Identifier: Apache-2.0
"""Fetch standard spaces into TEMPLATEFLOW_HOME while an image is built.

    python fetch_templates.py MNI152NLin2009cAsym

Brings the 1 mm T1w template and its brain mask of each space named. Templates are optional: where
their server cannot be reached, one line says so and what that means, and the image is built all
the same. A space that does not exist is a mistake and fails. Without an argument only the tree of
empty files of TemplateFlow is laid out, which niworkflows needs to be imported.
"""

import sys

from templateflow import api


def main() -> None:
    """Fetch every space named on the command line."""
    for space in sys.argv[1:]:
        for query in ({"desc": None, "suffix": "T1w"}, {"desc": "brain", "suffix": "mask"}):
            try:
                path = api.get(space, resolution=1, extension=".nii.gz", **query)
            except (OSError, RuntimeError) as error:
                reason = type(error).__name__
                print(
                    f"fetch_templates: the template server cannot be reached ({reason}), so the "
                    f"image does not hold {space}; --output-spaces {space} will need a folder "
                    "with it, named by TEMPLATEFLOW_HOME.",
                    file=sys.stderr,
                )
                break
            if isinstance(path, list) or path.stat().st_size == 0:
                raise SystemExit(f"no single {query['suffix']} of {space}: {path}")
            print(path)


if __name__ == "__main__":
    main()
