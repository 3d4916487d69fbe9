"""benchmarks/architectures.py on a CPU: every registered architecture at its test size, and how runs end."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastkernels.engine.model_source import find_model
from fastkernels.errors import EnvironmentProblem
from fastkernels.oracles import measure, our_side
from fastkernels.oracles.oracle import Oracle, oracle_of
from fastkernels.registry import ARCHITECTURES, Architecture, architecture

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "architectures.py"
FIELDS = {
    *("schema_version", "architecture", "status", "dtype", "published", "environment", "batches", "seconds"),
    *("library", "provenance", "layers", "sizes", "num_parameters", "note"),
}


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem + "_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> Any:
    return load(SCRIPT)


def arguments(script: Any, out: Path, *words: str) -> argparse.Namespace:
    common = ["--tiny", "--device", "cpu", "--batch", "2", "--rounds", "3", "--round-seconds", "0"]
    compiled = () if "--compile" in words else ("--compile", "none")
    return script._arguments([out.stem, "--out", str(out), *common, *compiled, *words])


def oracle_or_skip(entry: Architecture) -> Oracle:
    try:
        return oracle_of(entry)
    except EnvironmentProblem as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("entry", ARCHITECTURES, ids=lambda a: a.name)
def test_the_record_is_whole_and_close_to_the_oracle(entry: Architecture, script: Any, tmp_path: Path) -> None:
    oracle = oracle_or_skip(entry)
    out = tmp_path / f"{entry.name}.json"
    script.measure(entry, arguments(script, out))
    record = json.loads(out.read_text())
    assert record["status"] == script.FINISHED, record.get("error")
    assert set(record) == FIELDS
    assert [one["load"] for one in record["batches"]] == [load.name for load in oracle.loads]
    for one in record["batches"]:
        assert one["parity"]["against"] == "library in float32"
        compared = {name: p["ours"] for name, p in one["parity"].items() if isinstance(p, dict)}
        assert compared
        for name, given in compared.items():
            assert given.get("relative_max", 0.0) <= oracle.tolerance, name
            assert given.get("share_equal", 1.0) == 1.0, name
        assert {"ours", "library"} <= set(one["ms"])
        assert set(one["ratios"]) == set(one["ms"]) - {"ours"}
        for ratio in one["ratios"].values():
            assert 0 < ratio["low"] <= ratio["ratio"] <= ratio["high"]
        assert all(len(times) == 3 and min(times) > 0 for times in one["samples_ms"].values())


@pytest.mark.parametrize("entry", ARCHITECTURES, ids=lambda a: a.name)
def test_published_sizes_are_the_presets_and_loads_of_every_number_can_be_made(entry: Architecture) -> None:
    oracle = oracle_or_skip(entry)
    sizes = oracle.published(None)
    config = find_model(oracle.preset).hf_config
    key = oracle.layers_key
    assert sizes.get(key) == config.get(key)
    fewer = oracle.num_layers(sizes)
    if fewer is not None and fewer > 1:
        assert oracle.num_layers(oracle.published(fewer // 2)) == fewer // 2
    tiny = next(iter(oracle.tiny().values()))
    for one in oracle.loads:
        assert len(oracle.load(tiny, 3, one.name)) == 3
        assert one.batches


def test_every_architecture_has_its_turn(script: Any) -> None:
    assert sorted(script.order()) == sorted(a.name for a in ARCHITECTURES)
    assert set(script.FIRST + script.LAST) <= {a.name for a in ARCHITECTURES}


def test_what_is_compiled_has_a_ratio_too(script: Any, tmp_path: Path) -> None:
    out = tmp_path / "lightgcn.json"
    script.measure(architecture("lightgcn"), arguments(script, out, "--compile", "default"))
    [one] = json.loads(out.read_text())["batches"]
    assert set(one["ratios"]) == {"library", "library_compiled", "library_sparse"}
    assert one["modes"]["library_compiled"]["first_calls_s"] > 0


def test_a_way_that_fails_or_takes_too_long_is_a_record_of_it(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = oracle_or_skip(architecture("lightgcn"))

    def endless(model: Any, mode: str) -> Any:
        time.sleep(60)

    def broken(model: Any) -> Any:
        raise RuntimeError("no kernel\nand much more")

    monkeypatch.setattr(oracle, "compiled", endless)
    monkeypatch.setattr(oracle, "_sparse", broken)
    out = tmp_path / "lightgcn.json"
    words = ("--compile", "default", "--compile-seconds", "0.2")
    script.measure(architecture("lightgcn"), arguments(script, out, *words))
    record = json.loads(out.read_text())
    assert record["status"] == script.FINISHED
    modes = record["batches"][0]["modes"]
    assert modes["library_compiled"] == {"error": "NotReady: not ready after 0 s"}
    assert modes["library_sparse"] == {"error": "RuntimeError: no kernel"}
    assert set(record["batches"][0]["ratios"]) == {"library"}


def test_what_was_compiled_is_not_forgotten_before_it_is_measured(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = oracle_or_skip(architecture("lightgcn"))
    happened: list[str] = []

    def broken(model: Any) -> Any:
        raise RuntimeError("no kernel")

    def compiled(model: Any, mode: str) -> Any:
        happened.append("compiled")
        return model

    monkeypatch.setattr(oracle, "_sparse", broken)
    monkeypatch.setattr(oracle, "compiled", compiled)
    monkeypatch.setattr(measure, "stop_compiling", lambda: happened.append("forgotten"))
    out = tmp_path / "lightgcn.json"
    script.measure(architecture("lightgcn"), arguments(script, out, "--compile", "default"))
    assert happened == ["forgotten", "compiled"]
    [one] = json.loads(out.read_text())["batches"]
    assert set(one["ratios"]) == {"library", "library_compiled"}


def test_a_load_that_does_not_fit_leaves_the_others(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = oracle_or_skip(architecture("dinov3"))
    make = oracle.load

    def too_large(sizes: Any, num: int, name: str) -> Any:
        if name == "default":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much.")
        return make(sizes, num, name)

    monkeypatch.setattr(oracle, "load", too_large)
    out = tmp_path / "dinov3.json"
    script.measure(architecture("dinov3"), arguments(script, out))
    record = json.loads(out.read_text())
    assert record["status"] == script.FINISHED
    assert record["batches"][0] == {
        **{"load": "default", "batch": 2, "is_whole": False},
        "error": "OutOfMemoryError: CUDA out of memory.",
    }
    assert "ratios" in record["batches"][1]


def test_the_deadline_leaves_a_whole_record(script: Any, tmp_path: Path) -> None:
    out = tmp_path / "dinov3.json"
    script.measure(architecture("dinov3"), arguments(script, out, "--deadline", "0"))
    record = json.loads(out.read_text())
    assert (record["status"], record["batches"]) == (script.CUT_SHORT, [])


def test_a_replayed_graph_keeps_the_inputs_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else their memory is given to others: token ids became out of range."""
    nothing = SimpleNamespace(wait_stream=lambda other: None, replay=lambda: None)
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *of: nothing)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda given, **options: nullcontext())
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr("fastkernels.engine.runners.replay.renew_cublas_workspaces", lambda: None)
    batch = {"x": torch.ones(3)}
    kept = weakref.ref(batch["x"])
    replay = our_side._replayed(lambda given: {"y": given["x"] * 2}, batch, torch.device("cuda"))
    del batch
    gc.collect()
    assert kept() is not None
    assert replay()["y"].tolist() == [2, 2, 2]


CHILD = """
import json, os, sys, time
name, out = sys.argv[1], sys.argv[sys.argv.index("--out") + 1]
print("the child's last words")
if name == "dlrmv2":
    os.abort()
if name == "yolov10":
    json.dump({"architecture": name, "status": "running", "batches": [{"load": "x", "batch": 1, "error": "none"}]},
              open(out, "w"))
    time.sleep(600)
json.dump({"architecture": name, "status": "finished", "batches": [], "words": sys.argv[1:]}, open(out, "w"))
"""


@pytest.fixture
def children(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of --all: processes that end well, crash, or never end."""
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    monkeypatch.setattr(script, "__file__", str(child))
    monkeypatch.setattr(script, "_GRACE", 0.5)
    monkeypatch.setattr(script, "_LEAST_SECONDS", 0.1)
    return (yield tmp_path / "out")


def test_one_that_crashes_or_hangs_does_not_end_the_others(
    script: Any, children: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--all", "--out-dir", str(children), "--only", "dlrmv2", "yolov10", "pi0", "--most-seconds", "2"]
    script.main(words)
    records = {path.stem: json.loads(path.read_text()) for path in children.glob("*.json")}
    assert {name: record["status"] for name, record in records.items()} == {
        **{"dlrmv2": script.FAILED, "yolov10": script.FAILED, "pi0": script.FINISHED}
    }
    assert "its process ended with -6" in records["dlrmv2"]["error"]
    assert records["yolov10"]["error"].startswith("ended after 2 s")
    assert records["yolov10"]["batches"]
    assert "the child's last words" in (children / "dlrmv2.log").read_text()
    assert "dlrmv2                 failed: its process ended with -6" in capsys.readouterr().out
    done = (children / "pi0.json").stat().st_mtime_ns
    script.main([*words, "--skip-done"])
    assert (children / "pi0.json").stat().st_mtime_ns == done


def test_all_hands_on_what_is_asked_of_each(script: Any, children: Path) -> None:
    words = ["--loads", "high-res", "other", "--batch", "1", "8", "--rounds", "3", "--dtype", "float32", "--tiny"]
    script.main(["--all", "--out-dir", str(children), "--only", "pi0", *words])
    told = json.loads((children / "pi0.json").read_text())["words"]
    for asked in (words[:3], words[3:6], words[6:8], words[8:10], words[10:]):
        start = told.index(asked[0])
        assert told[start : start + len(asked)] == asked


def test_an_earlier_file_stays_until_as_much_is_measured_anew(
    script: Any, children: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    children.mkdir()
    out = children / "dlrmv2.json"
    one = {"load": "x", "batch": 1, "ms": {"ours": 1.0, "library": 2.0}, "parity": {}}
    one["ratios"] = {"library": {"ratio": 2.0, "low": 1.9, "high": 2.1}}
    earlier = {"architecture": "dlrmv2", "status": script.CUT_SHORT, "batches": [one, one]}
    out.write_text(json.dumps(earlier))
    words = ["--all", "--out-dir", str(children), "--only", "dlrmv2", "--skip-done"]
    script.main(words)  # its process crashes before anything is measured
    assert json.loads(out.read_text()) == earlier
    assert "dlrmv2.json stays as it was, with 2 measured; this try is in dlrmv2.json.less" in capsys.readouterr().out
    assert json.loads((children / "dlrmv2.json.less").read_text())["status"] == script.FAILED
    out.replace(children / "dlrmv2.json.before")  # as a run leaves it that is killed with its child
    out.write_text(json.dumps({**earlier, "batches": [one]}))
    script.main(words)
    assert json.loads(out.read_text()) == earlier
    out.write_text(json.dumps({**earlier, "batches": []}))
    script.main(words)
    assert json.loads(out.read_text())["status"] == script.FAILED
    assert not list(children.glob("*.before"))


def test_all_ends_before_its_deadline(script: Any, children: Path) -> None:
    started = time.monotonic()
    script.main(["--all", "--out-dir", str(children), "--deadline", "4"])
    assert time.monotonic() - started < 6
    assert len(list(children.glob("*.json"))) < len(ARCHITECTURES)


def test_a_calls_time_is_bounded_where_a_compiler_catches_exceptions() -> None:
    def compiler() -> None:
        try:
            time.sleep(30)
        except Exception:
            time.sleep(30)

    started = time.monotonic()
    with pytest.raises(measure.NotReady), measure.time_limit(0.2):
        compiler()
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_what_is_measured_needs_no_library_of_the_server(tmp_path: Path) -> None:
    """A machine with a GPU may have none of these."""
    names = ("pydantic", "mlflow", "fastapi", "uvicorn", "plotly", "av", "soundfile", "xgrammar")
    code = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = ["architectures.py", "mixtral", "--tiny", "--device", "cpu", "--batch", "1", "--rounds", "1",
            "--round-seconds", "0", "--compile", "none", "--out", {str(tmp_path / "mixtral.json")!r}]
import runpy
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
