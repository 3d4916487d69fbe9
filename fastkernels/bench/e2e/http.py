"""HTTP/1.1 for a load generator: a connection a request, and server-sent events as they come."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastkernels.errors import EnvironmentProblem, UsageError

_MOST_ERROR_BYTES = 4096
JSON_TYPE = "application/json"


class HttpError(Exception):
    """The server answered, and not with what was asked for. status 0: the answer broke off."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}" if status else message)
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """A server: its URL without /v1, and the key it wants. Errors: UsageError for what is no http(s) URL."""

    url: str
    api_key: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--server {self.url} is not a URL such as http://127.0.0.1:8000.")
        object.__setattr__(self, "url", self.url.rstrip("/").removesuffix("/v1"))

    @property
    def is_local(self) -> bool:
        return urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")

    def head(self, method: str, path: str, length: int, content_type: str = JSON_TYPE) -> bytes:
        parts = urlsplit(self.url)
        lines = [
            f"{method} {parts.path}{path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close",
            "Accept: */*", f"Content-Type: {content_type}", f"Content-Length: {length}",
        ]  # fmt: skip
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        parts = urlsplit(self.url)
        is_tls = parts.scheme == "https"
        context = ssl.create_default_context() if is_tls else None
        return await asyncio.open_connection(parts.hostname, parts.port or (443 if is_tls else 80), ssl=context)


@asynccontextmanager
async def _request(
    endpoint: Endpoint, method: str, path: str, body: bytes, content_type: str = JSON_TYPE
) -> AsyncIterator[tuple[int, AsyncGenerator[bytes]]]:
    """Status, and the body's pieces."""
    reader, writer = await endpoint.connect()
    pieces: AsyncGenerator[bytes] | None = None
    try:
        writer.write(endpoint.head(method, path, len(body), content_type) + body)
        await writer.drain()
        status, headers = await _read_head(reader)
        pieces = _pieces(reader, headers)
        yield status, pieces
    except asyncio.IncompleteReadError as error:
        raise HttpError(0, "The server closed the connection before its answer was whole.") from error
    finally:
        if pieces is not None:
            await pieces.aclose()
        writer.close()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    words = lines[0].split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise HttpError(0, f"The server answered {lines[0][:80]!r}, which is not HTTP.")
    headers = (line.partition(":") for line in lines[1:] if line)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in headers}


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncGenerator[bytes]:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(1 << 16):
            yield piece


async def get(endpoint: Endpoint, path: str) -> bytes:
    """Errors: HttpError, EnvironmentProblem when nothing listens there."""
    try:
        async with _request(endpoint, "GET", path, b"") as (status, pieces):
            body = b"".join([piece async for piece in pieces])
    except OSError as error:
        raise EnvironmentProblem(f"No server answers at {endpoint.url}: {error.strerror or error}.") from error
    if status != 200:
        raise HttpError(status, body[:_MOST_ERROR_BYTES].decode(errors="replace"))
    return body


async def get_json(endpoint: Endpoint, path: str) -> Any:
    return json.loads(await get(endpoint, path))


async def post(endpoint: Endpoint, path: str, body: bytes, content_type: str = JSON_TYPE) -> Any:
    """The answer, which is JSON. Errors: HttpError, OSError, ValueError for one that is none."""
    async with _request(endpoint, "POST", path, body, content_type) as (status, pieces):
        answer = b"".join([piece async for piece in pieces])
    if status != 200:
        raise HttpError(status, answer[:_MOST_ERROR_BYTES].decode(errors="replace"))
    return json.loads(answer)


async def post_events(endpoint: Endpoint, path: str, body: bytes) -> AsyncGenerator[bytes]:
    """The data of each event of a stream, until its "[DONE]". Errors: HttpError, OSError."""
    async with _request(endpoint, "POST", path, body) as (status, pieces):
        if status != 200:
            text = b"".join([piece async for piece in pieces])[:_MOST_ERROR_BYTES]
            raise HttpError(status, text.decode(errors="replace"))
        rest = b""
        async for piece in pieces:
            *events, rest = (rest + piece.replace(b"\r\n", b"\n")).split(b"\n\n")
            for event in events:
                data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
                if data == b"[DONE]":
                    return
                if data:
                    yield data
        raise HttpError(0, "The stream ended without [DONE].")
