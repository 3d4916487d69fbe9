"""A process that has the engine imported and no task, and forks a confined worker for each side on request.

Run as a script by `python -I`. It runs no op and touches no GPU; forking from it makes a fresh process in milliseconds
instead of seconds of imports. Each worker has its own session, process ids, files and environment.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_KEPT_VARIABLES = (
    *("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_HOME", "TRITON_INTERPRET"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"),  # together they say which GPU is meant
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS"),
)
_NOT_PRELOADED = ("fastkernels", "_fastkernels", "__main__", "torch._inductor", "torch.cuda")
"""Of what a baseline worker has imported: tasks must be imported behind an overlay; some others start processes or look
for a device when they are."""


def kept_environment() -> dict[str, str]:
    """What a worker gets to see of the caller's environment; on a CPU one core is left to the clock."""
    threads = str(max(1, (os.cpu_count() or 1) - 1))
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    fixed = {
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }  # CUDA begun before a fork is lost
    return {"OMP_NUM_THREADS": threads, **fixed, **kept}


def boot() -> None:
    """argv[1]: JSON {socket (a descriptor), sys_path}."""
    settings = json.loads(sys.argv[1])
    sys.path[:] = settings["sys_path"]
    from fastkernels.harness import sandbox

    sandbox.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.dont_write_bytecode = True
    from fastkernels import registry
    from fastkernels.bench.eval import worker
    from fastkernels.harness import wire

    _preload(["fastkernels.engine.executor", "torch._dynamo"])
    registry.ops()  # read from text, once for all workers
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sock = socket.socket(fileno=settings["socket"])
    gc.collect()
    gc.freeze()
    wire.send(sock, {"ready": True})
    with contextlib.suppress(wire.WireClosed):
        while True:
            message, fds = wire.receive(sock, max_fds=2)
            if "preload" in message:
                _preload([name for name in message["preload"] if not name.startswith(_NOT_PRELOADED)])
                wire.send(sock, {"ready": True})
                continue
            pid = os.fork()
            if pid == 0:
                sock.close()
                _become_worker(message, fds, worker)
            for fd in fds:
                os.close(fd)
            wire.send(sock, {"pid": pid})
    os._exit(0)


def _preload(names: Sequence[str]) -> None:
    """Import modules that workers to come find here."""
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _become_worker(message: dict[str, Any], fds: list[int], worker: Any) -> None:
    """Session leader, namespaces, then (as the first process of its own process ids) the worker itself."""
    from fastkernels.harness import sandbox, wire

    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        sock_fd, log_fd = fds
        sandbox.speak_into(log_fd)
        faulthandler.enable()
        held = sandbox.enter_namespaces()
        sandbox.die_with_parent()  # entering a user namespace forgets it
        if held[1]:
            sandbox.become_first_process(sock_fd)
        confinement = _confine(message, held)
        sock = socket.socket(fileno=sock_fd)
        wire.send(sock, {"confinement": confinement})
        worker.main(sock, message["order"])
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _confine(message: dict[str, Any], held: tuple[bool, bool, bool]) -> dict[str, object]:
    """Its own folder to write to, nothing of others to read, no capability, no network but with its own ranks."""
    from fastkernels.harness import sandbox

    private = Path(message["private_dir"])
    os.environ.update(message["environment"])
    tempfile.tempdir = None
    os.chdir(private)
    _be_killed_first()
    if held[0]:
        _raise_loopback()
    sandbox.limit_resources(message["max_file_bytes"])
    package = Path(__file__).resolve().parents[2]
    readable = [*sandbox.system_paths(), package, private, *map(Path, message["readable"])]
    listable = [package.parent, Path("/dev"), *(Path(p).parent for p in message["readable"] if Path(p).is_dir())]
    writable = [private, *sandbox.device_paths(), *map(Path, message["writable"])]
    has_landlock = sandbox.restrict_files(readable, listable, writable)
    has_no_capabilities = sandbox.drop_capabilities()
    sandbox.hide_from_debuggers()
    return sandbox.Confinement(*held, has_landlock, has_no_capabilities, os.getuid()).to_json()


def _be_killed_first() -> None:
    """When memory runs out, a worker goes and not who measures it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _raise_loopback() -> None:
    """Ranks of one engine find each other over the loopback device of their own network."""
    import fcntl
    import struct

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))


_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

if __name__ == "__main__":
    boot()
