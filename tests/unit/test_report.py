"""report.html: every figure is the JSON's, no text breaks out of its place, and every run renders."""

from __future__ import annotations

import errno
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from report_runs import HOSTILE, NULLS, item, records, timing, write_run
from report_runs import case as make_case
from report_runs import record as make_record

from fastkernels.bench.eval.records import EVAL_SCHEMA_VERSION
from fastkernels.errors import RunFolderError
from fastkernels.harness.verdict import Verdict
from fastkernels.report import publish as publishing
from fastkernels.report.axes import TIME_LADDERS, log_axis
from fastkernels.report.eval_figures import speedups
from fastkernels.report.eval_view import item_views
from fastkernels.report.figures import MAX_POINTS, forest
from fastkernels.report.html import render
from fastkernels.report.load import find_run, load_results
from fastkernels.report.publish import publish
from fastkernels.report.sources import MAX_LINES, side_by_side
from fastkernels.report.view import command, headline, samples_us, view_of


class Page(HTMLParser):
    """The elements that a test asks for: tags, ids, the cells of each table row, the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.rows: list[list[dict[str, Any]]] = []
        self.text: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag == "script":
            self._in_script = True
            self.scripts.append((values, ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append({**values, "text": ""})

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
            return
        self.text.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1]["text"] += data

    def labelled(self, label: str) -> list[float]:
        return [
            float(c["data-value"]) for row in self.rows for c in row if c.get("data-label") == label and c["data-value"]
        ]

    def attributes(self, name: str) -> list[str]:
        return [value for _, values in self.tags if (value := values.get(name)) is not None]

    def data(self, name: str) -> Any:
        return next(json.loads(text) for values, text in self.scripts if values.get("id") == name)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return load_results(write_run(tmp_path_factory.mktemp("runs") / "full"))


@pytest.fixture(scope="module")
def page(results: dict[str, Any]) -> Page:
    return Page(render(results))


def counted(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [t for r in results["ops"] if r["verdict"] == Verdict.PASSED for t in r["timings"]]


@pytest.mark.parametrize(
    ("label", "field"),
    [
        ("Speedup", "ratio"),
        ("Cold µs", "candidate_us"),
        ("Warm µs", "warm_candidate_us"),
        ("Graph µs", "graph_candidate_us"),
        ("Roofline", "candidate_roofline_share"),
    ],
)
def test_the_verdict_table_holds_the_figures_of_the_json(
    page: Page, results: dict[str, Any], label: str, field: str
) -> None:
    assert page.labelled(label) == [t[field] for t in counted(results)]
    assert len(counted(results)) == 6


def test_the_shown_digits_are_the_figures(page: Page, results: dict[str, Any]) -> None:
    shown = [c["text"] for row in page.rows for c in row if c.get("data-label") == "Speedup"]
    for text, t in zip(shown, counted(results), strict=True):
        assert [float(number) for number in re.findall(r"\d+\.\d{3}", text)] == [
            round(t[name], 3) for name in ("ratio", "low", "high")
        ]


def test_the_memory_of_a_worker_is_said_to_be_the_hosts(page: Page, results: dict[str, Any]) -> None:
    texts = [text for text in page.text if text.strip()]
    told = [figure for name, figure in itertools.pairwise(texts) if name == "Peak memory of the host"]
    assert told == ["3 GiB"] * len(results["ops"])


def test_a_time_of_an_op_that_did_not_pass_is_in_no_count_and_no_plot(page: Page, results: dict[str, Any]) -> None:
    cheat = next(r for r in results["ops"] if r["verdict"] == Verdict.CHEATING)
    assert cheat["timings"][0]["ratio"] == 9.0
    assert 9.0 not in page.labelled("Speedup")
    drawn = [x for trace in page.data("plots")["forest"]["data"] for x in trace["x"]]
    assert sorted(drawn) == sorted(t["ratio"] for t in counted(results))


def test_the_forest_draws_each_interval_and_its_own_noise_floor(page: Page, results: dict[str, Any]) -> None:
    plot = page.data("plots")["forest"]
    drawn = {}
    for trace in plot["data"]:
        for x, more, less in zip(trace["x"], trace["error_x"]["array"], trace["error_x"]["arrayminus"], strict=True):
            drawn[x] = (pytest.approx(x - less, rel=1e-4), pytest.approx(x + more, rel=1e-4))
    assert drawn == {t["ratio"]: (t["low"], t["high"]) for t in counted(results)}
    bands = [s for s in plot["layout"]["shapes"] if s["type"] == "rect"]
    assert [(b["x0"], b["x1"]) for b in bands] == [(pytest.approx(1 / 1.02), pytest.approx(1.02))] * len(drawn)


def test_plots_of_many_rows_add_no_shape_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotly copies all that are there each time: a minute for 400 rows."""
    added: list[dict[str, Any]] = []
    add_shape = go.Figure.add_shape
    monkeypatch.setattr(go.Figure, "add_shape", lambda self, **given: added.append(given) or add_shape(self, **given))
    many = make_record("linear", "fast", timings=[timing(1.2, f"x[{n}, 7]") for n in range(20)]).to_json()
    plot = forest(view_of({"ops": [many]}))
    items = [item(f"tiny-{n}", "language", "fast", 1.2).to_json() for n in range(20)]
    evals = speedups(item_views({"kind": "eval", "eval_schema_version": EVAL_SCHEMA_VERSION, "items": items}))
    for drawn in (plot, evals):
        assert drawn is not None
        assert [s["type"] for s in drawn["layout"]["shapes"]] == ["rect"] * 20 + ["line"]
    assert len(added) <= 2  # the lines at 1.0


def test_latency_quartiles_are_of_every_cold_sample_on_the_deciding_clock() -> None:
    t = timing(1.5)
    values = samples_us(t.__dict__ | {"samples": [s.__dict__ for s in t.samples]}, "candidate")
    assert len(values) == 2 * 4 * 4  # restarts, blocks without the warm-up, calls
    assert max(values) < 60  # the claim clock is 9 us later, the warm visit far earlier
    assert min(values) > 20


def test_hostile_text_stays_text(page: Page, results: dict[str, Any]) -> None:
    assert sum(text.count("window.owned") for _, text in page.scripts) == 0
    assert not any(values.get("onerror") for _, values in page.tags)
    assert {tag for tag, _ in page.tags}.isdisjoint({"img", "iframe", "object", "embed"})
    assert "".join(page.text).count(HOSTILE) >= 4  # message twice, its first line, the witness; in the source as well
    assert "{{ 7 * 7 }}" in "".join(page.text)
    assert any("<b>odd</b>" in c["text"] for row in page.rows for c in row)


def test_only_own_scripts_may_run_and_nothing_may_be_fetched(page: Page) -> None:
    policy = next(v["content"] for tag, v in page.tags if tag == "meta" and v.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "http" not in policy
    assert not page.attributes("src")
    assert all(link.startswith(("#", "data:")) for link in page.attributes("href"))
    assert all(values.get("type") == "application/json" or not values for values, _ in page.scripts)


def test_every_link_leads_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in page.attributes("href") if link.startswith("#")} <= set(ids)
    assert "rms_norm-fast" in ids


def test_sets_whose_links_collide_keep_apart() -> None:
    ops = [make_record("linear", name).to_json() for name in ("a/b", "a b", "a?b")]
    anchors = [anchor for anchor, _ in view_of({"ops": ops}).anchors]
    assert anchors == ["linear-a_b", "linear-a_b-2", "linear-a_b-3"]


def test_the_null_matrix_shows_the_worst_outcome(page: Page) -> None:
    rows = {row[0]["text"]: row for row in page.rows if len(row) == 2 + len(NULLS) and row[1]["text"] == "bfloat16"}
    assert rows["greedy_sample"][2]["class"] == "passed"
    assert rows["greedy_sample"][3]["class"] == "not-applicable"
    assert rows["rms_norm"][2]["text"].strip().endswith("rejected")


def test_each_failed_op_has_its_sentence_and_the_first_line_folded(page: Page) -> None:
    text = " ".join("".join(page.text).split())
    for verdict in (Verdict.CHEATING, Verdict.IMPORT_ERROR, Verdict.INCORRECT_NUMERICAL, Verdict.UNTESTABLE):
        assert text.count(verdict.sentence) >= 3  # table, outcomes, kernel


def test_environment_ceilings_telemetry_and_hashes_are_shown(page: Page) -> None:
    text = " ".join("".join(page.text).split())
    for part in ("NVIDIA H200", "4100 GB/s", "720 TFLOP/s", "power cap, thermal slowdown (software)", "ab" * 32):
        assert part in text
    assert "fastkernels kernels --target rms_norm --target linear --candidates 'my set' --device cuda --quick" in text


def test_a_report_of_this_size_stays_under_six_megabytes(results: dict[str, Any]) -> None:
    assert len(render(results).encode()) < 6e6


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_that_judged_nothing_renders(tmp_path: Path, is_finished: bool) -> None:
    page = Page(render(load_results(write_run(tmp_path / "run", [], is_finished=is_finished))))
    text = " ".join("".join(page.text).split())
    assert "Nothing had been judged" in text
    assert ("This run was not finished" in text) is not is_finished
    assert page.data("plots") == {}


def test_a_run_without_timings_renders_without_speed_plots(tmp_path: Path) -> None:
    page = Page(render(load_results(write_run(tmp_path / "run", [make_record("linear", "slow")], gpu=None))))
    assert set(page.data("plots")) == {"errors"}
    assert "not timed" in "".join(page.text)


def test_figures_that_are_not_finite_still_make_a_page(tmp_path: Path) -> None:
    odd = timing(1.2, high=math.inf, candidate_roofline_share=0.0, graph_candidate_us=None, warm_candidate_us=None)
    broken = make_record("linear", "odd", timings=[odd])
    broken.cases[0].error["row"] = math.nan
    page = Page(render(load_results(write_run(tmp_path / "run", [broken]))))
    text = next(t for values, t in page.scripts if values.get("id") == "plots")
    assert "NaN" not in text
    assert "Infinity" not in text


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (66, 74, ["65", "70", "75"]),
        (109, 139, ["110", "120", "130", "140"]),
        (0.66, 0.74, ["0.65", "0.7", "0.75"]),
        (41.5, 46, ["40", "42", "44", "46", "48"]),
        (2e-4, 2e-4, ["0.00019", "0.0002", "0.00021"]),
        (20, 180, ["20", "30", "40", "50", "60", "80", "100", "150"]),
        (0.02, 900, ["0.1", "1", "10", "100"]),
    ],
)
def test_an_axis_of_times_has_numbers(low: float, high: float, texts: list[str]) -> None:
    assert log_axis([low, high], TIME_LADDERS)["ticktext"] == texts


def test_samples_of_zero_still_make_a_page(tmp_path: Path) -> None:
    still = timing(1.2)
    for sample in still.samples:
        sample.device_ns = [0] * len(sample.device_ns)
    page = Page(render(load_results(write_run(tmp_path / "run", [make_record("linear", "still", timings=[still])]))))
    assert "tickvals" not in page.data("plots")["latency"]["layout"]["xaxis"]


def test_many_samples_are_thinned_for_drawing_only(tmp_path: Path) -> None:
    many = make_record("linear", "much", timings=[timing(1.2, f"x[{n}, 7]") for n in range(40)])
    for t in many.timings:
        t.samples = t.samples * 20
    run = write_run(tmp_path / "run", [many])
    before = (run / "results.json").read_bytes()
    latency = Page(render(load_results(run))).data("plots")["latency"]
    drawn = sum(len(trace["x"]) for trace in latency["data"] if trace["type"] == "scatter")
    assert 1000 < drawn <= MAX_POINTS
    assert (run / "results.json").read_bytes() == before


def test_side_by_side_lines_match_and_are_escaped() -> None:
    lines = side_by_side("a = 1\nb = 2\nc = 3\n", "a = 1\nb = '<b>'\nc = 3\nd = 4\n")
    assert [line.kind for line in lines] == ["same", "changed", "same", "added"]
    assert (lines[3].left_number, lines[3].right_number) == (None, 4)
    assert "&lt;b&gt;" in lines[1].right
    assert "<b>" not in lines[1].right


@pytest.mark.parametrize("values", list(itertools.permutations((0.5, math.nan, 0.25))), ids=str)
def test_an_error_that_is_no_number_is_the_worst_wherever_it_stands(tmp_path: Path, values: tuple[float, ...]) -> None:
    judged = make_record("linear", "odd", cases=[make_case() for _ in values])
    for one, value in zip(judged.cases, values, strict=True):
        one.error["max_abs"] = value
    page = Page(render(load_results(write_run(tmp_path / "run", [judged]))))
    assert page.labelled("Max error") == [math.inf]
    shown = [c["text"].split()[0] for row in page.rows for c in row if c.get("data-value") == "Infinity"]
    assert shown == ["inf", "inf"]  # of the op, and of its input family


def test_a_source_too_long_to_be_shown_is_said_to_be_cut(tmp_path: Path) -> None:
    """And what the baseline has after its beginning is not shown as removed."""
    long = "".join(f"x{n} = {n}\n" for n in range(MAX_LINES + 7))
    judged = make_record("linear", "long", source=long, baseline_source="x0 = 0\nlast = 1\n")
    page = Page(render(load_results(write_run(tmp_path / "run", [judged, make_record("rms_norm", "short")]))))
    assert f"long: the first {MAX_LINES} of {MAX_LINES + 7} lines" in "".join(page.text)
    assert sum(values.get("class") == "note cut" for _, values in page.tags) == 1
    kinds = [line.kind for line in side_by_side("a = 1\nb = 2\nlast = 3\n", "a = 1\n", is_right_cut=True)]
    assert kinds == ["same"]


@pytest.mark.parametrize(
    "source", ["", "\n\n\n", "'''open\nstring", "\t\x00\x07\r\nx = 1\x0cy", "not python ((((", "é\u2028z"]
)
def test_any_text_becomes_as_many_lines(source: str) -> None:
    lines = side_by_side(source, "x = 1")
    assert [line.left_number for line in lines if line.left_number] == list(range(1, len(source.splitlines()) + 1))


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("one\ntwo", "one"),
        (
            "Traceback (most recent call last):\n  File 'x', line 1\nImportError: no such thing\n",
            "ImportError: no such thing",
        ),
        ("linear.py does not import:\nTraceback (most recent call last):\n  ...\nKeyError: 1", "KeyError: 1"),
    ],
)
def test_the_headline_of_a_message_is_what_says_most(message: str, line: str) -> None:
    assert headline(message) == line


def test_the_command_is_quoted_for_a_shell() -> None:
    request = {"target": ["a", "b"], "cases": "/tmp/it's here", "check_only": True, "level": None, "quick": False}
    assert command({"kind": "kernels", "request": request}) == (
        "fastkernels kernels --target a --target b --cases '/tmp/it'\"'\"'s here' --check-only"
    )


def test_publish_writes_the_report_and_returns_its_path(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records()[:1])
    path = publish(run, is_tracked=False)
    assert path == run / "report.html"
    assert "rms_norm" in path.read_text()
    assert not list(run.glob(".*"))


def test_without_mlflow_one_warning_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "is_mlflow_installed", lambda: False)
    path = publish(write_run(tmp_path / "run", records()[:1]))
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "pip install 'fastkernels[track]'" in warning
    assert path.exists()


def test_a_run_that_no_page_can_show_is_a_warning_and_goes_on_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(publishing, "is_mlflow_installed", lambda: False)
    run = write_run(tmp_path / "run", [make_record("linear", "odd", timings=[timing(1.2, speed="MAYBE")])])
    path = publish(run)
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"warning: {path} could not be made (KeyError: 'MAYBE'). The run itself is kept in {run}."
    assert "MLflow is not installed" in second
    assert not path.exists()


def test_a_full_disk_is_a_warning_and_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", records()[:1])
    (run / "report.html").write_text("old")

    def full(path: Path, *args: object, **kwargs: object) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    publish(run, is_tracked=False)
    monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "old"
    assert not list(run.glob(".*"))


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _without(name: str) -> Any:
    def change(text: str) -> str:
        data = json.loads(text)
        del data["ops"][0][name]
        return json.dumps(data)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cut, "cut off or altered"),
        (lambda text: text.replace('"schema_version": 2', '"schema_version": 99'), "schema version 99"),
        (lambda text: "[]", "does not hold a JSON object"),
        (lambda text: '{"schema_version": 2}', "lacks run_id, kind"),
        (_without("verdict"), r"ops\[0\] lacks verdict"),
        (lambda text: text.replace('"num_pairs"', '"pairs"'), r"timings\[0\] lacks num_pairs"),
        (lambda text: text.replace('"ratio": 1.62', '"ratio": "x"'), r"timings\[0\]\.ratio is 'x', not a number"),
        (lambda text: text.replace('"ratio": 1.62', '"ratio": 0.0'), r"ratio is 0\.0, not a finite number over 0"),
        (lambda text: text.replace('"speed": "WIN"', '"speed": "MAYBE"'), "speed is 'MAYBE', not one of WIN, LOSS"),
        (
            lambda text: text.replace('"outcome": "rejected"', '"outcome": "so"'),
            r"nulls\[0\]\.outcome is 'so', not one",
        ),
        (lambda text: text.replace('"torch": ', '"tensors": '), r"environment\.packages lacks torch"),
        (lambda text: text.replace('"num_sms": 132', '"num_sms": null'), r"gpu\.num_sms is None, not a whole number"),
    ],
)
def test_damaged_results_are_one_clear_error(tmp_path: Path, change: Any, message: str) -> None:
    run = write_run(tmp_path / "run", records()[:1])
    results = run / "results.json"
    results.write_text(change(results.read_text()))
    with pytest.raises(RunFolderError, match=message):
        load_results(run)


def test_a_run_is_found_by_path_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKERNELS_HOME", str(tmp_path))
    run = write_run(tmp_path / "20260101-kernels", [])
    assert find_run(run) == find_run(Path("20260101-kernels")) == run
    with pytest.raises(RunFolderError, match="no run folder nowhere"):
        find_run(Path("nowhere"))
    with pytest.raises(RunFolderError, match="is a file"):
        find_run(run / "run.json")
