# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of the documentation from a run of the demo (needs the chromium command).

    make demo DEMO_OUTPUT=OUT
    python tools/screenshots.py report OUT/sub-01.html docs/figures/report.png
    python tools/screenshots.py group GROUP_HTML docs/figures/group.png
    python tools/screenshots.py demo OUT docs/figures/demo.png

``demo`` puts input and result of one coronal slice side by side, for the first page.
"""

import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "bids_moediff" / "data" / "demo" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
sys.path.insert(0, str(ROOT / "tests"))


def shoot(page: Path, picture: Path, wait: str, height: int) -> None:
    """Photograph a page once a condition holds."""
    from browser import Browser

    browser = Browser(Path(tempfile.mkdtemp()))
    browser.window(1200, height)
    browser.open(page.resolve())
    browser.wait(wait)
    browser.settle()
    browser.screenshot(picture)
    browser.close()
    smaller = Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=200)
    smaller.save(picture, optimize=True)


def demo(folder: Path, picture: Path) -> None:
    """Input and result of the demo in one coronal slice, the same window and scale."""
    from bids_moediff.preprocessing.conform import conform
    from bids_moediff.reports import canvas, figures
    from bids_moediff.reports.canvas import Canvas, Frame

    anat = folder / "sub-01" / "anat"
    (result,) = anat.glob("*_desc-sr_T1w.nii.gz")
    scene = figures.make_scene(
        conform(DEMO)[0],
        nib.load(result),
        nib.load(anat / "sub-01_desc-brain_mask.nii.gz"),
    )
    place = scene.positions["coronal"]
    middle = (scene.frame.low + scene.frame.high) / 2
    frame = Frame(middle - 80, middle + 80, 3.0)
    width, height = frame.size("coronal")
    board = Canvas(2 * width + 8, height)
    for left, volume, words in (
        (0, scene.original, "Input, slices of 2.3 mm"),
        (width + 8, scene.enhanced, "Super-resolved"),
    ):
        drawn = canvas.draw_plane(volume, frame, "coronal", place)
        board.put(canvas.grey(drawn, scene.window), left, 0)
        board.write(words, left + 8, 6, fontweight="bold")
    board.save(picture)
    pixels = np.asarray(Image.open(picture))[..., 0]
    Image.fromarray(pixels).save(picture, optimize=True)


def main() -> int:
    """Make one picture."""
    kind, source, picture = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if kind == "demo":
        demo(source, picture)
    elif kind == "group":
        shoot(source, picture, "document.querySelector('.contrast.live')", 900)
    else:
        shoot(source, picture, "document.querySelector('.viewer.live .readout')", 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
