# SPDX-License-Identifier: Apache-2.0
"""The report in a browser, from a file and without a network: every control does what it says."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.reports.canvas import NORMAL, PLANES
from bids_moediff.reports.participant import write_participant_report
from browser import CHROMIUM, REASON, Browser, violations
from report_data import make_image, make_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=REASON)
LIVE = "document.querySelector('.viewer.live .readout').textContent"
VIEWER = "document.querySelector('.viewer').viewer"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("derivatives")
    run = make_run(root)
    run["images"] = run["images"][:1]
    write_participant_report(root, "01", run)
    # The page needs nothing beside it.
    alone = tmp_path_factory.mktemp("alone")
    (alone / "sub-01.html").write_bytes((root / "sub-01.html").read_bytes())
    (alone / "products").symlink_to(root / "sub-01" / "anat")
    return alone


@pytest.fixture
def page(browser, root) -> Browser:
    browser.window(1280, 1000)
    browser.open(root / "sub-01.html")
    browser.wait(f"document.querySelector('.viewer.live') && {LIVE}")
    return browser


def state(page: Browser) -> dict:
    page.settle()
    return json.loads(page.do("document.querySelector('.viewer').dataset.state"))


def box(page: Browser, plane: str) -> dict[str, float]:
    """Place of a plane in the window, once the page has come to rest there."""
    canvas = f"document.querySelector('canvas[data-plane={plane}]')"
    page.do("document.documentElement.style.scrollBehavior = 'auto'")
    page.do(f"{canvas}.scrollIntoView({{block: 'center'}})")
    page.settle()
    page.wait(f"performance.now() - ({VIEWER}.scrolled || -1e9) > 300")
    return page.do(f"{canvas}.getBoundingClientRect().toJSON()")


def middle(page: Browser, plane: str) -> tuple[float, float]:
    place = box(page, plane)
    return place["x"] + place["width"] / 2, place["y"] + place["height"] / 2


def pixels(page: Browser, plane: str, x: float, y: float) -> list[int]:
    """Colour of the canvas at shares of its width and height."""
    return page.do(
        f"(() => {{ const c = document.querySelector('canvas[data-plane={plane}]');"
        "const place = (share, size) => Math.round(share * size);"
        f"const at = [place({x}, c.width), place({y}, c.height)];"
        "return [...c.getContext('2d').getImageData(...at, 1, 1).data] })()"
    )[:3]


def choose(page: Browser, name: str, value: str) -> None:
    page.do(
        f"(() => {{ const f = {VIEWER}.get('{name}'); f.value = '{value}';"
        "f.dispatchEvent(new Event('input')); f.dispatchEvent(new Event('change')) })()"
    )
    page.settle()


def test_volumes_are_those_of_the_files(page, root):
    """The script unpacks what Python packed: every voxel of the crop."""
    fine = np.asarray(nib.load(root / "products/sub-01_res-1mm_desc-sr_T1w.nii.gz").dataobj)
    about = page.do(f"{VIEWER}.meta.volumes.result")
    shown = np.array(page.do(f"[...{VIEWER}.volumes.result.data]"))
    shown = shown.reshape(about["shape"], order="F")
    first = np.rint(about["start"]).astype(int)
    part = fine[tuple(slice(a, a + n) for a, n in zip(first, about["shape"], strict=True))]
    share = (part - about["low"]) / (about["high"] - about["low"])
    assert np.abs(shown - np.clip(255 * share, 0, 255)).max() <= 0.51


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_cubic_interpolation_is_that_of_scipy(page, plane, axis):
    source, result = (page.do(f"{VIEWER}.meta.volumes.{name}") for name in ("input", "result"))
    voxels = np.array(page.do(f"[...{VIEWER}.volumes.input.data]"), dtype=float)
    voxels = voxels.reshape(source["shape"], order="F")
    ratio = np.divide(result["zooms"], source["zooms"])
    corner = np.subtract(result["start"], source["start"]) / source["zooms"] + ratio / 2 - 0.5
    wanted = ndimage.affine_transform(
        voxels, ratio, corner, tuple(result["shape"]), order=3, mode="mirror"
    )
    position = page.do(f"{VIEWER}.position")[axis]
    index = int((position - result["start"][axis]) / result["zooms"][axis])
    wanted = np.clip(np.take(wanted, index, axis), 0, 255)
    shown = np.array(page.do(f"[...{VIEWER}.values('cubic', '{plane}')]"))
    assert np.abs(shown.reshape(wanted.T.shape).T - wanted).max() <= 0.51


def light(page: Browser, axis: int) -> dict[str, list[str]]:
    """Draw a result that is white in its positive half along an axis.

    Returns the letters of each plane in the order left, right, top, bottom.
    """
    page.do(
        f"(() => {{ const viewer = {VIEWER}, volume = viewer.volumes.result;"
        f"const shape = volume.shape, count = shape[{axis}];"
        f"const step = [1, shape[0], shape[0] * shape[1]][{axis}];"
        "for (let i = 0; i < volume.data.length; i++) {"
        "volume.data[i] = 2 * (Math.floor(i / step) % count) >= count ? 255 : 0 }"
        "viewer.slices.clear(); window.letters = {};"
        "const pen = CanvasRenderingContext2D.prototype, write = pen.fillText;"
        "pen.fillText = function (words, x, y) {"
        "if (words.length === 1) {"
        "(window.letters[this.canvas.dataset.plane] ||= []).push([words, x, y]) }"
        "write.call(this, words, x, y) };"
        "viewer.draw() })()"
    )
    page.settle()
    found = {}
    for plane, letters in page.do("window.letters").items():
        across, up = (sorted(letters, key=lambda letter: letter[n]) for n in (1, 2))
        found[plane] = [across[0][0], across[-1][0], up[0][0], up[-1][0]]
    return found


@pytest.mark.parametrize(("axis", "negative", "positive"), [(0, *"LR"), (1, *"PA"), (2, *"IS")])
def test_letters_name_the_side_that_is_drawn_there(page, axis, negative, positive):
    page.do(f"{VIEWER}.get('crosshair').click()")
    for side in ("left", "right"):
        choose(page, side, "result")
    letters = light(page, axis)
    assert set(letters) == set(PLANES)
    for plane in PLANES:
        if NORMAL[plane] == axis:
            continue
        flat = PLANES[plane][0] == axis
        places = [(0.4, 0.45), (0.6, 0.45)] if flat else [(0.45, 0.4), (0.45, 0.6)]
        shades = [pixels(page, plane, *place)[0] for place in places]
        assert abs(shades[0] - shades[1]) > 200, plane
        names = [positive if shade > 100 else negative for shade in shades]
        assert letters[plane][:2] == names if flat else letters[plane][2:] == names, plane


def test_wheel_and_keys_change_the_slice(page):
    before = state(page)["position"]
    page.mouse("mouseWheel", *middle(page, "coronal"), deltaX=0, deltaY=-120)
    moved = state(page)["position"]
    assert moved[1] - before[1] > 0.9
    assert moved[0] == before[0]
    page.do("document.querySelector('canvas[data-plane=sagittal]').focus()")
    page.key("ArrowUp")
    assert state(page)["position"][0] == pytest.approx(moved[0] + 1)
    choose(page, "axial", "10")
    assert state(page)["position"][2] == pytest.approx(
        page.do(f"{VIEWER}.volumes.result.start[2]") + 10.5
    )


def test_a_click_moves_the_crosshair_and_the_numbers(page):
    place = box(page, "axial")
    text = page.do(LIVE)
    x, y = place["x"] + 0.3 * place["width"], place["y"] + 0.6 * place["height"]
    page.mouse("mousePressed", x, y)
    page.mouse("mouseReleased", x, y)
    low, high = page.do(f"{VIEWER}.meta.low"), page.do(f"{VIEWER}.meta.high")
    at = state(page)["position"]
    assert at[0] == pytest.approx(high[0] - 0.3 * (high[0] - low[0]), abs=0.6), "right is left"
    assert at[1] == pytest.approx(high[1] - 0.6 * (high[1] - low[1]), abs=0.6)
    assert page.do(LIVE) != text


def test_swipe_shows_the_left_image_left_of_the_line(page):
    page.do(f"{VIEWER}.get('crosshair').click()")
    both = [pixels(page, "axial", x, 0.4) for x in (0.3, 0.7)]
    choose(page, "right", "input")
    only_input = [pixels(page, "axial", x, 0.4) for x in (0.3, 0.7)]
    choose(page, "left", "result")
    choose(page, "right", "result")
    only_result = [pixels(page, "axial", x, 0.4) for x in (0.3, 0.7)]
    assert both == [only_input[0], only_result[1]]
    assert only_input != only_result
    choose(page, "left", "input")
    x, y = middle(page, "axial")
    page.mouse("mousePressed", x, y)
    page.mouse("mouseMoved", x - 60, y, button="left", buttons=1)
    page.mouse("mouseReleased", x - 60, y)
    assert state(page)["share"] == pytest.approx(0.5 - 60 / box(page, "axial")["width"], abs=0.02)


def test_zoom_and_window(page):
    x, y = middle(page, "coronal")
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-250, modifiers=2)
    assert state(page)["zoom"] == pytest.approx(2)
    narrow = state(page)["window"]
    page.mouse("mousePressed", x, y, button="right")
    page.mouse("mouseMoved", x - 40, y + 10, button="right", buttons=2)
    page.mouse("mouseReleased", x - 40, y + 10, button="right")
    after = state(page)["window"]
    assert np.ptp(after) < np.ptp(narrow)
    page.do("document.querySelector('canvas[data-plane=axial]').focus()")
    page.key("0")
    assert state(page)["zoom"] == 1
    assert state(page)["window"] == narrow


@pytest.mark.parametrize("overlay", ["mask", "error", "expert"])
def test_overlays_colour_the_picture(page, overlay):
    script = (
        "(() => { const c = document.querySelector('canvas[data-plane=axial]');"
        "const d = c.getContext('2d').getImageData(0, 40, c.width, c.height - 90).data;"
        "let n = 0; for (let i = 0; i < d.length; i += 4) { n += Math.abs(d[i] - d[i + 1]) > 12 }"
        "return n })()"
    )
    choose(page, "left", "result")
    page.do(f"{VIEWER}.get('crosshair').click()")
    page.settle()
    plain = page.do(script)
    choose(page, "overlay", overlay)
    assert page.do(script) > plain + 500


def test_flicker_alternates(page):
    page.do("document.querySelector('canvas[data-plane=axial]').focus()")
    page.key("f")
    seen = set()
    for _ in range(8):
        seen.add(tuple(page.do(f"{VIEWER}.pair()")))
        page.do("new Promise((done) => setTimeout(done, 250))")
    assert seen == {("input", "input"), ("result", "result")}
    page.key("f")
    assert page.do(f"{VIEWER}.pair()") == ["input", "result"]


def test_nothing_is_logged_and_nothing_sticks_out(page):
    assert page.errors == []
    for width in (360, 800, 1280):
        page.window(width, 800)
        page.settle()
        wide = page.do("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{width} pixels"


def test_a_phone_shows_one_plane(page, root):
    page.window(390, 800)
    page.open(root / "sub-01.html")
    page.wait("document.querySelector('.viewer.live')")
    shown = page.do(
        "[...document.querySelectorAll('canvas')].filter((c) => c.offsetParent).length"
    )
    assert shown == 1


def test_fingers_move_the_crosshair_and_zoom(page, root):
    page.window(390, 800)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    page.open(root / "sub-01.html")
    page.wait("document.querySelector('.viewer.live .readout')?.textContent")
    place = box(page, "axial")
    before = state(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        fingers = [
            {"x": place["x"] + x * place["width"], "y": place["y"] + y * place["height"], "id": n}
            for n, (x, y) in enumerate(points)
        ]
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)
        page.settle()

    touch("touchStart", (0.2, 0.3))
    touch("touchEnd")
    assert state(page)["position"][0] > before["position"][0] + 2, "the patient's right is left"
    touch("touchStart", (0.45, 0.5), (0.65, 0.5))
    touch("touchMove", (0.3, 0.5), (0.8, 0.5))
    touch("touchEnd")
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert state(page)["zoom"] > 1.5
    assert page.errors == []


def test_pictures_are_there_without_scripts_and_in_print(page, root):
    visible = "[...document.querySelectorAll('.still img')].map((i) => i.offsetHeight > 0)"
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.do(visible) == [True, True]
    page.call("Emulation.setEmulatedMedia", media="")
    assert page.do(visible) == [False, False]
    page.call("Page.printToPDF")
    assert page.do("document.querySelector('#card').open")
    page.open(root / "sub-01.html", scripts=False)
    heights = page.call("Page.getLayoutMetrics")["cssContentSize"]["height"]
    assert heights > 2000
    page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert page.do(visible) == [True, True]
    broken = "[...document.images].filter((i) => !i.naturalWidth).length"
    assert page.do(broken) == 0


@pytest.mark.parametrize("dark", [False, True])
def test_no_serious_fault_of_accessibility(page, root, tmp_path, dark):
    page.window(1280, 1000, dark=dark)
    page.do("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    assert violations(page) == []
    run = make_run(tmp_path)
    page.open(write_participant_report(tmp_path, "01", run))
    assert violations(page) == []


def test_several_images_get_a_page_each(page, tmp_path):
    run = make_run(tmp_path)
    run["images"].append(
        make_image(tmp_path, "01", seed=1) | {"source": "sub-01/anat/sub-01_run-2_T1w.nii.gz"}
    )
    page.open(write_participant_report(tmp_path, "01", run))
    links = page.do(
        "[...document.querySelectorAll('.images a')].map((a) => a.getAttribute('href'))"
    )
    assert links == ["sub-01_T1w.html", "sub-01_T2w.html", "sub-01_run-2_T1w.html"]
    for link in links:
        page.open(tmp_path / link)
        assert page.do("document.querySelector('nav a').getAttribute('href')") == "sub-01.html"
        assert page.errors == []
