"""Paths timed in turns on a GPU: a CUDA graph of each, or events where it reads a number on the host."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

_TURN_MS = 30.0
"""A path calls so many of its sets in a turn as this allows, one at least."""
_PATH_MS = 250.0
_MOST_TURNS, _LEAST_TURNS = 40, 3

Call = Callable[[], object]


class Turn:
    """Some calls of one path, captured where that is possible, and what each run of them took."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = list(calls[:2])
        self._run_calls()  # compiles
        once = self._milliseconds(self._run_calls) / len(self._calls)
        self._calls = list(calls[: max(1, int(_TURN_MS / once))])
        self._graph, self._kept = self._captured()
        self.is_graph = self._graph is not None
        wanted = int(_PATH_MS / (once * len(self._calls)))
        self.num_turns = max(_LEAST_TURNS, min(_MOST_TURNS, wanted))
        self.times: list[float] = []

    def _captured(self) -> tuple[torch.cuda.CUDAGraph | None, list[object]]:
        """The graph and what it writes, which it keeps writing."""
        if _waits(self._calls[0]):
            return None, []
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                kept = [call() for call in self._calls]
        except Exception:
            torch.cuda.synchronize()
            return None, []
        return graph, kept

    def take(self) -> None:
        self.times.append(self._milliseconds(self._run_calls if self._graph is None else self._graph.replay))

    def _run_calls(self) -> None:
        for call in self._calls:
            call()

    def _milliseconds(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    @property
    def microseconds(self) -> float:
        return statistics.median(self.times[1:]) * 1e3 / len(self._calls)


def _waits(call: Call) -> bool:
    """Whether the host waits for the device in it. Known beforehand: a capture that ends so leaves the generator of
    random numbers unusable."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def take_turns(
    paths: Mapping[str, Sequence[Call]], failed: Callable[[str, Exception], None]
) -> tuple[dict[str, float], list[str]]:
    """Median microseconds of one call of each path, its first turn not counted; and the paths without a graph. A path
    that fails is told to `failed`, and the others go on."""
    turns: dict[str, Turn] = {}
    for name, calls in paths.items():
        try:
            turns[name] = Turn(calls)
        except Exception as error:
            torch.cuda.synchronize()
            failed(name, error)
    for number in range(max((turn.num_turns for turn in turns.values()), default=0)):
        order = list(turns.values())
        for turn in order if number % 2 else reversed(order):
            if number < turn.num_turns:
                turn.take()
    times = {name: turn.microseconds for name, turn in turns.items()}
    return times, [name for name, turn in turns.items() if not turn.is_graph]
