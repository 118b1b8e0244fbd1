"""The report in a headless Chromium: what pointing, clicking, keys, sliders and themes change, to the pixel."""

import base64
import json
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium, visit, window
from command_line import MIXTURE, NETWORK, call
from PIL import Image
from test_images import photograph
from test_report_page import LAYERS, Page, reported  # noqa: F401 (a fixture)

pytest.importorskip("selenium", reason="selenium is not installed: it drives the browser")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

UNLIT, FADE = 28, 0.88


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


class Report:
    """A report in a browser, and what it should show."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser, self.path = browser, path
        self.data = Page(path).data()
        self.labels = [
            [
                np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=np.uint8).reshape(shape)
                for packed, shape in zip(image["labels"], image["shapes"], strict=True)
            ]
            for image in self.data["images"]
        ]
        hexes = [layer["colours"] for layer in self.data["layers"]]
        self.colours = [np.array([[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in of]) for of in hexes]

    def frame(self, image: int, layer: int | None) -> Any:
        which = ":not([data-layer])" if layer is None else f'[data-layer="{layer}"]'
        return self.browser.find_element(By.CSS_SELECTOR, f"#image-{image} .tile{which} .frame")

    def pixels(self, image: int, layer: int) -> np.ndarray:
        """The canvas of a label image: (h, w, 3), once the next frame is drawn; it must be opaque."""
        frame = self.frame(image, layer)
        script = """const done = arguments[arguments.length - 1], canvas = arguments[0].querySelector("canvas");
            arguments[0].scrollIntoView({block: "nearest"});
            requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => {
              const { width, height } = canvas;
              const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
              done([height, width, Array.from(data)]);
            }, 30)))"""
        height, width, values = self.browser.execute_async_script(script, frame)
        found = np.array(values).reshape(height, width, 4)
        assert (found[..., 3] == 255).all()
        return found[..., :3]

    def expected(self, image: int, layer: int, lit: list[int] | None) -> np.ndarray:
        colours = self.colours[layer]
        grey = np.floor(colours + (UNLIT - colours) * FADE + 0.5)
        table = colours if lit is None else np.where(np.isin(np.arange(len(colours)), lit)[:, None], colours, grey)
        return table[self.labels[image][layer]]

    def related(self, layer: int, cluster: int, other: int) -> list[int]:
        return [k for k, _ in self.data["layers"][layer]["related"][str(cluster)][str(other)]]

    def move(self, image: int, layer: int | None, row: float, column: float) -> Any:
        """Move the pointer to a place of a frame, as parts of its height and width."""
        frame = self.frame(image, layer)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
        width, height = frame.size["width"], frame.size["height"]
        right, down = round((column - 0.5) * width), round((row - 0.5) * height)
        return ActionChains(self.browser, duration=0).move_to_element_with_offset(frame, right, down)

    @property
    def status(self) -> str:
        return str(self.browser.find_element(By.ID, "status").text)

    def style(self, selector: str, name: str) -> str:
        element = self.browser.find_element(By.CSS_SELECTOR, selector)
        return str(element.value_of_css_property(name))

    def complaints(self) -> list[Any]:
        """What the browser says of the page, but for the advice on how these tests read canvases back."""
        entries = [entry for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        return [entry for entry in entries if "getImageData" not in entry["message"]]


@pytest.fixture
def report(opened: Any, reported: Path) -> Iterator[Report]:  # noqa: F811
    window(opened, 1200, 2800)  # so high that nothing has to be scrolled under the pointer
    visit(opened, reported / "report.html")
    found = Report(opened, reported / "report.html")
    yield found
    assert found.complaints() == []
    assert opened.execute_script("return window.hacked") is None


def cell(labels: np.ndarray, row: float, column: float) -> int:
    return int(labels[int(row * labels.shape[0]), int(column * labels.shape[1])])


def test_it_opens_and_shows_every_label_image_and_loads_nothing(report: Report) -> None:
    for image in range(5):
        for layer in range(3):
            assert np.array_equal(report.pixels(image, layer), report.expected(image, layer, None))
    loaded = report.browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    broken = "return [...document.images].filter((one) => one.complete && !one.naturalWidth).length"
    assert report.browser.execute_script(broken) == 0
    assert report.browser.execute_script("return document.scripts.length") == 2


def test_names_are_shown_as_they_are(report: Report) -> None:
    captions = [one.text for one in report.browser.find_elements(By.CSS_SELECTOR, ".sample figcaption bdi")]
    assert captions == [image["name"] for image in report.data["images"]]


def test_the_policy_stops_scripts_that_are_not_the_reports(report: Report) -> None:
    add = (
        "const one = document.createElement('script'); one.textContent = 'window.hacked = 1'; document.body.append(one)"
    )
    report.browser.execute_script(add)
    assert report.browser.execute_script("return window.hacked") is None
    (refused,) = report.complaints()
    assert "Content Security Policy" in refused["message"]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_pointing_names_a_cluster_and_lights_it_up_here_and_in_neighbours(report: Report, layer: int) -> None:
    row, column = 0.31, 0.62
    report.move(1, layer, row, column).perform()
    cluster = cell(report.labels[1][layer], row, column)
    share = report.data["layers"][layer]["shares"][cluster]
    assert report.status.startswith(f"{LAYERS[layer]}, cluster {cluster}: {float(f'{100 * share:.3g}'):g} % of pixels.")
    lit: dict[int, list[int] | None] = {0: None, 1: None, 2: None, layer: [cluster]}
    for other in {layer - 1, layer + 1} & {0, 1, 2}:
        lit[other] = report.related(layer, cluster, other)
        assert f" In {LAYERS[other]}: {lit[other][0]} (" in report.status
    for image in (1, 0):
        for other in range(3):
            assert np.array_equal(report.pixels(image, other), report.expected(image, other, lit[other])), other
    chosen = report.browser.find_elements(By.CSS_SELECTOR, ".card.lit")
    assert [card.get_attribute("id") for card in chosen] == [f"card-{layer}-{cluster}"]
    ActionChains(report.browser).move_to_element(report.browser.find_element(By.TAG_NAME, "h2")).perform()
    assert report.status.startswith("Point at")
    assert np.array_equal(report.pixels(1, layer), report.expected(1, layer, None))


def test_a_cross_marks_the_same_place_in_all_layers(report: Report) -> None:
    report.move(0, 1, 0.25, 0.75).perform()
    crosses = report.browser.find_elements(By.CSS_SELECTOR, "#image-0 .cross")
    assert len(crosses) == 4
    assert {(round(float(one.get_attribute("style").split("left: ")[1].split("%")[0]))) for one in crosses} == {75}
    hidden = report.browser.find_elements(By.CSS_SELECTOR, "#image-1 .cross")
    assert not any(one.is_displayed() for one in hidden)


def test_a_click_keeps_a_cluster_lit_and_escape_lets_go(report: Report) -> None:
    report.move(0, 1, 0.5, 0.5).click().perform()
    cluster = cell(report.labels[0][1], 0.5, 0.5)
    away = report.browser.find_element(By.ID, "images-title")
    ActionChains(report.browser).move_to_element(away).perform()
    assert report.status.startswith(f"{LAYERS[1]}, cluster {cluster}:")
    assert np.array_equal(report.pixels(0, 1), report.expected(0, 1, [cluster]))
    panels = report.browser.find_elements(By.CSS_SELECTOR, ".panel")
    assert [panel.is_displayed() for panel in panels] == [False, True, False]
    pressed = report.browser.find_elements(By.CSS_SELECTOR, ".card h4 .light[aria-pressed=true]")
    assert [one.text.strip() for one in pressed] == [f"Cluster {cluster}"]
    report.browser.find_element(By.ID, "card").click()
    assert report.browser.switch_to.active_element.text.strip() == f"Cluster {cluster}"
    ActionChains(report.browser).send_keys(Keys.ESCAPE).perform()
    assert report.status.startswith("Point at")
    assert np.array_equal(report.pixels(0, 1), report.expected(0, 1, None))
    assert not report.browser.find_element(By.ID, "release").is_displayed()


def test_the_slider_blends_labels_over_the_input(report: Report) -> None:
    slider = report.browser.find_element(By.ID, "blend")
    assert report.style("#image-0 canvas", "opacity") == "1"
    slider.send_keys(Keys.HOME)
    assert report.style("#image-0 canvas", "opacity") == "0"
    slider.send_keys(*[Keys.RIGHT] * 5)
    value = int(slider.get_attribute("value"))
    assert 0 < value < 100
    assert {one.value_of_css_property("opacity") for one in report.browser.find_elements(By.TAG_NAME, "canvas")} == {
        f"{value / 100:g}"
    }
    assert report.browser.find_element(By.ID, "blend-value").text.startswith(f"{value}")
    shown = report.browser.execute_script(
        "return [...document.querySelectorAll('#image-0 .plane img')].map((one) => one.src)"
    )
    assert len(set(shown)) == 1
    assert shown[0].startswith("data:image/")


def transforms(report: Report, image: int) -> list[str]:
    planes = report.browser.find_elements(By.CSS_SELECTOR, f"#image-{image} .plane")
    return [str(one.value_of_css_property("transform")) for one in planes]


def test_input_and_layers_are_zoomed_and_moved_together(report: Report) -> None:
    press = "#image-0 [data-zoom={}]"
    for _ in range(3):
        report.browser.find_element(By.CSS_SELECTOR, press.format("in")).click()
    (zoomed,) = set(transforms(report, 0))
    scale = 1.5**3
    width = report.frame(0, 0).size["width"]
    matrix = [float(value) for value in zoomed.removeprefix("matrix(").rstrip(")").split(",")]
    assert np.allclose(matrix[:4], [scale, 0, 0, scale], atol=1e-3)
    assert np.allclose(matrix[4:], -(scale - 1) / 2 * width, atol=1)
    assert set(transforms(report, 1)) == {"none"}

    left = 0.5 - 0.5 / scale  # what is at the left and the top
    report.move(0, 0, 0.3, 0.6).perform()
    place = left + 0.3 / scale, left + 0.6 / scale
    assert f"{LAYERS[0]}, cluster {cell(report.labels[0][0], *place)}:" in report.status

    by = round(0.2 * width)
    report.move(0, 1, 0.5, 0.5).click_and_hold().move_by_offset(by, by // 2).release().perform()
    (moved,) = set(transforms(report, 0))
    other = [float(value) for value in moved.removeprefix("matrix(").rstrip(")").split(",")]
    assert np.allclose(np.subtract(other[4:], matrix[4:]), [by, by // 2], atol=1)
    assert not report.browser.find_element(By.ID, "release").is_displayed(), "a drag is no click"

    report.browser.find_element(By.CSS_SELECTOR, press.format("all")).click()
    assert set(transforms(report, 0)) == {"none"}
    report.move(2, None, 0.5, 0.5).double_click().perform()
    assert len(set(transforms(report, 2))) == 1
    assert transforms(report, 2)[0].startswith("matrix(2,")


def test_control_and_the_wheel_zoom_and_the_wheel_alone_does_not(report: Report) -> None:
    wheel = """arguments[0].dispatchEvent(new WheelEvent("wheel",
        {deltaY: -200, ctrlKey: arguments[1], bubbles: true, cancelable: true, clientX: 5, clientY: 5}))"""
    report.browser.execute_script(wheel, report.frame(0, 0), False)
    assert set(transforms(report, 0)) == {"none"}
    report.browser.execute_script(wheel, report.frame(0, 0), True)
    assert transforms(report, 0)[0].startswith("matrix(2.718")


def test_switching_layers(report: Report) -> None:
    panels = report.browser.find_elements(By.CSS_SELECTOR, ".panel")
    assert [panel.is_displayed() for panel in panels] == [True, False, False]
    radio = report.browser.find_element(By.CSS_SELECTOR, "input[name=layer]")
    report.browser.execute_script("arguments[0].focus()", radio)
    ActionChains(report.browser).send_keys(Keys.RIGHT, Keys.RIGHT).perform()
    assert [panel.is_displayed() for panel in panels] == [False, False, True]
    names = report.browser.find_elements(By.CSS_SELECTOR, "#image-0 .tile.chosen .name")
    assert [name.text for name in names] == [LAYERS[2]]
    report.move(3, 2, 0.5, 0.5).perform()
    named = report.status
    report.move(3, None, 0.5, 0.5).perform()
    assert report.status == named, "an input stands for the layer that is chosen"
    assert named.startswith(f"{LAYERS[2]}, cluster {cell(report.labels[3][2], 0.5, 0.5)}:")


def test_an_input_names_clusters_of_a_label_image_that_was_never_in_sight(opened: Any, reported: Path) -> None:  # noqa: F811
    window(opened, 400, 200)
    visit(opened, reported / "report.html")
    report = Report(opened, reported / "report.html")
    hide = "document.querySelector('#image-4 .tile[data-layer=\"2\"]').style.display = 'none'; choose(2)"
    opened.execute_script(hide)
    expected = f"{LAYERS[2]}, cluster {cell(report.labels[4][2], 0.25, 0.75)}:"
    assert not opened.execute_script("return tiles.some((one) => one.image === 4 && one.layer === 2 && one.labels)")
    report.move(4, None, 0.25, 0.75).perform()
    WebDriverWait(opened, 5).until(lambda one: report.status.startswith(expected))
    report.move(4, None, 0.25, 0.75).click().perform()
    WebDriverWait(opened, 5).until(lambda one: one.find_element(By.ID, "release").is_displayed())
    assert report.status.startswith(expected)


def test_the_focus_stays_in_sight(report: Report) -> None:
    focused = lambda: report.browser.switch_to.active_element  # noqa: E731
    button = report.browser.find_element(By.CSS_SELECTOR, "#panel-0 dd .light[data-layer='1']")
    cluster = button.get_attribute("data-cluster")
    button.send_keys(Keys.ENTER)
    assert report.browser.find_element(By.ID, "panel-1").is_displayed()
    assert focused() == report.browser.find_element(By.CSS_SELECTOR, f"#card-1-{cluster} h4 button")
    for leave in (Keys.ENTER, Keys.ESCAPE):
        release = report.browser.find_element(By.ID, "release")
        release.send_keys(leave)
        assert not release.is_displayed()
        assert focused() == report.browser.find_element(By.ID, "blend")
        report.browser.find_element(By.CSS_SELECTOR, f"#card-1-{cluster} h4 button").send_keys(Keys.ENTER)


def test_images_that_are_long_or_tall_are_seen_whole(opened: Any, tmp_path: Path) -> None:
    for name, size in (("long", (16, 800)), ("plain", (60, 80)), ("tall", (800, 16))):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(photograph(*size)).save(tmp_path / "images" / f"{name}.png")
    words = (*NETWORK, "--size", "full", *MIXTURE, "--layer", "1", "--report", "--out", tmp_path / "out")
    assert call("run", tmp_path / "images", *words).status == 0
    window(opened, 1200, 900)
    visit(opened, tmp_path / "out" / "report.html")
    report = Report(opened, tmp_path / "out" / "report.html")
    sizes = [tuple(report.frame(image, 0).size[side] for side in ("width", "height")) for image in range(3)]
    assert sizes[0][1] == 32 and sizes[0][0] > 300
    assert sizes[1][0] / sizes[1][1] == pytest.approx(80 / 60, abs=0.01)
    assert sizes[2] == (32, 720)
    for image, row, column in ((0, 0.6, 0.9), (2, 0.9, 0.6)):
        report.move(image, 0, row, column).perform()
        at = opened.execute_script("return views[arguments[0]].cross", image)
        assert (at["y"], at["x"]) == pytest.approx((row, column), abs=1.5 / 32)
        expected = f"1, cluster {cell(report.labels[image][0], at['y'], at['x'])}:"
        WebDriverWait(opened, 5).until(lambda one, expected=expected: report.status.startswith(expected))


def test_with_the_keyboard_alone(report: Report) -> None:
    frame = report.frame(0, 0)
    report.browser.execute_script("arguments[0].focus()", report.frame(0, None))
    keys = lambda *pressed: ActionChains(report.browser).send_keys(*pressed).perform()  # noqa: E731
    report.pixels(0, 0)
    keys(Keys.TAB)
    assert report.browser.switch_to.active_element == frame
    height, width = report.labels[0][0].shape
    row, column = height // 2, width // 2
    for pressed, (down, right) in [
        (Keys.DOWN, (0, 0)),  # the first shows where the cross is
        (Keys.DOWN, (1, 0)),
        (Keys.LEFT, (0, -1)),
        (Keys.UP, (-1, 0)),
        (Keys.RIGHT, (0, 1)),
    ]:
        keys(pressed)
        row, column = row + down, column + right
        assert report.status.startswith(f"{LAYERS[0]}, cluster {report.labels[0][0][row, column]}:")
    ActionChains(report.browser).key_down(Keys.SHIFT).send_keys(Keys.LEFT).key_up(Keys.SHIFT).perform()
    column -= 10
    assert report.status.startswith(f"{LAYERS[0]}, cluster {report.labels[0][0][row, column]}:")
    keys(*[Keys.UP] * (height + 3))
    assert report.status.startswith(f"{LAYERS[0]}, cluster {report.labels[0][0][0, column]}:")
    cluster = int(report.labels[0][0][0, column])
    keys("+", "+")
    assert transforms(report, 0)[0].startswith("matrix(2.25,")
    keys(Keys.ENTER)
    assert report.browser.find_element(By.ID, "release").is_displayed()
    assert np.array_equal(report.pixels(2, 0), report.expected(2, 0, [cluster]))
    keys("0")
    assert set(transforms(report, 0)) == {"none"}
    keys(Keys.ESCAPE)
    assert report.status.startswith("Point at")


def test_cards_light_up_their_cluster(report: Report) -> None:
    (card,) = report.browser.find_elements(By.CSS_SELECTOR, "#panel-0 .card")[:1]
    button = card.find_element(By.CSS_SELECTOR, "h4 .light")
    cluster = int(card.get_attribute("data-cluster"))
    assert cluster == int(np.argmax(report.data["layers"][0]["shares"])), "the largest comes first"
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "true"
    assert np.array_equal(report.pixels(4, 0), report.expected(4, 0, [cluster]))
    assert np.array_equal(report.pixels(4, 1), report.expected(4, 1, report.related(0, cluster, 1)))


def test_an_exemplar_is_shown_where_it_is(report: Report) -> None:
    radio = report.browser.find_element(By.CSS_SELECTOR, "input[name=layer][value='1']")
    radio.click()
    patch = report.browser.find_element(By.CSS_SELECTOR, "#panel-1 button.patch")
    image, box = (
        int(patch.get_attribute("data-image")),
        json.loads(f"[{patch.get_attribute('data-box').replace(' ', ',')}]"),
    )
    patch.click()
    assert report.browser.switch_to.active_element == report.frame(image, None)
    shown = report.browser.find_element(By.CSS_SELECTOR, f"#image-{image} .box")
    assert shown.is_displayed()
    corners = "const one = arguments[0].getBoundingClientRect(); return [one.left, one.top, one.right, one.bottom]"
    frame = report.browser.execute_script(corners, report.frame(image, None))
    found = report.browser.execute_script(corners, shown)
    side, zoom = frame[2] - frame[0], min(8, max(1, 0.4 / max(box[2:])))
    assert [found[3] - found[1], found[2] - found[0]] == pytest.approx(
        [zoom * part * side + 4 for part in box[2:]], abs=1
    )
    assert all(low <= at + 3 for low, at in zip(frame[:2], found[:2], strict=True))
    assert all(high >= at - 3 for high, at in zip(frame[2:], found[2:], strict=True))


def test_dark_and_light_by_the_system_and_by_the_switch(report: Report) -> None:
    def paper() -> str:
        return report.style("body", "background-color")

    select = Select(report.browser.find_element(By.ID, "theme"))
    assert paper() == "rgba(255, 255, 255, 1)"
    select.select_by_value("dark")
    assert paper() == "rgba(22, 22, 21, 1)"
    select.select_by_value("")
    window(report.browser, 1200, scheme="dark")
    assert paper() == "rgba(22, 22, 21, 1)"
    select.select_by_value("light")
    assert paper() == "rgba(255, 255, 255, 1)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200, 2000])
def test_nothing_sticks_out_at_any_width(report: Report, width: int, scheme: str, tmp_path: Path) -> None:
    window(report.browser, width, 1000, scheme)
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    WebDriverWait(report.browser, 5).until(lambda one: one.execute_script(wide)[1] == width)
    inside, outside = report.browser.execute_script(wide)
    assert inside <= outside
    overflowing = """return [...document.querySelectorAll("main *, header *, .toolbar *")].filter((one) => {
        const box = one.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 1 || box.left < -1) && !one.closest(".frame, svg, .skip");
    }).map((one) => one.outerHTML.slice(0, 80))"""
    assert report.browser.execute_script(overflowing) == []
    frame = report.frame(0, 0).size
    assert frame["width"] >= 140, "large enough to see something"
    assert len(report.browser.get_screenshot_as_png()) > 10_000


def test_everything_that_acts_has_a_name_and_can_be_reached(report: Report) -> None:
    acting = report.browser.find_elements(By.CSS_SELECTOR, "header *, .toolbar *, #image-0 *, #panel-0 .charts *")
    acting += report.browser.find_elements(By.CSS_SELECTOR, "#panel-0 .card:first-child *")
    seen = 0
    for one in acting:
        acts = one.tag_name in ("button", "input", "select", "svg") or one.get_attribute("tabindex") == "0"
        if acts and one.is_displayed():
            assert one.accessible_name.strip(), one.get_attribute("outerHTML")
            seen += 1
    assert seen > 15
    headings = [one.tag_name for one in report.browser.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4")]
    levels = [int(name[1]) for name in headings]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(levels))
    assert report.browser.find_element(By.ID, "status").get_attribute("role") == "status"
