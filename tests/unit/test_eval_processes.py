"""What passes between the evaluating process and its workers, and how a worker ends."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from eval_sets import DLRM, FASTER, SETS

from fastkernels.bench.eval import payload
from fastkernels.bench.eval.answers import Comparer, Pair, ReferenceUnfit, read_answers
from fastkernels.bench.eval.order import Order
from fastkernels.bench.eval.passes import Passes
from fastkernels.bench.eval.processes import Nursery, Worker, WorkerFailed
from fastkernels.bench.eval.reference import Reference
from fastkernels.bench.eval.restarts import read_report
from fastkernels.bench.eval.scenarios import EvalScenario, WorkloadPart
from fastkernels.harness import wire
from fastkernels.scoring.discrepancy import AnswerError


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


def test_a_payload_comes_back_as_it_was() -> None:
    value = {
        "text": "ä\n", "none": None, "numbers": [1, 2.5, True], "empty": {},
        "arrays": [np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2], np.zeros((0, 2)), np.array(3.0)],
        "tensors": {"half": torch.ones(2, 3, dtype=torch.bfloat16).T, "scalar": torch.tensor(7)},
    }  # fmt: skip
    descriptor = payload.lend(payload.pack(value))
    assert same(payload.unpack(payload.borrow(descriptor)), value)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("data", [b"", b"junk", b"\x00" * 64, payload.pack({"a": 1})[:-3]])
def test_bytes_that_are_no_payload_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="no payload"):
        payload.unpack(data)


def test_what_is_lent_must_be_memory_of_bounded_size(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(ValueError, match="lent memory of at most"):
        payload.borrow(read)
    large = os.memfd_create("large")
    os.truncate(large, payload.MOST_BYTES + 1)
    with pytest.raises(ValueError, match="lent memory of at most"):
        payload.borrow(large)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


def order(*sets: str) -> Order:
    folders = tuple(str(SETS / name) for name in sets)
    return Order(DLRM.model, DLRM.dtype, "cpu", candidates=folders, readable=folders)


def requests(worker: Worker, num: int) -> bytes:
    made = payload.unpack(worker.call("make", 30, payload.pack({"num": num, "seed": 1})).data)
    return payload.pack({"requests": made})


def test_a_worker_answers_the_same_twice_and_is_timed_here(nursery: Nursery) -> None:
    with nursery.start(order()) as worker:
        assert worker.ready(60)["engine"]["dtype"] == "float32"
        data = requests(worker, 4)
        first, second = (worker.call("run", 30, data) for _ in range(2))
        assert same(payload.unpack(first.data), payload.unpack(second.data))
        assert 0 < second.seconds < 30
        held = worker.confinement
        assert set(held) >= {"network_namespace", "process_namespace", "landlock", "no_capabilities"}
        pid = worker.pid
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_worker_cannot_write_outside_of_its_folder_nor_reach_the_network(nursery: Nursery, tmp_path: Path) -> None:
    """The set tells what it could do by the error that it raises."""
    spy = tmp_path / "spy" / "L1" / "relu.py"
    spy.parent.mkdir(parents=True)
    spy.write_text(
        "import os, socket\nfrom pathlib import Path\nfrom torch import Tensor, nn\n\n\n"
        "def told(act):\n    try:\n        act()\n    except OSError as error:\n        return type(error).__name__\n"
        "    return 'done'\n\n\n"
        "class ReLU(nn.Module):\n    def forward(self, x: Tensor) -> Tensor:\n"
        f"        outside = told(lambda: Path({str(tmp_path)!r}, 'mark').write_text('x'))\n"
        "        inside = told(lambda: Path('mark').write_text('x'))\n"
        "        net = told(lambda: socket.create_connection(('192.0.2.1', 80), timeout=2))\n"
        "        raise RuntimeError(f'outside {outside}, inside {inside}, network {net}, processes {os.getpid()}')\n"
    )
    chosen = Order(
        DLRM.model, DLRM.dtype, "cpu", candidates=(str(tmp_path / "spy"),), readable=(str(tmp_path / "spy"),)
    )
    with nursery.start(chosen) as worker:
        worker.ready(60)
        held = worker.confinement
        with pytest.raises(WorkerFailed) as caught:
            worker.call("run", 30, requests(worker, 2))
    if held["landlock"]:
        assert "outside PermissionError" in caught.value.message
        assert not (tmp_path / "mark").exists()
    if held["network_namespace"]:
        assert "network OSError" in caught.value.message
    if held["process_namespace"]:
        assert "processes 1" in caught.value.message
    assert "inside done" in caught.value.message


@pytest.mark.slow
def test_ranks_meet_inside_of_one_confined_worker_and_each_tells_what_it_replaced(nursery: Nursery) -> None:
    folders = (str(FASTER),)
    two = Order("tiny-llama", "float32", "cpu", tensor_parallel_size=2, candidates=folders, readable=folders)
    request = {"prompt": np.arange(2, 12), "output_len": 3}
    data = payload.pack({"requests": [request], "suppressed": [], "wants_logprobs": False})
    with nursery.start(two) as worker:
        worker.ready(120)
        (tokens,) = payload.unpack(worker.call("run", 60, data).data)["token_ids"]
        lines, _ = read_report(worker.call("report", 30).facts)
    assert [(line["op"], line["rank"], line["status"]) for line in lines] == [
        ("rms_norm", 0, "REPLACED"), ("rms_norm", 1, "REPLACED")
    ]  # fmt: skip
    assert len({line["num_calls"] for line in lines}) == 1
    assert tokens.shape == (3,)


def test_silence_is_a_timeout_and_death_tells_the_last_words(nursery: Nursery) -> None:
    with nursery.start(order("hangs")) as worker:
        worker.ready(60)
        data = requests(worker, 2)
        started = time.monotonic()
        with pytest.raises(WorkerFailed, match="The time for 'run' was over") as caught:
            worker.call("run", 0.5, data)
        assert caught.value.reason == "TIMEOUT"
        assert time.monotonic() - started < 5
    with nursery.start(order("dies")) as worker:
        worker.ready(60)
        with pytest.raises(WorkerFailed, match="Segmentation fault") as caught:
            worker.call("run", 30, requests(worker, 2))
        assert caught.value.reason == "CRASH"
        with pytest.raises(WorkerFailed):
            worker.call("report", 1)


@pytest.mark.parametrize(
    ("message", "reason", "says"),
    [
        ({"error": {"reason": "BLOCKED", "text": "no device for me"}}, "CRASH", "no device for me"),
        ({"error": {"reason": "IMPORT_ERROR", "text": "gone"}}, "IMPORT_ERROR", "gone"),
        (b"\xff\xff\xff\x7f", "CRASH", "malformed"),
        (b"\x02\x00\x00\x00[]", "CRASH", "must be a JSON object"),
    ],
)
def test_nonsense_from_a_worker_is_its_own_failure(
    tmp_path: Path, message: dict[str, Any] | bytes, reason: str, says: str
) -> None:
    """A worker cannot excuse itself: reasons that it may tell are two."""
    ours, theirs = socket.socketpair()
    worker = Worker(2**22 + 1, ours, tmp_path, tmp_path / "log")
    if isinstance(message, bytes):
        theirs.sendall(message)
    else:
        wire.send(theirs, message)
    with pytest.raises(WorkerFailed, match=says) as caught:
        worker.call("run", 5)
    assert caught.value.reason == reason
    theirs.close()
    ours.close()


FACTS = {"vocab_size": 10}
ASKED = [{"prompt": np.arange(3), "output_len": 2}]


def test_a_worker_is_ended_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its pid may be another process's by the second time."""
    ended: list[int] = []
    monkeypatch.setattr("fastkernels.bench.eval.processes.end_tree", lambda pid, seconds: ended.append(pid))
    ours, theirs = socket.socketpair()
    with Worker(7, ours, tmp_path / "private", tmp_path / "log") as worker:
        worker.end()
    assert ended == [7]
    theirs.close()


@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        ({}, "MISSING_ANSWER", "0 answers came to 1 requests"),
        ({"token_ids": []}, "MISSING_ANSWER", "0 answers"),
        ([1], "MISSING_ANSWER", "0 answers"),
        ({"token_ids": ["x"]}, "WRONG_DTYPE", "is str; token ids are integers"),
        ({"token_ids": [np.array([1.0, 2.0])]}, "WRONG_DTYPE", "float64"),
        ({"token_ids": [np.array([1])]}, "WRONG_SHAPE", r"has \[1\] tokens; 2 were"),
        ({"token_ids": [np.array([1, 10])]}, "WRONG_SHAPE", r"outside of \[0, 10\)"),
        ({"token_ids": [np.array([1, 2])], "logprobs": [np.array([0.0, np.nan])]}, "NOT_FINITE", "NaN"),
        ({"token_ids": [np.array([1, 7])]}, "WRONG_SHAPE", "token 7, which the request suppresses"),
    ],
)
def test_tokens_have_a_form(value: Any, reason: str, says: str) -> None:
    with pytest.raises(WorkerFailed, match=says) as caught:
        read_answers(payload.pack(value), ASKED, FACTS, suppressed=(6, 7))
    assert caught.value.reason == reason


def test_a_report_in_another_form_is_a_failure() -> None:
    line = {"op": "relu", "set": "x", "status": "REPLACED", "num_calls": 1, "rank": 0}
    assert read_report({"replacements": [line], "counters": {}}) == ([line], {})
    for wrong in ({}, {"replacements": [{}], "counters": {}}, {"replacements": 3, "counters": {}}):
        with pytest.raises(WorkerFailed):
            read_report(wrong)


def test_dtypes_are_told_apart_before_they_are_widened(nursery: Nursery) -> None:
    """numpy knows no bfloat16; a reference that is not finite is no fault of the candidate."""
    dino = EvalScenario("tiny-dinov3", "float32", 1, DLRM.throughput, DLRM.latency)
    comparer = Comparer(dino, Reference(nursery, order()))
    x = torch.randn(2, 3)

    def pair(expected: torch.Tensor, given: torch.Tensor) -> Pair:
        names = ("pooler_output", "last_hidden_state")
        return Pair({}, dict.fromkeys(names, expected), dict.fromkeys(names, given))

    assert comparer.compare([pair(x.bfloat16(), x.bfloat16())]).values == (0.0,)
    for expected, given, reason in (
        (x.bfloat16(), x.bfloat16().float(), "WRONG_DTYPE"), (x, x[:1], "WRONG_SHAPE"), (x, x / 0, "NOT_FINITE")
    ):  # fmt: skip
        with pytest.raises(AnswerError) as caught:
            comparer.compare([pair(expected, given)])
        assert caught.value.reason == reason
    with pytest.raises(ReferenceUnfit, match="holds NaN or infinity"):
        comparer.compare([pair(x / 0, x)])


def test_passes_differ_and_are_the_same_for_every_side() -> None:
    part = WorkloadPart("balanced", 4, 0.05)
    scenario = EvalScenario("tiny-qwen2_vl", "float32", 1, (part,), (WorkloadPart("single", 2, 0.05),))
    one, same_again, other = (Passes(scenario, seed) for seed in (5, 5, 6))

    def tokens(passes: Passes, number: int) -> list[list[int]]:
        prompts = [request["prompt"] for request in passes.of(part, "throughput", number).requests]
        return [(p["prompt_token_ids"] if isinstance(p, dict) else p).tolist() for p in prompts]

    assert tokens(one, 0) == tokens(same_again, 0)
    assert len({str(tokens(p, n)) for p, n in ((one, 0), (one, 1), (one, -1), (one, -2), (other, 0))}) == 5
    assert one.suppressed == (512, 513, 514, 515)
    drawn = [t for number in range(3) for prompt in tokens(one, number)[3:] for t in prompt]
    assert max(drawn) < 512, "No drawn token of a text alone stands for a picture."
