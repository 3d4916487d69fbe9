"""Messages between judge and worker: a length, then JSON. Never pickle: parsing runs no code.

Descriptors travel beside a message (SCM_RIGHTS).
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

MAX_MESSAGE_BYTES = 8 << 20
_HEADER = struct.Struct("<I")


class WireClosed(Exception):
    """The other side is gone."""


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Errors: WireClosed; ValueError when the message is too long."""
    payload = json.dumps(message).encode()  # an op may be built with an infinity, as Mamba-2's are
    if len(payload) > MAX_MESSAGE_BYTES:
        raise ValueError(f"A message of {len(payload)} bytes is longer than {MAX_MESSAGE_BYTES}.")
    try:
        if fds:
            socket.send_fds(sock, [_HEADER.pack(len(payload))], list(fds))
            sock.sendall(payload)
        else:
            sock.sendall(_HEADER.pack(len(payload)) + payload)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise WireClosed(str(error)) from error


def receive(sock: socket.socket, max_fds: int = 0) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors.

    Errors: WireClosed; TimeoutError when the whole of it takes longer than the socket is set to; ValueError when it is
    not a JSON object, or holds NaN.
    """
    seconds = sock.gettimeout()
    try:
        return _receive_until(sock, max_fds, None if seconds is None else time.monotonic() + seconds)
    finally:
        sock.settimeout(seconds)


def _receive_until(sock: socket.socket, max_fds: int, deadline: float | None) -> tuple[dict[str, Any], list[int]]:
    """deadline: by time.monotonic."""
    header, fds = _receive_header(sock, max_fds, deadline)
    (length,) = _HEADER.unpack(header)
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"A message of {length} bytes is longer than {MAX_MESSAGE_BYTES}.")
    payload = _receive_exactly(sock, length, deadline)
    try:
        message = json.loads(payload, parse_constant=_constant)
    except RecursionError:
        raise ValueError("A message is nested too deeply.") from None
    if not isinstance(message, dict):
        raise ValueError("A message must be a JSON object.")
    return message, fds


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("A message holds NaN.")
    return float(name.replace("Infinity", "inf"))


def _receive_header(sock: socket.socket, max_fds: int, deadline: float | None) -> tuple[bytes, list[int]]:
    if not max_fds:
        return _receive_exactly(sock, _HEADER.size, deadline), []
    data, fds, _, _ = socket.recv_fds(sock, _HEADER.size, max_fds)
    if not data:
        raise WireClosed("closed")
    if len(data) < _HEADER.size:
        data += _receive_exactly(sock, _HEADER.size - len(data), deadline)
    return data, list(fds)


def _receive_exactly(sock: socket.socket, length: int, deadline: float | None) -> bytes:
    """A timeout of the socket would count anew with every byte that comes."""
    parts = []
    while length:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"{length} bytes of a message did not come in time")
            sock.settimeout(remaining)
        try:
            part = sock.recv(min(length, 1 << 20))
        except ConnectionResetError as error:
            raise WireClosed(str(error)) from error
        if not part:
            raise WireClosed("closed")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
