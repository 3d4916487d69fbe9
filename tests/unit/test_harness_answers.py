"""What a worker says that it answered is copied before it is read, and lies where it must."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from judging import Bench, bench, rms_norm

from fastkernels.harness.answers import MALFORMED, read_parts, record_of, starts
from fastkernels.harness.arena import Arena
from fastkernels.harness.call import Publisher
from fastkernels.harness.control import ANSWER_BYTES
from fastkernels.harness.look import Look
from fastkernels.harness.verdict import Rejection, Verdict

__all__ = ["bench"]

START, NUM_BYTES = 2 * ANSWER_BYTES, 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    one = Arena(START + NUM_BYTES)
    yield one
    one.close()


def taken(arena: Arena, expected_bytes: int) -> Look:
    look = Look(arena, START, expected_bytes)
    look.take()
    return look


def described(shape: list[Any], **other: Any) -> dict[str, Any]:
    stride = [1] * len(shape)
    return {"kind": "tensor", "shape": shape, "stride": stride, "dtype": "float32", "start": 0, **other}


def test_description_is_what_it_was_at_the_first_look(arena: Arena) -> None:
    text = b'{"answers": []}'
    arena.region(START - ANSWER_BYTES, len(text)).copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    look = taken(arena, 100)
    arena.region(START - ANSWER_BYTES, ANSWER_BYTES).fill_(0)
    assert record_of(look.description(len(text))) == {"answers": []}
    assert len(look.description(1 << 60)) == ANSWER_BYTES


@pytest.mark.parametrize("expected_bytes", [100, 4096, 300_000])
def test_answer_given_after_the_first_look_is_cheating(arena: Arena, expected_bytes: int) -> None:
    look = taken(arena, expected_bytes)
    unchanged = look.whole(NUM_BYTES)
    assert len(unchanged) == NUM_BYTES
    arena.region(START, expected_bytes).fill_(7)
    assert not unchanged.any()  # a copy
    with pytest.raises(Rejection, match="another one") as caught:
        look.whole(NUM_BYTES)
    assert caught.value.verdict is Verdict.CHEATING


def test_eighth_of_an_answer_left_for_later_is_found(arena: Arena) -> None:
    for eighth in range(8):
        look = taken(arena, 1 << 19)
        arena.region(START + (eighth << 16), 1 << 16).add_(1)
        with pytest.raises(Rejection, match="another one"):
            look.whole(NUM_BYTES)


def test_answer_of_no_bytes_is_looked_at(arena: Arena) -> None:
    assert not taken(arena, 0).whole(1024).any()


def test_parts_lie_one_behind_the_other_wherever_the_worker_says() -> None:
    raw = torch.arange(1024).to(torch.uint8)
    parts = [described([3], start=900), {"kind": "none"}, described([0]), described([2], start=0)]
    assert starts(parts) == [0, 12, 12, 256, 264]
    first, none, empty, last = read_parts(raw, parts)
    assert first.tensor is not None
    assert last.tensor is not None
    assert empty.tensor is not None
    assert first.tensor.view(torch.uint8).tolist() == list(range(12))
    assert last.tensor.view(torch.uint8).tolist() == list(range(8))
    assert none.tensor is None
    assert empty.tensor.shape == (0,)


@pytest.mark.parametrize(
    "part",
    [
        described([float("inf")]),
        described([float("nan")]),
        described(["many"]),
        described([300]),
        described([-3]),
        described([1 << 70, 1 << 70]),
        described([3], dtype="Tensor"),
        described([3], stride=None),
        {"kind": "tensor"},
        {},
        [],
        "tensor",
    ],
)
def test_part_that_cannot_be_is_malformed(part: Any) -> None:
    with pytest.raises(MALFORMED):
        read_parts(torch.zeros(1024, dtype=torch.uint8), [part])


@pytest.mark.parametrize("text", [b"", b"[]", b"\xe8{}", b"[" * 4000, b'{"a": "\\ud800"}', b"9" * 5000])
def test_text_that_is_no_description_is_malformed(text: bytes) -> None:
    with pytest.raises(Rejection, match="malformed") as caught:
        record_of(text)
    assert caught.value.verdict is Verdict.RUNTIME_ERROR


@pytest.mark.parametrize("record", [{"error": "é\n" * 6000 + "the end"}, {"answers": [{"kind": "none"}] * 5000}])
def test_description_that_would_be_too_long_is_an_error(arena: Arena, record: dict[str, Any]) -> None:
    class Plan:
        answer_start, answer_bytes = START, NUM_BYTES

    class FakeBell:
        def write(self, word: int, value: int) -> None:
            self.length = value

    class Device:
        def snapshot_buffer(self, num_bytes: int) -> None:
            return None

    bell = FakeBell()
    Publisher(Plan(), arena, bell, Device())._write(record)  # type: ignore[arg-type]
    assert bell.length <= ANSWER_BYTES
    with pytest.raises(Rejection, match=r"the end|5000 values were returned") as caught:
        record_of(taken(arena, 0).description(bell.length))
    assert caught.value.verdict is Verdict.RUNTIME_ERROR


@pytest.mark.parametrize("size", ["Infinity", "1e999", "NaN", '"many"', "null", "-1"])
def test_candidate_that_describes_an_impossible_answer_is_at_fault(bench: Bench, size: str) -> None:
    part = json.dumps({"answers": [described([0])], "is_sequence": False}).replace("[0]", f"[{size}]")
    body = f"""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "one_call":
        frame = frame.f_back
    publisher = frame.f_locals["self"].publisher
    text = torch.frombuffer(bytearray({part.encode()!r}), dtype=torch.uint8)

    def write(record):
        publisher.arena.region(publisher.plan.answer_start - {ANSWER_BYTES}, len(text)).copy_(text)
        publisher.bell.write(152, len(text))

    publisher._write = write
    return self.right(x, residual)
    """
    record = bench.judge("rms_norm", rms_norm(body))
    assert record.verdict in (Verdict.RUNTIME_ERROR, Verdict.INCORRECT_SHAPE), record.message
