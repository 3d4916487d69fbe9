"""Steps as CUDA graphs, packed and of equal shapes, on a CPU that records operations and repeats them in place."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastkernels.engine.runners.batched import BATCH_SIZES, BatchedForward
from fastkernels.engine.runners.packed import MOST_GRAPH_TOKENS, PackedRunner, padded_size
from fastkernels.engine.runners.replay import GraphCache, State

CPU = torch.device("cpu")


class Mixer:
    """Each row and its request's mean; a mean a request. calls: rows, requests and longest length of each."""

    per_request = frozenset({"mean"})

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def prepare(self, inputs: Mapping[str, Any]) -> State:
        generator = torch.Generator().manual_seed(inputs["num"])
        return {"x": torch.randn(inputs["num"], generator=generator)}

    def forward_packed(self, batch: State, query_start_loc: Tensor, max_query_len: int) -> State:
        x, num_seqs = batch["x"], len(query_start_loc) - 1
        self.calls.append((len(x), num_seqs, max_query_len))
        owner = torch.searchsorted(query_start_loc[1:].long(), torch.arange(len(x)), right=True)
        total = torch.zeros(num_seqs + 1).index_add(0, owner, x)
        mean = total[:num_seqs] / query_start_loc.diff().clamp(min=1)
        return {"mixed": x + torch.cat((mean, mean.new_zeros(1)))[owner], "mean": mean, "x": x}

    def finish(self, result: State) -> State:
        return result


class Recording(TorchDispatchMode):
    """What torch.cuda.CUDAGraph is to kernels: the operations of a capture, on the same memory at each replay."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A pool for each capture; each enlarges what torch holds by 100 bytes."""
    used: list[int] = []
    handles, reserved = iter(range(1000)), iter(range(0, 10**6, 100))
    nothing = SimpleNamespace(wait_stream=lambda other: None)

    def graph(recording: Recording, pool: int, stream: Any) -> Recording:
        used.append(pool)
        return recording

    stubs: dict[str, Callable[..., Any]] = {
        "Stream": lambda device: nothing,
        "current_stream": lambda device: nothing,
        "stream": lambda given: nullcontext(),
        "synchronize": lambda device: None,
        "graph_pool_handle": lambda: next(handles),
        "memory_reserved": lambda device: next(reserved),
        "CUDAGraph": Recording,
        "graph": graph,
    }
    for name, stub in stubs.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr("fastkernels.engine.runners.replay.renew_cublas_workspaces", lambda: None)
    return used


def runner_with_graphs(**limits: int) -> PackedRunner:
    runner = PackedRunner(Mixer(), CPU, pads=True)
    runner.graphs = GraphCache(CPU, **limits)
    return runner


def step(runner: PackedRunner, lens: Sequence[int]) -> list[State]:
    states = [runner.start({"num": n})[0] for n in lens]
    return [runner.finish(state) for state in runner.advance(states, [0] * len(states))]


def equal(given: Sequence[State], wanted: Sequence[State]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(given, wanted, strict=True) for name in b)


@pytest.mark.parametrize(
    "steps",
    [
        [[1030], [1030], [1152], [1025]],
        [[700, 9, 1400], [2, 800, 1390], [1300, 1, 900], [1, 1, 1408], [1400, 5, 700]],
        [[64], [1], [33]],
        [[8192], [7900], [MOST_GRAPH_TOKENS], [15800], [8000]],
    ],
)
def test_replayed_steps_answer_bit_for_bit_as_eager_ones(steps: list[list[int]], pools: list[int]) -> None:
    """Those of a padded step's rows and requests, and those without any padding."""
    runner, eager, plain = runner_with_graphs(), PackedRunner(Mixer(), CPU, pads=True), PackedRunner(Mixer(), CPU)
    answers = [step(runner, lens) for lens in steps]
    for lens, answer in zip(steps, answers, strict=True):
        assert equal(answer, step(eager, lens))
        assert equal(answer, step(plain, lens)), "Padding is no part of an answer, nor a later step of an earlier one."
    assert runner.num_graph_steps > 0
    assert eager.num_graph_steps == plain.num_graph_steps == 0


def test_the_second_step_of_a_size_is_captured_and_the_third_calls_no_model(pools: list[int]) -> None:
    runner = runner_with_graphs()
    calls = runner.model.calls  # type: ignore[attr-defined]
    found = []
    for lens in ([1100], [1152], [1030], [2000], [600, 500]):
        before = len(calls)
        step(runner, lens)
        found.append((len(calls) - before, runner.num_graph_steps))
    assert found == [(1, 0), (2, 1), (0, 2), (1, 2), (1, 2)]
    assert calls[0] == (1152, 1, 1152)
    assert calls[-1] == (1152, 2, 1024)
    assert len(pools) == 1


def test_what_a_graph_would_not_make_faster_is_neither_captured_nor_padded(pools: list[int]) -> None:
    runner = runner_with_graphs()
    for _ in range(3):
        step(runner, [MOST_GRAPH_TOKENS, 1, 4])
    assert runner.model.calls == [(MOST_GRAPH_TOKENS + 5, 3, MOST_GRAPH_TOKENS)] * 3  # type: ignore[attr-defined]
    assert not pools


def test_the_least_recently_used_graph_goes_first(pools: list[int]) -> None:
    runner = runner_with_graphs(most_graphs=2)
    calls = runner.model.calls  # type: ignore[attr-defined]
    for lens in ([64], [64], [128], [128], [64], [256], [256]):
        step(runner, lens)
    before = len(calls)
    step(runner, [64])
    step(runner, [256])
    assert len(calls) == before
    for num_calls in (1, 2, 0):
        step(runner, [128])
        assert len(calls) == before + num_calls, "A size that was forgotten comes twice again before it is captured."
        before = len(calls)
    assert len(pools) == 4
    assert set(pools) == {0}


def test_a_pool_that_has_grown_too_large_goes_with_its_graphs(pools: list[int]) -> None:
    runner = runner_with_graphs(most_bytes=200)
    assert runner.graphs is not None
    sizes = []
    for num in (64, 64, 128, 128, 256, 256, 64, 64, 256):
        answer = step(runner, [num])
        assert equal(answer, step(PackedRunner(Mixer(), CPU), [num]))
        sizes.append(runner.graphs.num_bytes)
    assert sizes == [0, 100, 100, 200, 200, 100, 100, 200, 200]
    assert pools == [0, 0, 1, 1]


def test_graphs_whose_inputs_take_too_much_go_the_least_recently_used_first(pools: list[int]) -> None:
    """Each reads its own copies, of which no other graph and no pool has a part: here 4 bytes a row and two starts."""
    runner = runner_with_graphs(most_input_bytes=3000)
    assert runner.graphs is not None
    calls, held = runner.model.calls, []  # type: ignore[attr-defined]
    for num in (64, 64, 128, 128, 256, 256, 64, 512, 512, 1024, 1024, 1024):
        assert equal(step(runner, [num]), step(PackedRunner(Mixer(), CPU), [num]))
        held.append(runner.graphs.num_input_bytes)
    of_64, of_128, of_256, of_512, of_1024 = (4 * num + 8 for num in (64, 128, 256, 512, 1024))
    assert held[1:3] == [of_64] * 2
    assert held[3:5] == [of_64 + of_128] * 2
    assert held[5:8] == [of_64 + of_128 + of_256] * 3
    assert held[8:10] == [of_64 + of_512] * 2, "That of 64 rows was used last."
    assert held[10:] == [of_1024] * 2, "One is captured whatever it takes."
    before = len(calls)
    step(runner, [1024])
    assert len(calls) == before


class Halves:
    """Of each request its half and its mean. batches: the sizes that were called."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, batch: State) -> State:
        self.batches.append(len(batch["x"]))
        return {"half": batch["x"] / 2, "mean": batch["x"].mean(-1), "x": batch["x"]}


def halves(forward: BatchedForward, num: int, size: int, seed: int = 0) -> tuple[list[State], list[State]]:
    """Answers, and those that are wanted."""
    x = torch.randn(num, size, generator=torch.Generator().manual_seed(seed))
    return forward([{"x": row} for row in x]), [Halves()({"x": row}) for row in x]


def batched(**limits: int) -> tuple[BatchedForward, Halves]:
    model = Halves()
    forward = BatchedForward(model, CPU, uses_graphs=True)
    assert forward.graphs is None, "A CPU has none."
    forward.graphs = GraphCache(CPU, **limits)
    return forward, model


def test_a_batch_of_equal_shapes_is_captured_at_its_second_size_and_answers_as_an_eager_one(pools: list[int]) -> None:
    forward, model = batched()
    for seed, num in enumerate((3, 4, 3, 1, 3, 2, 1, 1)):
        given, wanted = halves(forward, num, 6, seed)
        assert equal(given, wanted)
        assert len(given) == num
    assert model.batches == [4, 4, 4, 1, 2, 1, 1]  # a capture calls twice
    assert forward.num_graph_steps == 5
    assert len(pools) == 2
    most = BATCH_SIZES[-1]
    for _ in range(3):
        halves(forward, most + 1, 6)
    assert model.batches[-3:] == [most + 1] * 3, "A batch larger than any graph is not padded."


def test_graphs_of_many_shapes_stay_few_and_share_a_pool(pools: list[int]) -> None:
    """Sizes of pictures are for requests to choose."""
    forward, _ = batched(most_graphs=3)
    for size in range(1, 50):
        for seed in range(3):
            assert equal(*halves(forward, 1, size, seed))
        assert forward.graphs is not None
        assert len(forward.graphs._graphs) <= 3
    assert len(pools) == 49
    assert set(pools) == {0}
    before = len(pools)
    for size in range(50, 100):
        halves(forward, 1, size)
    assert len(pools) == before, "What comes once is not captured."


class Shifted:
    """What changes, and what stays: the one is moved by the other."""

    def __call__(self, batch: State) -> State:
        return {"x": batch["x"] + batch["by"].sum(-1, keepdim=True)}


def test_what_a_graph_holds_already_is_not_copied_again(pools: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """By tensor: another one, or the same in another place, is."""
    forward = BatchedForward(Shifted(), CPU, uses_graphs=True, keeps_inputs=True)
    forward.graphs = GraphCache(CPU)
    joined: list[int] = []
    stack = torch.stack

    def counted(tensors: list[Tensor]) -> Tensor:
        joined.append(tensors[0].numel())
        return stack(tensors)

    monkeypatch.setattr(torch, "stack", counted)
    states = [{"x": torch.randn(3), "by": torch.randn(500)} for _ in range(4)]
    copies = []
    for chosen in ([0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2], [2, 1, 0], [2, 1, 0], [2, 1, 3], [2, 1], [2, 1, 3, 0]):
        given = [states[i] for i in chosen]
        wanted = [Shifted()({name: t[None] for name, t in state.items()})["x"][0] for state in given]
        joined.clear()
        for i, found, expected in zip(chosen, forward(given), wanted, strict=True):
            assert torch.equal(found["x"], expected)
            states[i] = {**states[i], **found}
        copies.append(joined.count(500))
    assert copies == [1, 1, 0, 0, 1, 0, 1, 1, 1]
    assert forward.num_graph_steps == 7
    states[2] = {**states[2], "by": states[2]["by"].clone()}
    joined.clear()
    forward([states[i] for i in (2, 1, 3, 0)])
    assert joined.count(500) == 1, "A copy of it may hold anything."


def test_a_graph_does_not_keep_alive_what_it_was_given(pools: list[int]) -> None:
    forward = BatchedForward(Shifted(), CPU, uses_graphs=True, keeps_inputs=True)
    forward.graphs = GraphCache(CPU)
    for _ in range(5):
        states = [{"x": torch.randn(3), "by": torch.randn(500)} for _ in range(2)]
        seen = [weakref.ref(state["by"]) for state in states]
        wanted = [state["x"] + state["by"].sum() for state in states]
        for found, expected in zip(forward(states), wanted, strict=True):
            torch.testing.assert_close(found["x"], expected)
        states.clear()
        assert [one() for one in seen] == [None, None]


def test_padding_is_less_than_an_eighth_of_a_step_that_fills_a_gpu() -> None:
    sizes = [padded_size(num, 64) for num in range(1, MOST_GRAPH_TOKENS + 1)]
    assert sizes == sorted(sizes)
    for num, size in enumerate(sizes, 1):
        assert num <= size == padded_size(size, 64)
        assert size < 1.125 * num if num > 1024 else size < max(2 * num, 65)
    assert len(set(sizes)) == 37
    assert sizes[-1] == MOST_GRAPH_TOKENS
    assert [padded_size(n, 64) for n in (1, 65, 1024, 1025, 2048, 8100)] == [64, 128, 1024, 1152, 2048, 8192]
