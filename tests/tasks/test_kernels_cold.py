"""What the helper of a cold start leaves in Triton's cache is what an engine's launches look for there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from published_models import MODELS, few_layers

from fastkernels.engine.cold_start import KernelHelper, Order
from fastkernels.engine.config import EngineConfig, Warm
from fastkernels.env import triton_interpreted

pytest.importorskip("triton")
if triton_interpreted():
    pytest.skip("compiles kernels, which TRITON_INTERPRET=1 does not", allow_module_level=True)

from triton import knobs

from fastkernels.engine import kernel_compiler
from fastkernels.engine.kernel_compiler import Compilers, compile_all, find_kernels
from fastkernels.kernels.ahead import H200, compiling_for, handing_over_for
from fastkernels.kernels.backend import tl, triton

EVERY_LAUNCH = """
import sys
from triton import knobs
from fastkernels.engine import kernel_compiler
from fastkernels.engine.config import EngineConfig
from fastkernels.kernels.ahead import TensorsOnGpu, compiling_for

class EveryBlock:
    def __init__(self, model): pass
    def forget(self): pass

knobs.cache.dir, model, max_num_seqs = sys.argv[1:]
kernel_compiler.LikeBlocks = EveryBlock
config = EngineConfig(model, device="meta", dtype="bfloat16", max_num_seqs=int(max_num_seqs))
with TensorsOnGpu(), compiling_for() as compiled:
    for part in kernel_compiler.start_parts(config):
        part()
for kernel in compiled:
    print("found" if kernel.seconds is None else "compiled", kernel.kernel, kernel.arguments)
"""
"""What an engine launches until it is ready, every block of every stack, against a cache that is there."""


@triton.jit
def _double_kernel(x_ptr, SIZE: tl.constexpr):  # noqa: N803
    at = tl.arange(0, SIZE)
    tl.store(x_ptr + at, 2 * tl.load(x_ptr + at))


@triton.jit
def _two_types_kernel(x_ptr, FLAG: tl.constexpr):  # noqa: N803
    """Does not compile: a name of one type before a branch and another in it."""
    at = tl.arange(0, 16)
    if tl.program_id(0) == 0:
        at = tl.load(x_ptr).to(tl.int64)
    tl.store(x_ptr + at, 0)


def launch_doubles() -> None:
    """Three kernels: of an aligned tensor, of one that is not, of another type; each twice."""
    for dtype, first in ((torch.float32, 0), (torch.float32, 1), (torch.bfloat16, 0)):
        for _ in range(2):
            _double_kernel[(1,)](torch.empty(65, dtype=dtype, device="meta")[first:], SIZE=64)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("preset", "num_layers", "max_num_seqs"), [m for m in MODELS if "mamba" in m[0]])
def test_every_launch_until_an_engine_is_ready_finds_its_kernel(
    preset: str, num_layers: int, max_num_seqs: int, tmp_path: Path, cache_dir: Path
) -> None:
    """Of layers that are alike the helper runs one; here are two of each. Of the model with fewest kernels: for all of
    MODELS it takes a quarter of an hour."""
    model = str(few_layers(preset, 2 * num_layers, tmp_path))
    config = EngineConfig(model, device="meta", dtype="bfloat16", max_num_seqs=max_num_seqs, warm=Warm.FULL)
    helper = KernelHelper(Order(config, H200, str(cache_dir), 2, os.getpid()))
    assert helper.wait(patience=300)
    assert helper.failures == []
    assert helper.num_found == helper.num_compiled > 30
    command = [sys.executable, "-c", EVERY_LAUNCH, str(cache_dir), model, str(max_num_seqs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    launched = done.stdout.splitlines()
    assert [line for line in launched if not line.startswith("found ")] == []
    assert len(launched) == helper.num_found


def test_a_compilation_that_was_handed_over_is_found_by_the_launch(cache_dir: Path) -> None:
    said: list[str] = []
    compilers = Compilers(2, said.append)
    with knobs.cache.scope():
        knobs.cache.dir = str(cache_dir)
        with handing_over_for(H200, compilers.add):
            launch_doubles()
        compilers.finish()
        with compiling_for() as compiled:
            launch_doubles()
    name = "test_kernels_cold._double_kernel"
    assert sorted(said) == [f"compiled {name}"] * 3 + [f"found {name}"] * 3
    assert [(kernel.kernel, kernel.seconds) for kernel in compiled] == [(name, None)] * 3


def test_the_function_that_launches_a_kernel_is_compiled_with_it(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a list of arguments' types: Triton keeps them by their source, which the launch makes again."""
    from triton.backends.nvidia import driver

    def build(src: str, **_: object) -> SimpleNamespace:
        (cache_dir / f"{hashlib.sha256(src.encode()).hexdigest()}.c").write_text(src)
        return SimpleNamespace(launch=None)

    monkeypatch.setattr(driver, "libcuda_dirs", lambda: [])
    monkeypatch.setattr(driver, "compile_module_from_src", build)
    compilers = Compilers(2, lambda line: None)
    with knobs.cache.scope():
        knobs.cache.dir = str(cache_dir)
        with handing_over_for(H200, compilers.add):
            launch_doubles()
        compilers.finish()
    [source] = [path.read_text() for path in cache_dir.glob("*.c")]
    assert "cuLaunchKernelEx" in source


def test_no_more_compile_at_once_than_may(tmp_path: Path) -> None:
    """Each work notes how many are under way when it ends."""

    def work() -> None:
        mine = tmp_path / f"running-{os.getpid()}"
        mine.touch()
        (tmp_path / f"count-{len(list(tmp_path.glob('running-*')))}-{os.getpid()}").touch()
        mine.unlink()

    said: list[str] = []
    compilers = Compilers(2, said.append)
    for number in range(7):
        compilers.add(str(number), work)
    compilers.finish()
    counts = [int(path.name.split("-")[1]) for path in tmp_path.glob("count-*")]
    assert len(counts) == 7
    assert max(counts) <= 2
    assert sorted(line for line in said if line.startswith("compiled")) == [f"compiled {n}" for n in range(7)]


def test_whoever_is_free_takes_the_next_while_another_is_long_at_work(tmp_path: Path) -> None:
    """The first ends when it sees that the last has."""
    mark = tmp_path / "last"

    def wait_for_last() -> None:
        end = time.monotonic() + 30
        while not mark.exists():
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.01)

    said: list[str] = []
    compilers = Compilers(2, said.append)
    compilers.add("first", wait_for_last)
    for number in range(3):
        compilers.add(str(number), lambda: None)
    compilers.add("last", mark.touch)
    compilers.finish()
    assert "compiled first" in said
    assert len(said) == 10


def test_a_kernel_that_does_not_compile_ends_alone(cache_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And silently: the engine's own launch raises its error."""
    said: list[str] = []
    compilers = Compilers(1, said.append)
    with knobs.cache.scope():
        knobs.cache.dir = str(cache_dir)
        with handing_over_for(H200, compilers.add):
            _two_types_kernel[(1,)](torch.empty(1, dtype=torch.int32, device="meta"), FLAG=True)
            _double_kernel[(1,)](torch.empty(64, device="meta"), SIZE=64)
        compilers.finish()
    assert "failed test_kernels_cold._two_types_kernel: exit code 1" in said
    assert "compiled test_kernels_cold._double_kernel" in said
    assert capfd.readouterr().err == ""


def test_a_part_that_does_not_run_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(config: EngineConfig) -> list[Callable[[], object]]:
        return [launch_doubles, lambda: torch.empty(1, device="meta").item(), launch_half]

    def launch_half() -> None:
        _double_kernel[(1,)](torch.empty(64, dtype=torch.float16, device="meta"), SIZE=64)

    monkeypatch.setattr(kernel_compiler, "start_parts", parts)
    found: list[str] = []
    why: list[str] = []
    find_kernels(EngineConfig("tiny-llama"), H200, lambda name, work: found.append(name), why.append)
    assert len(found) == 4
    assert len(why) == 1
    assert "meta" in why[0]


@pytest.mark.parametrize(("model", "size"), [("tiny-llama", 1), ("tiny-llama", 2), ("tiny-gpt-oss", 2)])
def test_ranks_share_the_widths(model: str, size: int) -> None:
    """Experts of tiny-gpt-oss are too narrow to be split: these ranks hold them whole."""
    found: list[str] = []
    why: list[str] = []
    config = EngineConfig(
        model, device="meta", dtype="bfloat16", tensor_parallel_size=size, max_num_seqs=4, max_num_batched_tokens=64,
        enable_expert_parallel=model == "tiny-gpt-oss",
    )  # fmt: skip
    find_kernels(config, H200, lambda name, work: found.append(name), why.append)
    assert why == []
    assert len(found) > 20


def test_a_process_with_threads_is_not_forked(cache_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITH_A_THREAD, str(cache_dir)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # whose threads would be counted, too
        capture_output=True,
        text=True,
        check=False,
    )
    assert "EnvironmentProblem: The process that compiles has 2 threads" in done.stderr
    assert done.stdout == ""


WITH_A_THREAD = f"""
import os, sys, threading, time
from fastkernels.engine.cold_start import Order
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.kernel_compiler import {compile_all.__name__}
from fastkernels.kernels.ahead import H200
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
compile_all(Order(EngineConfig("tiny-llama", device="meta"), H200, sys.argv[1], 2, os.getppid()), print)
"""
