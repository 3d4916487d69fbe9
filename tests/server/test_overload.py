"""More requests than may wait are told so, and who reads slowly holds nobody up."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import OpenAI
from waiting import gauges, send, wait_until

from fastkernels.server.local import LocalServer, running_server


def test_more_than_may_wait_are_refused_with_retry_after(long_config: Path) -> None:
    options = ("--num-pages", "20000", "--max-num-seqs", "1", "--max-num-waiting", "2")
    with running_server(str(long_config), "--device", "fake", *options) as server:
        first = send(server.url)
        wait_until(lambda: gauges(server.url)["generation_tokens_total"] > 0)
        waiting = [send(server.url), send(server.url)]
        wait_until(lambda: gauges(server.url)["num_requests_waiting"] == 2)
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "at most 2" in refused.json()["error"]["message"]
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.RateLimitError):
            client.completions.create(model="long-llama", prompt="x", stream=True)
        too_many = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "n": 3})
        assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "prompt")
        for sock in (first, *waiting):
            sock.close()
        wait_until(lambda: gauges(server.url)["num_requests_running"] == 0)
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}).status_code == 200
        assert '"outcome": "rejected"' in server.log


def test_a_slow_reader_does_not_hold_others_up(long_server: LocalServer) -> None:
    slow = [send(long_server.url, stream=True, max_tokens=20_000) for _ in range(8)]
    wait_until(lambda: gauges(long_server.url)["generation_tokens_total"] > 1000)
    start = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        asked = {"prompt": "x", "max_tokens": 50}
        answers = list(pool.map(lambda _: httpx.post(f"{long_server.url}/v1/completions", json=asked), range(32)))
    assert {answer.status_code for answer in answers} == {200}
    assert time.perf_counter() - start < 20
    for sock in slow:
        sock.close()
    wait_until(lambda: gauges(long_server.url)["num_requests_running"] == 0)


def test_who_reads_late_reads_all(long_server: LocalServer) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 2000, "stream": True, "ignore_eos": True, "temperature": 0})
    where = urlsplit(long_server.url)
    with socket.create_connection((where.hostname, where.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall((head + body).encode())
        time.sleep(1)
        received = b"".join(iter(lambda: sock.recv(4096), b"")).decode()
    events = [line.removeprefix("data: ") for line in received.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])
    whole = httpx.post(f"{long_server.url}/v1/completions", json=json.loads(body) | {"stream": False}, timeout=60)
    assert text == whole.json()["choices"][0]["text"]
