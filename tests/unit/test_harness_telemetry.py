"""What NVML tells is of the GPU that is measured, and what it does not tell is left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastkernels.bench.e2e import busy
from fastkernels.bench.e2e.busy import BusySampler
from fastkernels.bench.e2e.scenario import Scenario
from fastkernels.harness import telemetry
from fastkernels.harness.telemetry import Telemetry, nvml_handle

UUIDS = {0: "aaaa", 1: "bbbb"}
"""By torch's index, as CUDA_VISIBLE_DEVICES=3,1 would have it; NVML knows them by their own."""


class FakeNvml:
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 3

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.known = {"GPU-aaaa": 3, "MIG-bbbb": 1}

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in self.known:
            raise self.NVMLError("Not Found")
        return self.known[uuid]

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        return 1000 * handle + kind

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:  # noqa: N802
        return 40

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=50)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setattr(telemetry, "pynvml", fake)
    monkeypatch.setattr(busy, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace(uuid=UUIDS[d.index or 0]))
    return fake


def test_handle_is_of_the_device_that_torch_means(nvml: FakeNvml) -> None:
    assert [nvml_handle(torch.device(name)) for name in ("cuda", "cuda:0", "cuda:1", "cpu")] == [3, 3, 1, None]
    nvml.known.clear()
    assert nvml_handle(torch.device("cuda")) is None
    assert Telemetry(torch.device("cuda")).read() == {}


def test_field_that_is_not_supported_is_left_out(nvml: FakeNvml) -> None:
    read = Telemetry(torch.device("cuda:1")).read()
    assert read == {"sm_mhz": 1001, "memory_mhz": 1002, "temperature_c": 40, "throttle_reasons": 0}


def test_busy_share_is_of_the_gpus_that_tell(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_PERIOD_SECONDS", 0.001)
    with BusySampler([torch.device("cuda:0"), torch.device("cuda:1")]) as sampler:
        assert sampler._thread is not None
        while not sampler._samples and sampler._thread.is_alive():
            pass
    assert {share for _, share in sampler._samples} == {0.5}


@pytest.mark.parametrize(
    ("options", "handles"),
    [
        ({}, [3]),
        ({"device": "cuda:1"}, [1]),
        ({"device": "cuda", "tensor_parallel_size": 2}, [3, 1]),
        ({"device": "cpu"}, []),
        ({"device": "fake"}, []),
    ],
)
def test_busy_gpus_are_those_that_the_engine_runs_on(
    nvml: FakeNvml, options: dict[str, Any], handles: list[int]
) -> None:
    assert BusySampler(Scenario("tiny-llama", "demo", options=options).gpus)._handles == handles
