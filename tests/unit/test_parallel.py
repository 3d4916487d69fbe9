"""Two ranks over gloo behind one scheduler: the same tokens as one, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from fastkernels import LLM, SamplingParams
from fastkernels.engine import parallel, rank_group
from fastkernels.engine.sampling_params import StructuredOutputsParams
from fastkernels.errors import EnvironmentProblem, RankError, UsageError
from fastkernels.workloads import prompts

PROMPTS = sorted(prompts(), key=len)[:6]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=2),
    SamplingParams(temperature=0.9, top_p=0.9, seed=3, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=1.0, frequency_penalty=1.0, min_p=0.02, seed=4, max_tokens=20, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=5, max_tokens=20, structured_outputs=StructuredOutputsParams(regex="[a-d]+x")),
    SamplingParams(temperature=0, max_tokens=1),
    SamplingParams(temperature=0, max_tokens=20, stop=("e",), bad_words=("a", "the", "ing", "\n")),
]


def make_llm(size: int, **changes: object) -> LLM:
    options: dict[str, object] = {"num_pages": 64, "page_size": 4, "max_num_batched_tokens": 40, **changes}
    return LLM("tiny-llama", device="cpu", tensor_parallel_size=size, **options)


def answers(llm: LLM) -> list[tuple[list[int], str]]:
    return [(o.outputs[0].token_ids, o.outputs[0].text) for o in llm.generate(PROMPTS, PARAMS)]


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """The ranks among the processes that it started: others' fixtures may have some too."""
    return [p for p in process.children(recursive=True) if "fastkernels.engine.rank_process" in p.cmdline()]


@cache
def alone() -> tuple[list[tuple[list[int], str]], int]:
    """Of one rank: the answers and the bytes of its weights. Before any process group is there."""
    llm = make_llm(1)
    return answers(llm), llm.core.info.weight_bytes


def test_two_ranks_give_the_tokens_of_one_and_hold_half_of_the_sharded_weights() -> None:
    expected, weight_bytes = alone()
    llm = make_llm(2)
    try:
        assert answers(llm) == expected
        assert answers(llm) == expected, "A second time from shared prefixes."
        assert llm.core.stats().num_cached_tokens > 0
        assert llm.core.info.weight_bytes < 0.6 * weight_bytes
        with pytest.raises(EnvironmentProblem, match="a group of 2 ranks"):
            make_llm(1)
    finally:
        llm.close()


def test_close_leaves_no_process_and_no_file_and_graphs_go_before_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    llm = make_llm(2)
    children = ranks_of(psutil.Process())
    assert children
    assert not list(tmp_path.iterdir()), "Whoever is killed leaves none either."
    executor = llm.core.executor
    assert isinstance(executor, parallel.ParallelExecutor)
    seen: list[str] = []
    leave = dist.destroy_process_group
    monkeypatch.setattr(executor._own.runner, "close", lambda: seen.append("graphs"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: (seen.append("group"), leave()))
    llm.close()
    assert seen == ["graphs", "group"]
    assert not [child for child in children if child.is_running()]
    assert not list(tmp_path.iterdir())
    assert not dist.is_initialized()


def test_group_that_cannot_be_left_does_not_hold_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL waits for ranks that are gone, and for graphs that hold its collectives; its abort may wait, too."""
    llm = make_llm(2)
    (child,) = ranks_of(psutil.Process())
    leave, may_leave, ended = dist.destroy_process_group, threading.Event(), threading.Event()

    def wait_and_leave() -> None:
        may_leave.wait(60)
        leave()
        ended.set()

    monkeypatch.setattr(dist, "destroy_process_group", wait_and_leave)
    monkeypatch.setattr(rank_group, "abort_group", lambda: may_leave.wait(60))
    monkeypatch.setattr(rank_group, "STOP_SECONDS", 0.5)
    started = time.monotonic()
    llm.close()
    assert time.monotonic() - started < 10
    assert not child.is_running()
    may_leave.set()
    assert ended.wait(20)
    assert not dist.is_initialized()


def test_rank_that_dies_is_an_error_and_not_a_hang() -> None:
    llm = make_llm(2)
    (child,) = ranks_of(psutil.Process())
    started = time.monotonic()
    child.send_signal(signal.SIGKILL)
    try:
        with pytest.raises(RankError, match="Rank 1 has ended with exit code -9"):
            llm.generate(PROMPTS * 20, PARAMS[0])
    finally:
        llm.core.close()
    assert time.monotonic() - started < 60
    assert not ranks_of(psutil.Process())


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("raise UnsupportedError('No page fits here.')", "Rank 1 did not start: No page fits here."),
        ("raise SystemExit(3)", "Rank 1 has ended with exit code"),
    ],
)
def test_a_rank_that_alone_cannot_start_is_heard(
    end: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 waits for it in a collective meanwhile, and meets the end of their group first."""
    script = tmp_path / "rank"
    script.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "from fastkernels.engine import rank_process\n"
        "from fastkernels.errors import UnsupportedError\n"
        "def build(config):\n"
        f"    {end}\n"
        "rank_process.ModelExecutor = build\n"
        "rank_process.main(int(sys.argv[-1]))\n"
    )
    script.chmod(0o755)

    def wait(config: object) -> None:
        started = time.monotonic()
        while dist.is_initialized() and time.monotonic() - started < 30:
            time.sleep(0.01)
        dist.barrier()

    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(parallel, "ModelExecutor", wait)
    with pytest.raises(RankError, match=message):
        make_llm(2)
    assert not dist.is_initialized()
    assert not ranks_of(psutil.Process())


def test_candidate_is_counted_on_every_rank_and_ranks_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    folder = tmp_path / "mine" / "L1"
    folder.mkdir(parents=True)
    source = (root / "fastkernels" / "tasks" / "baseline" / "L1" / "silu_and_mul.py").read_text()
    (folder / "silu_and_mul.py").write_text(source)
    script = tmp_path / "run.py"
    script.write_text(
        "import json, time\n"
        "from fastkernels import LLM, SamplingParams\n"
        f"llm = LLM('tiny-llama', candidates=[{str(tmp_path / 'mine')!r}], device='cpu', num_pages=64,"
        " tensor_parallel_size=2)\n"
        "llm.generate('Hello', SamplingParams(max_tokens=3))\n"
        "print(json.dumps(llm.replacements()), flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        ranks = ranks_of(psutil.Process(process.pid))
        process.kill()
    lines = [line for line in json.loads(told) if line["op"] == "silu_and_mul"]
    assert [line["rank"] for line in lines] == [0, 1]
    assert {line["status"] for line in lines} == {"REPLACED"}
    assert lines[0]["num_calls"] == lines[1]["num_calls"] > 0
    assert ranks
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert not alive


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() > 63, reason="there are as many GPUs")
def test_more_ranks_than_gpus_is_one_message() -> None:
    with pytest.raises(UsageError, match="tensor_parallel_size is 64"):
        LLM("tiny-llama", device="cuda", tensor_parallel_size=64)
