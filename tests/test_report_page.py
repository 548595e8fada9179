"""The report in a browser: every figure drawn, nothing loaded, light and dark, wide and narrow."""

from __future__ import annotations

import json
import math
import re

import browser
import pytest
from bound_rows import FakeAdaMod
from test_report import MARKUP, needs_plotly, write_run

from adamod_fused.report import series
from adamod_fused.tracking import RunLog

pytestmark = [
    needs_plotly,
    pytest.mark.integration,
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
]

WIDTHS = {"wide": 1400, "narrow": 420}
MAPS = ("rates", "bounded-rates", "tensors")
CURVES = ("loss", "bounded", "grad-norm", "update-norm", "dead")


class Look:
    """What was seen on the page in one colour scheme and one width."""

    def __init__(self, chromium, url: str, scheme: str, width: int) -> None:
        self.page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.wait(scheme)

    def wait(self, scheme: str) -> None:
        self.page.locator(f"html[data-drawn={scheme}]").wait_for(timeout=60_000)

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def hovered(self, key: str, where: dict | list[dict]) -> str:
        """What the figure shows at a place, as Plotly.Fx.hover takes it."""
        labels = f"document.querySelectorAll('#plot-{key} .hoverlayer text')"
        # Plotly delays a hover that follows another closely, and shows the old one meanwhile.
        self.page.evaluate(f"Plotly.Fx.unhover('plot-{key}')")
        self.page.evaluate(f"Plotly.Fx.hover('plot-{key}', {json.dumps(where)})")
        self.page.wait_for_function(f"{labels}.length > 0")
        return " ".join(self.page.locator(f"#plot-{key} .hoverlayer text").all_text_contents())

    def luminance(self, x: int = 3, y: int = 3) -> float:
        """Of a pixel of a screenshot, from 0 to 255."""
        from io import BytesIO

        from PIL import Image

        shot = Image.open(BytesIO(self.page.screenshot())).convert("L")
        return shot.getpixel((x, y))

    def shade(self, selector: str, attribute: str) -> float:
        """Mean of the red, green and blue that the browser computed."""
        color = self.page.locator(selector).first.evaluate(
            f"element => getComputedStyle(element)['{attribute}']"
        )
        return sum(map(float, color.removeprefix("rgb(").rstrip(")").split(",")[:3])) / 3


@pytest.fixture(scope="module")
def chromium():
    with browser.open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of 120 tensors, one of them with a name that is markup."""
    from adamod_fused.report.page import page

    folder = tmp_path_factory.mktemp("run")
    names = (MARKUP, *(f"layers.{i // 2}.{('weight', 'bias')[i % 2]}" for i in range(119)))
    write_run(folder, steps=201, names=names, every=20)
    path = folder / "report.html"
    path.write_text(page(series.load(folder), "run"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=WIDTHS)
def look(chromium, url, scheme, request: pytest.FixtureRequest) -> Look:
    return Look(chromium, url, scheme, WIDTHS[request.param])


def test_every_figure_is_drawn_and_nothing_goes_wrong(look):
    assert look.said == []
    plots = [*MAPS, *CURVES]
    assert look.count(".plot") == len(plots)
    for key in plots:
        assert look.count(f"#plot-{key} .main-svg") >= 1, key
        assert look.count(f"#plot-{key} .xtitle") == 1, key
        assert look.count(f"#plot-{key} .ytitle") == 1, key
    for key in MAPS:
        image = look.page.locator(f"#plot-{key} .heatmaplayer image")
        assert image.count() == 1, key
        assert image.bounding_box()["height"] > 100, key
        assert look.count(f"#plot-{key} .colorbar") == 1, key
    for key in CURVES:
        lines = look.page.locator(f"#plot-{key} .trace.scatter path.js-line")
        assert lines.count() == (3 if key == "loss" else 41), key
        assert "L" in lines.first.get_attribute("d"), key
        # Two entries for 121 curves: a legend of all would cover the figure.
        assert look.count(f"#plot-{key} .legend .traces") <= 3, key


def test_nothing_is_loaded(look, url):
    assert look.requests == [url]
    assert look.page.evaluate("performance.getEntriesByType('resource').length") == 0
    # Nor sent: plotly's button to share a figure is not there.
    buttons = look.page.locator("#plot-loss .modebar-btn").evaluate_all(
        "buttons => buttons.map(button => button.dataset.title)"
    )
    assert len(buttons) == 6
    assert not [title for title in buttons if re.search("share|cloud|studio|edit", title, re.I)]


def test_the_page_is_as_wide_as_the_window(look):
    assert look.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    width = look.page.viewport_size["width"]
    for key in (*MAPS, *CURVES):
        box = look.page.locator(f"#plot-{key} .main-svg").first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width, key
        assert box["width"] > 0.35 * width, key


def test_names_are_shown_letter_by_letter(chromium, url):
    look = Look(chromium, url, "light", WIDTHS["wide"])
    labels = look.page.locator("#plot-tensors .ytick text").all_text_contents()
    assert MARKUP in labels
    assert 20 < len(labels) <= 45


# Templates of plotly's, keys that every object of JavaScript has, markup, and an entity.
ODD_NAMES = ("%{x} %{y}", "__proto__", "constructor", "<b>w</b> <br>", "&lt;b", "a" * 60)


def test_any_name_is_shown_as_it_is(chromium, tmp_path):
    from adamod_fused.report.page import page

    optimizer, log = FakeAdaMod(ODD_NAMES), RunLog(tmp_path)
    for _ in range(2):
        optimizer.step()
        log.log(optimizer, **{f"{name} loss": 1.0 for name in ODD_NAMES})
    path = tmp_path / "report.html"
    path.write_text(page(series.load(tmp_path), "run"), encoding="utf-8")
    look = Look(chromium, path.as_uri(), "light", WIDTHS["wide"])
    losses = look.page.locator("#plot-loss .legendtext").all_text_contents()
    assert losses == [f"{name} loss" for name in ODD_NAMES]
    assert look.page.locator("#plot-tensors .ytick text").all_text_contents() == [
        *ODD_NAMES[:-1], f"{'a' * 20}…{'a' * 21}",
    ]  # fmt: skip
    for place, name in enumerate(ODD_NAMES):
        assert name in look.hovered("tensors", {"xval": 2, "yval": place})
        assert name in look.hovered("bounded", [{"curveNumber": 1 + place, "pointNumber": 1}])
        assert f"{name} loss" in look.hovered("loss", [{"curveNumber": place, "pointNumber": 1}])
    assert look.said == []


def test_the_colours_follow_the_scheme(chromium, url):
    look = Look(chromium, url, "light", WIDTHS["wide"])
    seen = {}
    for scheme in ("light", "dark", "light"):
        look.page.emulate_media(color_scheme=scheme)
        look.wait(scheme)
        plotted = look.page.locator("#plot-loss .main-svg").first.bounding_box()
        again = (
            look.luminance(),
            look.luminance(int(plotted["x"]) + 3, int(plotted["y"]) + 3),
            look.shade("h1", "color"),
            look.shade("#plot-loss .xtitle", "fill"),
        )
        assert seen.setdefault(scheme, again) == again
    page, plot, *inks = seen["light"]
    assert min(page, plot) > 230
    assert max(inks) < 60
    page, plot, *inks = seen["dark"]
    assert max(page, plot) < 40
    assert min(inks) > 200
    assert look.said == []


@pytest.mark.parametrize("broken", [False, True], ids=["one step", "no number left"])
def test_a_short_run_is_drawn_too(chromium, tmp_path, broken):
    from adamod_fused.report.page import page

    optimizer = FakeAdaMod(("only.weight",))
    optimizer.step()
    if broken:
        numbers = dict.fromkeys(("bounded", "grad_norm", "update_norm", "rate_max"), math.nan)
        nothing = {"rate_hist": [0] * 64, "bounded_rate_hist": [0] * 64, **numbers}
        rows = [row | nothing for row in optimizer.bound_stats()]
        optimizer.bound_stats = lambda by, after: rows
    RunLog(tmp_path).log(optimizer)
    path = tmp_path / "report.html"
    path.write_text(page(series.load(tmp_path), "run"), encoding="utf-8")
    look = Look(chromium, path.as_uri(), "light", WIDTHS["wide"])
    assert look.said == []
    assert look.count("#plot-loss") == 0
    drawn = 0 if broken else 1
    for key in MAPS:
        assert look.count(f"#plot-{key} .heatmaplayer image") == drawn, key
    for key in ("bounded", "grad-norm", "update-norm"):
        assert look.count(f"#plot-{key} .trace.scatter .points path") == 2 * drawn, key
