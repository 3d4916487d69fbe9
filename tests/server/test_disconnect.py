"""A client that leaves gives its pages back, whatever phase its request is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from waiting import gauges, send, wait_until

from fastkernels.server.local import LocalServer, running_server

NUM_PAGES = 12500


@pytest.fixture(scope="module")
def small(long_config: Path) -> Iterator[LocalServer]:
    """Two rows and a short step, so that a request can be caught waiting and in its prompt."""
    options = ("--num-pages", str(NUM_PAGES), "--max-num-seqs", "2", "--max-num-batched-tokens", "16")
    with running_server(str(long_config), "--device", "fake", "--no-enable-prefix-caching", *options) as running:
        yield running


def is_idle(url: str) -> bool:
    now = gauges(url)
    return (now["num_requests_running"], now["num_requests_waiting"], now["num_free_pages"]) == (0, 0, NUM_PAGES)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_while_tokens_come_frees_the_pages(small: LocalServer, stream: bool) -> None:
    sock = send(small.url, stream=stream)
    before = gauges(small.url)["generation_tokens_total"]
    wait_until(lambda: gauges(small.url)["generation_tokens_total"] > before + 20)
    sock.close()
    wait_until(lambda: is_idle(small.url))
    steps = gauges(small.url)["steps_total"]
    assert gauges(small.url)["steps_total"] == steps


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_prompt_frees_the_pages(small: LocalServer, stream: bool) -> None:
    sock = send(small.url, prompt=[5] * 190_000, max_tokens=100, stream=stream)
    before = gauges(small.url)["generation_tokens_total"]
    wait_until(lambda: gauges(small.url)["num_requests_running"] == 1)
    assert gauges(small.url)["num_free_pages"] < NUM_PAGES
    sock.close()
    wait_until(lambda: is_idle(small.url))
    assert gauges(small.url)["generation_tokens_total"] == before


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_the_queue_leaves_nothing(small: LocalServer, stream: bool) -> None:
    running = [send(small.url), send(small.url)]
    wait_until(lambda: gauges(small.url)["num_requests_running"] == 2)
    waiting = send(small.url, stream=stream)
    wait_until(lambda: gauges(small.url)["num_requests_waiting"] == 1)
    waiting.close()
    wait_until(lambda: gauges(small.url)["num_requests_waiting"] == 0)
    for sock in running:
        sock.close()
    wait_until(lambda: is_idle(small.url))


def test_leaving_at_the_last_token_leaves_nothing(small: LocalServer) -> None:
    for count in (1, 2, 3):
        for _ in range(10):
            send(small.url, max_tokens=count, stream=True).close()
    wait_until(lambda: is_idle(small.url))


def test_leaving_a_batch_ends_all_of_it(small: LocalServer) -> None:
    sock = send(small.url, prompt=["a", "b", "c"], n=3)
    wait_until(lambda: gauges(small.url)["num_requests_running"] == 2)
    sock.close()
    wait_until(lambda: is_idle(small.url))


def test_a_storm_of_leaving_clients_leaves_nothing(small: LocalServer) -> None:
    for i in range(300):
        send(small.url, stream=i % 2 == 0, n=1 + i % 3).close()
    wait_until(lambda: is_idle(small.url), timeout=30)
    assert httpx.post(f"{small.url}/v1/completions", json={"prompt": "x"}).status_code == 200
    assert '"outcome": "aborted"' in small.log
    assert '"outcome": "failed"' not in small.log
