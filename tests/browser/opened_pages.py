"""What the tests of pages share: a page in a browser, all that it logged and asked for, and what is asked of it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

DESKTOP, PHONE = 1280, 375
LABELS = ".ytick text, .xtick text, .xtitle, .ytitle, .annotation-text, .legendtext"
"""Texts of a plot."""

LEAST_HEIGHT = 150
"""Pixels of a drawing that something can be seen in."""

_OPEN_DETAILS = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"

CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("main *, header *, nav *, footer *")) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!text || element.closest(".plot") || !element.checkVisibility()) continue;
    const [a, b] = [light(channels(getComputedStyle(element).color)), light(ground(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 40)]);
  }
  return found;
}"""


@dataclass
class Opened:
    """A page with all that it logged and all that it asked for elsewhere."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def rows(self, table: str) -> list[Any]:
        return self.page.locator(f"{table} tbody tr").all()

    def visible_ops(self) -> list[str]:
        return self.page.locator("#verdict-table tbody tr:visible th a").all_text_contents()

    def open_details(self) -> None:
        self.page.evaluate(_OPEN_DETAILS)


class Opener:
    """Pages that are one file each, every one in a browser of its own: any request for more is noted and refused."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.contexts: list[Any] = []

    def __call__(self, path: Path, width: int, theme: str, fragment: str = "", *, has_plots: bool = True) -> Opened:
        """has_plots: false leaves plotly.js out, without which all but the plots works, and sooner."""
        context = self.browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        self.contexts.append(context)
        opened = Opened(context.new_page())

        def route(request: Any) -> None:
            if request.request.url.split("#")[0] != path.as_uri():
                opened.requests.append(request.request.url)
                request.abort()
            elif has_plots:
                request.continue_()
            else:
                request.fulfill(body=_without_plotly(path), content_type="text/html; charset=utf-8")

        context.route("**/*", route)
        opened.page.goto(path.as_uri() + fragment)
        opened.page.wait_for_load_state("load")
        return opened

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@cache
def _without_plotly(path: Path) -> str:
    text = path.read_text()
    found = text.replace(get_plotlyjs(), "")
    assert len(found) < len(text)
    return found


def png_size(data: bytes) -> tuple[int, int]:
    return struct.unpack(">II", data[16:24])


def check_page(opened: Opened, width: int, shot: Path) -> None:
    """It logs no error, asks for nothing elsewhere, runs no script that it shows, and is as wide as the screen."""
    assert opened.problems == []
    assert opened.requests == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    assert opened.page.evaluate("window.owned") is None
    assert png_size(opened.page.screenshot(path=shot, full_page=True))[0] == width


def check_contrast(opened: Opened, least: int = 1) -> None:
    """Texts have what WCAG asks for. least: so many there are."""
    ratios = opened.page.evaluate(CONTRAST)
    assert len(ratios) >= least
    assert [(text, round(ratio, 2)) for ratio, text in ratios if ratio < 4.5] == []


def check_plots(opened: Opened, plots: Sequence[str], least_labels: int = 8, *, are_apart: bool = True) -> None:
    """Each is drawn inside its box with its labels, of which none covers another where they are to be apart."""
    for plot in plots:
        box = opened.page.locator(f"#plot-{plot}").bounding_box()
        drawing = opened.page.locator(f"#plot-{plot} svg.main-svg").first.bounding_box()
        assert drawing["height"] > LEAST_HEIGHT, plot
        _check_inside(drawing, box, plot, "the drawing")
        texts = opened.page.locator(f"#plot-{plot} :is({LABELS})")
        found = [(t.text_content(), t.bounding_box()) for t in texts.all() if t.text_content()]
        assert len(found) >= least_labels, plot
        for i, (text, place) in enumerate(found):
            _check_inside(place, box, plot, text)
            for other, beside in found[i + 1 :] if are_apart else ():
                across = min(place["x"] + place["width"], beside["x"] + beside["width"]) - max(place["x"], beside["x"])
                down = min(place["y"] + place["height"], beside["y"] + beside["height"]) - max(place["y"], beside["y"])
                assert across <= 1 or down <= 3, (plot, text, other)


def _check_inside(place: dict[str, float], box: dict[str, float], plot: str, what: str) -> None:
    assert box["x"] - 0.5 <= place["x"], (plot, what)
    assert place["x"] + place["width"] <= box["x"] + box["width"] + 0.5, (plot, what)
