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
    assert state(page)["zoom"] > 1.5
    before, scale = act(page, "return [v.middle, v.view(canvas('axial')).scale]")
    share = page.do("window.devicePixelRatio")
    touch("touchStart", (0.4, 0.5), (0.6, 0.5))
    touch("touchMove", (0.46, 0.4), (0.66, 0.4))
    touch("touchEnd")
    moved = np.subtract(act(page, "return v.middle"), before)
    wanted = np.array([0.06 * place["width"], -0.1 * place["height"]]) * share / scale
    assert moved == pytest.approx([*wanted, 0], abs=1), "the picture goes with both fingers"
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)
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


# What a test may read of the viewer, and set to numbers that differ in every axis.
SNAPSHOT = (
    f"const v = {VIEWER}; const canvas = (plane) => v.canvases().find((c) => "
    "c.dataset.plane === plane);"
    "const snapshot = () => ({ position: [...v.position], middle: [...v.middle], zoom: v.zoom,"
    "share: v.share, window: [...v.window], overlay: v.get('overlay').value,"
    "crosshair: v.get('crosshair').checked, flicker: v.get('flicker').ariaPressed,"
    "fields: ['zoom', 'swipe', 'darkest', 'brightest', 'axial', 'coronal', 'sagittal'].map("
    "(name) => Number(v.get(name).value)) });"
)


def act(page: Browser, script: str) -> dict:
    """Run a script that may use ``v``, ``canvas`` and ``snapshot``; what it returns."""
    return page.do(f"(() => {{ {SNAPSHOT} {script} }})()")


def test_every_key(page):
    """The result has voxels of 1, 2 and 3 mm here, so that exchanged axes show."""
    keys = [
        ("ArrowUp", False), ("ArrowDown", False), ("PageUp", False), ("PageDown", False),
        ("ArrowLeft", False), ("ArrowRight", False), ("ArrowLeft", True), ("ArrowRight", True),
        ("ArrowUp", True), ("ArrowDown", True), ("+", False), ("+", True), ("=", False),
        ("-", False), ("c", False), ("C", True), ("m", False), ("u", False), ("e", False),
        ("M", False), ("f", False), ("x", False), ("0", False),
    ]  # fmt: skip
    start, ends = act(
        page,
        "v.volumes.result.zooms = [1, 2, 3]; v.zoom = 2; v.position[1] += 2; v.settle();"
        "const start = snapshot(), ends = [];"
        f"for (const [key, shift] of {json.dumps(keys)}) {{"
        "v.position = [...start.position]; v.middle = [...start.middle]; v.zoom = 2;"
        "v.share = 0.5;"
        "const event = new KeyboardEvent('keydown', { key: key, shiftKey: shift === true,"
        "cancelable: true });"
        "canvas('coronal').dispatchEvent(event);"
        "ends.push([snapshot(), event.defaultPrevented]);"
        "if (key === 'c') { v.get('crosshair').checked = true }"
        "if (key === 'f') { v.toggleFlicker() } }"
        "const odd = new KeyboardEvent('keydown', { key: '+', ctrlKey: true, cancelable: true });"
        "canvas('coronal').dispatchEvent(odd); ends.push([snapshot(), odd.defaultPrevented]);"
        "return [start, ends]",
    )  # fmt: skip
    low, high = (np.array(page.do(f"{VIEWER}.meta.{name}")) for name in ("low", "high"))

    def moved(axis: int, by: float) -> dict:
        position = np.array(start["position"])
        position[axis] += by
        return {"position": pytest.approx(np.clip(position, low + 1e-3, high - 1e-3))}

    wanted = [
        moved(1, 2), moved(1, -2), moved(1, 20), moved(1, -20), {"share": pytest.approx(0.45)},
        {"share": pytest.approx(0.55)}, moved(0, 1), moved(0, -1), moved(2, 3), moved(2, -3),
        {"zoom": 2.5}, {"zoom": 2.5}, {"zoom": 2.5}, {"zoom": 1.6}, {"crosshair": False}, {},
        {"overlay": "mask"}, {"overlay": "error"}, {"overlay": "expert"}, {"overlay": "mask"},
        {"flicker": "true", "overlay": "mask"}, {"overlay": "mask"},
        {"zoom": 1, "overlay": "mask"}, {"zoom": 1, "overlay": "mask"},
    ]  # fmt: skip
    names = [*(key for key, _ in keys), "Control"]
    for key, (end, prevented), changes in zip(names, ends, wanted, strict=True):
        expected = {name: start[name] for name in ("position", "zoom", "share", "overlay")}
        expected |= {"crosshair": True, "flicker": "false"} | changes
        if key in ("0", "Control"):
            expected["position"] = page.do(f"{VIEWER}.meta.position")
        assert {name: end[name] for name in expected} == expected, key
        assert prevented == (key not in ("C", "x", "Control")), key


def test_every_control_and_its_limits(page):
    start, ends, plain = act(
        page,
        "const set = (name, value) => { const field = v.get(name); field.value = value;"
        "field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change'));"
        "return snapshot() };"
        "v.window = [20, 200]; v.settle(); const start = snapshot();"
        "const ends = { zoom: set('zoom', 3), swipe: set('swipe', 30),"
        "darkest: set('darkest', 120), beyond: set('darkest', 240),"
        "brightest: set('brightest', 210), below: set('brightest', 10),"
        "axial: set('axial', 3), coronal: set('coronal', 5), sagittal: set('sagittal', 7) };"
        "v.get('planes').value = 'coronal'; v.get('planes').dispatchEvent(new Event('change'));"
        "ends.shown = v.root.dataset.shown;"
        "ends.text = v.get('axial').getAttribute('aria-valuetext');"
        "v.zoom = 99; v.share = 2; v.position = [1e9, -1e9, 1e9]; v.middle = [-1e9, 1e9, 1e9];"
        "v.window = [300, 0]; v.settle(); ends.top = snapshot();"
        "v.zoom = 0; v.share = -1; v.window = [-5, 400]; v.settle(); ends.bottom = snapshot();"
        "v.get('reset').click(); return [start, ends, snapshot()]",
    )
    meta, result = page.do(f"{VIEWER}.meta"), page.do(f"{VIEWER}.meta.volumes.result")
    low, high = np.array(meta["low"]), np.array(meta["high"])
    assert ends["zoom"]["zoom"] == 8 and ends["zoom"]["fields"][0] == 3
    assert ends["swipe"]["share"] == 0.3 and ends["swipe"]["fields"][1] == 30
    windows = [ends[name]["window"] for name in ("darkest", "beyond", "brightest", "below")]
    assert windows == [[120, 200], [196, 200], [196, 210], [196, 200]]
    assert ends["brightest"]["fields"][2:4] == [196, 210]
    places = [ends[name]["position"] for name in ("axial", "coronal", "sagittal")]
    first = [start["position"][axis] for axis in range(3)]
    for place, axis, index in zip(places, (2, 1, 0), (3, 5, 7), strict=True):
        first[axis] = result["start"][axis] + (index + 0.5) * result["zooms"][axis]
        assert place == pytest.approx(first)
    assert ends["sagittal"]["fields"][4:] == [3, 5, 7]
    assert ends["shown"] == "coronal" and ends["text"] == f"{first[2]:.1f} mm"
    top, half = ends["top"], (high - low) / 2 / 16
    assert (top["zoom"], top["share"], top["window"]) == (16, 1, [250, 254])
    assert top["position"] == pytest.approx([high[0] - 1e-3, low[1] + 1e-3, high[2] - 1e-3])
    assert top["middle"] == pytest.approx([low[0] + half[0], *(high - half)[1:]])
    bottom = ends["bottom"]
    assert (bottom["zoom"], bottom["share"], bottom["window"]) == (1, 0, [0, 255])
    assert bottom["middle"] == pytest.approx((low + high) / 2)
    source = page.do(f"{VIEWER}.volumes.input")
    shown = [255 * (w - source["low"]) / (source["high"] - source["low"]) for w in meta["window"]]
    assert plain["window"] == pytest.approx([max(shown[0], 0), min(shown[1], 255)])
    assert (plain["zoom"], plain["share"], plain["position"]) == (1, 0.5, meta["position"])


def test_pointers_and_wheels(page):
    """The patient's right is at the left of the screen, and what is up is up."""
    page.do("document.documentElement.style.scrollBehavior = 'auto'")
    start, ends, place = act(
        page,
        "const c = canvas('sagittal'), box = c.getBoundingClientRect();"
        "v.scrolled = undefined; v.volumes.result.zooms = [0.5, 1, 2]; v.zoom = 4;"
        "v.position = v.middle.map((mm) => mm + 1); v.window = [50, 150]; v.settle();"
        "const start = snapshot(), ends = {};"
        "const at = (x, y, more) => ({ clientX: box.left + x * box.width, clientY: box.top +"
        " y * box.height, cancelable: true, ...more });"
        "const back = () => { v.position = [...start.position]; v.middle = [...start.middle];"
        "v.zoom = 4; v.window = [50, 150]; v.share = 0.5; v.settle() };"
        "const wheel = (name, x, y, more) => { back(); const event = new WheelEvent('wheel',"
        "at(x, y, more)); c.dispatchEvent(event); ends[name] = { ...snapshot(), stopped:"
        "event.defaultPrevented }; };"
        "const drag = (name, kind, x, y, by) => { back(); v.drag(c, kind, at(x, y), by);"
        "ends[name] = snapshot() };"
        "wheel('up', 0.5, 0.5, { deltaY: -80 }); wheel('lines', 0.5, 0.5, { deltaY: 1,"
        "deltaMode: 1 }); wheel('fast', 0.5, 0.5, { deltaY: -4000 });"
        "wheel('little', 0.5, 0.5, { deltaY: 30 }); wheel('more', 0.5, 0.5, { deltaY: 30 });"
        "wheel('nearer', 0.25, 0.75, { deltaY: -125, ctrlKey: true });"
        "wheel('further', 0.25, 0.75, { deltaY: 125, metaKey: true });"
        "drag('point', 'point', 0.25, 0.75, [9, 9]); drag('pan', 'pan', 0.5, 0.5, [10, -20]);"
        "drag('swipe', 'swipe', 0.25, 0.5, [0, 0]); drag('window', 'window', 0.5, 0.5, [10, 30]);"
        "drag('narrow', 'window', 0.5, 0.5, [-999, 0]);"
        "back(); const view = v.view(c);"
        "ends.there = [view.x(view.across(40)), view.y(view.up(30))];"
        "back(); v.scrolled = performance.now(); const event = new WheelEvent('wheel',"
        "at(0.5, 0.5, { deltaY: -80 })); c.dispatchEvent(event);"
        "ends.scrolled = { ...snapshot(), stopped: event.defaultPrevented };"
        "return [start, ends, { scale: view.scale, width: c.width, height: c.height,"
        "ratio: c.width / c.clientWidth }]",
    )
    low, high = (np.array(page.do(f"{VIEWER}.meta.{name}")) for name in ("low", "high"))
    scale, size = place["scale"], (place["width"], place["height"])
    fit = min(size[0] / (high[1] - low[1]), size[1] / (high[2] - low[2]))
    assert scale == pytest.approx(4 * fit) and ends["there"] == pytest.approx([40, 30])
    sagittal = start["position"][0]
    slices = {"up": 2, "lines": -1, "fast": 3, "little": 0, "more": -1, "scrolled": 0}
    for name, steps in slices.items():
        assert ends[name]["position"][0] == pytest.approx(sagittal + 0.5 * steps), name
        assert ends[name]["position"][1:] == start["position"][1:]
        assert ends[name]["stopped"] == (name != "scrolled")
    middle = np.array(start["middle"])
    pointer = middle + np.array([0, 0.25 * size[0], -0.25 * size[1]]) / scale
    fixed = np.array([start["position"][0], *pointer[1:]])
    for name, zoom in (("nearer", 4 * 2**0.5), ("further", 4 / 2**0.5)):
        assert ends[name]["zoom"] == pytest.approx(zoom)
        wanted = fixed + (middle - fixed) * 4 / zoom
        assert ends[name]["middle"] == pytest.approx(wanted, abs=0.1), name
    assert ends["point"]["position"] == pytest.approx([sagittal, *pointer[1:]], abs=0.1)
    moved = middle + np.array([0, 10, -20]) * place["ratio"] / scale
    assert ends["pan"]["middle"] == pytest.approx(moved)
    assert ends["swipe"]["share"] == pytest.approx(0.25, abs=0.01)
    assert ends["window"]["window"] == [60, 170] and ends["narrow"]["window"] == [98, 102]


def test_the_numbers_at_the_crosshair(page):
    text = act(
        page,
        "v.values('cubic', 'axial'); v.meta.rotation = [[0, 1, 0], [0, 0, 1], [-1, 0, 0]];"
        "v.position[0] += 3; v.position[1] -= 2; v.scale.high = 1000; v.report();"
        "return v.root.querySelector('.readout').textContent",
    )
    meta, at = page.do(f"{VIEWER}.meta"), page.do(f"{VIEWER}.position")

    def grey(name: str) -> float:
        volume = page.do(f"(({{ data, spline, ...more }}) => more)({VIEWER}.volumes.{name})")
        place = np.floor(np.subtract(at, volume["start"]) / volume["zooms"]).astype(int)
        index = int(place @ np.cumprod([1, *volume["shape"][:2]]))
        if name == "cubic":  # of this slice
            index, name = int(place[:2] @ [1, volume["shape"][0]]), "values('cubic', 'axial')"
            return page.do(f"{VIEWER}.{name}[{index}]")
        return page.do(f"{VIEWER}.volumes.{name}.data[{index}]")

    words = text.split(" · ")
    assert words[0] == f"{at[1]:.1f}, {at[2]:.1f}, {-at[0]:.1f} mm (RAS)"
    low = meta["volumes"]["input"]["low"]
    names = {"Input": "input", "Cubic interpolation": "cubic", "Super-resolved": "result"}
    for found, (name, key) in zip(words[1:4], names.items(), strict=True):
        assert found.startswith(f"{name} ")
        value = low + grey(key) / 255 * (1000 - low)
        assert float(found.removeprefix(name)) == pytest.approx(value, rel=1e-3)
    error = meta["volumes"]["error"]
    wanted = error["low"] + grey("error") / 255 * (error["high"] - error["low"])
    assert float(words[4].removeprefix("expected error ")) == pytest.approx(wanted, rel=0.05)
    assert words[5] == meta["names"][int(grey("expert"))]
    beyond = act(
        page,
        "v.volumes.result.data.fill(255); v.slices.clear(); v.report();"
        "return v.root.querySelector('.readout').textContent",
    )
    assert "Super-resolved at least 1000 " in beyond and beyond.count("at least") == 1


def test_what_is_drawn(page):
    """Shades of a window, the outline of the mask, heat, opacity, crosshair and swipe line."""
    for side in ("left", "right"):
        choose(page, side, "result")
    page.do(f"{VIEWER}.get('crosshair').click()")

    def shade(script: str, *at: float) -> list[int]:
        act(page, f"{script}; v.slices.clear(); v.draw()")
        page.settle()
        return pixels(page, "axial", *(at or (0.4, 0.4)))

    fill = "v.window = [50, 150]; v.volumes.result.data.fill({})"
    for grey, expected in ((50, 0), (75, 64), (125, 191), (150, 255), (20, 0), (200, 255)):
        assert shade(fill.format(grey)) == [expected] * 3
    for overlay in ("error", "expert"):
        table = page.do(f"{VIEWER}.meta.{'heat' if overlay == 'error' else 'experts'}")
        for value in (60, 200) if overlay == "error" else (1, 2):
            cover = min(255, 3 * value) / 255 if overlay == "error" else 1
            for opacity in (100, 40):
                found = shade(
                    f"{fill.format(100)}; v.get('overlay').value = '{overlay}';"
                    f"v.get('opacity').value = {opacity}; v.volumes.{overlay}.data.fill({value})"
                )
                part = cover * opacity / 100
                wanted = [128 * (1 - part) + part * colour for colour in table[value]]
                assert found == pytest.approx(wanted, abs=3), (overlay, value, opacity)
    mask = "v.get('overlay').value = 'mask'; v.get('opacity').value = 100;"
    mask += "v.volumes.mask.data.fill({})"
    assert shade(mask.format(1)) == [128] * 3 and shade(mask.format(0)) == [128] * 3
    about = page.do(f"{VIEWER}.meta.volumes.mask")
    column = about["shape"][0] // 2
    line = "v.volumes.mask.data.forEach((_, i, all) => { all[i] = i % WIDE === COLUMN })"
    line = line.replace("WIDE", str(about["shape"][0])).replace("COLUMN", str(column))
    where = about["start"][0] + (column + 0.5) * about["zooms"][0]
    x = act(page, f"return v.view(canvas('axial')).x({where}) / canvas('axial').width")
    assert shade(f"{mask.format(0)}; {line}", x, 0.4) == [255, 80, 80]
    assert shade("v.get('overlay').value = ''", x, 0.4) == [128] * 3
    cross = "v.get('crosshair').checked = true; v.position = v.middle.map((mm) => mm + 4)"
    at = act(
        page,
        f"{cross}; const view = v.view(canvas('axial')), c = canvas('axial');"
        "return [view.x(v.position[0]) / c.width, view.y(v.position[1]) / c.height]",
    )
    blue = [shade(cross, *place)[2] > shade(cross, *place)[0] + 40
            for place in ((at[0], 0.7), (0.7, at[1]), (0.7, 0.7), tuple(at))]  # fmt: skip
    assert blue == [True, True, False, False]
    swipe = "v.get('right').value = 'input'; v.share = 0.6; v.get('crosshair').checked = false"
    assert shade(swipe, 0.6, 0.3)[2] < 120 < shade(swipe, 0.6, 0.3)[0]


def test_the_bar_is_as_long_as_it_says(page):
    """The longest of a few lengths that takes less than a third of the picture."""
    choose(page, "left", "result")
    choose(page, "right", "result")
    lengths = []
    for zoom in (1, 2, 8, 16):
        scale, width, height = act(
            page,
            f"v.zoom = {zoom}; v.window = [50, 150]; v.volumes.result.data.fill(0);"
            "v.get('crosshair').checked = false; v.slices.clear(); v.draw();"
            "const c = canvas('axial'); return [v.view(c).scale, c.width, c.height]",
        )
        page.settle()
        length = next((mm for mm in (50, 20, 10, 5, 2, 1) if mm * scale < width / 3), 1)
        row = page.do(
            "(() => { const c = document.querySelector('canvas[data-plane=axial]');"
            f"const d = c.getContext('2d').getImageData(0, {height - 5}, c.width, 1).data;"
            "return [...d].filter((_, i) => i % 4 === 0) })()"
        )
        bright = np.flatnonzero(np.array(row) > 200)
        assert bright[0] == 6 and len(bright) == pytest.approx(length * scale, abs=1.5)
        lengths.append(length)
    assert len(set(lengths)) > 2
