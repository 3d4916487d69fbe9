"""The process that imports an implementation and runs it on what it is given.

It knows inputs and nothing else: no expected output, tolerance, seed, verdict or deciding clock is
ever in its memory, files or environment. Whatever it says is taken as an answer, never as a fact.

References to the functions that read answers are taken before any candidate is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.cache import bind_caches
from fastkernels.capture.case import decode_value
from fastkernels.context import ForwardContext, Phase, set_forward_context
from fastkernels.harness import wire
from fastkernels.harness.arena import Arena, Layout, Slot, dtype_of
from fastkernels.harness.control import ANSWER_BYTES, Bell, Word
from fastkernels.harness.device import device_for
from fastkernels.harness.sandbox import wake_promptly
from fastkernels.harness.vary import PERIOD, Variation, vary_floats, vary_tokens
from fastkernels.overlay import load_class, resolve_set
from fastkernels.registry import ops

_data_ptr = torch._C.TensorBase.data_ptr
_get_type = type
_dumps = json.dumps
_EXACT_TYPES = (torch.Tensor, nn.Parameter)
_HELD_ANSWERS = 3


class CallPlan:
    """One case as the judge laid it out: where the inputs lie, what is bound, where answers go."""

    def __init__(self, message: dict[str, Any], arena: Arena, device: Any) -> None:
        self.layout = Layout(tuple(Slot.from_json(s) for s in message["slots"]), message["num_bytes"])
        self.pool_starts: list[int] = message["pool_starts"]
        self.scalars: dict[str, Any] = message["scalars"]
        self.argument_names: list[str] = message["arguments"]
        self.context: dict[str, Any] | None = message["context"]
        self.num_caches: int = message["num_caches"]
        self.vary_floats: list[str] = message["vary_floats"]
        self.vary_tokens: dict[str, int] = message["vary_tokens"]
        self.answer_start: int = message["answer_start"]
        self.answer_bytes: int = message["answer_bytes"]
        self.flush_bytes: int = message["flush_bytes"]
        self.poison_bytes: int = message["poison_bytes"]
        self.multiplier_start: int = message["multiplier_start"]
        self._arena = arena
        self.device = device
        regions = [arena.region(start, self.layout.num_bytes) for start in self.pool_starts]
        self.regions = device.mirror(regions)
        self.work = device.working_region(self.regions, self.layout.num_bytes)

    def inputs(self, bell: Bell) -> dict[str, Tensor]:
        """Fresh tensor objects over this call's values."""
        region = self.device.stage(self.regions[bell.read(Word.POOL)], self.work)
        views = self.layout.views(region)
        if bell.read(Word.VARIES):
            vector = self._arena.region(self.multiplier_start, PERIOD * 4).view(torch.float32)
            variation = Variation(bell.read(Word.ROLL), self.device.place(vector), bell.read(Word.SHIFT))
            for name in self.vary_floats:
                views[name].copy_(vary_floats(views[name], variation))
            for name, bound in self.vary_tokens.items():
                views[name].copy_(vary_tokens(views[name], variation, bound))
        return views

    def arguments(self, views: dict[str, Tensor]) -> list[Any]:
        return [views[f"in:{n}"] if f"in:{n}" in views else self.scalars.get(n) for n in self.argument_names]

    def forward_context(self, views: dict[str, Tensor]) -> ForwardContext | None:
        if self.context is None:
            return None
        tensors = {name: views[f"ctx:{name}"] for name in self.context["tensors"]}
        scalars = self.context["scalars"]
        return ForwardContext(
            **tensors,
            max_query_len=scalars["max_query_len"],
            max_seq_len=scalars["max_seq_len"],
            phase=Phase(scalars["phase"]),
        )

    def caches(self, views: dict[str, Tensor]) -> list[Tensor]:
        return [views[f"cache:{i}"] for i in range(self.num_caches)]


class Worker:
    """Serves the judge's messages until the socket closes."""

    def __init__(self, sock: socket.socket, arena: Arena, device: str) -> None:
        self.sock, self.arena = sock, arena
        self.bell = Bell(arena.bell)
        self.device = device_for(device)
        self.module: nn.Module | None = None
        self.plan: CallPlan | None = None
        self.held: list[tuple[int, Any]] = []

    def serve(self) -> None:
        handlers = {
            "load": self.load,
            "params": self.params,
            "case": self.case,
            "calls": self.calls,
            "graph": self.graph,
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
        prepare = getattr(self.module, "process_weights_after_loading", None)
        if prepare is not None:
            prepare()
        self.device.synchronize()
        return {"ok": True, "setup_seconds": time.perf_counter() - started, "memory_bytes": self.device.memory_bytes()}

    def case(self, message: dict[str, Any]) -> dict[str, Any]:
        self.held.clear()
        self.plan = CallPlan(message, self.arena, self.device)
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
        return {"ok": True, "memory_bytes": self.device.memory_bytes()}

    def one_call(self, sequence: int) -> None:
        plan, bell, device = self.plan, self.bell, self.device
        assert plan is not None
        assert self.module is not None
        bell.wait(Word.PREPARE, sequence)
        views = plan.inputs(bell)
        if plan.num_caches:
            bind_caches(self.module, plan.caches(views))
        arguments, context = plan.arguments(views), plan.forward_context(views)
        device.poison(plan.poison_bytes)
        device.flush(plan.flush_bytes if bell.read(Word.FLUSH) else 0)
        with torch.no_grad(), set_forward_context(context) if context else contextlib.nullcontext():
            bell.write(Word.READY, sequence)
            bell.wait(Word.GO, sequence)
            try:
                device.start_clock(bell.read(Word.HOLD_CYCLES))
                answer = self.module(*arguments)
                nanoseconds = device.stop_clock()
                error = ""
            except BaseException:
                device.stop_clock()
                nanoseconds, answer, error = 0, None, traceback.format_exc(limit=12)[-6000:]
        bell.write(Word.DEVICE_NS, nanoseconds)
        bell.write(Word.ENQUEUE_NS, device.enqueue_ns)
        is_sealed = bool(bell.read(Word.SEAL))
        if is_sealed:
            self.publish(answer, views, error)
        bell.write(Word.FAILED, int(bool(error)))
        bell.write(Word.DONE, sequence)
        bell.wait(Word.VERDICT, sequence)
        if bell.read(Word.FETCH) and not is_sealed:
            self.publish(answer, views, error)
        self.held.append((sequence, answer))
        del self.held[:-_HELD_ANSWERS]
        bell.write(Word.IDLE, sequence)

    def publish(self, answer: Any, views: dict[str, Tensor], error: str) -> None:
        """Raw bytes and a description of every returned tensor; inputs as they are now; old answers again."""
        plan = self.plan
        assert plan is not None
        if error:
            self._describe({"error": error})
            return
        parts = list(answer) if _get_type(answer) in (tuple, list) else [answer]
        offset = plan.answer_start
        described = []
        for part in parts:
            record, offset = self._copy_out(part, offset, plan.answer_start + plan.answer_bytes)
            described.append(record)
        record = {"answers": described, "is_sequence": _get_type(answer) in (tuple, list)}
        if self.device.is_remote and self.bell.read(Word.ECHO):
            start = -(-offset // 256) * 256
            size = plan.layout.num_bytes
            if start + size <= plan.answer_start + plan.answer_bytes:
                self.arena.region(start, size).copy_(plan.work)
                record["inputs_start"] = start
                offset = start + size
        if len(self.held) == _HELD_ANSWERS:
            sequence, oldest = self.held[0]
            parts = list(oldest) if _get_type(oldest) in (tuple, list) else [oldest]
            echoes = []
            for part in parts:
                echo, offset = self._copy_out(part, offset, plan.answer_start + plan.answer_bytes)
                echoes.append(echo)
            record["echo"] = {"sequence": sequence, "answers": echoes}
        self._describe(record)

    def _copy_out(self, part: Any, offset: int, end: int) -> tuple[dict[str, Any], int]:
        if part is None:
            return {"kind": "none"}, offset
        if _get_type(part) not in _EXACT_TYPES:
            return {"kind": "other", "type": _get_type(part).__name__}, offset
        description = self.device.describe(part)
        if description.get("problem"):
            return description, offset
        offset = -(-offset // 256) * 256
        num_bytes = description["num_bytes"]
        if offset + num_bytes > end:
            return {**description, "kind": "too_large"}, offset
        self.device.copy_raw(part, self.arena.region(offset, num_bytes))
        return {**description, "kind": "tensor", "start": offset}, offset + num_bytes

    def _describe(self, record: dict[str, Any]) -> None:
        assert self.plan is not None
        text = _dumps(record).encode()[:ANSWER_BYTES]
        start = self.plan.answer_start - ANSWER_BYTES
        region = self.arena.region(start, ANSWER_BYTES)
        ctypes.memmove(_data_ptr(region), text, len(text))
        self.bell.write(Word.ANSWER_LENGTH, len(text))

    def graph(self, message: dict[str, Any]) -> dict[str, Any]:
        """Time of one call inside a CUDA graph: `count` replays, warm, by device events."""
        assert self.plan is not None
        assert self.module is not None
        views = self.plan.inputs(self.bell)
        if self.plan.num_caches:
            bind_caches(self.module, self.plan.caches(views))
        context = self.plan.forward_context(views)
        arguments = self.plan.arguments(views)
        with torch.no_grad(), set_forward_context(context) if context else contextlib.nullcontext():
            return {"ok": True, "nanoseconds": self.device.time_graph(self.module, arguments, message["count"])}


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
    wake_promptly()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.suppress(wire.WireClosed):
        Worker(sock, Arena(arena_bytes, arena_fd), device).serve()
