# SPDX-License-Identifier: Apache-2.0
"""Write docs/options.md: every option, settings key and exit code, as the code has them.

python tools/options_page.py            # writes the page
python tools/options_page.py --check    # ends with 1 if the page is out of date
"""

import argparse
import re
import sys
from dataclasses import fields
from pathlib import Path

from bids_moediff import errors
from bids_moediff.cli.parser import GROUPS, build_parser
from bids_moediff.settings import Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"
HEAD = """\
# Options and exit codes

Made from the code by `python tools/options_page.py`; a test fails if it is out of date.

    bids_moediff BIDS_DIR OUTPUT_DIR {participant,group} [options]

Each option is also a key of the settings file (`--config-file`, underscores for dashes) and an
environment variable (`BIDS_MOEDIFF_` and the name in capitals). The order is: defaults, file,
environment, command line; the last one wins. Switches can be undone: `--no-keep-workdir`. What to
choose: [Usage](usage.md).
"""


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def option_tables() -> str:
    """A table for each group of ``--help``."""
    parser = build_parser()
    defaults = {item.name: item.default for item in fields(Settings)}
    parts = []
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            flags = [flag for flag in action.option_strings if not flag.startswith("--no-")]
            if not flags or action.help == argparse.SUPPRESS:
                continue
            metavar = f" {action.metavar}" if action.metavar else ""
            metavar += " …" if action.nargs == "+" else ""
            names = "`, `".join([*flags[:-1], flags[-1] + metavar])
            default = defaults.get(action.dest)
            words = _cell(action.help or "")
            told = "default" in words or "auto" in words or action.dest == "verbose"
            if (
                isinstance(default, (int, float, str))
                and not isinstance(default, bool)
                and not told
            ):
                words += f" (default: {default})"
            rows.append(f"| `{names}` | {words} |")
        if rows:
            title = group.title if group.title in GROUPS else "help"
            head = f"## {str(title).capitalize()}\n\n| option | meaning |\n| --- | --- |\n"
            parts.append(head + "\n".join(rows) + "\n")
    return "\n".join(parts)


def exit_table() -> str:
    """Exit codes with the meaning that each class of error states."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    found = {0: "done"}
    for kind in kinds:
        if issubclass(kind, errors.MoediffError) and kind.exit_code not in found:
            found[kind.exit_code] = kind.meaning
    rows = [f"| {code} | {words} |" for code, words in sorted(found.items())]
    return "## Exit codes\n\n| code | meaning |\n| --- | --- |\n" + "\n".join(rows) + "\n"


def page() -> str:
    """The whole page."""
    return re.sub(r"\n{3,}", "\n\n", f"{HEAD}\n{option_tables()}\n{exit_table()}")


def main() -> int:
    """Write the page, or compare."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
