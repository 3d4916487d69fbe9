"""The HTTP client of `fastkernels e2e`, and a load against a server that does as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastkernels.bench.e2e.http import Endpoint, HttpError, get, post_events
from fastkernels.bench.e2e.load import Load
from fastkernels.bench.e2e.media import MediaFile, MediaRequest
from fastkernels.bench.e2e.media_routes import Chats, Transcriptions
from fastkernels.bench.e2e.metrics import load_summary, load_token_times
from fastkernels.bench.e2e.routes import Completions
from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.workloads import TrafficRequest

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[Endpoint]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length"))
        await reader.readexactly(length)
        await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


async def read_all(handler: Handler) -> list[bytes]:
    async with answering(handler) as endpoint:
        return [data async for data in post_events(endpoint, "/v1/completions", b"{}")]


def test_events_are_read_whole_however_they_are_cut() -> None:
    text = b'data: {"a": 1}\n\ndata: {"b":\ndata: 2}\n\n: a comment\n\ndata: [DONE]\n\n'

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*(bytes([c]) for c in text)))

    assert asyncio.run(read_all(handler)) == [b'{"a": 1}', b'{"b":\n2}']


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 5\r\n\r\nlater", "HTTP 429: later"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"data: 1\n\n"), "without \\[DONE\\]"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\ncut", "before its answer was whole"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "which is not HTTP"),
        (b"", "before its answer was whole"),
    ],
)
def test_an_answer_that_is_none_is_an_error_that_says_so(answer: bytes, says: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    with pytest.raises(HttpError, match=says):
        asyncio.run(read_all(handler))


def test_nobody_there_is_a_problem_of_the_environment() -> None:
    with pytest.raises(EnvironmentProblem, match=r"No server answers at http://127\.0\.0\.1:9"):
        asyncio.run(get(Endpoint("http://127.0.0.1:9"), "/metrics"))
    with pytest.raises(UsageError, match="is not a URL"):
        Endpoint("localhost:8000")


def test_a_load_measures_what_the_server_does_and_goes_on_after_an_error() -> None:
    """Two pieces 50 ms apart after 30 ms; every third request is refused."""
    seen: list[int] = []
    busy = [0, 0]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(len(seen))
        if seen[-1] % 3 == 2:
            writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno")
            return
        busy[0] += 1
        busy[1] = max(busy)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number, wait in enumerate((0.03, 0.05)):
            await asyncio.sleep(wait)
            choice = {"text": "x", "token_ids": [number, 7]}
            piece = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
            writer.write(chunked(piece)[: -len(b"0\r\n\r\n")])
        usage = {"completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
        tail = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        writer.write(chunked(tail))
        await writer.drain()
        busy[0] -= 1

    async def run() -> Load:
        async with answering(handler) as endpoint:
            load = Load(endpoint, "m", Completions(), max_concurrency=2)
            await load.run([TrafficRequest((1, 2, 3), 4)] * 6, [0.0] * 6)
            return load

    records = asyncio.run(run()).records
    done = [r for r in records if r.is_complete]
    assert [len(records), len(done)] == [6, 4]
    assert all("HTTP 500: no" in (r.error or "") for r in records if not r.is_complete)
    for r in done:
        assert (r.token_ids, r.text, r.output_len, r.num_cached_tokens) == ([0, 7, 1, 7], "xx", 4, 3)
        assert 0.03 <= (r.ttft_s or 0) < 0.3
        assert 0.04 <= r.itl_s[0] < 0.3
        assert r.e2e_s == pytest.approx((r.ttft_s or 0) + r.itl_s[0])
    assert busy[1] <= 2


def test_a_chat_begins_with_its_first_token_and_not_with_whose_turn_it_is() -> None:
    """The role, two tokens of which the first is no text yet, and the end."""
    deltas: list[dict[str, Any]] = [
        {"delta": {"role": "assistant", "content": ""}},
        {"delta": {}, "token_ids": [5]},
        {"delta": {"content": "you"}, "token_ids": [6]},
        {"delta": {}, "finish_reason": "stop", "token_ids": []},
    ]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for one in deltas:
            writer.write(b"data: " + json.dumps({"choices": [one]}).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(0.03)
        usage = {"prompt_tokens": 40, "completion_tokens": 2}
        writer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        await writer.drain()

    async def run() -> Load:
        async with answering(handler) as endpoint:
            load = Load(endpoint, "m", Chats())
            await load.run([MediaRequest(" hello", (), 2)], [0.0])
            return load

    [record] = asyncio.run(run()).records
    assert record.error is None
    assert (record.prompt_len, record.output_len, record.token_ids, record.text) == (40, 2, [5, 6], "you")
    assert len(record.itl_s) == 1
    assert (record.ttft_s or 0) > 0.02
    assert record.e2e_s == pytest.approx((record.ttft_s or 0) + record.itl_s[0])


def test_of_a_transcription_the_tokens_are_those_of_its_segments() -> None:
    answers = [{"text": "you", "segments": [{"tokens": [5]}, {"tokens": [6, 7]}]}, {"text": "", "segments": []}]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = json.dumps(answers.pop(0)).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        await writer.drain()

    async def run() -> Load:
        async with answering(handler) as endpoint:
            load = Load(endpoint, "m", Transcriptions(), max_concurrency=1)
            request = MediaRequest("", (MediaFile("audio", "audio/wav", b"RIFF"),), 9)
            await load.run([request] * 2, [0.0] * 2)
            return load

    whole, empty = asyncio.run(run()).records
    assert (whole.token_ids, whole.output_len, whole.text, whole.ttft_s) == ([5, 6, 7], 3, "you", None)
    assert load_token_times([whole]) == [(pytest.approx(whole.start_s + (whole.e2e_s or 0), abs=1e-5), 3.0)]
    assert load_summary([whole])["num_output_tokens"] == 3
    assert "no token" in (empty.error or "")
