"""report.html and compare.html in a real browser: both widths, both themes, nothing fetched, everything works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opened_pages import DESKTOP, PHONE, Opener, check_contrast, check_page, check_plots
from report_runs import records, timing, write_run

from fastkernels.harness.verdict import Verdict
from fastkernels.report.compare import compare_runs
from fastkernels.report.compare_page import render_comparison
from fastkernels.report.html import render
from fastkernels.report.load import load_results
from fastkernels.report.publish import write_page

PLOTS = ("forest", "latency", "errors")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    full, empty = load_results(write_run(root / "full")), load_results(write_run(root / "empty", [], is_finished=False))
    later = records()
    later[0].timings[0] = timing(1.95)
    later[2].verdict = Verdict.TIMEOUT.value
    after = load_results(write_run(root / "later", later[:-1]))
    texts = {"full": render(full), "empty": render(empty), "compare": render_comparison(compare_runs(full, after))}
    for name, text in texts.items():
        write_page(root / f"{name}.html", text)
    return {name: root / f"{name}.html" for name in texts}


@pytest.mark.parametrize(("width", "theme"), [(DESKTOP, "light"), (PHONE, "dark")])
@pytest.mark.parametrize("name", ["full", "empty", "compare"])
def test_a_page_fits_can_be_read_logs_no_error_and_fetches_nothing(
    opener: Opener, pages: dict[str, Path], tmp_path: Path, name: str, width: int, theme: str
) -> None:
    """Every plot lies inside its box with its labels apart; texts have the contrast that WCAG asks for."""
    opened = opener(pages[name], width, theme)
    opened.page.wait_for_timeout(300)
    if name == "full":
        check_plots(opened, PLOTS, 10)
        assert all(opened.count(f"#plot-{plot} .trace") >= 2 for plot in PLOTS)
        assert opened.count("#plot-forest .scatterlayer .point") == 6
        assert opened.count("#plot-latency .boxlayer path.box") == 12
    opened.open_details()
    check_page(opened, width, tmp_path / f"{name}-{width}-{theme}.png")
    check_contrast(opened, 201 if name == "full" else 1)


def test_the_themes_differ_and_a_change_redraws_the_plots(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["full"], DESKTOP, "light")
    read = """() => [getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector('#plot-forest .xtick text')).fill]"""
    light = opened.page.evaluate(read)
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_timeout(200)
    dark = opened.page.evaluate(read)
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] != light[0]
    assert dark[1] != light[1]


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_heading_sorts_and_sorts_back_by_mouse_and_keyboard(
    opener: Opener, pages: dict[str, Path], width: int
) -> None:
    opened = opener(pages["full"], width, "light", has_plots=False)
    heading = opened.page.locator("#verdict-table th", has_text="Speedup")
    read = "[...document.querySelectorAll('#verdict-table [data-label=Speedup]')].map((c) => Number(c.dataset.value))"
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    rising = opened.page.evaluate(read)
    assert rising == sorted(rising)
    assert len(set(rising)) > 3
    heading.locator("button").focus()
    opened.page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert opened.page.evaluate(read) == rising[::-1]
    last = opened.page.locator("#verdict-table tbody tr").last
    assert last.locator("[data-label=Speedup]").count() == 0  # what has no speedup stays at the end


def test_a_column_of_words_sorts_rows_that_span(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["full"], DESKTOP, "light", has_plots=False)
    opened.page.locator("#verdict-table th button", has_text="Verdict").click()
    chips = opened.page.locator("#verdict-table tbody .chip").all_text_contents()
    words = [chip.split()[-1] for chip in chips]
    assert words == sorted(words)
    assert words[0] == "CHEATING"


def test_filters_narrow_the_table_together(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["full"], DESKTOP, "light", has_plots=False)
    output = opened.page.locator(".filters output")
    total = len(opened.visible_ops())
    assert output.text_content() == f"{total} rows"
    opened.page.locator("input[name=text]").fill("RMS fast")
    assert opened.visible_ops() == ["rms_norm"] * 3
    assert output.text_content() == f"3 of {total} rows"
    opened.page.locator("select[name=speed]").select_option("TIE")
    assert opened.visible_ops() == ["rms_norm"]
    opened.page.locator("input[name=text]").fill("")
    opened.page.locator("select[name=speed]").select_option("")
    opened.page.locator("select[name=verdict]").select_option("failed")
    assert len(opened.visible_ops()) == 4
    opened.page.locator("select[name=set]").select_option("tail")
    assert opened.visible_ops() == ["rms_norm"]


def test_a_deep_link_opens_its_kernel(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["full"], PHONE, "light", "#rms_norm-tail", has_plots=False)
    kernel = opened.page.locator("#rms_norm-tail")
    assert kernel.get_attribute("open") is not None
    assert -1 <= kernel.bounding_box()["y"] < 200
    assert opened.count("details.kernel[open]") == 1


def test_a_link_of_the_table_opens_its_kernel(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["full"], DESKTOP, "light", has_plots=False)
    opened.page.locator("#verdict-table a", has_text="silu_and_mul").click()
    opened.page.wait_for_timeout(100)
    assert opened.page.locator("#silu_and_mul-fast").get_attribute("open") is not None
    assert opened.page.locator("#silu_and_mul-fast .diff").is_visible()


def test_every_control_is_reached_by_the_keyboard(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["full"], DESKTOP, "light", has_plots=False)
    reached = set()
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        reached.add(opened.page.evaluate("document.activeElement.className || document.activeElement.name || ''"))
    assert {"skip", "text", "verdict", "speed", "set", "scroll cards", "sort"} <= reached


def test_without_javascript_verdicts_and_sources_are_there(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["full"].as_uri())
    assert "1.620" in page.locator("#verdict-table").text_content()
    assert page.locator("#plot-forest").text_content() != ""
    context.close()
