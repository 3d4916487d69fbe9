"""How a server starts, stops and dies, and what is left of it: nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from waiting import gauges, wait_until

from fastkernels.engine.config import EngineConfig
from fastkernels.errors import CheckpointError, EnvironmentProblem
from fastkernels.server import lifecycle, service
from fastkernels.server.local import LocalServer, running_server
from fastkernels.workloads import byte_tokenizer

LONG = {"prompt": "x", "max_tokens": 100_000, "ignore_eos": True}


def engine_of(server: LocalServer) -> psutil.Process:
    (engine,) = psutil.Process(server.process.pid).children()
    return engine


def long_server(config: Path, *options: str):
    return running_server(str(config), "--device", "fake", "--num-pages", "20000", *options)


def post(server: LocalServer, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=LONG | body, timeout=60)


def test_sigterm_lets_running_requests_finish_and_takes_no_more(long_config: Path) -> None:
    with long_server(long_config) as server, ThreadPoolExecutor() as pool:
        running = pool.submit(post, server, max_tokens=6000)
        wait_until(lambda: gauges(server.url)["num_requests_running"] == 1)
        server.process.terminate()
        wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        refused = post(server, max_tokens=1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"]
        assert httpx.get(f"{server.url}/health").status_code == 200
        done = running.result()
        assert (done.status_code, done.json()["usage"]["completion_tokens"]) == (200, 6000)
        assert server.process.wait(10) == 0
        assert '"event": "drained"' in server.log


def test_a_second_sigterm_stops_at_once(long_config: Path) -> None:
    with long_server(long_config) as server, ThreadPoolExecutor() as pool:
        engine = engine_of(server)
        running = pool.submit(post, server)
        wait_until(lambda: gauges(server.url)["num_requests_running"] == 1)
        server.process.terminate()
        wait_until(lambda: '"event": "draining"' in server.log)
        start = time.monotonic()
        server.process.terminate()
        assert server.process.wait(10) == 0
        assert time.monotonic() - start < 8
        assert running.result().status_code == 503
        assert not engine.is_running()


REFUSING = "import os, sys, time; os.close(1); time.sleep(0.5); sys.exit('error: what it does not like')"
"""It tells no address, and ends a while later."""


def test_a_server_that_refuses_its_options_is_told_in_its_own_words() -> None:
    refused = pytest.raises(EnvironmentProblem, match="not ready: error: what it does not like")
    with refused, running_server("tiny-llama", program=("-c", REFUSING)):
        pytest.fail("it was ready")


def test_a_server_of_this_machine_is_behind_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with running_server("tiny-llama", "--device", "fake", ready_timeout=60) as server:
        assert server.url.startswith("http://127.0.0.1:")


SLOW = """
import asyncio, time
from fastkernels.engine.client import AsyncEngine
encode_all = AsyncEngine.encode_all
async def slow(engine, texts, *rest):
    for text in texts:
        if text.startswith("seconds "):
            await asyncio.to_thread(time.sleep, float(text.split()[1]))
    return await encode_all(engine, texts, *rest)
AsyncEngine.encode_all = slow
from fastkernels.cli import main
main()
"""
"""A server that takes as long as a prompt says to prepare it, in a thread, as pictures and recordings are."""


def preparing(server: LocalServer, pool: ThreadPoolExecutor, num: int, seconds: float) -> list[Future[httpx.Response]]:
    """Requests that are in such threads: they cannot be seen, so the server is given time."""
    asked = [pool.submit(post, server, prompt=f"seconds {seconds}", max_tokens=3) for _ in range(num)]
    time.sleep(0.7)
    return asked


def test_sigterm_waits_for_requests_that_are_being_prepared() -> None:
    options = ("--device", "fake", "--shutdown-timeout", "30")
    with running_server("tiny-llama", *options, program=("-c", SLOW)) as server, ThreadPoolExecutor() as pool:
        asked = preparing(server, pool, 2, 4)
        server.process.terminate()
        answers = [one.result() for one in asked]
        assert [(a.status_code, a.json()["usage"]["completion_tokens"]) for a in answers] == [(200, 3)] * 2
        assert server.process.wait(10) == 0
        assert '"event": "drained"' in server.log


def test_a_second_sigterm_does_not_wait_for_what_is_being_prepared() -> None:
    """In more requests than there are threads."""
    with (
        running_server("tiny-llama", "--device", "fake", program=("-c", SLOW)) as server,
        ThreadPoolExecutor(40) as pool,
    ):
        engine = engine_of(server)
        asked = preparing(server, pool, 40, 60)
        server.process.terminate()
        wait_until(lambda: '"event": "draining"' in server.log)
        start = time.monotonic()
        server.process.terminate()
        answers = [one.result() for one in asked]
        assert {(a.status_code, a.json()["error"]["code"]) for a in answers} == {(503, "draining")}
        assert server.process.wait(10) == 0
        assert time.monotonic() - start < 8
        assert not engine.is_running()


def test_the_shutdown_timeout_cuts_what_still_runs(long_config: Path) -> None:
    with long_server(long_config, "--shutdown-timeout", "0.5") as server, ThreadPoolExecutor() as pool:
        running = pool.submit(post, server)
        wait_until(lambda: gauges(server.url)["num_requests_running"] == 1)
        server.process.terminate()
        assert server.process.wait(15) == 0
        assert running.result().status_code == 503
        assert '"event": "cut"' in server.log


def test_a_killed_engine_fails_every_request_and_ends_the_server(long_config: Path) -> None:
    with long_server(long_config) as server, ThreadPoolExecutor() as pool:
        running = [pool.submit(post, server) for _ in range(4)]
        lines: list[str] = []

        def read() -> None:
            with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=60) as got:
                lines.extend(line for line in got.iter_lines() if line)

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: gauges(server.url)["num_requests_running"] == 5 and bool(lines))
        engine_of(server).kill()
        answers = [one.result() for one in running]
        reader.join()
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["error"]["code"] for answer in answers} == {"engine_dead"}
        assert "engine_dead" in lines[-1]
        assert server.process.wait(15) == 1
        assert "signal 9" in server.log


def test_a_killed_server_leaves_no_engine(long_config: Path) -> None:
    with long_server(long_config) as server, ThreadPoolExecutor() as pool:
        engine = engine_of(server)
        running = pool.submit(post, server)
        wait_until(lambda: gauges(server.url)["num_requests_running"] == 1)
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(httpx.HTTPError):
            running.result()


def test_an_engine_in_a_long_step_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, sys, threading, time\n"
        "from fastkernels.engine import process\n"
        "process._follow(os.getppid())\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    starter = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {script!r}]); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, timeout=5)


def test_sigterm_while_the_model_loads_ends_at_once() -> None:
    command = [sys.executable, "-m", "fastkernels", "serve", "tiny-llama", "--device", "fake", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    wait_until(lambda: bool(psutil.Process(process.pid).children()))
    (engine,) = psutil.Process(process.pid).children()
    process.terminate()
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert '"event": "ready"' not in errors
    wait_until(lambda: not engine.is_running())


def test_a_terminals_interrupt_drains_too(long_config: Path) -> None:
    with long_server(long_config) as server:
        for pid in (engine_of(server).pid, server.process.pid):  # Ctrl-C reaches both
            os.kill(pid, signal.SIGINT)
        assert server.process.wait(10) == 0


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastkernels", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_port_in_use_is_one_clear_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = serve("tiny-llama", "--device", "fake", "--port", port)
    assert done.returncode == 5
    assert f"Port {port} of 127.0.0.1 is in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["no-such-model"], 2, "no-such-model"),
        (["tiny-llama", "--max-num-seqs", "0"], 2, "max_num_seqs is 0; the least is 1"),
        (["tiny-llama", "--port", "70000"], 2, "port is 70000"),
        (["tiny-llama", "--host", "192.0.2.1"], 2, "192.0.2.1"),
        (["tiny-llama", "--chat-template", "none.jinja"], 2, "none.jinja does not exist"),
        (["tiny-llama", "--warm", "hot"], 2, "hot"),
    ],
)
def test_a_server_that_cannot_start_says_why(arguments: list[str], exit_code: int, message: str) -> None:
    port = [] if "--port" in arguments else ["--port", "0"]
    done = serve(*arguments, *port, "--device", "fake")
    assert done.returncode == exit_code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "Serving" not in done.stdout


@pytest.mark.parametrize("error", [CheckpointError("preprocessor_config.json cannot be read."), ValueError("a bug")])
def test_a_start_that_fails_once_the_engine_is_ready_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    closed: list[bool] = []

    class Engine:
        info, tokenizer = SimpleNamespace(takes_media=True), byte_tokenizer()

        async def close(self) -> None:
            closed.append(True)

    async def start(*_: object) -> Engine:
        return Engine()

    def find_processor(*_: object) -> None:
        raise error

    monkeypatch.setattr(service.AsyncEngine, "start", start)
    monkeypatch.setattr(service, "find_processor", find_processor)
    with pytest.raises(type(error), match=str(error)):
        lifecycle.serve(EngineConfig("tiny-llama", device="fake"), service.ServerConfig(port=0))
    assert closed == [True]


def test_it_listens_on_loopback_only_unless_told(server: LocalServer) -> None:
    found = [c.laddr.ip for c in psutil.Process(server.process.pid).net_connections("tcp") if c.status == "LISTEN"]
    assert found == ["127.0.0.1"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalServer]:
    words = ("--device", "fake", "--api-key", "sesame", "--allowed-origin", "http://page.test")
    with running_server("tiny-llama", *words) as running:
        yield running


def test_only_who_has_the_key_is_served(guarded: LocalServer) -> None:
    models = f"{guarded.url}/v1/models"
    for scheme in ("Bearer", "bearer", "BEARER "):
        assert httpx.get(models, headers={"authorization": f"{scheme} sesame"}).status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer sesam"},
        {"authorization": "Basic sesame"},
        {"authorization": b"Bearer \xff\xe9"},
        {"x-api-key": "sesame"},
    ):
        refused = httpx.get(models, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    for path in ("/health", "/ready", "/metrics", "/version"):
        assert httpx.get(guarded.url + path).status_code == 200
    assert httpx.post(f"{guarded.url}/abort", json={"request_id": "x"}).status_code == 401
    assert "sesame" not in guarded.log


def test_the_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKERNELS_API_KEY", "sesame")
    with running_server("tiny-llama", "--device", "fake") as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401


def test_browsers_of_named_origins_may_call_and_no_others(server: LocalServer, guarded: LocalServer) -> None:
    page = {"origin": "http://page.test", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(f"{server.url}/v1/completions", headers=page).headers
    allowed = httpx.options(f"{guarded.url}/v1/completions", headers=page)
    assert allowed.headers["access-control-allow-origin"] == "http://page.test"


@pytest.mark.parametrize("is_busy", [True, False], ids=["busy", "idle"])
def test_a_killed_worker_of_tensor_parallelism_ends_it_all(is_busy: bool) -> None:
    with running_server("tiny-llama", "--device", "cpu", "--tp", "2") as server, ThreadPoolExecutor() as pool:
        engine = engine_of(server)
        (worker,) = engine.children(recursive=True)
        if is_busy:
            running = pool.submit(post, server, max_tokens=450)
            wait_until(lambda: gauges(server.url)["generation_tokens_total"] > 0)
        worker.kill()
        assert not is_busy or running.result().status_code == 503
        assert server.process.wait(20) == 1
        assert "Rank 1 has ended with exit code -9" in server.log
        wait_until(lambda: not engine.is_running())
