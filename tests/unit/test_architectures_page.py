"""scripts/architectures_page.py: what the files of a GPU run become in the table."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastkernels.registry import ARCHITECTURES, Architecture, ops_of_architecture

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("architectures_page", ROOT / "scripts" / "architectures_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def page(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script over an empty folder of results."""
    monkeypatch.setattr(script, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    (tmp_path / "results" / "h200").mkdir(parents=True)
    return script


def write(page: Any, name: str, record: dict[str, Any]) -> None:
    (page.RESULTS / "h200" / f"{name}.json").write_text(json.dumps(record))


def line(page: Any, name: str) -> list[str]:
    """The cells of an architecture's line in the first table."""
    page.main()
    first_table = page.PAGE.read_text().partition("\n## Ops by level")[0]
    [found] = [one for one in first_table.splitlines() if f"(`{name}`)" in one and one.count("|") == 8]
    return [cell.strip() for cell in found.strip("|").split("|")]


def measured(load: str, batch: int, **ratios: float) -> dict[str, Any]:
    kept = {name: {"ratio": r, "low": r - 0.01, "high": r + 0.01} for name, r in ratios.items()}
    return {"load": load, "batch": batch, "is_whole": False, "ratios": kept}


def record(*batches: dict[str, Any], **changes: Any) -> dict[str, Any]:
    layers = {"measured": 40, "published": 40}
    facts = {"schema_version": 2, "status": "finished", "library": "transformers 5.17.0", "layers": layers, "note": ""}
    return {**facts, "batches": list(batches), **changes}


def test_without_a_file_there_is_no_ratio(page: Any) -> None:
    cells = line(page, "dinov3")
    assert cells[4:] == ["", "0.99", ""]


def test_a_ratio_is_to_the_faster_of_the_librarys_modes(page: Any) -> None:
    slow = measured("default", 1, library=2.0, library_compiled=1.104)
    fast = measured("default", 32, library=1.3, library_compiled=0.95)
    none = {"load": "high-res", "batch": 8, "is_whole": False, "error": "OutOfMemoryError: CUDA out of memory."}
    write(page, "dinov3", record(slow, fast, measured("high-res", 1, library=1.2), none))
    cells = line(page, "dinov3")
    assert cells[4:] == [
        *("0.95 to 1.20", "0.99"),
        "transformers 5.17.0, its faster mode: default of 1 and 32, high-res of 1; 1.20 to 2.00 of it as it is",
    ]


def test_fewer_layers_and_what_was_measured_are_said(page: Any) -> None:
    one = measured("first token", 8, library=1.5)
    write(page, "mixtral", record(one, layers={"measured": 8, "published": 32}, note="experts grouped_mm"))
    against = "transformers 5.17.0, its faster mode: first token of 8; 8 of 32 layers; experts grouped_mm"
    assert line(page, "mixtral")[4:] == ["1.50", "0.97", against]


def test_vllm_goes_before_the_library(page: Any) -> None:
    write(page, "mixtral", record(measured("first token", 8, library=1.5)))
    scenarios = {"single": {"ratio": 1.25}, "batch32": {"ratio": 0.9}, "balanced": {"repeats": []}}
    engines = {"ours": {"version": "1"}, "vllm": {"version": "0.26.0"}}
    served = {"model": "mixtral-8x7b-v0.1", "layers": 8, "note": "", "scenarios": scenarios, "engines": engines}
    write(page, "mixtral_vs_vllm", served)
    assert line(page, "mixtral")[4:] == ["0.90 to 1.25", "0.97", "vLLM 0.26.0, two scenarios; 8 of 32 layers"]


def test_what_failed_says_why(page: Any) -> None:
    write(page, "sdxl", {"architecture": "sdxl", "status": "failed", "error": "EnvironmentProblem: needs diffusers"})
    assert line(page, "sdxl")[4:] == ["", "1.17", "not measured: EnvironmentProblem: needs diffusers"]


def test_llamas_committed_run_is_read(monkeypatch: pytest.MonkeyPatch, page: Any) -> None:
    monkeypatch.setattr(page, "RESULTS", ROOT / "benchmarks" / "results")
    ratio, against = line(page, "llama")[4], line(page, "llama")[6]
    assert float(ratio.split(" to ")[0]) > 0.5
    assert against == "vLLM 0.26.0, six scenarios"


def test_a_first_look_is_a_table_of_its_own_until_there_is_a_whole_measurement(page: Any) -> None:
    page.main()
    assert "First look" not in page.PAGE.read_text()
    (page.RESULTS / "h200" / "first_look").mkdir()
    one = {**measured("default", 32, library=1.3, library_sparse=1.2), "ms": {"ours": 2.0, "library_sparse": 2.4}}
    write(page, "first_look/dinov3", record(one, {"load": "high-res", "batch": 8, "error": "OutOfMemoryError"}))
    page.main()
    text = page.PAGE.read_text()
    assert text.count("| default | 32 | 2.00 | 2.40 | sparse | 1.20 (1.19 to 1.21) |  |\n") == 1
    assert "high-res" not in text
    (page.RESULTS / "h200" / "first_look" / "compiled").mkdir()
    two = {**measured("default", 1, library_compiled=1.1), "ms": {"ours": 2.0, "library_compiled": 2.2}}
    write(page, "first_look/compiled/dinov3", record(two) | {"layers": {"measured": 4, "published": 40}})
    page.main()
    assert "| default | 1 | 2.00 | 2.20 | compiled | 1.10 (1.09 to 1.11) | 4 of 40 |\n" in page.PAGE.read_text()
    write(page, "dinov3", record(measured("default", 32, library=1.3)))
    page.main()
    assert "First look" not in page.PAGE.read_text()


def files_of(architecture: Architecture) -> set[str]:
    return {entry.file_name.removesuffix(".py") for entry in ops_of_architecture(architecture.name)}


def test_the_committed_page_is_the_one_that_is_written(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RESULTS", ROOT / "benchmarks" / "results")
    page.main()
    written, committed = page.PAGE.read_text(), (ROOT / "docs" / "architectures.md").read_text()
    assert written == committed, "Run `python scripts/architectures_page.py`."


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_a_count_unlike_the_published_one_is_explained_by_ops_that_are_there(
    script: Any, architecture: Architecture
) -> None:
    ours, published = script.files_at_published_size(architecture.name), architecture.published["tasks"]
    assert sum(ours.values()) > 0
    assert set(architecture.count_notes) == {level for level in ours if ours[level] != published[level]}
    entries = ops_of_architecture(architecture.name)
    known = {e.name for e in entries} | {e.stem for e in entries}
    for level, note in architecture.count_notes.items():
        named = set(re.findall(r"`(\w+)`", note)) - {
            file.partition("/")[2] for file in architecture.stand_ins if file.startswith(level)
        }
        assert named, f"The note on {level} names no op."
        assert named <= known, f"The note on {level} names what {architecture.name} does not have."


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_a_published_file_is_here_or_has_something_in_its_place(architecture: Architecture) -> None:
    files = architecture.published.get("files", {"names": [], "source": "none"})
    assert set(architecture.stand_ins) == set(files["names"]) - files_of(architecture)
    assert files["source"]
    ops = {entry.name for entry in ops_of_architecture(architecture.name)}
    for file, what in architecture.stand_ins.items():
        named = re.findall(r"`(\w+)`", what)
        assert set(named) <= ops, f"In the place of {file} stands what {architecture.name} does not have."
        assert named or what.startswith("nothing: "), f"Why nothing stands in the place of {file} is not said."


def test_every_architecture_says_what_is_not_supported(page: Any) -> None:
    page.main()
    last = page.PAGE.read_text().partition("## What is not supported")[2]
    assert [a.name for a in ARCHITECTURES if f"(`{a.name}`): " not in last] == []
