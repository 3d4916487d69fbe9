"""The helper of a cold start: finds the kernels of an engine without its GPU, and compiles several at a time.

    python -m fastkernels.engine.kernel_compiler    # an Order on its input; lines on its output

It builds the model on "meta", warms it up there, and forks a process for each kernel that Triton would compile. That
inherits all that Triton has bound of the launch, so that what it leaves in the cache has the very key that the
engine's launch looks for. Fork is safe: this process has one thread, and sees no GPU.
"""

from __future__ import annotations

import gc
import os
import pickle
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import torch

from fastkernels.distributed.tensor_parallel import expert_parallel, simulated_rank
from fastkernels.dtypes import choose_dtype
from fastkernels.engine.cache import allocate_caches
from fastkernels.engine.cold_start import Order
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.dummy_steps import run_dummy_encoder, warm_parts
from fastkernels.engine.executor import build_runner, choose_state_dtype
from fastkernels.engine.lifetime import end_with
from fastkernels.engine.like_blocks import LikeBlocks
from fastkernels.engine.model import build_bare_model
from fastkernels.engine.model_source import build_config, find_model
from fastkernels.errors import EnvironmentProblem
from fastkernels.kernels.ahead import Compile, TensorsOnGpu, handing_over_for
from fastkernels.kernels.backend import Gpu
from fastkernels.op import prepare_weights

_META = torch.device("meta")
_NUM_PAGES = 64
"""No kernel depends on how many there are."""

Part = Callable[[], object]
Take = Callable[[str, Compile], None]


def start_parts(config: EngineConfig) -> Iterator[Part]:
    """What an engine runs until it is ready, on tensors without data, one kind of block once. Candidates' ops are left
    out."""
    source = find_model(config.model)
    known = build_config(source)
    dtype = choose_dtype(config.dtype, known.torch_dtype)
    with expert_parallel(config.enable_expert_parallel):
        model = build_bare_model(source, known, dtype, _META)
    prepare_weights(model)
    choose_state_dtype(model, config, dtype)
    blocks = LikeBlocks(model.eval())
    allocate_caches(model, config.num_pages or _NUM_PAGES, config.page_size, config.max_num_seqs + 1, dtype, _META)
    max_model_len = config.max_model_len or known.max_position_embeddings
    runner = build_runner(config, model, known, max_model_len, _META, uses_graphs=not config.enforce_eager)
    yield partial(run_dummy_encoder, model, config.max_num_batched_tokens)
    for part in warm_parts(runner, known.max_position_embeddings, dtype):
        blocks.forget()
        yield part


def find_kernels(
    config: EngineConfig,
    gpu: Gpu,
    take: Take,
    failed: Callable[[str], None],
    between: Callable[[], None] = lambda: None,
) -> None:
    """Hand the compilation of each kernel of an engine's start to `take`, by name, while the start goes on.

    failed: told why a part of the start did not run; the others go on. between: called after each part.
    Errors: those of the configuration.
    """
    with simulated_rank(0, config.tensor_parallel_size), TensorsOnGpu(), handing_over_for(gpu, take):
        for part in start_parts(config):
            try:
                part()
            except Exception as error:
                failed(f"{type(error).__name__}: {error}".partition("\n")[0])
            between()


class Compilers:
    """Forks of this process, of which each compiles one kernel and ends."""

    def __init__(self, most: int, say: Callable[[str], None]) -> None:
        self._most, self._say = most, say
        self._waiting: deque[tuple[str, Compile]] = deque()
        self._running: dict[int, str] = {}

    def add(self, name: str, work: Compile) -> None:
        self._say(f"found {name}")
        self._waiting.append((name, work))
        self.turn()

    def turn(self) -> None:
        """Note who has ended, and start who waits."""
        while self._running and self._reap(os.WNOHANG):
            pass
        while self._waiting and len(self._running) < self._most:
            name, work = self._waiting.popleft()
            self._running[self._start(work)] = name

    def finish(self) -> None:
        while self._running:
            self._reap(0)
            self.turn()

    def _reap(self, flags: int) -> bool:
        """Whether one has ended, whichever did first."""
        process, status = os.waitpid(-1, flags)
        if name := self._running.pop(process, None):
            code = os.waitstatus_to_exitcode(status)
            self._say(f"failed {name}: exit code {code}" if code else f"compiled {name}")
        return process != 0

    def _start(self, work: Compile) -> int:
        parent = os.getpid()
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            end_with(parent)
            work()
            code = 0
        finally:
            os._exit(code)  # whatever was raised: the engine's own launch raises it again


def compile_all(order: Order, say: Callable[[str], None]) -> None:
    """Errors: EnvironmentProblem when this process has threads, those of the configuration."""
    from triton import knobs

    knobs.cache.dir = order.cache_dir
    num_threads = len(os.listdir("/proc/self/task"))
    if num_threads > 1:
        raise EnvironmentProblem(f"The process that compiles has {num_threads} threads and cannot be forked.")
    compilers = Compilers(order.num_processes, say)
    find_kernels(order.config, order.gpu, compilers.add, lambda why: say(f"failed {why}"), compilers.turn)
    compilers.finish()
    say("done")


def main() -> None:
    order = pickle.load(sys.stdin.buffer)
    end_with(order.parent)
    gc.freeze()
    _say("started")
    try:
        compile_all(order, _say)
    except Exception as error:
        _say(f"failed {type(error).__name__}: {error}".partition("\n")[0])


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
