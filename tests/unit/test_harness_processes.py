"""Workers end with their judge, whatever ends it; a nursery that is gone is named."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import psutil
import pytest
from judging import LIMITS, Bench, bench, num_descriptors, rms_norm, wait_until, workers, write_set

from fastkernels.errors import EnvironmentProblem
from fastkernels.harness import wire
from fastkernels.harness.control import Word
from fastkernels.harness.process_tree import process_tree
from fastkernels.harness.verdict import Rejection, Verdict
from fastkernels.harness.workers import Limits, Nursery, Worker

__all__ = ["bench"]

JUDGE = """
import sys
from fastkernels.harness.judge import Judge, JudgeConfig
from fastkernels.harness.workers import Limits, Nursery
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

with Nursery("cpu", Limits(call_seconds=100)) as nursery:
    judge = Judge(JudgeConfig(num_shapes=1, is_timed=False), nursery, lambda text, share: print(text, flush=True))
    judge.judge(ops()["rms_norm"], resolve_set(sys.argv[1]), [])
"""


def _descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_killed_judge_leaves_no_process(tmp_path: Path) -> None:
    """SIGKILL gives the judge no last word, and the candidate spins: the kernel must end it."""
    candidates = write_set(tmp_path / "endless", "rms_norm", rms_norm("while True: pass"))
    judge = subprocess.Popen([sys.executable, "-c", JUDGE, str(candidates)], stdout=subprocess.DEVNULL)

    def spins() -> bool:
        below = [p for p in _descendants(judge.pid) if p.ppid() != judge.pid]
        return len(below) >= 2 and any(p.cpu_percent(0.2) > 40 for p in below)

    assert wait_until(spins, 60)
    processes = _descendants(judge.pid)
    judge.kill()
    judge.wait()
    _, alive = psutil.wait_procs(processes, timeout=20)
    for process in alive:
        process.kill()
    assert not alive


def test_death_with_the_parent_survives_the_namespaces_of_an_ordinary_user() -> None:
    """A change of credentials may clear the signal, and an ordinary user enters a namespace of his own."""
    code = """
    import ctypes, os
    from fastkernels.harness import sandbox
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    sandbox.die_with_parent()
    sandbox.enter_namespaces()
    signal = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)  # PR_GET_PDEATHSIG
    print(signal.value)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(int(signal.SIGKILL)), done.stderr


def test_worker_that_ends_by_itself_is_told_with_its_last_words(bench: Bench) -> None:
    with bench.nursery.start("worker", 1 << 16) as worker:
        os.kill(process_tree(worker.pid)[-1].pid, signal.SIGKILL)
        with pytest.raises(Rejection, match="The worker process ended during the call") as caught:
            worker.request({"cmd": "load"})
        assert caught.value.verdict is Verdict.RUNTIME_ERROR
        assert wait_until(lambda: not worker.is_alive(), 20)


def test_worker_is_ended_with_all_its_children(bench: Bench) -> None:
    with bench.nursery.start("worker", 1 << 16) as worker:
        assert worker.is_alive()
        processes = process_tree(worker.pid)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
    assert not worker._private.exists()
    assert not workers(bench.nursery)


def test_worker_that_does_not_come_up_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = bench.nursery.start("worker", 1 << 16)
    monkeypatch.setattr(worker, "_receive", lambda seconds: {}["no message"])
    with pytest.raises(KeyError):
        worker.__enter__()
    assert worker.arena.fd == -1
    assert not worker._private.exists()
    assert wait_until(lambda: not worker.is_alive(), 20)


def test_silent_worker_is_a_timeout(bench: Bench) -> None:
    with bench.nursery.start("worker", 1 << 16) as worker:
        started = time.monotonic()
        with pytest.raises(Rejection) as caught:
            worker.reply(0.3)
        assert caught.value.verdict is Verdict.TIMEOUT
        assert time.monotonic() - started < 15


def test_error_in_a_block_is_heard_and_an_early_reply_is_kept(bench: Bench) -> None:
    with bench.nursery.start("worker", 1 << 16) as worker:
        worker.send({"cmd": "calls", "first": 1, "count": 1})  # of no case
        started = time.monotonic()
        with pytest.raises(Rejection, match="AssertionError") as caught:
            worker.bell.wait(Word.READY, 1, worker.watcher(20))
        assert caught.value.verdict is Verdict.RUNTIME_ERROR
        assert time.monotonic() - started < 15
        ours, theirs = socket.socketpair()
        worker._sock.close()
        worker._sock = ours
        wire.send(theirs, {"ok": True})
        for _ in range(2):
            worker.listen()
        assert worker.reply(1) == {"ok": True}
        theirs.close()
        with pytest.raises(Rejection, match="ended during the call"):
            worker.listen()


def test_unknown_words_to_a_worker_are_an_error_and_it_lives_on(bench: Bench) -> None:
    with bench.nursery.start("worker", 1 << 16) as worker:
        for message in ({"cmd": "no such"}, {}, {"cmd": "calls", "first": 1, "count": 1}):
            with pytest.raises(Rejection) as caught:
                worker.request(message)
            assert caught.value.verdict is Verdict.RUNTIME_ERROR
        assert worker.is_alive()


def test_nursery_that_is_gone_is_an_environment_problem() -> None:
    with Nursery("cpu", LIMITS) as nursery:
        with nursery.start("worker", 1 << 16):
            pass
        os.kill(nursery._process.pid, signal.SIGKILL)
        nursery._process.wait()
        with pytest.raises(EnvironmentProblem, match="exit code -9"):
            nursery.start("worker", 1 << 16)


def test_nursery_closes_all_it_opened() -> None:
    gc.collect()  # arenas of earlier tests, which go with their last view
    before = num_descriptors()
    with Nursery("cpu", Limits()) as nursery:
        folder = nursery._folder
        for _ in range(3):
            with nursery.start("worker", 1 << 20):
                pass
    assert num_descriptors() == before
    assert not folder.exists()
    assert nursery._process.poll() is not None


def test_worker_does_not_inherit_the_judges_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_JUDGE", "seed 7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with Nursery("cpu", LIMITS) as nursery, nursery.start("worker", 1 << 16) as worker:
        for process in (nursery._process.pid, *(p.pid for p in process_tree(worker.pid))):
            inherited = Path(f"/proc/{process}/environ").read_bytes()
            assert b"SECRET_OF_THE_JUDGE" not in inherited
            assert b"CUDA_DEVICE_ORDER=PCI_BUS_ID" in inherited  # the judge and its workers count GPUs alike


def test_long_log_costs_the_judge_no_memory_and_little_disk(bench: Bench) -> None:
    with bench.nursery.start("worker", 1 << 16) as worker:
        with worker._log_path.open("ab") as log:
            log.truncate(100 << 20)
            log.write(b"the end")
        tracemalloc.start()
        message = worker.death().message
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert message.endswith("the end")
        assert peak < 1 << 20
        worker.check_memory()
        assert worker._log_path.stat().st_size < 1 << 20
        assert worker.death().message.endswith("the end")
    assert not worker._log_path.exists()


def test_worker_that_prints_on_and_on_fills_no_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
    line = b"x" * (1 << 20)
    for number in range(300):
        os.write(1, line)
        time.sleep(0.001)
    os.write(2, b"and here it ends")
    os._exit(3)
    """
    sizes = []
    check_memory = Worker.check_memory

    def looked_at(worker: Worker, seconds: float = 0.0) -> None:
        check_memory(worker, seconds)
        sizes.append(worker._log_path.stat().st_size)

    monkeypatch.setattr(Worker, "check_memory", looked_at)
    record = bench.judge("rms_norm", rms_norm(body))
    assert record.message.partition(" [")[0].endswith("and here it ends")
    assert max(sizes) < 150 << 20
