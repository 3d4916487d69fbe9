"""report.html of end-to-end runs in a real browser: both widths, both themes, nothing fetched."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from opened_pages import DESKTOP, PHONE, Opener, check_contrast, check_page, check_plots
from report_runs import ENVIRONMENT, HOSTILE

from fastkernels.bench.e2e.load import RequestRecord
from fastkernels.bench.e2e.offline import Side
from fastkernels.bench.e2e.run import comparisons, side_json
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.bench.e2e.serving import LoadPlan, _repeat
from fastkernels.bench.run_folder import RunFolder
from fastkernels.report.load import load_results
from fastkernels.report.publish import render_run, write_page

LATENCIES = ("ttft", "tpot", "itl", "e2e")
REQUEST = {"model": "tiny-llama", "workload": "azure_conv", "candidates": [HOSTILE], "goodput": ["ttft:500"]}


def load_records(generator: random.Random) -> list[RequestRecord]:
    records, start = [], 0.0
    for index in range(200):
        start += generator.expovariate(20.0)
        gaps = [generator.lognormvariate(-4.5, 0.4) for _ in range(generator.randint(0, 60))]
        ttft = generator.lognormvariate(-3.0, 0.5)
        tokens = [generator.randrange(500) for _ in range(len(gaps) + 1)]
        records.append(
            RequestRecord(index, 900, len(tokens), start, ttft, ttft + sum(gaps), gaps, len(tokens), 16, "", tokens)
        )
    records.append(RequestRecord(200, 900, 4, start, error=HOSTILE))
    return records


def load_side(name: str, seed: int) -> Side:
    side = Side(name, (HOSTILE,) if name != "baseline" else (), 21.5, {"url": "http://127.0.0.1:1", "model": HOSTILE})
    counters = {"num_steps": 900.0, "num_graph_steps": 850.0, "num_prompt_tokens": 9e4, "num_cached_tokens": 4e4}
    after = {**counters, "num_preemptions": 3.0, "peak_memory_bytes": 9e10}
    side.repeats.append(_repeat(side, 0, load_records(random.Random(seed)), {}, after, 0.93, makes_tokens=True))
    side.is_complete = True
    if name != "baseline":
        line = {"op": "rms_norm", "set": HOSTILE, "num_calls": 10, "error": None}
        side.replacements = [{**line, "status": s, "rank": r} for r, s in enumerate(("REPLACED", "NEVER_CALLED"))]
    return side


def failed_side(name: str, makes_tokens: bool) -> Side:
    side = Side(name, (), 21.5, {"url": "http://127.0.0.1:1", "model": HOSTILE})
    records = [RequestRecord(i, 9, 4, 0.1 * i, error=HOSTILE) for i in range(8)]
    side.repeats.append(_repeat(side, 0, records, {}, {}, None, makes_tokens))
    side.is_complete = True
    return side


def offline_side(name: str, speed: float) -> Side:
    side = Side(name, (), 4.0, {"model": "tiny-llama", "cache_bytes": 1 << 30, "startup_seconds": 3.25})
    for number in range(3):
        times = [(0.02 * i / speed, 64 * i) for i in range(1, 101)]
        requests = [{"prompt_len": 512, "output_len": 128, "num_cached_tokens": 0, "num_preemptions": 0}] * 50
        side.tokens[number] = [[1, 2, 3 + (number if speed > 1 else 0)]]
        side.repeats.append(
            {
                "repeat": number, "seconds": (2.0 + 0.05 * number) / speed, "digest": "0123456789abcdef" * 4,
                "token_times": times, "counters": {"num_steps": 128}, "peak_memory_bytes": 0, "gpu_busy_share": None,
                "requests": requests,
            }
        )  # fmt: skip
    return side


def pipeline_side(name: str, speed: float) -> Side:
    side = Side(name, (), 9.0, {"model": "tiny-sdxl", "kind": "iterative", "weight_bytes": 3 << 20})
    generator = random.Random(name)
    for number in range(3):
        seconds = (2.0 + 0.05 * number) / speed
        requests = [
            {
                "index": i, "num_steps": 4, "prepare_s": generator.lognormvariate(-6.0, 0.4),
                "start_s": seconds * (i // 8) / 6, "e2e_s": seconds / 6 + 0.001 * i, "digest": "0123456789abcdef" * 4,
                "alone_s": generator.lognormvariate(-3.0, 0.3) if i < 32 else None,
            }
            for i in range(48)
        ]  # fmt: skip
        side.repeats.append(
            {
                "repeat": number, "seconds": seconds, "digest": "0123456789abcdef" * 4,
                "work_times": [(seconds * (i + 1) / 24, 8 * (i + 1)) for i in range(24)],
                "counters": {"num_steps": 24, "num_graph_steps": 20}, "peak_memory_bytes": 3 << 30,
                "gpu_busy_share": 0.91, "requests": requests,
            }
        )  # fmt: skip
    if name != "baseline":
        error = {"num_pairs": 144, "num_equal": 0, "num_unlike": 1, "largest_relative_error": 3.4e-6}
        side.outputs = [
            {"name": HOSTILE, **error, "least_cosine": 0.99999},
            {"name": "seed", **error, "num_equal": 144, "largest_relative_error": None, "least_cosine": None},
        ]
    return side


def write_run(path: Path, sides: list[Side] | None, plan: LoadPlan | None, model: str = "tiny-llama") -> Path:
    given = {"model": model, "workload": "examples", "candidates": [HOSTILE]}
    folder = RunFolder.create("e2e", REQUEST if model == REQUEST["model"] else given, ENVIRONMENT, path)
    if sides is not None:
        scenario = Scenario(model, "azure_conv" if model == "tiny-llama" else "examples", num_requests=40)
        folder.finish(
            status="finished", seconds=95.0, e2e_schema_version=1, mode="serving" if plan else "offline",
            workload=scenario.describe(scenario.requests() if scenario.makes_tokens else ()),
            sides=[side_json(s, plan) for s in sides],
            comparisons=comparisons(sides),
        )  # fmt: skip
    return path


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
    return found


PLOTS = {
    "load": ("throughput", "concurrency", *LATENCIES),
    "offline": ("throughput",),
    "pipeline": ("throughput", "batch", "alone", "prepare"),
}


@pytest.mark.parametrize(("width", "theme"), [(DESKTOP, "light"), (PHONE, "dark")])
@pytest.mark.parametrize("name", [*PLOTS, "failed", "failed_pipeline", "empty"])
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
