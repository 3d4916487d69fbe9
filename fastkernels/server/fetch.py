"""Media that clients name by URL: fetched from the open internet, or from the hosts that the server was told of alone.

Whoever may send a request must not be able to make the server read what only the server can reach (its own ports, a
cloud's metadata, the neighbours' machines). What decides is the address that is then connected to, at every redirect:
a name that resolves to another address a moment later gains nothing. No proxy is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import socket
import threading
from collections.abc import Sequence
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
)

from fastkernels.errors import UsageError
from fastkernels.server.in_flight import Threads

MOST_SECONDS = 120.0
"""For all media of a request, however many hosts they come from and however slow these are."""

_SILENT_SECONDS = 20.0
_MOST_AT_ONCE = 16
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""What of IPv6 leads into the open internet: its own part, and IPv4 addresses in their last 32 bits (RFC 6052)."""


class _Refused(OSError):
    """A host or an address that media may not come from."""


class Fetcher:
    """domains: hosts that media may come from, with their subdomains, wherever they are; without any every host whose
    address is of the open internet.

    turns: one for each request whose media are fetched and held. The threads are its own: whoever fetches nothing
    does not wait for a slow host.
    """

    def __init__(self, domains: Sequence[str] = ()) -> None:
        self.domains = tuple(domain.lower().strip(".") for domain in domains)
        self.turns = asyncio.Semaphore(_MOST_AT_ONCE)
        self._threads = Threads(_MOST_AT_ONCE)

    async def fetch(self, url: str, what: str, max_bytes: int, end: float) -> bytes:
        """The content of an http or https URL, at most one byte more than `max_bytes`; what: the word for it.

        end: when it must be there, by the loop's clock. The connection is cut then, and when the caller is cancelled.
        Errors: UsageError when it may not be fetched, or cannot.
        """
        fetch = _Fetch(self.domains)
        try:
            async with asyncio.timeout_at(end) as limit:
                return await asyncio.get_running_loop().run_in_executor(self._threads, fetch.read, url, max_bytes)
        except (URLError, OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if limit.expired():
                reason = f"it did not come in time; what a request names is fetched within {MOST_SECONDS:g} s"
            verb = "may not" if isinstance(reason, _Refused) else "cannot"
            raise UsageError(f"The {what} {url[:200]} {verb} be fetched: {reason}.") from error
        finally:
            fetch.cut()


class _Fetch:
    """One URL and what it redirects to; `read` runs in a thread, `cut` in another."""

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = domains
        self._lock = threading.Lock()
        self._held: socket.socket | None = None
        self._is_cut = False
        fetch = self

        class Plain(http.client.HTTPConnection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self._create_connection = fetch._connect

        class Secure(http.client.HTTPSConnection):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self._create_connection = fetch._connect

        class PlainHandler(HTTPHandler):
            def http_open(self, req: Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, req)  # type: ignore[arg-type]

        class SecureHandler(HTTPSHandler):
            def https_open(self, req: Request) -> http.client.HTTPResponse:
                return self.do_open(Secure, req)  # type: ignore[arg-type]

        class Redirects(HTTPRedirectHandler):
            def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
                fetch._check(newurl)
                return super().redirect_request(req, fp, code, msg, headers, newurl)

        self._opener = OpenerDirector()  # build_opener's would follow a redirect to ftp: past _connect
        for handler in (PlainHandler, SecureHandler, Redirects, HTTPErrorProcessor, HTTPDefaultErrorHandler):
            self._opener.add_handler(handler())

    def read(self, url: str, max_bytes: int) -> bytes:
        """Errors: URLError, OSError, HTTPException and ValueError."""
        self._check(url)
        request = Request(url, headers={"User-Agent": "fastkernels"})
        with self._opener.open(request, timeout=_SILENT_SECONDS) as answer:
            return answer.read(max_bytes + 1)

    def cut(self) -> None:
        """What waits for the connection waits no more."""
        with self._lock:
            self._is_cut = True
            if self._held is not None:
                with contextlib.suppress(OSError):  # it is closed at the other end too
                    self._held.shutdown(socket.SHUT_RDWR)
                self._held.close()
                self._held = None

    def _hold(self, sock: socket.socket) -> None:
        with self._lock:
            if self._is_cut:
                raise ConnectionAbortedError("nobody waits for it")
            if self._held is not None:
                self._held.close()
            self._held = sock.dup()  # the other is closed, or taken over by TLS, within urllib

    def _check(self, url: str) -> None:
        parsed = urlparse(url)
        if parsed.scheme not in ("http", "https"):
            raise _Refused(f"media comes from http and https addresses alone, not from one of {parsed.scheme}")
        host = (parsed.hostname or "").lower().strip(".")
        if self.domains and not any(host == domain or host.endswith(f".{domain}") for domain in self.domains):
            raise _Refused(f"this server takes media from {', '.join(self.domains)} alone, not from {host}")

    def _connect(
        self, place: tuple[str, int], timeout: float | None = None, source: tuple[str, int] | None = None
    ) -> socket.socket:
        """In the place of socket.create_connection: a name's addresses are looked at before any is spoken to.

        Errors: _Refused when one is not of the open internet and no host was named.
        """
        host, port = place
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for *_, address in () if self.domains else found:  # a named host was checked by name
            if not _is_open(address[0]):
                raise _Refused(
                    f"{host} is at {address[0]}, which is not of the open internet; the server's "
                    "--allowed-media-domain would have to name it"
                )
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout)
            self._hold(sock)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock


def _is_open(text: str | int) -> bool:
    address = ipaddress.ip_address(str(text).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_open(str(inner))
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not address.is_multicast
