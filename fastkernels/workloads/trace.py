"""Production traces: lengths, arrival times and shared prefixes of real requests, with drawn token ids."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from fastkernels.errors import UsageError
from fastkernels.workloads.traffic import TokenSource, TrafficRequest

_OWN, _SHARED = 0, 1
"""Streams of drawn tokens: a request's own, a block's that several requests share."""


@dataclass(frozen=True)
class TraceRow:
    """block_ids: of the prompt's blocks in order, empty where the trace has none."""

    arrival_s: float
    input_len: int
    output_len: int
    block_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class TraceWorkload:
    """The first num_requests requests of a trace, in the order of arrival.

    scale: times the lengths, blocks included. Prompts with block ids are made of blocks that their id decides, so that
    what shared a prefix there shares it here.
    """

    name: str
    num_requests: int = 1000
    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        most = trace_facts()[self.name]["num_requests"]
        if not 1 <= self.num_requests <= most:
            raise UsageError(f"Trace {self.name!r}: {self.num_requests} requests asked for; it has 1 to {most}.")
        if not 0 < self.scale < math.inf:
            raise UsageError(f"A workload is scaled by a finite factor above 0, got {self.scale}.")

    @property
    def has_arrivals(self) -> bool:
        return True

    def scaled(self, factor: float) -> TraceWorkload:
        return replace(self, scale=self.scale * factor)

    def limited(self, num_requests: int) -> TraceWorkload:
        return replace(self, num_requests=num_requests)

    def seeded(self, seed: int) -> TraceWorkload:
        return replace(self, seed=seed)

    def lengths(self) -> list[tuple[int, int]]:
        rows = trace_rows(self.name)[: self.num_requests]
        return [(self._length(row.input_len), self._length(row.output_len)) for row in rows]

    def requests(self, vocab_size: int, end_ids: Collection[int] = ()) -> list[TrafficRequest]:
        source = TokenSource(vocab_size, end_ids, self.seed)
        block_size = trace_facts()[self.name]["block_size"]
        block_len = max(1, round(block_size * self.scale)) if block_size else 0
        blocks: dict[int, list[int]] = {}
        found = []
        for number, row in enumerate(trace_rows(self.name)[: self.num_requests]):
            tokens: list[int] = []
            for block in row.block_ids:
                if block not in blocks:
                    blocks[block] = source.draw(block_len, _SHARED, block)
                tokens += blocks[block]
            input_len = self._length(row.input_len)
            if len(tokens) < input_len:  # no blocks, or their length was rounded down
                tokens += source.draw(input_len - len(tokens), _OWN, number)
            found.append(TrafficRequest(tuple(tokens[:input_len]), self._length(row.output_len), row.arrival_s))
        return found

    def _length(self, tokens: int) -> int:
        return max(1, round(tokens * self.scale))


@cache
def trace_facts() -> dict[str, dict[str, Any]]:
    """By name: what it is, where it comes from, its license, its number of requests."""
    facts: dict[str, dict[str, Any]] = json.loads(_file("traces.json").read_text(encoding="utf-8"))
    return facts


@cache
def trace_rows(name: str) -> tuple[TraceRow, ...]:
    text = gzip.decompress(_file(f"{name}.csv.gz").read_bytes()).decode()
    rows, arrival_ms = [], 0
    for row in csv.DictReader(io.StringIO(text)):
        arrival_ms += int(row["gap_ms"])
        blocks = tuple(_block_ids(row.get("block_ids") or ""))
        rows.append(TraceRow(arrival_ms / 1000, int(row["input_len"]), int(row["output_len"]), blocks))
    return tuple(rows)


def _block_ids(text: str) -> list[int]:
    found: list[int] = []
    for run in text.split():
        first, _, last = run.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _file(name: str) -> Any:
    return files("fastkernels.workloads").joinpath("traces", name)
