"""How the kernel benchmarks time: medians over replays of a CUDA graph that calls a kernel on several input sets.

The sets together exceed the L2 cache. Bytes are those that must be read and written once.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import triton
from torch import Tensor

COLD_BYTES = 256 << 20
Call = Callable[[], object]


@dataclass
class Row:
    """One kernel at one shape: microseconds by path, and the work of one call."""

    kernel: str
    shape: str
    num_bytes: int = 0
    num_flops: int = 0
    microseconds: dict[str, float] = field(default_factory=dict)

    def rate(self, path: str) -> float:
        """TB/s, or TFLOP/s for what is bound by arithmetic."""
        return (self.num_flops or self.num_bytes) / self.microseconds[path] / 1e6


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def num_sets(num_bytes: int) -> int:
    return max(2, min(40, -(-COLD_BYTES // max(num_bytes, 1))))


def graph_microseconds(calls: list[Call], target_ms: float = 60.0) -> float:
    """Median microseconds of one call, over replays of a graph of all calls."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    times: list[float] = []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    while len(times) < 5 or (sum(times) < target_ms and len(times) < 60):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    del kept
    return statistics.median(times[1:]) * 1e3 / len(calls)


def event_microseconds(calls: list[Call]) -> float:
    """As graph_microseconds without a graph, for paths that cannot be captured."""
    for call in calls:
        call()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times) * 1e3 / len(calls)


def measure(row: Row, paths: dict[str, list[Call]]) -> Row:
    for name, calls in paths.items():
        try:
            row.microseconds[name] = graph_microseconds(calls)
        except Exception as error:
            torch.cuda.synchronize()
            print(f"{row.kernel} {row.shape} {name}: {type(error).__name__} {str(error)[:150]}")
    torch.cuda.empty_cache()
    return row


def copy_row() -> Row:
    """Timed without a graph: there a copy becomes a node for the copy engines, which are slower."""
    source, target = torch.empty(2, 4 << 30, dtype=torch.uint8, device="cuda")
    source.random_()
    row = Row("copy", "4 GiB", 8 << 30)
    row.microseconds["ours"] = event_microseconds([lambda: target.copy_(source)] * 3)
    return row


def environment() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "timing": "median of CUDA-graph replays, inputs rotated past the L2 cache, clocks as found",
    }


def print_table(rows: list[Row]) -> None:
    copy = rows[0].rate("ours")
    print(f"copy {copy:.2f} TB/s on {torch.cuda.get_device_name()}")
    for row in rows[1:]:
        others = ", ".join(f"{name} {t:.2f}" for name, t in row.microseconds.items() if name != "ours")
        if "ours" not in row.microseconds:
            print(f"{row.kernel:19s} {row.shape:36s} {'failed':>9s} | {others}")
            continue
        rate = row.rate("ours")
        share = f"{rate:.0f} TFLOP/s" if row.num_flops else f"{rate:.2f} TB/s {100 * rate / copy:3.0f} %"
        print(f"{row.kernel:19s} {row.shape:36s} {row.microseconds['ours']:9.2f} us {share:16s} | {others}")
