"""A process that has torch imported and the registry read, nothing else, and forks a confined worker on request.

Run as a script by `python -I`: no environment variable, user site or current directory reaches it.
Forking from it makes a fresh process in milliseconds; it never touches a GPU or a candidate.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any


def boot() -> None:
    """argv[1]: JSON {socket (a descriptor), sys_path, environment, preload}."""
    settings = json.loads(sys.argv[1])
    os.environ.clear()
    os.environ.update(settings["environment"])
    sys.path[:] = settings["sys_path"]
    from fastkernels.harness import sandbox

    sandbox.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    import fastkernels.harness.worker
    from fastkernels.registry import ops

    ops()  # parsed in a worker, it costs that worker seconds, and its collections before every visit look through it
    for module in settings["preload"]:
        __import__(module)
    gc.collect()
    gc.freeze()  # what is here now is never looked at again: a collection in a worker takes microseconds
    sock = socket.socket(fileno=settings["socket"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _serve(sock, fastkernels.harness.worker)


def _serve(sock: socket.socket, worker: Any) -> None:
    from fastkernels.harness import wire

    wire.send(sock, {"ok": True, "pid": os.getpid()})
    while True:
        try:
            message, fds = wire.receive(sock, max_fds=3)
        except wire.WireClosed:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            sock.close()
            _become_worker(message, fds, worker)
        for fd in fds:
            os.close(fd)
        wire.send(sock, {"pid": pid})


def _become_worker(message: dict[str, Any], fds: list[int], worker: Any) -> None:
    """Session leader, namespaces, then (as the first process of its own process ids) the worker itself."""
    from fastkernels.harness import sandbox, seccomp, wire

    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        sandbox.die_with_parent()
        sock_fd, arena_fd, log_fd = fds
        sandbox.speak_into(log_fd)
        held = sandbox.enter_namespaces()
        sandbox.die_with_parent()  # entering a user namespace forgets it
        if held[1]:
            sandbox.become_first_process(sock_fd)
        private = Path(message["private_dir"])
        for name, path in message["environment"].items():
            os.environ[name] = path
        sandbox.limit_resources(message["max_file_bytes"])
        package = Path(worker.__file__).resolve().parents[1]
        readable = [*sandbox.system_paths(), *sandbox.package_paths(package), private]
        readable += [Path(p) for p in message["readable"]]
        listable = [
            package,
            package.parent,
            Path("/dev"),
            *(Path(p).parent for p in message["readable"] if Path(p).is_dir()),
        ]
        writable = [private, *sandbox.device_paths()]
        if message["device"].startswith("cuda"):
            writable.append(sandbox.own_process_files())  # CUDA opens some of them for writing
        has_landlock = sandbox.restrict_files(readable, listable, writable)
        has_no_capabilities = sandbox.drop_capabilities()
        is_gpu = message["device"].startswith("cuda")
        confinement = sandbox.Confinement(
            *held,
            has_landlock,
            has_no_capabilities,
            os.getuid(),
            no_outer_sockets=None if is_gpu else seccomp.refuse_outer_processes(),
        )
        sandbox.hide_from_debuggers()
        sock = socket.socket(fileno=sock_fd)
        wire.send(sock, {"confinement": confinement.to_json()})
        worker.main(sock, arena_fd, message["arena_bytes"], message["device"], private)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    boot()
