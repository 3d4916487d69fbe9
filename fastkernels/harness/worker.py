"""The process that imports an implementation and runs it on what it is given.

It knows inputs and nothing else: no expected output, tolerance, seed, verdict or deciding clock is
ever in its memory, files or environment. Whatever it says is taken as an answer, never as a fact.

References to the functions that read answers are taken before any candidate is imported.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastkernels.capture.case import decode_value
from fastkernels.harness import sandbox, wire
from fastkernels.harness.arena import Arena, Layout, Slot, dtype_of
from fastkernels.harness.call import Answer, CallPlan, Given, Publisher
from fastkernels.harness.control import Bell, Word
from fastkernels.harness.cuda_device import CudaDevice
from fastkernels.harness.device import CpuDevice
from fastkernels.harness.launched import names_of_call
from fastkernels.op import prepare_weights
from fastkernels.overlay import load_class, resolve_set
from fastkernels.registry import ops


class Worker:
    """Serves the judge's messages until the socket closes."""

    def __init__(self, sock: socket.socket, arena: Arena, device: str) -> None:
        self.sock, self.arena = sock, arena
        self.bell = Bell(arena.bell)
        self.device = CudaDevice(device, arena) if device.startswith("cuda") else CpuDevice()
        self.module: nn.Module | None = None
        self.plan: CallPlan | None = None
        self.publisher: Publisher | None = None
        self.held: list[tuple[int, Answer]] = []

    def serve(self) -> None:
        handlers = {
            "load": self.load,
            "params": self.params,
            "case": self.case,
            "calls": self.calls,
            "again": self.again,
            "graph": self.graph,
            "launched": self.launched,
        }
        while True:
            message, _ = wire.receive(self.sock)
            try:
                reply = handlers[message["cmd"]](message)
            except wire.WireClosed:
                raise
            except BaseException as error:
                reply = {"error": {"kind": type(error).__name__, "text": traceback.format_exc(limit=12)[-6000:]}}
            wire.send(self.sock, reply)

    def load(self, message: dict[str, Any]) -> dict[str, Any]:
        entry = ops()[message["op"]]
        if message["set"] is None:
            cls = getattr(__import__(entry.module, fromlist=[entry.class_name]), entry.class_name)
        else:
            if message["is_sealed"]:
                _forbid_import(entry.module)
            try:
                cls = load_class(entry, resolve_set(message["set"]))
            except BaseException as error:
                return {"error": {"kind": "import", "text": str(error)[-6000:] or traceback.format_exc()[-6000:]}}
        dtype = dtype_of(message["dtype"])
        with self.device.building(dtype):
            self.module = cls(**decode_value(message["init"]))
        self.module.eval()
        return {"ok": True}

    def params(self, message: dict[str, Any]) -> dict[str, Any]:
        """Write weights in place, twice or more in a life, then let the module prepare them."""
        assert self.module is not None
        layout = Layout(tuple(Slot.from_json(s) for s in message["slots"]), message["num_bytes"])
        values = layout.views(self.arena.region(message["start"], layout.num_bytes))
        self.module.load_state_dict(values, strict=True)
        self.module.to(self.device.torch_device)
        started = time.perf_counter()
        prepare_weights(self.module)
        self.device.synchronize()
        return {"ok": True, "setup_seconds": time.perf_counter() - started}

    def case(self, message: dict[str, Any]) -> dict[str, Any]:
        self.held.clear()
        self.plan = self.publisher = None  # their memory first
        self.plan = CallPlan(message, self.arena, self.device)
        self.publisher = Publisher(self.plan, self.arena, self.bell, self.device)
        return {"ok": True}

    def calls(self, message: dict[str, Any]) -> dict[str, Any]:
        """`count` calls by the bell, starting at sequence number `first`."""
        assert self.plan is not None
        assert self.module is not None
        gc.collect()
        gc.disable()
        try:
            for sequence in range(message["first"], message["first"] + message["count"]):
                self.one_call(sequence)
        finally:
            gc.enable()
        return {"ok": True}

    def one_call(self, sequence: int) -> None:
        """The worker's side of one call, turn by turn (control.py)."""
        plan, publisher, bell = self.plan, self.publisher, self.bell
        assert plan is not None
        assert publisher is not None
        assert self.module is not None
        bell.wait(Word.PREPARE, sequence)
        given = plan.inputs(bell, self.module)
        problem = self.device.before_ready(plan.poison_bytes)
        with given.in_context():
            bell.write(Word.READY, sequence)
            if bell.read(Word.PAUSES):
                bell.wait(Word.WAKE, sequence)
                bell.write(Word.AWAKE, sequence)
            bell.wait(Word.GO, sequence)
            answer = self.answer(sequence, given)
        answer.problem = problem
        is_sealed = bool(bell.read(Word.SEAL))
        if is_sealed:
            if plan.is_mutating and not plan.places:  # on a GPU `keep` has copied it
                answer.region = given.region
            publisher.publish(answer)
        bell.write(Word.FAILED, int(bool(answer.error or problem)))
        bell.write(Word.DONE, sequence)
        bell.wait(Word.VERDICT, sequence)
        if lot := bell.read(Word.SAMPLE):
            publisher.sample(answer, lot - 1)
            bell.write(Word.SAMPLED, sequence)
            bell.wait(Word.WANTED, sequence)
        if bell.read(Word.FETCH) and not is_sealed:
            publisher.publish(answer)
        answer.region = None
        self.held.append((sequence, answer))
        del self.held[: -plan.num_held]
        bell.write(Word.IDLE, sequence)

    def again(self, message: dict[str, Any]) -> dict[str, Any]:
        """An answer that was given before, as it is now."""
        assert self.publisher is not None
        self.publisher.publish(Answer(dict(self.held)[message["sequence"]].value))
        return {"ok": True}

    def answer(self, sequence: int, given: Given) -> Answer:
        """What forward returns. On a GPU all of it waits in the stream until the judge writes RELEASE."""
        plan, publisher, bell, device = self.plan, self.publisher, self.bell, self.device
        assert plan is not None
        assert publisher is not None
        assert self.module is not None
        answer, device_ns, stage_ns, host_ns = Answer(), 0, 0, 0
        try:
            device.hold(sequence)
            plan.stage(bell, given)
            device.start_clock()
            answer.value = self.module(*given.arguments)
            host_ns = device.stop_clock()
            publisher.keep(answer, given)
        except BaseException:
            answer = Answer(error=traceback.format_exc(limit=12)[-6000:])
        bell.write(Word.ENQUEUED, sequence)
        try:
            device_ns, stage_ns = device.join(is_timed=not answer.error)
        except BaseException:
            answer = Answer(error=answer.error or traceback.format_exc(limit=12)[-6000:])
        bell.write(Word.DEVICE_NS, device_ns)
        bell.write(Word.STAGE_NS, stage_ns)
        bell.write(Word.ENQUEUE_NS, host_ns)
        return answer

    def graph(self, message: dict[str, Any]) -> dict[str, Any]:
        """Time of one call inside a CUDA graph: `count` replays, warm, by device events."""
        assert self.plan is not None
        assert self.module is not None
        given = self.plan.inputs(self.bell, self.module)
        self.plan.stage(self.bell, given)
        with given.in_context():
            return {"ok": True, "nanoseconds": self.device.time_graph(self.module, given.arguments, message["count"])}

    def launched(self, message: dict[str, Any]) -> dict[str, Any]:
        """The kernels of one more call, which is not timed and whose answer nobody reads (launched.py)."""
        assert self.plan is not None
        assert self.module is not None
        given = self.plan.inputs(self.bell, self.module)
        self.plan.stage(self.bell, given)
        with given.in_context():
            return {"ok": True, "names": names_of_call(self.module, given.arguments, self.device.torch_device)}


class _Forbidden:
    """A finder that refuses one module: the operator that the candidate replaces."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.module:
            raise ImportError(
                f"A candidate may not import {name}, the operator that it replaces: that would be judged "
                "against itself. Copy what you need into your file."
            )


def _forbid_import(module: str) -> None:
    sys.modules.pop(module, None)
    sys.meta_path.insert(0, _Forbidden(module))  # type: ignore[arg-type]


def main(sock: socket.socket, arena_fd: int, arena_bytes: int, device: str, private_dir: Path) -> None:
    os.chdir(private_dir)
    sandbox.wake_promptly()
    sandbox.keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.suppress(wire.WireClosed):
        Worker(sock, Arena(arena_bytes, arena_fd), device).serve()
