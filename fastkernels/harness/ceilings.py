"""What this machine can do at most: measured once per run, so that shares of the roofline mean something."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from fastkernels.harness.timed_figures import LEAST_NOISE

_FLOOR_SHARE = 1.5
"""A time is refused when it would need this many times the measured bandwidth or rate."""

_SPLIT_PRODUCTS = 3
"""Of half precision, or TF32, make one of about float32's accuracy: each factor is split in two, the least part left
out (https://arxiv.org/abs/2203.03341). Tensor cores do them faster than the float32 product that is measured here."""


@dataclass(frozen=True)
class Ceilings:
    """copy_bytes_per_s: bytes read plus written by a large copy; flops_per_s: of a large matrix product."""

    device: str
    copy_bytes_per_s: float
    flops_per_s: dict[str, float] = field(default_factory=dict)
    flush_bytes: int = 0
    least_noise: float = LEAST_NOISE["cpu"]
    least_us: float = 0.2

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def measured(cls, device: str) -> Ceilings:
        return _measure_cuda(device) if device.startswith("cuda") else _measure_cpu()

    def ideal_us(self, num_bytes: int, num_flops: int, dtype: torch.dtype) -> float:
        """The larger of the time to move the bytes and to do the operations, as a library's product does them."""
        return 1e6 * max(num_bytes / self.copy_bytes_per_s, num_flops / self._rate(dtype))

    def floor_us(self, num_bytes: int, num_flops: int, dtype: torch.dtype) -> float:
        """No honest call takes less. What fits the cache may not reach memory within the call: it is not counted."""
        counted = max(0, num_bytes - self.flush_bytes) if self.flush_bytes else 0
        rate = max(self._rate(dtype), max(self.flops_per_s.values()) / _SPLIT_PRODUCTS)
        seconds = max(counted / self.copy_bytes_per_s, num_flops / rate)
        return max(self.least_us, 1e6 * seconds / _FLOOR_SHARE)

    def _rate(self, dtype: torch.dtype) -> float:
        return self.flops_per_s.get(str(dtype).removeprefix("torch."), max(self.flops_per_s.values()))


def _measure_cpu() -> Ceilings:
    source = torch.ones(16 << 20)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source))
    rates: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):  # float16 may have no instructions; it is held to the faster of both
        a = torch.randn(512, 512).to(dtype)
        rates[str(dtype).removeprefix("torch.")] = 2 * 2 * 512**3 / _best(partial(torch.mm, a, a))
    return Ceilings("cpu", 2 * source.numel() * 4 / seconds, rates, least_noise=LEAST_NOISE["cpu"], least_us=0.2)


def _measure_cuda(device: str) -> Ceilings:
    num_bytes = min(4 << 30, torch.cuda.mem_get_info(device)[0] // 8)  # 1 GiB copies ran 10 % slower on an H200
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best_cuda(partial(target.copy_, source))
    rates: dict[str, float] = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        n = 8192 if dtype.itemsize == 2 else 4096
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        rates[str(dtype).removeprefix("torch.")] = 2 * n**3 / _best_cuda(partial(torch.mm, a, b))
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    del source, target, a, b
    torch.cuda.empty_cache()  # what is still held would stay in this process's cache, out of the workers' reach
    return Ceilings(
        device, 2 * num_bytes / seconds, rates, flush_bytes=2 * l2, least_noise=LEAST_NOISE["cuda"], least_us=0.8
    )


def _best(call: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def _best_cuda(call: Callable[[], object], rounds: int = 20) -> float:
    times = []
    for _ in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return min(times)
