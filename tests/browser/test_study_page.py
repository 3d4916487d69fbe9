"""The page of the routing study in a real browser: what is shipped, drawn by the product's own renderer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from opened_pages import DESKTOP, PHONE, Opener, check_contrast, check_page, check_plots

from fastkernels.report.publish import write_page
from fastkernels.studies.page import render_study
from fastkernels.studies.routing import INPUTS

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "cpu" / "routing_study.json"
PLOTS = ("experts", "ranks")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "report.html"
    write_page(path, render_study(json.loads(RESULTS.read_text())))
    return path


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_fits_can_be_read_logs_no_error_and_fetches_nothing(
    opener: Opener, page: Path, tmp_path: Path, width: int, theme: str
) -> None:
    """Every plot lies inside its box with its labels apart."""
    opened = opener(page, width, theme)
    opened.page.wait_for_timeout(300)
    assert opened.count(".plot") == len(PLOTS)
    check_plots(opened, PLOTS)
    for plot in PLOTS:
        assert opened.count(f"#plot-{plot} .scatterlayer .js-line") == len(INPUTS)
        assert opened.page.locator(f"#plot-{plot} .legendtext").all_text_contents() == list(INPUTS)
    opened.open_details()
    check_page(opened, width, tmp_path / f"study-{width}-{theme}.png")
    check_contrast(opened, 60)


def test_dark_mode_redraws_the_plots(opener: Opener, page: Path) -> None:
    opened = opener(page, DESKTOP, "light")
    read = """() => [getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector('#plot-experts .xtick text')).fill]"""
    light = opened.page.evaluate(read)
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_timeout(200)
    dark = opened.page.evaluate(read)
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_tables_are_the_studys_figures_and_a_heading_sorts(opener: Opener, page: Path) -> None:
    study = json.loads(RESULTS.read_text())
    opened = opener(page, PHONE, "light", has_plots=False)
    text = opened.page.locator("#figures table").text_content()
    assert all(f"{study['inputs'][name]['gini']:.3f}" in text for name in INPUTS)
    rows = opened.page.locator("#machine table").first.locator("tbody tr")
    assert rows.count() == study["model"]["num_experts"]
    opened.page.locator("#machine th button", has_text=INPUTS[0]).click()
    read = "[...document.querySelectorAll('#machine table tbody tr')].map((r) => Number(r.cells[1]?.dataset.value))"
    rising = opened.page.evaluate(read)[: study["model"]["num_experts"]]
    assert rising == sorted(study["inputs"][INPUTS[0]]["loads"])
