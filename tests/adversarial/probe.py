"""Looks around inside a worker and reports what it finds by the only way out, an exception's text.

PLACES is replaced by the test: {"judge": process id, "run": folder, "harness": folder, "port": a port that listens}.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PLACES: dict[str, Any] = {}


def outcome(action: Any) -> str:
    """ "done", or the kind of error."""
    try:
        action()
    except BaseException as error:
        return type(error).__name__
    return "done"


def files() -> dict[str, str]:
    harness, run = Path(PLACES["harness"]), Path(PLACES["run"])
    judge = PLACES["judge"]
    return {
        "tolerances": outcome((harness / "tolerances.json").read_text),
        "judge source": outcome((harness / "judge.py").read_text),
        "run folder": outcome((run / "results.json").read_text),
        "run folder listing": outcome(lambda: list(run.iterdir())),
        "write package": outcome(lambda: (harness.parent / "planted.py").write_text("")),
        "write own file": outcome(lambda: Path(__file__).open("r+b")),
        "write /dev/shm": outcome(lambda: Path("/dev/shm/fastkernels-probe").write_text("")),
        "write /tmp": outcome(lambda: Path("/tmp/fastkernels-probe").write_text("")),
        "judge memory": outcome(lambda: Path(f"/proc/{judge}/mem").open("rb")),
        "judge environment": outcome(Path(f"/proc/{judge}/environ").read_bytes),
        "signal the judge": outcome(lambda: os.kill(judge, 0)),
        "parent memory": outcome(lambda: Path(f"/proc/{os.getppid()}/mem").open("rb")),
    }


def network() -> dict[str, str]:
    def connect(kind: int, address: tuple[str, int]) -> None:
        with socket.socket(socket.AF_INET, kind) as probe:
            probe.settimeout(1)
            probe.connect(address)

    return {
        "route": outcome(lambda: connect(socket.SOCK_DGRAM, ("192.0.2.1", 9))),
        "loopback": outcome(lambda: connect(socket.SOCK_STREAM, ("127.0.0.1", PLACES["port"]))),
    }


def frames() -> list[tuple[str, str, Any]]:
    found, frame = [], sys._getframe()
    while frame is not None:
        found += [(frame.f_code.co_name, name, value) for name, value in frame.f_locals.items()]
        frame = frame.f_back
    return found


def large_integers() -> list[int]:
    """Whatever could be a seed: in locals, attributes, dictionaries and the words shared with the judge."""
    values: set[int] = set()
    for holder in [{n: v for _, n, v in frames()}, *(o for o in gc.get_objects() if type(o) is dict)]:
        values |= {v for v in list(holder.values()) if type(v) is int and v > 1 << 40}
    worker = next(v for _, n, v in frames() if n == "self" and type(v).__name__ == "Worker")
    return sorted(values | {int(word) for word in worker.arena.bell if word > 1 << 40})


def expected_anywhere(right: Tensor) -> dict[str, int]:
    """How often the right answer lies in a living tensor, or its bytes in the memory shared with the judge."""
    worker = next(v for _, n, v in frames() if n == "self" and type(v).__name__ == "Worker")
    shared = bytes(worker.arena.bytes.numpy())
    tensors = 0
    for o in gc.get_objects():
        if type(o) is Tensor and o is not right and o.shape == right.shape and o.is_floating_point():
            tensors += torch.allclose(o.double(), right.double(), rtol=1e-3, atol=1e-3)
    values = right.reshape(-1)
    start = int(values.nonzero()[0])  # six zeros lie everywhere
    patterns = [values[start : start + 6].to(dtype).numpy().tobytes()[:24] for dtype in (torch.float32, torch.float64)]
    return {"tensors": tensors, "bytes": sum(shared.count(p) for p in patterns)}


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        h = x if residual is None else x + residual
        right = h.double() * torch.rsqrt(h.double().square().mean(-1, keepdim=True) + self.eps) * self.weight.double()
        kinds = {type(o).__name__ for o in gc.get_objects() if type(o).__module__.startswith("fastkernels")}
        status = Path("/proc/self/status").read_text().splitlines()
        now = (time.perf_counter_ns(), time.time_ns(), time.monotonic_ns())
        report = {
            "environment": dict(os.environ),
            "arguments": sys.argv,
            "command line": Path("/proc/self/cmdline").read_text(),
            "descriptors": [
                os.readlink(f"/proc/self/fd/{n}") for n in range(64) if os.path.islink(f"/proc/self/fd/{n}")
            ],
            "processes": [int(name) for name in os.listdir("/proc") if name.isdigit()],
            "own process": os.getpid(),
            "modules": [name for name in sys.modules if name.startswith("fastkernels.")],
            "kinds": sorted(kinds),
            "local names": sorted({name for _, name, _ in frames()}),
            "integers": large_integers(),
            "clocks": [v for v in large_integers() if any(abs(v - t) < 10**11 for t in now)],
            "expected": expected_anywhere(right),
            "files": files(),
            "network": network(),
            "capabilities": [line for line in status if line.startswith(("CapEff", "NoNewPrivs"))],
        }
        raise RuntimeError(f"<<{json.dumps(report)}>>")
