"""scripts/architectures_page.py: what the files of a GPU run become in the table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script over an empty folder of results."""
    spec = importlib.util.spec_from_file_location("architectures_page", ROOT / "scripts" / "architectures_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    (tmp_path / "results" / "h200").mkdir(parents=True)
    return module


def write(page: Any, name: str, record: dict[str, Any]) -> None:
    (page.RESULTS / "h200" / f"{name}.json").write_text(json.dumps(record))


def line(page: Any, name: str) -> list[str]:
    """The cells of an architecture's line in the first table."""
    page.main()
    [found] = [one for one in page.PAGE.read_text().splitlines() if f"(`{name}`)" in one and one.count("|") == 8]
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
        "transformers 5.17.0, its faster mode: default of 1 and 32, high-res of 1",
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
