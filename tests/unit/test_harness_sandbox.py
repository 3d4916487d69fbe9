"""What a confined process can do, seen from inside: each test runs Python behind all the walls of a worker."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from forked import Forks
from judging import LIMITS, Bench, bench, rms_norm

from fastkernels.harness.process_tree import memory_files_bytes

__all__ = ["bench"]

CONFINED = """
import json, os, socket, sys
from pathlib import Path
from types import SimpleNamespace
from fastkernels.harness import nursery, worker

folder, device = Path(sys.argv[1]), sys.argv[2]
socks = socket.socketpair()
null, log = os.open("/dev/null", os.O_RDWR), os.open(folder / "log", os.O_WRONLY | os.O_CREAT)

def outcome(action):
    try:
        action()
    except BaseException as error:
        return f"{type(error).__name__} {getattr(error, 'errno', '')}".strip()
    return "done"

def main(*_):
    found = {}
    exec(sys.argv[3], {**globals(), "found": found})
    print(json.dumps(found), flush=True)

probe = SimpleNamespace(__file__=worker.__file__, main=main)
message = {
    "private_dir": str(folder), "environment": {}, "readable": [], "device": device, "arena_bytes": 1,
    "max_file_bytes": 1 << 20,
}
if os.fork() == 0:
    nursery._become_worker(message, [socks[1].fileno(), null, log], probe)
os.wait()
"""


Confined = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def confined(forks: Forks) -> Confined:
    """What `code` put into `found` behind a worker's walls; it knows outcome(action), Path, os, socket and folder."""

    def found(folder: Path, code: str, device: str = "cpu") -> dict[str, Any]:
        done = forks.run(CONFINED, [folder, device, textwrap.dedent(code)])
        assert done.code == 0, done.err
        lines = (folder / "log").read_text().splitlines()
        assert lines, "it came to nothing"
        try:
            return json.loads(lines[-1])
        except ValueError:
            pytest.fail("\n".join(lines))

    return found


OPENED = """
for path in {paths}:
    found[path] = outcome(lambda: os.close(os.open(path, os.O_WRONLY)))
"""
OF_THE_MACHINE = ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/swappiness", "/proc/sysrq-trigger", "/etc/hostname")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_of_the_machine_can_be_written(confined: Confined, tmp_path: Path, device: str) -> None:
    found = confined(tmp_path, OPENED.format(paths=OF_THE_MACHINE), device)
    assert len(found) == len(OF_THE_MACHINE)
    assert "done" not in found.values(), found


def test_files_of_ones_own_process_can_be_written_for_cuda(confined: Confined, tmp_path: Path) -> None:
    """Its threads', too; its children run, and read their own."""
    code = """
    import gc, subprocess, threading
    names, is_over = [], threading.Event()
    thread = threading.Thread(target=is_over.wait)
    thread.start()
    for path in ("/proc/self/comm", "/proc/thread-self/comm", f"/proc/self/task/{thread.native_id}/comm"):
        found[path] = outcome(lambda: Path(path).write_text("renamed"))
    is_over.set()
    found["child"] = subprocess.run(["cat", "/proc/self/comm"], capture_output=True, text=True).stdout.strip()
    """
    found = confined(tmp_path, code, "cuda")
    assert found.pop("child") == "cat"
    assert set(found.values()) == {"done"}, found


def test_what_is_the_machines_in_proc_is_mounted_read_only() -> None:
    """Without Landlock too: processes of `eval` may write to all of /proc, where its ranks' own files are."""
    code = """
    import os
    from fastkernels.harness import sandbox
    assert sandbox.enter_namespaces()[1]
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sandbox.mount_own_processes()
    places = [f"/proc/{name}" for name in ("sys", "irq", "bus", "fs") if os.path.isdir(f"/proc/{name}")]
    print(all(os.statvfs(path).f_flag & os.ST_RDONLY for path in places))
    print(bool(os.statvfs("/proc").f_flag & os.ST_RDONLY), len([n for n in os.listdir("/proc") if n.isdigit()]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["True", "False 1"], done.stderr


def test_shared_memory_is_a_workers_own_and_goes_with_it(confined: Confined, tmp_path: Path) -> None:
    """System V's, which else outlives the process that made it."""
    code = """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x5EED0
    found["made"] = libc.shmget(key, 1 << 20, 0o1666) >= 0
    """
    assert confined(tmp_path, code)["made"]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.shmget(0x5EED0, 1, 0) == -1


OUTER = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def connect():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect({path!r})

found["connect"] = outcome(connect)
found["datagrams"] = outcome(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
found["vsock"] = outcome(lambda: socket.socket(40, socket.SOCK_STREAM))
found["io_uring"] = outcome(lambda: call(425, 1, None))
found["keyring"] = outcome(lambda: call(250 if os.uname().machine == "x86_64" else 219, 0, -3, 1))

def pair():
    ours, theirs = socket.socketpair()
    ours.sendall(b"word")
    assert theirs.recv(4) == b"word"

found["pair"] = outcome(pair)
found["internet"] = outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close())
import multiprocessing
near, far = multiprocessing.Pipe()
process = multiprocessing.get_context("fork").Process(target=far.send, args=("heard",))
process.start()
found["pipe"] = near.recv()
process.join()
import subprocess
found["child"] = subprocess.run(
    [sys.executable, "-c", "import socket; socket.socket(socket.AF_UNIX)"], capture_output=True, text=True
).stderr[-60:]
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter knows two machines")
def test_no_process_outside_is_reached_by_a_socket(confined: Confined, tmp_path: Path) -> None:
    path = str(tmp_path / "helper.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        found = confined(tmp_path, OUTER.format(path=path))
        assert found.pop("child").rstrip().endswith("Operation not permitted")
        assert found.pop("pipe") == "heard"
        assert {name for name, how in found.items() if how == "done"} == {"pair", "internet"}
        assert {how for how in found.values() if how != "done"} == {"PermissionError 1"}, found


def test_sockets_of_a_gpus_services_stay(confined: Confined, tmp_path: Path) -> None:
    path = str(tmp_path / "helper.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert confined(tmp_path, OUTER.format(path=path), "cuda")["connect"] == "done"


def test_memory_of_files_without_a_place_is_counted(bench: Bench) -> None:
    """memfd_create: what is written to it is in no resident set."""
    with bench.nursery.start("worker", 1 << 20) as worker:
        before = worker.memory_bytes()
        worker.arena.bytes.fill_(1)
        assert worker.memory_bytes() - before < 1 << 24  # the arena is the judge's
        fd = os.memfd_create("hidden")
        os.write(fd, b"x" * (64 << 20))
        assert memory_files_bytes([os.getpid(), os.getpid()], worker.arena.fd) >= 64 << 20
        os.close(fd)
        assert memory_files_bytes([os.getpid()], worker.arena.fd) < 64 << 20


@pytest.mark.skipif(os.getuid() != 0, reason="only root looks into a worker")
def test_candidate_that_hides_its_memory_in_files_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.nursery, "limits", replace(LIMITS, call_seconds=60.0))  # memory may come slowly
    body = """
    self.files = [os.memfd_create("hidden") for _ in range(4)]
    for number in range(1600):
        os.write(self.files[number % 4], b"x" * (1 << 20))
        time.sleep(0.0005)
    return self.right(x, residual)
    """
    record = bench.judge("rms_norm", rms_norm(body))
    assert "over the limit of 1200 MiB" in record.message
