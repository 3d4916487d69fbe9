"""report.html of eval runs in a real browser: both widths, both themes, nothing fetched; and two runs compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from opened_pages import DESKTOP, PHONE, Opener, check_contrast, check_page, check_plots
from report_runs import item, write_eval_run

from fastkernels.report.compare_page import render_comparison
from fastkernels.report.eval_compare import compare_evals
from fastkernels.report.load import load_results
from fastkernels.report.publish import render_run, write_page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("evals")
    full = load_results(write_eval_run(root / "full"))
    empty = load_results(write_eval_run(root / "empty", is_finished=False))
    later = load_results(write_eval_run(root / "later", [item("tiny-llama", "language", "fast", 1.6)]))
    texts = {
        "full": render_run(full),
        "empty": render_run(empty),
        "compare": render_comparison(compare_evals(full, later)),
    }
    for name, text in texts.items():
        write_page(root / f"{name}.html", text)
    return {name: root / f"{name}.html" for name in texts}


@pytest.mark.parametrize(("width", "theme"), [(DESKTOP, "light"), (PHONE, "dark")])
@pytest.mark.parametrize("name", ["full", "empty", "compare"])
def test_a_page_fits_logs_no_error_and_fetches_nothing(
    opener: Opener, pages: dict[str, Path], tmp_path: Path, name: str, width: int, theme: str
) -> None:
    """Every plot lies inside its box with its labels apart."""
    opened = opener(pages[name], width, theme)
    opened.page.wait_for_timeout(200)
    if name == "full":
        check_plots(opened, ("speedups", "discrepancies", "sensitivity"))
        assert opened.count("#plot-speedups .scatterlayer .point") == 18  # six measured: both, throughput, latency
    opened.open_details()
    check_page(opened, width, tmp_path / f"{name}-{width}.png")
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        check_contrast(opened)


def test_deployable_speedup_and_validity_are_seen_first(opener: Opener, pages: dict[str, Path]) -> None:
    for width in (DESKTOP, PHONE):
        opened = opener(pages["full"], width, "light", has_plots=False)
        place = opened.page.locator(".hero .big").all()
        assert len(place) == 4
        assert max(p.bounding_box()["y"] for p in place) < 500


def test_items_are_sorted_and_filtered(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["full"], DESKTOP, "light", has_plots=False)
    opened.page.locator("#item-table th button", has_text="Speedup").click()
    read = "[...document.querySelectorAll('#item-table [data-label=Speedup]')].map((c) => Number(c.dataset.value))"
    rising = opened.page.evaluate(read)
    assert rising == sorted(rising)
    assert len(rising) == 6
    opened.page.locator("select[name=verdict]").select_option("INVALID")
    rows = opened.page.locator("#item-table tbody tr:visible")
    assert rows.count() == 3
    opened.page.locator("input[name=text]").fill("crash")
    assert rows.count() == 1
    opened.page.locator("input[name=text]").fill("")
    opened.page.locator("select[name=set]").select_option("fast")
    assert rows.count() == 0


def test_a_link_opens_the_item_with_its_ops(opener: Opener, pages: dict[str, Path]) -> None:
    opened = opener(pages["full"], PHONE, "light", "#tiny-mixtral-bfloat16-fragile", has_plots=False)
    detail = opened.page.locator("#tiny-mixtral-bfloat16-fragile")
    assert detail.get_attribute("open") is not None
    text = detail.text_content()
    assert all(words in text for words in ("Op at fault", "moe_sum", "Kept: rms_norm", "IMPORT_ERROR"))


def test_without_javascript_scores_and_items_are_there(opener: Opener, pages: dict[str, Path]) -> None:
    context = opener.browser.new_context(java_script_enabled=False)
    opener.contexts.append(context)
    page = context.new_page()
    page.goto(pages["full"].as_uri())
    assert page.locator("#item-table tbody tr").count() == 12
    assert page.locator(".hero .big").first.is_visible()
