# SPDX-License-Identifier: Apache-2.0
"""The methods text of a run as HTML, its citations numbered and linked."""

import re
from collections.abc import Mapping
from typing import Any

CITED = re.compile(r"\[(@[\w:-]+(?:\s*;\s*@[\w:-]+)*)\]")
REFERENCE = re.compile(r"^\* \[@([\w:-]+)\] ", re.M)


def methods_html(run: Mapping[str, Any]) -> str:
    """Return ``methods_html`` of a run, or its ``methods`` (Markdown) as HTML."""
    if run.get("methods_html"):
        return str(run["methods_html"])
    from markdown_it import MarkdownIt

    text = str(run.get("methods", ""))
    order = REFERENCE.findall(text)
    numbers = {key: place for place, key in enumerate(order, 1)}
    text = REFERENCE.sub(lambda found: f"{numbers[found[1]]}. ", text)

    def link(found: re.Match[str]) -> str:
        places = [numbers.get(key) for key in re.findall(r"[\w:-]+", found[1])]
        if None in places:
            return found[0]
        return "\\[" + ", ".join(f"[{n}](#reference-{n})" for n in places) + "\\]"

    page = MarkdownIt("commonmark", {"html": False}).render(CITED.sub(link, text))
    head, mark, tail = page.rpartition("<ol>")
    if order and mark:
        places = iter(range(1, len(order) + 1))
        tail = re.sub("<li>", lambda _: f'<li id="reference-{next(places)}">', tail)
    # A link of its own ends before the full stop of the sentence.
    return head + mark + re.sub(r"(https?://[^\s<]+[^\s<.])", r'<a href="\1">\1</a>', tail)
