"""The leaderboard's site in a real browser, opened from its folder: ranking, filters, links, themes, a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leaderboard_boards import ALPHA, BETA, FAR, ODD, make_board
from opened_pages import Opened, check_contrast, check_page, check_plots

from fastkernels.leaderboard.build import PLOTLY, build_site

DESKTOP, PHONE = 1280, 390
PAGES = ("index.html", "methods.html", "ops/rms_norm.html", "agents/alpha.html", "agents/beta.html")
PLOTS = {"index.html": ("items", "ops"), "ops/rms_norm.html": ("forest", "errors")}


class Site:
    """Pages of a site, each in a browser of its own; what they ask for outside of its folder is noted and refused."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self.browser, self.folder = browser, folder
        self.contexts: list[Any] = []
        self.loaded: list[str] = []

    def context(self, width: int = DESKTOP, theme: str = "light", **more: Any) -> Any:
        context = self.browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, **more)
        self.contexts.append(context)
        return context

    def open(
        self,
        name: str = "index.html",
        width: int = DESKTOP,
        theme: str = "light",
        fragment: str = "",
        *,
        has_plots: bool = False,
    ) -> Opened:
        """has_plots: false leaves plotly.js out, without which all but the plots works, and sooner."""
        context = self.context(width, theme)
        opened = Opened(context.new_page())

        def route(request: Any) -> None:
            if request.request.url.endswith(PLOTLY) and not has_plots:
                request.fulfill(body="", content_type="text/javascript")
            elif request.request.url.startswith(self.folder.as_uri()):
                self.loaded.append(request.request.url)
                request.continue_()
            else:
                opened.requests.append(request.request.url)
                request.abort()

        context.route("**/*", route)
        opened.page.goto((self.folder / name).as_uri() + fragment)
        opened.page.wait_for_load_state("load")
        return opened

    def close(self) -> None:
        for context in self.contexts:
            context.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("site")
    return build_site(make_board(root).entries(), root / "out").path


@pytest.fixture
def site(browser: Any, folder: Path) -> Iterator[Site]:
    site = Site(browser, folder)
    yield site
    site.close()


def agents(opened: Opened, table: str) -> list[str]:
    """Of the rows that are seen, in their order."""
    return opened.page.locator(f"#{table} tbody tr:visible th a").all_text_contents()


def ranks(opened: Opened, table: str) -> list[str]:
    """Of the rows that are seen; behind "~" where the row is marked as not told apart from the one above."""
    cells = opened.page.locator(f"#{table} tbody tr:visible td.rank").all()
    return [f"{'~' if 'close' in cell.get_attribute('class') else ''}{cell.text_content()}" for cell in cells]


@pytest.mark.parametrize(("width", "theme"), [(DESKTOP, "light"), (PHONE, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_can_be_read_and_asks_for_nothing_elsewhere(
    site: Site, folder: Path, tmp_path: Path, name: str, width: int, theme: str
) -> None:
    """Beside a screen's width and WCAG's contrast: what Lighthouse asks for, its weight, plots inside their boxes."""
    opened = site.open(name, width, theme, has_plots=True)
    opened.page.wait_for_timeout(100)
    if name in PLOTS:
        assert opened.count(".plot") == len(PLOTS[name])
        check_plots(opened, PLOTS[name], are_apart=False)
        if name == "index.html":  # two agents, each a line and two bounds
            assert opened.count("#plot-items .scatterlayer .js-line") == 6
    opened.open_details()
    check_page(opened, width, tmp_path / "page.png")
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        check_contrast(opened, 26)
    check_audit(opened.page.evaluate(AUDIT))
    loaded = {Path(url.removeprefix("file://").partition("#")[0]) for url in site.loaded}
    assert {folder / name, folder / "site.css", folder / "site.js"} <= loaded
    assert sum(path.stat().st_size for path in loaded if path.name != PLOTLY) < 1_000_000


def test_choosing_a_metric_ranks_every_table_that_has_it(site: Site) -> None:
    opened = site.open()
    assert agents(opened, "ranking-2") == [ALPHA, ODD, BETA]
    opened.page.locator("#rank-by").select_option("coverage_macro")
    assert agents(opened, "ranking-2") == [BETA, ALPHA, ODD]
    assert ranks(opened, "ranking-2") == ["1", "2", "3"]
    column = opened.page.locator("#ranking-2 th[aria-sort]")
    assert (column.count(), column.get_attribute("data-metric")) == (1, "coverage_macro")
    opened.page.locator("#rank-by").select_option("score_1.0")
    assert agents(opened, "ranking-0") == [ALPHA, BETA]
    assert agents(opened, "ranking-2")[0] == BETA  # it has no score, and stays as it was
    opened.page.locator("#rank-by").select_option("speedup")
    assert agents(opened, "ranking-0") == [BETA, ALPHA]
    assert "geometric mean over families" in opened.page.locator("#rank-about").text_content()


def test_entries_that_are_not_told_apart_have_a_range_and_a_mark_that_says_why(site: Site) -> None:
    opened = site.open()
    assert ranks(opened, "ranking-2") == ["1\u20133", "~1\u20133", "~1\u20133"]
    title = opened.page.locator("#ranking-2 tbody tr:visible td.rank").first.get_attribute("title")
    assert title == f"Not told apart from {ODD} and {BETA}: the intervals overlap."
    marks = "[...document.querySelectorAll('#ranking-2 td.rank')].map((c) => getComputedStyle(c, '::before').content)"
    assert [mark != "none" for mark in opened.page.evaluate(marks)[:3]] == [False, True, True]
    opened.page.locator("#rank-by").select_option("speedup")
    assert agents(opened, "ranking-2") == [ALPHA, ODD, BETA]
    assert ranks(opened, "ranking-2") == ["1", "2\u20133", "~2\u20133"]
    first, second = opened.page.locator("#ranking-2 tbody tr:visible td.rank").all()[:2]
    assert first.get_attribute("title") == "Told apart from every other: no interval overlaps its own."
    assert second.get_attribute("title") == f"Not told apart from {BETA}: the intervals overlap."
    assert ranks(opened, "ranking-0") == ["1\u20132", "~1\u20132"]  # Beta's one valid item gives no interval
    assert "no interval" in opened.page.locator("#ranking-0 tbody tr").first.text_content()
    opened.page.locator("select[name=level]").select_option("L2")
    assert ranks(opened, "ranking-2") == ["1", "2"]


def test_ranks_are_seen_whole_on_a_phone(site: Site) -> None:
    opened = site.open(width=PHONE)
    for row in opened.page.locator("#ranking-2 tbody tr:visible").all():
        rank, name = row.locator("td.rank").bounding_box(), row.locator("th").bounding_box()
        assert rank["x"] + rank["width"] <= name["x"] + 1


def test_the_three_parts_of_the_score_are_always_seen(site: Site) -> None:
    opened = site.open(width=DESKTOP)
    for metric in ("speedup", "correctness", "coverage_macro", "deployable"):
        opened.page.locator("#rank-by").select_option(metric)
        for part in ("speedup", "correctness", "coverage_macro"):
            heading = opened.page.locator(f'#ranking-0 th[data-metric="{part}"]')
            box = heading.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= DESKTOP
    phone = site.open(width=PHONE)
    for title in ("S", "C", "Coverage"):
        assert phone.page.locator(f'#ranking-0 tbody tr:first-child [data-label="{title}"]').is_visible()


def test_a_heading_ranks_by_mouse_and_by_keyboard(site: Site) -> None:
    opened = site.open()
    opened.page.locator('#ranking-2 th[data-metric="coverage_macro"] button').click()
    assert opened.page.locator("#rank-by").input_value() == "coverage_macro"
    assert agents(opened, "ranking-2")[0] == BETA
    opened.page.locator('#ranking-2 th[data-metric="deployable"] button').focus()
    opened.page.keyboard.press("Enter")
    assert agents(opened, "ranking-2")[0] == ALPHA


def test_filters_narrow_by_level_hardware_and_text_and_keep_ranks(site: Site) -> None:
    opened = site.open()
    output = opened.page.locator("#ranking .filters output")
    assert "of" in output.text_content()
    levels = opened.page.locator("#ranking-2 tbody tr:visible td.set").all_text_contents()
    assert set(levels) == {"L1+L2"}
    opened.page.locator("select[name=level]").select_option("L2")
    assert agents(opened, "ranking-2") == [ALPHA, BETA]
    assert opened.page.locator("#ranking-1").is_hidden()  # nothing of level 2 was judged there
    assert opened.page.locator("#ranking-0 tbody tr:visible").count() == 2
    opened.page.locator("select[name=level]").select_option("L1")
    opened.page.locator("input[data-state=q]").fill("beta")
    assert agents(opened, "ranking-2") == [BETA]
    assert ranks(opened, "ranking-2") == ["~1\u20133"]
    opened.page.locator("input[data-state=q]").fill("")
    opened.page.locator("select[name=hardware]").select_option("NVIDIA B200")
    assert agents(opened, "ranking-1") == [FAR]
    assert opened.page.locator("#ranking-2").is_hidden()
    opened.page.locator("input[data-state=q]").fill("nobody at all")
    assert output.text_content().startswith("0 of")


def test_forced_and_published_rows_are_marked(site: Site) -> None:
    opened = site.open()
    assert opened.page.locator("#ranking-1 tbody tr:visible .chip").all_text_contents() == ["other hardware", "quick"]
    assert opened.count("#published-table td.rank") == 0
    assert opened.count("#published-table .chip") == opened.count("#published-table tbody tr") == 9


def test_a_link_keeps_what_was_chosen_and_leads_back_to_it(site: Site) -> None:
    opened = site.open()
    opened.page.locator("#rank-by").select_option("coverage_macro")
    opened.page.locator("select[name=level]").select_option("L1")
    opened.page.locator("input[data-state=q]").fill("a b")
    opened.page.locator("#ops-table th button", has_text="Best speedup").click()
    opened.page.locator("#ops-table th button", has_text="Best speedup").click()
    fragment = "#" + opened.page.url.partition("#")[2]
    assert fragment == "#by=coverage_macro&q=a+b&level=L1&sort.ops=best-speedup.descending"
    again = site.open(fragment=fragment)
    assert again.page.locator("#rank-by").input_value() == "coverage_macro"
    assert again.page.locator("input[data-state=q]").input_value() == "a b"
    assert again.page.locator("select[name=level]").input_value() == "L1"
    assert again.page.locator("#ops-table tbody th").all_text_contents() == (
        opened.page.locator("#ops-table tbody th").all_text_contents()
    )
    assert again.page.locator("#ops-table tbody th").first.text_content() == "linear"
    assert again.problems == []


def test_a_link_that_is_followed_on_the_page_changes_it(site: Site) -> None:
    opened = site.open(fragment="#q=beta")
    assert agents(opened, "ranking-2") == [BETA]
    opened.page.evaluate("location.hash = '#by=coverage_macro'")
    opened.page.wait_for_timeout(100)
    assert agents(opened, "ranking-2") == [BETA, ALPHA, ODD]
    opened.page.locator("nav a", has_text="Families").click()
    assert agents(opened, "ranking-2")[0] == BETA  # a place on the page changes nothing


@pytest.mark.parametrize("fragment", ["#ranking", "#ops"])
def test_a_link_to_a_place_of_the_page_opens_it_as_it_is_without_one(site: Site, fragment: str) -> None:
    """All other pages link back so."""
    opened, plain = site.open(fragment=fragment), site.open()
    assert agents(opened, "ranking-2") == agents(plain, "ranking-2") == [ALPHA, ODD, BETA]
    for place in ("#rank-about", "#ranking .filters output"):
        assert opened.page.locator(place).text_content() == plain.page.locator(place).text_content() != ""


def test_a_link_that_makes_no_sense_shows_the_page_as_it_is(site: Site) -> None:
    opened = site.open(fragment="#%")
    for fragment in ("#by=nonsense", "#level=L9", "#sort.ops=none.descending", "#sort.ops=op.up", "#=&&=", "#%"):
        opened.page.evaluate("(hash) => { location.hash = hash; }", fragment)
        opened.page.wait_for_timeout(50)
        assert agents(opened, "ranking-2")[0] == ALPHA
        assert opened.page.locator("#rank-by").input_value() == "deployable"
    assert opened.problems == []


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_kept(site: Site, folder: Path) -> None:
    opened = site.open(theme="light", has_plots=True)
    button = opened.page.locator("#theme")
    ground = "getComputedStyle(document.body).backgroundColor"
    tick = "getComputedStyle(document.querySelector('#plot-ops .xtick text')).fill"
    light = (opened.page.evaluate(ground), opened.page.evaluate(tick))
    button.click()
    assert button.text_content() == "Theme: dark"
    opened.page.wait_for_timeout(200)
    dark = (opened.page.evaluate(ground), opened.page.evaluate(tick))
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    opened.page.goto((folder / "ops" / "rms_norm.html").as_uri())
    assert opened.page.evaluate(ground) == dark[0]
    opened.page.locator("#theme").click()
    assert opened.page.locator("#theme").text_content() == "Theme: light"
    opened.page.emulate_media(color_scheme="dark")
    assert opened.page.evaluate(ground) == light[0]
    opened.page.locator("#theme").click()
    assert opened.page.locator("#theme").text_content() == "Theme: system"
    assert opened.page.evaluate(ground) == dark[0]


def test_every_control_is_reached_by_the_keyboard(site: Site) -> None:
    opened = site.open()
    reached = set()
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        reached.add(
            opened.page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.className"
            )
        )
    assert {"skip", "theme", "rank-by", "text", "level", "hardware", "sort"} <= reached


def test_the_tables_are_read_without_javascript(site: Site, folder: Path) -> None:
    page = site.context(java_script_enabled=False).new_page()
    page.goto((folder / "index.html").as_uri())
    rows = page.locator("#ranking-2 tbody tr").all()
    assert [row.locator("td.rank").text_content() for row in rows[:3]] == ["1\u20133"] * 3
    assert {row.locator("td.set").text_content() for row in rows} == {"L1+L2", "L1", "L2"}
    assert page.locator("#theme").is_hidden()
    assert page.locator("#published-table").is_visible()
    page.goto((folder / "ops" / "rms_norm.html").as_uri())
    assert (
        "1.600" in page.locator("#agent-table").text_content() or "1.2" in page.locator("#agent-table").text_content()
    )
    assert page.locator("#plot-forest").text_content() != ""


AUDIT = """() => {
  const named = (e) =>
    (e.getAttribute("aria-label") || e.textContent || e.labels?.[0]?.textContent || "").trim() !== "";
  const seen = [...document.querySelectorAll("a[href], button, select, input, summary")]
    .filter((e) => e.checkVisibility() && !e.closest(".skip"));
  const headings = [...document.querySelectorAll("h1, h2, h3, h4")].map((h) => Number(h.tagName[1]));
  const small = (e) => {
    const box = e.getBoundingClientRect();
    const isInText = e.tagName === "A" && e.closest("p, dd, dl, small, .case") && !e.closest("nav");
    return !isInText && (box.height < 24 || box.width < 24);
  };
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  return {
    lang: document.documentElement.lang,
    title: document.title.length,
    description: (document.querySelector("meta[name=description]")?.content ?? "").length,
    viewport: document.querySelector("meta[name=viewport]")?.content ?? "",
    doctype: document.doctype?.name,
    mains: document.querySelectorAll("main").length,
    h1: headings.filter((h) => h === 1).length,
    skipped: headings.filter((h, i) => i && h > headings[i - 1] + 1),
    unnamed: seen.filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 80)),
    unlabelled: [...document.querySelectorAll("input, select")].filter((e) => !e.labels.length).length,
    images: [...document.images].filter((i) => !i.alt).length,
    plots: [...document.querySelectorAll(".plot")].filter((p) => !p.getAttribute("aria-label")).length,
    twice: ids.filter((id, i) => ids.indexOf(id) !== i),
    small: seen.filter(small).map((e) => e.outerHTML.slice(0, 80)),
    tiny: [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest(".plot, .diff, sub")
      && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
      && parseFloat(getComputedStyle(e).fontSize) < 11.5)
      .map((e) => e.textContent.trim().slice(0, 30)),
    headless: [...document.querySelectorAll("th")].filter((h) => !h.scope).length,
    inline: document.querySelectorAll("[onclick], [onload], [href^='javascript:']").length,
  };
}"""


def check_audit(found: dict[str, Any]) -> None:
    assert (found["lang"], found["doctype"], found["mains"], found["h1"]) == ("en", "html", 1, 1)
    assert 5 < found["title"] < 70
    assert 30 < found["description"] < 200
    assert found["viewport"] == "width=device-width, initial-scale=1"
    for what in ("skipped", "unnamed", "twice", "small", "tiny"):
        assert found[what] == [], what
    for what in ("unlabelled", "images", "plots", "headless", "inline"):
        assert found[what] == 0, what
