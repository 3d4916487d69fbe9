"""Clocks, temperature and throttle reasons beside each visit; nothing is ever set."""

from __future__ import annotations

from typing import Any

try:
    import pynvml
except ImportError:
    pynvml = None


class Telemetry:
    """Reads NVML when there is a GPU and its Python binding; otherwise nothing."""

    def __init__(self, is_remote: bool) -> None:
        self._handle = None
        if is_remote and pynvml is not None:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)

    def read(self) -> dict[str, Any]:
        """{sm_mhz, memory_mhz, temperature_c, power_w, throttle_reasons}, or {}."""
        if self._handle is None:
            return {}
        handle = self._handle
        return {
            "sm_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "temperature_c": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "throttle_reasons": pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        }
