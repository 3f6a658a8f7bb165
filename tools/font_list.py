# SPDX-License-Identifier: Apache-2.0
"""Write the list of fonts that a run gives to Matplotlib: those that come with Matplotlib.

    python tools/font_list.py

Matplotlib lists all fonts of the machine where it finds no list, which takes two seconds, and the
working directory of a run is new. Paths are relative to Matplotlib's own files. The name of the
list has the version of its format; Matplotlib ignores those of other versions.
"""

from pathlib import Path

import matplotlib
from matplotlib import font_manager

FOLDER = Path(__file__).parents[1] / "bids_moediff" / "data" / "fonts"


def main() -> None:
    """Write the list in the format of the installed Matplotlib, in place of earlier ones."""
    fonts = font_manager.FontManager()
    fonts.afmlist = []
    own = matplotlib.get_data_path()
    brought = [font for font in fonts.ttflist if Path(font.fname).is_relative_to(own)]
    fonts.ttflist = sorted(brought, key=lambda font: Path(font.fname).name)
    for old in FOLDER.glob("fontlist-*.json"):
        old.unlink()
    FOLDER.mkdir(parents=True, exist_ok=True)
    font_manager.json_dump(fonts, FOLDER / f"fontlist-v{fonts.__version__}.json")


if __name__ == "__main__":
    main()
