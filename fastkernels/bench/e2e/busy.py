"""How busy the GPUs are meanwhile, as NVML has it: the share of its last window in which a kernel ran."""

from __future__ import annotations

import threading
import time
from types import TracebackType

try:
    import pynvml
except ImportError:
    pynvml = None

_PERIOD_SECONDS = 0.1


class BusySampler:
    """Samples in a thread of this process, not the engine's, for as long as a block runs; nothing without NVML."""

    def __init__(self, num_gpus: int) -> None:
        self._samples: list[tuple[float, float]] = []
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self._handles = _handles(num_gpus)

    def __enter__(self) -> BusySampler:
        if self._handles:
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        if self._thread is not None:
            self._thread.join()

    def share(self, start: float, end: float) -> float | None:
        """The mean between two readings of time.monotonic(); None where nothing was read."""
        chosen = [value for at, value in self._samples if start <= at <= end]
        return sum(chosen) / len(chosen) if chosen else None

    def _sample(self) -> None:
        while not self._ends.wait(_PERIOD_SECONDS):
            rates = [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self._handles]
            self._samples.append((time.monotonic(), sum(rates) / len(rates) / 100))


def _handles(num_gpus: int) -> list[object]:
    if pynvml is None or num_gpus < 1:
        return []
    try:
        pynvml.nvmlInit()
        count = min(num_gpus, pynvml.nvmlDeviceGetCount())
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    except pynvml.NVMLError:
        return []
