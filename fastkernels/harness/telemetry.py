"""Clocks, temperature and throttle reasons beside each visit; nothing is ever set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

try:
    import pynvml
except ImportError:
    pynvml = None


def nvml_handle(device: torch.device) -> Any | None:
    """NVML's handle of a torch device; None where there is none, or no binding.

    NVML numbers all GPUs of the machine, whatever CUDA_VISIBLE_DEVICES shows torch: the UUID says which one it is.
    """
    if pynvml is None or device.type != "cuda":
        return None
    try:
        uuid = torch.cuda.get_device_properties(device).uuid
        pynvml.nvmlInit()
    except (pynvml.NVMLError, RuntimeError, AssertionError):  # AssertionError: torch without CUDA
        return None
    for kind in ("GPU", "MIG"):
        with contextlib.suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}")
    return None


class Telemetry:
    """Reads NVML when there is a GPU and its Python binding; otherwise nothing."""

    def __init__(self, device: torch.device) -> None:
        self._handle = nvml_handle(device)

    def read(self) -> dict[str, Any]:
        """Those of {sm_mhz, memory_mhz, temperature_c, power_w, throttle_reasons} that the device tells: a virtual GPU
        or a part of one may not tell all."""
        handle = self._handle
        if handle is None:
            return {}
        fields: dict[str, Callable[[], Any]] = {
            "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "throttle_reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        }
        found = {}
        for name, read in fields.items():
            with contextlib.suppress(pynvml.NVMLError):
                found[name] = read()
        return found


def utilization(device: torch.device) -> int | None:
    """Percent of the last sixth of a second or so in which a kernel ran; None where the device does not tell."""
    handle = nvml_handle(device)
    if handle is None:
        return None
    with contextlib.suppress(pynvml.NVMLError):
        return int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return None
