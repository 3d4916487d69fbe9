"""Messages between judge and worker: whatever arrives is a message or one of three named errors."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.harness import wire

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    with ours, theirs:
        yield ours, theirs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), min_size=1, max_size=4))
def test_messages_arrive_whole_and_in_order(messages: list[dict[str, object]]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for message in messages:
            wire.send(theirs, message)
        assert [wire.receive(ours)[0] for _ in messages] == messages


def _framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


@pytest.mark.parametrize("max_fds", [0, 2])
def test_message_in_single_bytes_is_put_together(pair: Pair, max_fds: int) -> None:
    ours, theirs = pair

    def dribble() -> None:
        for byte in _framed(b'{"a": "\xc3\xa9"}'):
            theirs.sendall(bytes([byte]))
            time.sleep(0.001)

    thread = threading.Thread(target=dribble)
    thread.start()
    assert wire.receive(ours, max_fds)[0] == {"a": "é"}
    thread.join()


def test_large_message_is_put_together(pair: Pair) -> None:
    ours, theirs = pair
    message = {"text": "x" * (3 << 20)}
    thread = threading.Thread(target=wire.send, args=(theirs, message))
    thread.start()
    assert wire.receive(ours)[0] == message
    thread.join()


@pytest.mark.parametrize(
    "payload", [b"[1, 2]", b"3", b"null", b"{", b"", b"\xff\xfe{}", b"{'a': 1}", b"[" * 3000 + b"]" * 3000]
)
def test_what_is_no_json_object_is_a_value_error(pair: Pair, payload: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(_framed(payload))
    with pytest.raises(ValueError):  # noqa: PT011 (the text is json's)
        wire.receive(ours)


def test_oversized_message_is_refused_before_it_is_read(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(struct.pack("<I", wire.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ValueError, match=f"longer than {wire.MAX_MESSAGE_BYTES}"):
        wire.receive(ours)
    with pytest.raises(ValueError, match="longer than"):
        wire.send(theirs, {"a": "x" * wire.MAX_MESSAGE_BYTES})


def test_nan_is_refused(pair: Pair) -> None:
    wire.send(pair[1], {"a": float("nan")})
    with pytest.raises(ValueError, match="holds NaN"):
        wire.receive(pair[0])


@pytest.mark.parametrize("sent", [b"", b"\x05\x00", b"\x05\x00\x00\x00{}"])
@pytest.mark.parametrize("max_fds", [0, 2])
def test_close_at_any_place_is_wire_closed(pair: Pair, sent: bytes, max_fds: int) -> None:
    ours, theirs = pair
    theirs.sendall(sent)
    theirs.close()
    with pytest.raises(wire.WireClosed):
        wire.receive(ours, max_fds)


def test_send_to_the_closed_is_wire_closed(pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(wire.WireClosed):
        wire.send(ours, {"a": 1})


def test_silence_is_a_timeout(pair: Pair) -> None:
    ours, theirs = pair
    ours.settimeout(0.05)
    theirs.sendall(b"\x05\x00")
    with pytest.raises(TimeoutError):
        wire.receive(ours)


def test_message_that_comes_by_drips_is_a_timeout(pair: Pair) -> None:
    ours, theirs = pair
    ours.settimeout(0.3)
    is_over = threading.Event()

    def drip() -> None:
        theirs.sendall(struct.pack("<I", 1 << 20))
        while not is_over.wait(0.05):
            theirs.sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    try:
        with pytest.raises(TimeoutError, match=r"did not come in time|timed out"):
            wire.receive(ours)
        assert time.monotonic() - started < 10
    finally:
        is_over.set()
        thread.join()
    assert ours.gettimeout() == 0.3


def test_descriptors_travel_beside_a_message(pair: Pair) -> None:
    ours, theirs = pair
    read_end, write_end = os.pipe()
    wire.send(theirs, {"what": "pipe"}, [write_end])
    message, fds = wire.receive(ours, max_fds=3)
    os.close(write_end)
    os.write(fds[0], b"through")
    os.close(fds[0])
    assert message == {"what": "pipe"}
    assert os.read(read_end, 100) == b"through"
    os.close(read_end)
