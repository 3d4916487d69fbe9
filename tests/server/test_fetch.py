"""What a server fetches for others: nothing that only it can reach, unless it was told of the host."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from waiting import dripping, wait_until

from fastkernels.errors import UsageError
from fastkernels.server import fetch
from fastkernels.server.fetch import Fetcher
from fastkernels.server.service import ServerConfig


class Files(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        is_moved = self.path.startswith("/moved/")
        self.send_response(302 if is_moved else 200)
        if is_moved:
            self.send_header("Location", self.path.removeprefix("/moved/"))
        self.end_headers()
        self.wfile.write(b"content")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def files() -> Iterator[HTTPServer]:
    Files.asked = []
    server = HTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(fetcher: Fetcher, url: str, most: int = 100, seconds: float = 60) -> bytes:
    async def run() -> bytes:
        return await fetcher.fetch(url, "image", most, asyncio.get_running_loop().time() + seconds)

    return asyncio.run(run())


def test_a_named_host_is_fetched_from_and_no_more_than_asked(files: HTTPServer) -> None:
    url = f"http://127.0.0.1:{files.server_port}/cat.png"
    assert fetched(Fetcher(["127.0.0.1"]), url) == b"content"
    assert fetched(Fetcher(["127.0.0.1"]), url, 3) == b"cont"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]"])
def test_without_a_named_host_nothing_near_is_spoken_to(files: HTTPServer, host: str) -> None:
    with pytest.raises(UsageError, match=r"may not be fetched: .* not of the open internet"):
        fetched(Fetcher(), f"http://{host}:{files.server_port}/cat.png")
    assert Files.asked == []


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "224.0.0.1", "[fec0::1]"]
)
def test_addresses_of_networks_near_are_refused_unseen(address: str) -> None:
    with pytest.raises(UsageError, match="not of the open internet"):
        fetched(Fetcher(), f"http://{address}/latest/meta-data")


@pytest.mark.parametrize("prefix", ["::ffff:{}", "64:ff9b::{}", "::{}", "::ffff:0:{}", "2002:{}::"])
@pytest.mark.parametrize("near", ["7f00:1", "a00:1", "a9fe:a9fe"])
def test_an_address_near_is_refused_within_an_address_of_ipv6(prefix: str, near: str) -> None:
    with pytest.raises(UsageError, match="not of the open internet"):
        fetched(Fetcher(), f"http://[{prefix.format(near)}]/latest/meta-data")


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"]
)
def test_addresses_of_the_open_internet_are_taken(address: str) -> None:
    assert fetch._is_open(address)


def test_a_name_that_leads_near_is_refused(monkeypatch: pytest.MonkeyPatch, files: HTTPServer) -> None:
    real = socket.getaddrinfo
    there = real("127.0.0.1", files.server_port, type=socket.SOCK_STREAM)
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: there if host == "pictures.org" else real(host, *a)
    )
    with pytest.raises(UsageError, match=r"pictures\.org is at 127\.0\.0\.1"):
        fetched(Fetcher(), f"http://pictures.org:{files.server_port}/cat.png")
    assert Files.asked == []


def test_a_redirect_is_looked_at_too(files: HTTPServer) -> None:
    moved = f"http://127.0.0.1:{files.server_port}/moved/"
    with pytest.raises(UsageError, match=r"takes media from 127\.0\.0\.1 alone, not from localhost"):
        fetched(Fetcher(["127.0.0.1"]), f"{moved}http://localhost:{files.server_port}/cat.png")
    assert fetched(Fetcher(["127.0.0.1"]), f"{moved}http://127.0.0.1:{files.server_port}/cat.png") == b"content"


def test_a_redirect_leads_to_no_other_scheme(files: HTTPServer) -> None:
    fetcher, moved = Fetcher(["127.0.0.1"]), f"http://127.0.0.1:{files.server_port}/moved/"
    with socket.create_server(("127.0.0.1", 0)) as near:
        near.setblocking(False)
        with pytest.raises(UsageError, match=r"may not be fetched: .* http and https .* not from one of ftp"):
            fetched(fetcher, f"{moved}ftp://127.0.0.1:{near.getsockname()[1]}/secret")
        with pytest.raises(BlockingIOError):
            near.accept()
    with pytest.raises(UsageError, match=r"cannot be fetched: .* not allowed"):
        fetched(fetcher, f"{moved}file:///etc/hostname")


def test_subdomains_are_of_the_domain_and_lookalikes_are_not() -> None:
    one = fetch._Fetch(Fetcher(["Example.org"]).domains)
    one._check("http://a.example.ORG/x")
    for host in ("badexample.org", "example.org.evil.net", ""):
        with pytest.raises(OSError, match=r"takes media from example\.org alone"):
            one._check(f"http://{host}/x")


@pytest.mark.parametrize("begins", [b"", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_a_host_that_drips_is_left_in_time(begins: bytes) -> None:
    with dripping(begins) as host:
        start = time.monotonic()
        with pytest.raises(UsageError, match=r"cannot be fetched: it did not come in time; .* within 120 s"):
            fetched(Fetcher(["127.0.0.1"]), host.url, seconds=0.3)
        assert time.monotonic() - start < 5
        wait_until(lambda: (host.num_seen, host.num_open) == (1, 0))


def test_who_waits_no_more_leaves_the_host_and_the_thread() -> None:
    async def run(fetcher: Fetcher, url: str) -> None:
        loop = asyncio.get_running_loop()
        many = [asyncio.create_task(fetcher.fetch(url, "image", 100, loop.time() + 60)) for _ in range(40)]
        await asyncio.to_thread(wait_until, lambda: host.num_open == 16)
        for one in many:
            one.cancel()
        await asyncio.gather(*many, return_exceptions=True)

    fetcher = Fetcher(["127.0.0.1"])
    with dripping(b"") as host:
        asyncio.run(run(fetcher, host.url))
        wait_until(lambda: host.num_open == 0)
        wait_until(lambda: not fetcher._threads._unfinished)


def test_a_domain_that_is_a_url_is_refused() -> None:
    with pytest.raises(UsageError, match=r"is no host's name; say it as example\.org"):
        ServerConfig(allowed_media_domains=("http://example.org",))
