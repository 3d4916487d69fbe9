"""How busy the GPUs are meanwhile, as NVML has it: the share of its last window in which a kernel ran."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import torch

from fastkernels.harness.telemetry import nvml_handle, pynvml

_PERIOD_SECONDS = 0.1


class BusySampler:
    """Samples in a thread of this process, not the engine's, for as long as a block runs; nothing without NVML."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._samples: list[tuple[float, float]] = []
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self._handles = [handle for device in devices if (handle := nvml_handle(device)) is not None]

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
            rates = []
            for handle in self._handles:
                with contextlib.suppress(pynvml.NVMLError):  # a virtual GPU may not tell
                    rates.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            if rates:
                self._samples.append((time.monotonic(), sum(rates) / len(rates) / 100))
