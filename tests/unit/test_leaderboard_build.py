"""The site: ranks are those of the entries, published figures stay apart, links lead somewhere, nothing is fetched."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from posixpath import normpath
from typing import Any

import pytest
from leaderboard_boards import ALPHA, BETA, FAR, LAUNCHED, ODD, make_board, mine
from report_runs import REQUEST, record, timed_record, write_eval_run, write_run

from fastkernels.harness.verdict import Verdict
from fastkernels.leaderboard.build import PLOTLY, site_files
from fastkernels.leaderboard.entry import MOST_SOURCE_LINES, entry_of
from fastkernels.leaderboard.entry_shape import entry_fault
from fastkernels.leaderboard.figures import Curve, fast_p_curves
from fastkernels.leaderboard.metrics import EVAL_METRICS, KERNELS_METRICS, Cell, Metric
from fastkernels.leaderboard.pages import curve_name, heat_map, op_views
from fastkernels.leaderboard.places import places
from fastkernels.leaderboard.ranking import published_rows, rank_tables
from fastkernels.leaderboard.store import Board
from fastkernels.leaderboard.submission import submission
from fastkernels.scoring.manifest import load_manifest
from fastkernels.scoring.published import published_agents
from fastkernels.scoring.statistics import wilson_interval

LARGEST_PAGE = 1_000_000
"""Bytes of a page with all that it loads, plotly.js apart."""


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [values["href"]] if tag == "a" and values.get("href") else []
        self.sources += [v for v in (values.get("src"), values.get("href") if tag == "link" else None) if v]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    return make_board(tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def entries(board: Board) -> list[dict[str, Any]]:
    return board.entries()


@pytest.fixture(scope="module")
def files(entries: list[dict[str, Any]]) -> dict[str, str]:
    return site_files(entries)


@pytest.fixture(scope="module")
def pages(files: dict[str, str]) -> dict[str, Page]:
    return {name: Page(text) for name, text in files.items() if name.endswith(".html")}


def test_there_is_a_page_of_each_op_and_each_agent(files: dict[str, str]) -> None:
    ops = {"rms_norm", "linear", "embedding", "silu_and_mul", "llama_mlp"}
    assert {name for name in files if name.startswith("ops/")} == {f"ops/{op}.html" for op in ops}
    assert sum(name.startswith("agents/") for name in files) == 4
    assert {"index.html", "methods.html", "site.css", "site.js"} <= set(files)


def test_every_link_leads_to_a_page_and_a_place_of_the_site(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for link in page.links:
            target, _, place = link.partition("#")
            path = normpath(f"{name.rpartition('/')[0]}/{target}".lstrip("/")) if target else name
            assert path in pages, (name, link)
            assert not place or place in pages[path].ids, (name, link)


def test_no_page_names_anything_outside_of_the_site(files: dict[str, str], pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        for source in page.sources:
            path = normpath(f"{name.rpartition('/')[0]}/{source}".lstrip("/"))
            assert source == "data:," or path in {*files, PLOTLY}, (name, source)
        assert "<script>window.owned" not in files[name]
        assert len(page.ids) == len(set(page.ids)), name


def test_no_page_weighs_more_than_a_megabyte_beside_plotly(files: dict[str, str], pages: dict[str, Page]) -> None:
    shared = sum(len(files[name].encode()) for name in ("site.css", "site.js"))
    assert shared < 40_000
    for name in pages:
        assert len(files[name].encode()) + shared < LARGEST_PAGE, name
        assert "Plotly.js" not in files[name]


def test_entries_are_ranked_among_those_that_compare(entries: list[dict[str, Any]]) -> None:
    tables = rank_tables(entries)
    assert [(t.kind, t.hardware) for t in tables] == [
        ("eval", "A Processor with 8 cores"), ("kernels", "NVIDIA B200"), ("kernels", "NVIDIA H200"),
    ]  # fmt: skip
    h200 = [(r.level, r.entry["agent"], r.places["correctness"].text) for r in tables[2].rows if r.level == "L1"]
    assert h200 == [("L1", ALPHA, "3"), ("L1", ODD, "1"), ("L1", BETA, "1")]
    assert [(r.places["deployable"].text, r.entry["agent"]) for r in tables[1].rows] == [("1", FAR), ("1", FAR)]
    assert [r.entry["agent"] for r in tables[0].rows] == [ALPHA, BETA]


def test_entries_of_two_manifests_are_ranked_apart_and_the_methods_page_says_which_each_has(
    entries: list[dict[str, Any]], files: dict[str, str]
) -> None:
    own = {"version": load_manifest().version, "sha256": load_manifest().sha256}
    assert f"<code>{own['sha256'][:16]}</code>: <a" in files["methods.html"]
    assert "manifest 2026.11" not in files["index.html"]
    assert own["sha256"][:16] in site_files([])["methods.html"]
    alpha = next(e for e in entries if e["agent"] == ALPHA and e["kind"] == "eval")
    other = {**alpha, "agent": "Other", "manifest": {**own, "sha256": "ab" * 32}}
    text = site_files([other])["methods.html"]
    assert f"<code>{'ab' * 8}</code>" in text
    assert own["sha256"][:16] not in text  # this entry has another
    found = [alpha, other]
    assert [[r.entry["agent"] for r in table.rows] for table in rank_tables(found)] == [["Other"], [ALPHA]]
    pages = site_files(found)
    for sha256 in ("ab" * 32, own["sha256"]):
        assert f"<code>{sha256[:16]}</code>: <a" in pages["methods.html"]
        assert f"SHA-256 {sha256[:12]}</span>" in pages["index.html"]
    assert 'class="manifest"' in pages["methods.html"]


def test_what_was_judged_otherwise_is_ranked_apart_and_every_row_says_on_what(tmp_path: Path) -> None:
    """Captured cases beside drawn ones, other dtypes, limits or tolerances, and what was not timed."""
    whole = {**REQUEST, "quick": False, "check_only": False, "timeout": 30.0, "memory_gb": 16.0}
    found = {
        "captured": ({}, {"cases_sha256": "1a2b3c4d" * 8}, 1.1),
        "other cases": ({}, {"cases_sha256": "5e6f7a8b" * 8}, 1.2),
        "drawn": ({}, {}, 1.3),
        "float32": ({"dtype": ["float32"]}, {}, 3.0),
        "hasty": ({"timeout": 1e-6}, {}, 1.0),
        "tolerant": ({}, {"tolerances_sha256": "9c0d1e2f" * 8}, 1.4),
        "also drawn": ({}, {}, 1.25),
    }
    board = Board(tmp_path / "board")
    for agent, (words, files, ratio) in found.items():
        run = write_run(tmp_path / agent, [mine("rms_norm", "set", (ratio,))], request={**whole, **words})
        path = run / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **files}))
        board.add(submission(run, agent))
    entries = board.entries()
    tables = {tuple(r.entry["agent"] for r in t.rows if r.level == "L1"): t.judged for t in rank_tables(entries)}
    drawn, limits = "inputs drawn in bfloat16 or what an op takes", "30 s a call; 16 GB"
    assert tables == {
        ("captured",): f"captured cases 1a2b3c4d; {drawn}; {limits}",
        ("other cases",): f"captured cases 5e6f7a8b; {drawn}; {limits}",
        ("drawn", "also drawn"): f"{drawn}; {limits}",
        ("float32",): f"inputs drawn in float32; {limits}",
        ("hasty",): f"{drawn}; 1e-06 s a call; 16 GB",
        ("tolerant",): f"{drawn}; {limits}; tolerances 9c0d1e2f",
    }
    files_of_site = site_files(entries)
    assert files_of_site["index.html"].count(f'<small class="case">set · {drawn}; {limits}</small>') == 4  # two levels
    ((view),) = op_views(entries)
    assert (len(view.best), view.num_conditions) == (6, 6)
    assert {entry["agent"] for entry, _ in view.best} == found.keys() - {"also drawn"}
    names = {curve_name(entry, entries) for entry in entries}
    assert {"drawn \u00b7 inputs drawn in bfloat16 or what an op takes, 30 s a call"} < names
    assert len(names) == len(entries)
    assert "Judged in 6 ways that do not compare" in files_of_site["ops/rms_norm.html"]


def test_equal_figures_share_a_rank(entries: list[dict[str, Any]]) -> None:
    alpha = next(e for e in entries if e["agent"] == ALPHA and e["kind"] == "kernels")
    twins = [{**alpha, "agent": name} for name in ("one", "two")]
    (table,) = rank_tables([*twins, alpha])
    assert {row.places["correctness"].text for row in table.rows} == {"1"}
    assert {row.places["deployable"].text for row in table.rows} == {"1\u20133"}


def test_rows_whose_intervals_overlap_are_marked_as_not_told_apart() -> None:
    names, metric = ["a", "b", "c", "d"], Metric("m", "M", "", has_interval=True)
    cells = [Cell("", 3.0, "", 2.6, 3.4), Cell("", 2.5, "", 2.0, 3.0), Cell("", 1.0, "", 0.9, 1.1), Cell()]
    found = places(names, cells, metric)
    assert [(p.text, p.is_close) for p in found] == [
        ("1\u20132", False), ("1\u20132", True), ("3", False), ("\u2013", False),
    ]  # fmt: skip
    assert [p.why for p in found] == [
        "Not told apart from b: the intervals overlap.", "Not told apart from a: the intervals overlap.",
        "Told apart from every other: no interval overlaps its own.", "No figure to rank by.",
    ]  # fmt: skip
    without = places(names, [*cells[:3], Cell("", 2.0)], metric)
    assert [p.text for p in without] == ["1\u20133", "1\u20133", "3\u20134", "1\u20134"]
    assert without[3].why == "It has no interval, and is told apart from none."
    many = places([str(i) for i in range(7)], [Cell("", 1.0, "", 0.5, 2.0)] * 7, metric)
    assert many[0].why == "Not told apart from 1, 2, 3, 4 and 2 more: the intervals overlap."
    exact = places(names[:3], [Cell("", 1.0), Cell("", 0.5), Cell("", 1.0)], Metric("m", "M", ""))
    assert [p.text for p in exact] == ["1", "3", "1"]
    assert exact[0].why == "Ranked by the figure alone, which has no interval; equal to c."


def test_a_metric_has_intervals_exactly_where_its_cells_have(entries: list[dict[str, Any]]) -> None:
    for table in rank_tables(entries):
        for metric in table.metrics:
            cells = [row.cells[metric.key] for row in table.rows]
            assert metric.has_interval == any(cell.low is not None for cell in cells), metric.key


def test_the_cells_of_a_ranking_are_the_entrys_figures(entries: list[dict[str, Any]]) -> None:
    row = rank_tables(entries)[0].rows[0]
    scores = row.entry["scores"]
    assert row.cells["deployable"].value == scores["deployable"]["speedup"]
    assert row.cells["validity"].text == "4/6"
    assert row.cells["score_1.0"].value == scores["macroeval"]["1.0"]["score"]
    for part in ("speedup", "correctness", "coverage_macro"):
        assert row.cells[part].value == scores["macroeval"]["0.5"][part]


def test_published_agents_are_marked_and_in_no_ranking(files: dict[str, str], entries: list[dict[str, Any]]) -> None:
    rows = published_rows()
    assert [r.agent for r in rows if r.level == "L1+L2"] == [a.name for a in published_agents()]
    assert next(r for r in rows if r.agent == "Codex" and r.level == "L1+L2").faster(1.0) == "37 of 88"
    measured, _, published = files["index.html"].partition('id="published-title"')
    assert "Dr. Kernel" not in measured
    assert published.count(">published</span>") == len(rows)
    assert published.count("<small>no interval") == 1
    assert published.count(", a range<") == 1
    assert not {a.name for a in published_agents()} & {r.entry["agent"] for t in rank_tables(entries) for r in t.rows}


def test_the_heat_map_tells_what_is_not_valid_from_what_was_not_run(entries: list[dict[str, Any]]) -> None:
    heat = heat_map(entries)
    assert heat is not None
    assert list(heat.families) == ["embedding", "image", "language", "speech"]
    cells = {entry["agent"]: dict(zip(heat.families, row, strict=True)) for entry, row in heat.rows}
    assert cells[ALPHA]["language"].num_valid == 2
    assert cells[ALPHA]["language"].step > 3 > cells[ALPHA]["image"].step >= 0
    assert cells[BETA]["speech"].step == -1
    assert heat_map([e for e in entries if e["kind"] == "kernels"]) is None


def test_fast_p_counts_lower_bounds_over_all_targets_with_wilsons_band() -> None:
    plot = fast_p_curves([Curve("a", [1.3, 1.02, None, 0.9])], "ops")
    assert plot is not None
    low, high, line = plot["data"]
    at = dict(zip(line["x"], line["y"], strict=True))
    assert (at[0.5], at[0.9], at[1.0], at[1.02], at[1.3]) == (75, 50, 50, 25, 0)
    bounds = dict(zip(line["x"], zip(low["y"], high["y"], strict=True), strict=True))
    assert bounds[1.0] == tuple(pytest.approx(100 * v, abs=0.01) for v in wilson_interval(2, 4))
    assert fast_p_curves([], "ops") is None


def test_an_op_page_has_every_agent_case_and_source(files: dict[str, str]) -> None:
    text = files["ops/rms_norm.html"]
    data = re.search(r'id="plots">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    plots = json.loads(data.group(1))
    drawn = sorted(x for trace in plots["forest"]["data"] for x in trace["x"])
    assert drawn == [0.8, 1.004, 1.2, 1.3, 1.6, 3.0]
    assert all(f"<b>{name} · NVIDIA" in str(plots["forest"]["labels"]) for name in (ALPHA, BETA, FAR))
    assert 'class="diff"' in text
    assert "one file for many ops" not in text
    beta = next(t for name, t in files.items() if name == "agents/beta.html")
    assert beta.count("one file for many ops") == 1
    assert "Judged on 2 kinds of hardware" in text


def test_a_source_that_was_not_kept_is_told_as_such(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    for name in ("linear.py", "adapt.py"):
        found = record("linear", "mine", Verdict.IMPORT_ERROR, source="", source_path=f"/x/L1/{name}")
        run = write_run(tmp_path / name, [found], request={**REQUEST, "quick": False})
        board.add(submission(run, name))
    text = site_files(board.entries())["ops/linear.html"]
    assert text.count("No source was kept: the set has no file of its own") == 2
    assert "One file derives" not in text


def test_a_file_of_many_ops_has_a_place_for_each_hardware(entries: list[dict[str, Any]]) -> None:
    beta = next(e for e in entries if e["agent"] == BETA and e["kind"] == "kernels")
    files = site_files([beta, {**beta, "hardware": "NVIDIA B200"}])
    page, op = Page(files["agents/beta.html"]), Page(files["ops/linear.html"])
    places = [place for place in page.ids if place.startswith("shared")]
    assert len(places) == len(set(places)) == 2
    assert {f"../agents/beta.html#{place}" for place in places} <= set(op.links)


def test_kernels_that_were_launched_go_before_those_that_a_source_names(
    files: dict[str, str], entries: list[dict[str, Any]]
) -> None:
    found = {kernels.agent: kernels for kernels in {v.name: v for v in op_views(entries)}["rms_norm"].kernels}
    assert set(found) == {ALPHA, FAR}  # Beta's one file for many ops names none
    assert (found[ALPHA].names, found[ALPHA].is_launched) == (list(LAUNCHED), True)
    assert (found[FAR].names, found[FAR].is_launched) == (["scale (Triton)"], False)
    text = files["ops/rms_norm.html"]
    assert f"{ALPHA}, launched in a call" in text
    assert f"{FAR}, named in the source" in text
    assert "std::array&lt;char*, 2&gt;" in text


def test_an_entry_of_before_launches_were_recorded_still_has_a_page(entries: list[dict[str, Any]]) -> None:
    before = [
        {**e, "ops": [{k: v for k, v in op.items() if k != "launched"} for op in e.get("ops", [])]} for e in entries
    ]
    assert f"{ALPHA}, named in the source" in site_files(before)["ops/rms_norm.html"]


def test_a_set_that_broke_a_model_has_the_scores_of_its_sound_part_beside_its_own(tmp_path: Path) -> None:
    """An entry of before has none, and still has a page."""
    entry = json.loads(json.dumps(entry_of(submission(write_eval_run(tmp_path / "eval"), "Gamma", "fragile"))))
    part = entry["subset_scores"]
    (page,) = (text for name, text in site_files([entry]).items() if name.startswith("agents/"))
    assert f"With the ops at fault left out: {part['deployable']['speedup']:.3f}" in page
    table = page.partition('<table class="macro">')[2].partition("</table>")[0]
    assert table.count("without the ops at fault") == 3
    for of_part in part["macroeval"].values():
        assert f'<td class="number">{of_part["score"]:.3f}</td>' in table
    assert entry_fault(entry) == ""
    assert "subset_scores.deployable" in entry_fault({**entry, "subset_scores": {**part, "deployable": {}}})
    del entry["subset_scores"]
    assert entry_fault(entry) == ""
    (page,) = (text for name, text in site_files([entry]).items() if name.startswith("agents/"))
    assert "ops at fault" not in page


def test_the_best_of_an_op_is_that_of_each_hardware_and_not_let_through_by_force(
    entries: list[dict[str, Any]], files: dict[str, str]
) -> None:
    views = {view.name: view for view in op_views(entries)}
    found = [(entry["agent"], entry["hardware"]) for entry, _ in views["rms_norm"].best]
    assert found == [(ALPHA, "NVIDIA H200"), (FAR, "NVIDIA B200")]
    row = files["index.html"].partition('href="ops/rms_norm.html"')[2].partition("</tr>")[0]
    assert row.index("NVIDIA H200") < row.index("other hardware") < row.index("NVIDIA B200")
    assert views["silu_and_mul"].best[0][1]["speedup"] == pytest.approx(1.002)
    assert (views["embedding"].num_passed, len(views["embedding"].found)) == (1, 2)
    alpha = next(e for e in entries if e["agent"] == ALPHA and e["kind"] == "kernels")
    fast = {**alpha, "marks": ["quick"], "ops": [{**op, "speedup": 9.0} for op in alpha["ops"]]}
    for given, owner in (([fast, alpha], alpha), ([fast], fast)):
        ((entry, _),) = next(v for v in op_views(given) if v.name == "linear").best
        assert entry is owner


def test_ops_that_win_and_lose_are_counted_and_an_entry_of_before_has_no_such_count(
    entries: list[dict[str, Any]], files: dict[str, str]
) -> None:
    counts = re.compile(r'data-label="Won, tied, lost, mixed">([^<]*)')
    assert counts.findall(files["agents/beta.html"]) == ["0, 2, 1, 1", "0, 1, 1, 1", "0, 1, 0, 0"]
    beta = next(e for e in entries if e["agent"] == BETA and e["kind"] == "kernels")
    scores = {scope: {k: v for k, v in s.items() if k != "num_mixed"} for scope, s in beta["scores"].items()}
    assert counts.findall(site_files([{**beta, "scores": scores}])["agents/beta.html"])[0] == "0, 2, 1, \u2013"


def test_a_source_that_an_entry_has_the_beginning_of_is_said_to_be_cut(tmp_path: Path) -> None:
    """And what the baseline has after it is not shown as removed."""
    long = "".join(f"x{n} = {n}\n" for n in range(MOST_SOURCE_LINES + 9))
    found = [
        timed_record(
            "linear", "mine", source=long, baseline_source=long.splitlines()[MOST_SOURCE_LINES - 1] + "\nlast\n"
        ),
        timed_record("rms_norm", "mine", baseline_source=long),
        timed_record("embedding", "mine", source=long + "\n", source_path="/mine/adapt.py"),
    ]
    board = Board(tmp_path / "board")
    board.add(submission(write_run(tmp_path / "run", found, request={**REQUEST, "quick": False}), "Mine"))
    files = site_files(board.entries())
    cut = {name: re.findall(r'class="note cut">([^.]*\.?[a-z]*: [^.]*)', text) for name, text in files.items()}
    said = f"the first {MOST_SOURCE_LINES} of {MOST_SOURCE_LINES + 9} lines"
    assert {name: notes for name, notes in cut.items() if notes} == {
        "ops/linear.html": [f"L1/linear.py: {said}"],
        "ops/rms_norm.html": [f"Baseline: {said}"],
        "agents/mine.html": [f"adapt.py: {said.replace('09', '10')}"],
    }
    assert '"l">last' not in files["ops/linear.html"]


def test_the_methods_page_explains_every_column(files: dict[str, str]) -> None:
    text = files["methods.html"]
    for metric in (*EVAL_METRICS, *KERNELS_METRICS):
        assert metric.title in text
        assert metric.about in text
    for words in ("Deployable", "fast₁", "Score λ ½", "never called", "Wilson", "H100", "not told apart"):
        assert words in text


def test_an_empty_board_still_has_a_site() -> None:
    files = site_files([])
    assert "The board has no entry yet" in files["index.html"]
    assert set(files) == {"index.html", "methods.html", "site.css", "site.js"}
