"""The engine's side of a cold start: a helper is told, listened to, not waited for in vain, and ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastkernels.engine import cold_start, executor
from fastkernels.engine.cold_start import KernelHelper, Order, start_digest
from fastkernels.engine.config import EngineConfig, Warm
from fastkernels.engine.executor import ModelExecutor, load_model
from fastkernels.kernels.backend import Gpu

pytest.importorskip("triton")

CPU = torch.device("cpu")
GPU = Gpu((9, 0), 132, 232448)
ALLOCATE = executor.allocate_caches
CONFIG = EngineConfig("tiny-llama", device="cpu", warm=Warm.FULL, max_num_batched_tokens=64, num_pages=64)


def is_running(process: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def helper_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], KernelHelper]:
    """A helper whose process runs a script."""

    def start(script: str) -> KernelHelper:
        monkeypatch.setattr(cold_start, "_COMMAND", (sys.executable, "-c", script))
        return KernelHelper(Order(CONFIG, GPU, "/nowhere", 2, os.getpid()))

    return start


def test_the_helper_is_told_and_listened_to(
    helper_that: Callable[[str], KernelHelper], caplog: pytest.LogCaptureFixture
) -> None:
    helper = helper_that(
        "import pickle, sys; order = pickle.load(sys.stdin.buffer); print('found', order.gpu.num_sms);"
        "print('found b'); print('compiled b'); print('compiled', order.cache_dir); print('done')"
    )
    with caplog.at_level(logging.INFO):
        assert helper.wait()
    assert (helper.num_found, helper.num_compiled, helper.failures) == (2, 2, [])
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert "2 of 2 kernels compiled by up to 2 processes" in record.message


def test_what_failed_is_one_line_of_the_log(
    helper_that: Callable[[str], KernelHelper], caplog: pytest.LogCaptureFixture
) -> None:
    helper = helper_that(
        "print('found a'); print('found b'); print(20 * 'failed a: exit code 1\\n' + 'failed b\\n' + 'done')"
    )
    assert helper.wait()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "0 of 2 kernels" in record.message
    assert record.message.endswith("the others when they are launched: a: exit code 1; b")


def test_a_helper_that_ends_early_is_not_waited_for(
    helper_that: Callable[[str], KernelHelper], caplog: pytest.LogCaptureFixture
) -> None:
    helper = helper_that("print('found a', flush=True); raise SystemExit(3)")
    assert not helper.wait()
    [record] = caplog.records
    assert "exit 3" in record.message


def test_a_helper_that_says_nothing_more_is_ended_with_its_children(
    helper_that: Callable[[str], KernelHelper], caplog: pytest.LogCaptureFixture
) -> None:
    helper = helper_that(
        "import subprocess, time; child = subprocess.Popen(['sleep', '100']);"
        "print('failed', child.pid, flush=True); time.sleep(100)"
    )
    assert not helper.wait(patience=2)
    [child] = map(int, helper.failures)
    assert soon(lambda: not is_running(child))
    assert not is_running(helper._process.pid)
    assert len(caplog.records) == 1
    helper.end()


ENGINE = """
import os, sys, time
from fastkernels.engine.cold_start import KernelHelper, Order
from fastkernels.engine.config import EngineConfig
from fastkernels.kernels.ahead import H200

helper = KernelHelper(Order(EngineConfig("tiny-llama", device="meta"), H200, sys.argv[1], 2, os.getpid()))
helper._read(60)
print(helper._process.pid, flush=True)
time.sleep(100)
"""


def test_the_helper_goes_when_its_engine_is_killed(tmp_path: Path) -> None:
    """While it builds a model, and looks for kernels."""
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    helper = int(engine.stdout.readline())
    assert is_running(helper)
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    engine.stdout.close()
    assert soon(lambda: not is_running(helper))


class Noted:
    """Stands in for a helper, and notes when it is needed."""

    def __init__(self, events: list[str]) -> None:
        self._events = events
        events.append("start")

    def wait(self) -> bool:
        self._events.append("wait")
        return True

    def end(self) -> None:
        self._events.append("end")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Of engines on this CPU that begin as if it were a GPU with an empty cache."""
    from triton import knobs

    noted: list[str] = []
    monkeypatch.setattr(cold_start, "_may_compile_ahead", lambda *_: True)
    monkeypatch.setattr(cold_start, "KernelHelper", lambda order: Noted(noted))
    monkeypatch.setattr(executor.ModelExecutor, "_compiles_steps", lambda self: False)
    monkeypatch.setattr(executor, "load_model", lambda *a: (noted.append("load"), load_model(*a))[1])
    monkeypatch.setattr(executor, "allocate_caches", lambda *a: (noted.append("caches"), ALLOCATE(*a))[1])
    monkeypatch.setattr(executor, "warm_parts", lambda *a: noted.append("warm") or ())
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        yield noted


def test_the_helper_begins_ahead_of_the_weights_and_has_ended_before_the_first_launch(events: list[str]) -> None:
    ModelExecutor(CONFIG)
    assert events == ["start", "load", "wait", "caches", "warm", "end"]


def test_a_second_start_needs_no_helper_and_an_unlike_one_does(events: list[str]) -> None:
    ModelExecutor(CONFIG)
    del events[:]
    ModelExecutor(replace(CONFIG, seed=1))
    assert "start" not in events
    ModelExecutor(replace(CONFIG, max_num_seqs=8))
    assert events.count("start") == 1


def test_a_start_that_fails_ends_its_helper_and_is_none_that_was_made(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(executor, "warm_parts", fail)
    for _ in range(2):
        del events[:]
        with pytest.raises(MemoryError):
            ModelExecutor(CONFIG)
        assert (events[0], events[-1]) == ("start", "end")


def test_a_helper_that_cannot_start_is_a_line_of_the_log(
    events: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(order: Order) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(cold_start, "KernelHelper", fail)
    ModelExecutor(CONFIG)
    assert "warm" in events
    assert [record.message for record in caplog.records] == [
        "kernels are compiled when they are launched: no more processes"
    ]


@pytest.mark.parametrize(
    ("device", "changes", "cores", "interpreted"),
    [
        ("cpu", {}, 16, False),
        ("cuda", {"warm": Warm.LAZY}, 16, False),
        ("cuda", {}, 1, False),
        ("cuda", {}, 16, True),
    ],
)
def test_nobody_compiles_ahead_where_nothing_is_won(
    device: str, changes: dict[str, Warm], cores: int, interpreted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold_start.os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(cold_start, "triton_interpreted", lambda: interpreted)
    assert not cold_start._may_compile_ahead(replace(CONFIG, **changes), torch.device(device))
    monkeypatch.setattr(cold_start.os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(cold_start, "triton_interpreted", lambda: False)
    assert cold_start._may_compile_ahead(CONFIG, torch.device("cuda"))


def test_processes_are_as_many_as_cores_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, wanted in ((2, 2), (8, 8), (128, 8)):
        monkeypatch.setattr(cold_start.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert cold_start.num_processes() == wanted


def test_a_start_is_named_by_what_decides_its_kernels() -> None:
    model: dict[str, object] = {"hidden_size": 64}
    own = start_digest(CONFIG, model, GPU)
    assert own == start_digest(replace(CONFIG, seed=7, model="elsewhere"), model, GPU)
    others = [
        start_digest(replace(CONFIG, dtype="float16"), model, GPU),
        start_digest(replace(CONFIG, tensor_parallel_size=2), model, GPU),
        start_digest(replace(CONFIG, tensor_parallel_size=2, enable_expert_parallel=True), model, GPU),
        start_digest(replace(CONFIG, candidates=("liger",)), model, GPU),
        start_digest(CONFIG, {"hidden_size": 128}, GPU),
        start_digest(CONFIG, model, GPU._replace(num_sms=114)),
    ]
    assert len({own, *others}) == 7
