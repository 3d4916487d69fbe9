"""Confinement of a worker process: what the kernel of this machine allows, and what was in force.

Linux namespaces (network, process ids, shared memory and queues), Landlock for the file system, no capabilities, no new
privileges. Each step is tried; `Confinement` records which held, and the run's record shows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
_CLONE_NEWIPC = 0x8000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 0x20, 0x1000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_TIMERSLACK, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 29, 38
_SIGKILL = 9
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LAST_CAPABILITY = 63
# https://docs.kernel.org/userspace-api/landlock.html
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1, 2, 4, 8
_FS_READ = _FS_EXECUTE | _FS_READ_FILE | _FS_READ_DIR
_FS_ALL_V1, _FS_REFER, _FS_TRUNCATE = (1 << 13) - 1, 1 << 13, 1 << 14
_FILE_RIGHTS = _FS_EXECUTE | _FS_WRITE_FILE | _FS_READ_FILE | _FS_TRUNCATE


PRIVATE_FOLDERS = {
    "HOME": "home",
    "TMPDIR": "tmp",
    "XDG_CACHE_HOME": "cache",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",
}
"""Variables of a worker's environment that name a folder of its own, and what the folder is called."""


@dataclass(frozen=True)
class Confinement:
    """Which protections hold for a worker. ipc_namespace: System V shared memory and message queues of its own, gone
    with it; no_outer_sockets: seccomp.py; None on a GPU, where none is asked for: CUDA's services may be spoken to over
    UNIX sockets."""

    network_namespace: bool
    process_namespace: bool
    ipc_namespace: bool
    landlock: bool
    no_capabilities: bool
    user_id: int
    no_outer_sockets: bool | None = None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)


def wake_promptly() -> None:
    """Short sleeps end when they should: the default slack of a timer is 50 us."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def keep_freed_memory() -> None:
    """Freed memory stays with the process: handing it back costs a page fault per page in the next call, or does
    not, as the heap happens to lie."""
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        _libc.mallopt(option, 1 << 30)


def hide_from_debuggers() -> None:
    """No ptrace, no /proc/<pid>/mem for others of the same user."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def enter_namespaces() -> tuple[bool, bool, bool]:
    """Leave the network, (for children) the process ids, and shared memory; returns which of the three held.

    An ordinary user first enters a user namespace of his own, mapped to himself.
    """
    user, group = os.getuid(), os.getgid()
    if user != 0 and _libc.unshare(_CLONE_NEWUSER) == 0:
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    has_network = _libc.unshare(_CLONE_NEWNET) == 0
    has_processes = _libc.unshare(_CLONE_NEWPID | _CLONE_NEWNS) == 0
    return has_network, has_processes, _libc.unshare(_CLONE_NEWIPC) == 0


def speak_into(log: int) -> None:
    """Standard output and error go to the descriptor `log`; standard input is empty."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def become_first_process(inherited: int) -> None:
    """Go on as the first process of a process namespace that has been entered.

    Who called stays behind without the descriptor `inherited`, reaps that process and leaves with its exit code.
    """
    child = os.fork()
    if child:
        os.close(inherited)
        _, raw = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(raw) & 0xFF)
    die_with_parent()
    mount_own_processes()


def mount_own_processes() -> None:
    """A /proc of this process namespace: CUDA looks itself up there, and no other process is seen.

    What belongs to the machine in it can only be read, as in a container: root needs no capability to write
    /proc/sys/kernel/core_pattern, which names a program that the machine's own root runs.
    """
    bare = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _libc.mount(b"proc", b"/proc", b"proc", bare, None)
    for name in _OF_THE_MACHINE:
        _libc.mount(name, name, None, _MS_BIND | _MS_REC, None)
        _libc.mount(None, name, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | bare, None)


_OF_THE_MACHINE = (b"/proc/sys", b"/proc/sysrq-trigger", b"/proc/irq", b"/proc/bus", b"/proc/fs")


def own_process_files() -> Path:
    """This process's own directory in /proc, threads included, for `restrict_files`.

    A rule is of the directory's inode, which /proc makes anew when it forgot it: an open descriptor keeps it.
    """
    path = Path("/proc/self").resolve()
    os.open(path, os.O_PATH | os.O_CLOEXEC)
    return path


def limit_resources(max_file_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))


def drop_capabilities() -> bool:
    """Give up every capability for good; true when none is left."""
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(_LAST_CAPABILITY):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    _libc.capset(ctypes.create_string_buffer(header), ctypes.create_string_buffer(24))
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff"))
    return int(effective.split()[1], 16) == 0


def restrict_files(readable: Sequence[Path], listable: Sequence[Path], writable: Sequence[Path]) -> bool:
    """Landlock: only `readable` can be read and `writable` written, here and in every child.

    Of `listable` folders (and those below) the names can be seen, which imports need.
    """
    abi = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if abi < 1:
        return False
    everything = _FS_ALL_V1 | (_FS_REFER if abi >= 2 else 0) | (_FS_TRUNCATE if abi >= 3 else 0)
    handled = ctypes.c_uint64(everything)
    ruleset = _libc.syscall(_LANDLOCK_CREATE, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    if ruleset < 0:
        return False
    for paths, rights in ((readable, _FS_READ), (listable, _FS_READ_DIR), (writable, everything)):
        for path in paths:
            _allow(ruleset, path, rights)
    held = _libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return bool(held)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not path.is_dir():
        rights &= _FILE_RIGHTS
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd))
    _libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0)
    os.close(fd)


def system_paths() -> list[Path]:
    """What a worker must read to run Python, torch, a compiler and the GPU's driver."""
    fixed = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/proc", "/sys", "/run/nvidia"]
    python = [sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent)]
    sites = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages", "site")]
    return [Path(p) for p in (*fixed, *python, *sites)]


def device_paths() -> list[Path]:
    """The devices that a worker may open; no disk, terminal or shared memory, which others see."""
    harmless = [Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom")]
    return [*harmless, *sorted(Path("/dev").glob("nvidia*"))]


def package_paths(package: Path) -> list[Path]:
    """The parts of FastKernels that a candidate may import: tasks and what they stand on, no judge."""
    folders = ("tasks", "kernels", "distributed", "capture")
    return [*(package / folder for folder in folders), *package.glob("*.py")]
