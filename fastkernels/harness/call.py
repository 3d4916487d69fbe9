"""One case as the judge laid it out, and one answer as raw bytes: what a worker reads and what it writes."""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.cache import bind_caches
from fastkernels.capture.tensors import stored
from fastkernels.context import ForwardContext, Phase, set_forward_context
from fastkernels.harness.arena import Arena, Layout, Slot, aligned
from fastkernels.harness.control import ANSWER_BYTES, Bell, Word
from fastkernels.harness.cuda_device import CudaDevice
from fastkernels.harness.device import CpuDevice
from fastkernels.harness.sample import Sample
from fastkernels.harness.vary import Rule, Variation, vary

_data_ptr = torch._C.TensorBase.data_ptr
_get_type = type
_dumps = json.dumps
_LONGEST_ERROR = ANSWER_BYTES // 6 - 8  # JSON may take six bytes for a character
_EXACT_TYPES = (torch.Tensor, nn.Parameter)


@dataclass
class Given:
    """The arguments of one call: fresh tensor objects over `region`, which may not hold its values yet."""

    region: Tensor
    views: dict[str, Tensor]
    arguments: list[Any]
    context: ForwardContext | None

    @contextlib.contextmanager
    def in_context(self) -> Iterator[None]:
        with torch.no_grad(), set_forward_context(self.context) if self.context else contextlib.nullcontext():
            yield


class CallPlan:
    """Where the inputs lie, what is bound, where answers go."""

    def __init__(self, message: dict[str, Any], arena: Arena, device: CpuDevice | CudaDevice) -> None:
        self.layout = Layout(tuple(Slot.from_json(s) for s in message["slots"]), message["num_bytes"])
        self.scalars: dict[str, Any] = message["scalars"]
        self.argument_names: list[str] = message["arguments"]
        self.context: dict[str, Any] | None = message["context"]
        self.num_caches: int = message["num_caches"]
        self.rules = {name: Rule.from_json(rule) for name, rule in message["rules"].items()}
        self.bounds = {name: rule.bound(device.torch_device) for name, rule in self.rules.items()}
        self.answer_start: int = message["answer_start"]
        self.answer_bytes: int = message["answer_bytes"]
        self.flush_bytes: int = message["flush_bytes"]
        self.poison_bytes: int = message["poison_bytes"]
        self.is_mutating: bool = message["is_mutating"]
        self.num_held: int = message["num_held"]
        self.device = device
        regions = [arena.region(start, self.layout.num_bytes) for start in message["pool_starts"]]
        self.regions = device.mirror(regions)
        self.places = device.working_regions(self.layout.num_bytes)

    def inputs(self, bell: Bell, module: nn.Module) -> Given:
        """This call's arguments. On a GPU their memory is poisoned now and filled once the clock runs (`stage`)."""
        region = self.regions[bell.read(Word.POOL)]
        if self.places:
            region = self.places[bell.read(Word.PLACE) % len(self.places)]
            self.device.poison_region(region)
        views = self.layout.views(region)
        if self.num_caches:
            bind_caches(module, [views[f"cache:{i}"] for i in range(self.num_caches)])
        arguments = [views[f"in:{n}"] if f"in:{n}" in views else self.scalars.get(n) for n in self.argument_names]
        return Given(region, views, arguments, self._forward_context(views))

    def stage(self, bell: Bell, given: Given) -> None:
        """On a GPU: put this call's values where its arguments lie, in stream order, then flush the cache."""
        if not self.places:
            return
        vector, shift = self.device.secrets()
        given.region.copy_(self.regions[bell.read(Word.POOL)])
        if bell.read(Word.VARIES):
            variation = Variation(bell.read(Word.ROLL), vector, shift)
            for name, rule in self.rules.items():
                values = stored(given.views[name])
                values.copy_(vary(values, rule, variation, self.bounds[name]))
        self.device.poison(self.poison_bytes)
        self.device.flush(self.flush_bytes if bell.read(Word.FLUSH) else 0)

    def _forward_context(self, views: dict[str, Tensor]) -> ForwardContext | None:
        if self.context is None:
            return None
        tensors: dict[str, Any] = {name: views[f"ctx:{name}"] for name in self.context["tensors"]}
        scalars = self.context["scalars"]
        return ForwardContext(
            **tensors,
            max_query_len=scalars["max_query_len"],
            max_seq_len=scalars["max_seq_len"],
            num_decodes=scalars["num_decodes"],
            phase=Phase(scalars["phase"]),
        )


@dataclass
class Answer:
    """What forward returned. kept: raw copies that were made in stream order behind it, by its parts (GPU)."""

    value: Any = None
    error: str = ""
    problem: str = ""
    kept: list[tuple[dict[str, Any], Tensor | None]] = field(default_factory=list)
    region: Tensor | None = None

    def parts(self) -> list[Any]:
        return list(self.value) if self.is_sequence else [self.value]

    @property
    def is_sequence(self) -> bool:
        return _get_type(self.value) in (tuple, list)


class Publisher:
    """Writes raw bytes and a description of every returned tensor where the judge reads them."""

    def __init__(self, plan: CallPlan, arena: Arena, bell: Bell, device: CpuDevice | CudaDevice) -> None:
        self.plan, self.arena, self.bell, self.device = plan, arena, bell, device
        self.buffer = device.snapshot_buffer(plan.answer_bytes)

    def keep(self, answer: Answer, given: Given) -> None:
        """On a GPU: copy the answer, and what the call may have written to, behind its end in the same stream.

        Work that was not joined by then is not in the copy.
        """
        if self.buffer is None:
            return
        offset = 0
        for part in answer.parts():
            record = self._described(part)
            target = None
            if record["kind"] == "tensor" and "problem" not in record:
                offset, end = aligned(offset), aligned(offset) + record["num_bytes"]
                if end > self.buffer.numel():
                    record["kind"] = "too_large"
                else:
                    target, offset = self.buffer[offset:end], end
                    self.device.copy_behind(part, target)
            answer.kept.append((record, target))
        start, end = aligned(offset), aligned(offset) + given.region.numel()
        if self.bell.read(Word.ECHO) and end <= self.buffer.numel():
            answer.region = self.buffer[start:end]
            self.device.copy_behind(given.region, answer.region)

    def sample(self, answer: Answer, lot: int) -> None:
        """The bytes of a large answer that `lot` chooses, where its description will be."""
        parts = self._parts(answer)
        sizes = [record["num_bytes"] if source is not None else 0 for record, source in parts]
        chosen = Sample.drawn(lot, sizes)
        if chosen is not None:
            target = self.arena.region(self.plan.answer_start - ANSWER_BYTES, chosen.num_bytes)
            source = parts[chosen.part][1]
            assert source is not None
            self.device.copy_pieces(source, chosen, target)

    def _parts(self, answer: Answer) -> list[tuple[dict[str, Any], Tensor | None]]:
        """Descriptions with what holds their bytes; None for what is no tensor that could be copied."""
        parts = answer.kept or [(self._described(part), part) for part in answer.parts()]
        return [(r, source if r["kind"] == "tensor" and not r.get("problem") else None) for r, source in parts]

    def publish(self, answer: Answer) -> None:
        """The answer, and inputs as they were after it where `answer.region` holds them."""
        if answer.error or answer.problem:
            self._write({"error": answer.error, "problem": answer.problem})
            return
        offset, described = self.plan.answer_start, []
        for index, part in enumerate(answer.parts()):
            copied, offset = self._copy_out(part, answer.kept[index] if answer.kept else None, offset)
            described.append(copied)
        record: dict[str, Any] = {"answers": described, "is_sequence": answer.is_sequence}
        if answer.region is not None:
            start, size = aligned(offset), answer.region.numel()
            if start + size <= self.plan.answer_start + self.plan.answer_bytes:
                self.device.copy_raw(answer.region, self.arena.region(start, size))
                record["inputs_start"] = start
        self._write(record)

    def _described(self, part: Any) -> dict[str, Any]:
        if part is None:
            return {"kind": "none"}
        if _get_type(part) not in _EXACT_TYPES:
            return {"kind": "other", "type": _get_type(part).__name__}
        return self.device.describe(part)

    def _copy_out(
        self, part: Any, kept: tuple[dict[str, Any], Tensor | None] | None, offset: int
    ) -> tuple[dict[str, Any], int]:
        record, source = kept if kept is not None else (self._described(part), part)
        if record["kind"] != "tensor" or record.get("problem") or source is None:
            return record, offset
        offset, num_bytes = aligned(offset), record["num_bytes"]
        if offset + num_bytes > self.plan.answer_start + self.plan.answer_bytes:
            return {**record, "kind": "too_large"}, offset
        self.device.copy_raw(source, self.arena.region(offset, num_bytes))
        return {**record, "start": offset}, offset + num_bytes

    def _write(self, record: dict[str, Any]) -> None:
        text = _dumps(record).encode()
        if len(text) > ANSWER_BYTES:
            what = str(
                record.get("error") or f"{len(record.get('answers', ()))} values were returned: too many to tell"
            )
            text = _dumps({"error": what[-_LONGEST_ERROR:]}).encode()
        region = self.arena.region(self.plan.answer_start - ANSWER_BYTES, ANSWER_BYTES)
        ctypes.memmove(_data_ptr(region), text, len(text))
        self.bell.write(Word.ANSWER_LENGTH, len(text))
