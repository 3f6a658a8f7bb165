# SPDX-License-Identifier: Apache-2.0
"""What the build of the documentation changes: nothing is loaded from elsewhere.

The theme's search in pages that are opened as files needs a small script, which its template takes
from a public server; a copy lies in docs/assets.
"""

from typing import Any

REMOTE = "https://unpkg.com/iframe-worker/shim"
LOCAL = "assets/iframe-worker.js"


def on_post_page(output: str, **_: Any) -> str:
    """Point the script to the copy; all pages lie in the root of the site."""
    return output.replace(REMOTE, LOCAL)


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for the page of missing pages."""
    return output_content.replace(REMOTE, LOCAL)
