"""Pages of end-to-end runs in a real browser: both widths, both themes, nothing fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e_runs import failed_side, load_side, offline_side, pipeline_side, write_run
from opened_pages import DESKTOP, PHONE, Opener, check_contrast, check_page, check_plots
from report_runs import HOSTILE

from fastkernels.bench.e2e.serving import LoadPlan
from fastkernels.report.compare_page import render_e2e_comparison
from fastkernels.report.e2e_compare import compare_e2e
from fastkernels.report.load import load_results
from fastkernels.report.publish import render_run, write_page

LATENCIES = ("ttft", "tpot", "itl", "e2e")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("e2e")
    runs = {
        "load": ([load_side("baseline", 1), load_side("mine", 2)], LoadPlan(goodput_ms={"ttft": 100.0})),
        "offline": ([offline_side("baseline", 1.0), offline_side("mine", 1.3)], None),
        "pipeline": ([pipeline_side("baseline", 1.0), pipeline_side("mine", 1.3)], None),
        "failed": ([failed_side("baseline", True), failed_side("mine", True)], LoadPlan()),
        "failed_pipeline": ([failed_side("baseline", False)], LoadPlan()),
        "empty": (None, None),
    }
    found = {}
    for name, (sides, plan) in runs.items():
        found[name] = root / f"{name}.html"
        model = "tiny-sdxl" if name.endswith("pipeline") else "tiny-llama"
        write_page(found[name], render_run(load_results(write_run(root / name, sides, plan, model))))
    later = write_run(root / "later", [offline_side("baseline", 1.3), offline_side(HOSTILE, 1.3)], None)
    found["compared"] = root / "compared.html"
    before, after = load_results(root / "offline"), load_results(later)
    write_page(found["compared"], render_e2e_comparison(compare_e2e(before, after)))
    return found


PLOTS = {
    "load": ("throughput", "concurrency", *LATENCIES),
    "offline": ("throughput",),
    "pipeline": ("throughput", "batch", "alone", "prepare"),
}


@pytest.mark.parametrize(("width", "theme"), [(DESKTOP, "light"), (PHONE, "dark")])
@pytest.mark.parametrize("name", [*PLOTS, "failed", "failed_pipeline", "empty", "compared"])
def test_a_page_fits_can_be_read_logs_no_error_and_fetches_nothing(
    opener: Opener, pages: dict[str, Path], tmp_path: Path, name: str, width: int, theme: str
) -> None:
    """Every plot lies inside its box with its labels apart; texts have the contrast that WCAG asks for."""
    opened = opener(pages[name], width, theme)
    opened.page.wait_for_timeout(300)
    check_page(opened, width, tmp_path / f"{name}-{width}-{theme}.png")
    plots = PLOTS.get(name, ())
    assert opened.count(".plot") == len(plots)
    check_plots(opened, plots)
    assert all(opened.count(f"#plot-{plot} .scatterlayer .js-line") == 2 for plot in plots)
    check_contrast(opened, 121 if name == "load" else 1)


def test_tables_tell_what_was_measured(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["load"], DESKTOP, "light", has_plots=False)
    assert opened.count("#latency-table tbody tr") == 8
    assert opened.count("#replacement-table .chip.bad") == 1
    text = opened.page.locator("header").text_content()
    assert "rms_norm is NEVER_CALLED on rank 1" in text
    assert "1 requests failed, most often with" in text
    assert "94.4 %" in opened.page.locator("#engine-table").text_content()
    heading = opened.page.locator("#latency-table th", has_text="p99")
    heading.locator("button").click()
    values = "[...document.querySelectorAll('#latency-table tbody tr')].map((r) => Number(r.cells[6].dataset.value))"
    rising = opened.page.evaluate(values)
    assert rising == sorted(rising)
    offline = opener(pages["offline"], DESKTOP, "light", has_plots=False)
    assert "1.300" in offline.page.locator("#candidates").text_content()
    assert offline.count("#repeat-table tbody tr") == 6


def test_a_page_of_a_model_without_tokens_has_its_outputs_and_no_figure_of_tokens(
    opener: Opener, pages: dict[str, Path]
) -> None:
    opened = opener(pages["pipeline"], DESKTOP, "light", has_plots=False)
    assert opened.count(".output-table tbody tr") == 2
    text = opened.page.locator("#candidates").text_content()
    assert all(words in text for words in ("3.40e-06", "0.99999000", HOSTILE))
    body = opened.page.locator("body").inner_text().lower()
    assert [word for word in ("token", "ttft", "prefix", "preempt") if word in body] == []
    assert "steps/s" in opened.page.locator("#throughput-table").text_content().lower()
    assert "83.3 %" in opened.page.locator("#engine-table").text_content()


@pytest.mark.parametrize(("name", "num_sides"), [("failed", 2), ("failed_pipeline", 1)])
def test_a_page_of_which_nothing_came_back_says_so_and_has_no_figure(
    opener: Opener, pages: dict[str, Path], name: str, num_sides: int
) -> None:
    opened = opener(pages[name], DESKTOP, "light")
    notices = opened.page.locator("header .notice").all_text_contents()
    assert notices == [
        f"{side}: nothing came back: all 8 requests failed, most often with: {HOSTILE}"
        for side in ("baseline", "mine")[:num_sides]
    ]
    assert opened.count(".tile") == opened.count(".plot") == opened.count("#latency-table") == 0
    cells = opened.page.locator("#throughput-table tbody td").all_text_contents()
    assert cells
    assert set(cells) == {"\u2013"}


def test_two_runs_beside_each_other_tell_what_moved(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["compared"], DESKTOP, "light")
    rows = [[c.strip() for c in r.locator("th, td").all_text_contents()] for r in opened.rows("#change-table")]
    assert [r[-1] for r in rows if r[:3] == ["Requests/s", "baseline", "better"]] == ["1.300"]
    assert sorted(r[2] for r in rows if r[1] != "baseline") == ["gone", "new"]
    opened.page.select_option("form[data-table=change-table] select", "changed")
    assert opened.count("#change-table tbody tr:visible") < len(rows)
