"""Requests sent and not read, waiting for what must come, the engine's gauges as a scraper sees them, and a host that
never comes to an end."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass
class DrippingHost:
    """num_open: connections whose client has not left."""

    url: str
    num_seen: int = 0
    num_open: int = 0


@contextlib.contextmanager
def dripping(begins: bytes) -> Iterator[DrippingHost]:
    """It answers each request with `begins` and then a byte every 0.1 s."""
    lock, is_over = threading.Lock(), threading.Event()

    def drip(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.recv(1000)
            client.sendall(begins)
            while not is_over.wait(0.1):
                client.sendall(b"x")
        with lock:
            host.num_open -= 1

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                with lock:
                    host.num_seen, host.num_open = host.num_seen + 1, host.num_open + 1
                threading.Thread(target=drip, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = DrippingHost(f"http://127.0.0.1:{listening.getsockname()[1]}/cat.png")
        threading.Thread(target=accept, daemon=True).start()
        yield host
        is_over.set()


def send(url: str, path: str = "/v1/completions", **body: object) -> socket.socket:
    """A completion, or something else, asked for and not read."""
    content = json.dumps({"prompt": "x", "max_tokens": 50_000, "ignore_eos": True} | body).encode()
    where = urlsplit(url)
    sock = socket.create_connection((where.hostname, where.port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    sock.sendall(head.encode() + b"\r\n\r\n" + content)
    return sock
