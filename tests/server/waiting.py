"""Requests sent and not read, waiting for what must come, and the engine's gauges as a scraper sees them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx


def wait_until(holds: Callable[[], bool], timeout: float = 10) -> None:
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, "it did not come to hold in time"
        time.sleep(0.02)


def gauges(url: str) -> dict[str, float]:
    """Metrics without labels, by name."""
    lines = [line.split() for line in httpx.get(f"{url}/metrics").text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("fastkernels_"): float(value) for name, value in lines if "{" not in name}


def send(url: str, **body: object) -> socket.socket:
    """A completion asked for and not read."""
    content = json.dumps({"prompt": "x", "max_tokens": 50_000, "ignore_eos": True} | body).encode()
    where = urlsplit(url)
    sock = socket.create_connection((where.hostname, where.port))
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    sock.sendall(head.encode() + b"\r\n\r\n" + content)
    return sock
