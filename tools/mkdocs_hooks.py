# SPDX-License-Identifier: Apache-2.0
"""What the build of the documentation checks and changes.

It fails where a measured number differs from its result table (:mod:`figures`). Nothing is loaded
from elsewhere: the theme's search in pages that are opened as files needs a small script, which
its template takes from a public server; a copy lies in docs/assets.
"""

import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

sys.path.insert(0, str(Path(__file__).parent))
import figures

REMOTE = "https://unpkg.com/iframe-worker/shim"
LOCAL = "assets/iframe-worker.js"


def on_pre_build(**_: Any) -> None:
    """Compare the pages with the result tables."""
    found = figures.check()
    if found:
        raise PluginError("\n".join(["Numbers that differ from their tables:", *found]))


def on_post_page(output: str, **_: Any) -> str:
    """Point the script to the copy; all pages lie in the root of the site."""
    return output.replace(REMOTE, LOCAL)


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for the page of missing pages."""
    return output_content.replace(REMOTE, LOCAL)
