"""A filter of system calls for workers on a CPU: none that reaches processes outside of its namespaces.

A UNIX socket is found by a path, whatever the network namespace, and Landlock lets a process connect to it; keyrings
belong to a user and outlive a process; io_uring makes sockets that no filter sees. A connected pair of sockets stays
allowed, but of datagrams, whose ends can be sent to any path.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from dataclasses import dataclass

_libc = ctypes.CDLL(None, use_errno=True)

_SET_MODE_FILTER, _SPEC_ALLOW = 1, 4
"""SPEC_ALLOW: no slower code for being filtered, which kernels before 5.16 make of it otherwise."""
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
_LOAD, _AND, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
# https://docs.kernel.org/userspace-api/seccomp_filter.html: struct seccomp_data
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
_X32 = 0x40000000
"""Numbers from here on are a second set of calls of x86-64."""
_INET, _INET6, _NETLINK = 2, 10, 16
_STREAM, _SEQPACKET, _TYPE_BITS = 1, 5, 0xF


@dataclass(frozen=True)
class _Machine:
    """Numbers of system calls. audit: AUDIT_ARCH of the machine; refused: add_key, request_key, keyctl."""

    audit: int
    seccomp: int
    socket: int
    socketpair: int
    refused: tuple[int, ...]


_IO_URING_SETUP = 425
_MACHINES = {
    "x86_64": _Machine(0xC000003E, 317, 41, 53, (248, 249, 250, _IO_URING_SETUP)),
    "aarch64": _Machine(0xC00000B7, 277, 198, 199, (217, 218, 219, _IO_URING_SETUP)),
}


def refuse_outer_processes() -> bool:
    """Install the filter, here and in every child, for good; false where this machine has none. No new privileges must
    be in force."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    code = _program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    return bool(_libc.syscall(machine.seccomp, _SET_MODE_FILTER, _SPEC_ALLOW, program) == 0)


def _program(machine: _Machine) -> bytes:
    """Instructions of classic BPF: (code, value, where to go when it holds, where when not); None is the next one."""
    lines: list[tuple[str, int, int, str | None, str | None]] = [
        ("", _LOAD, _ARCHITECTURE, None, None),
        ("", _JUMP_IF_EQUAL, machine.audit, None, "refuse"),
        ("", _LOAD, _NUMBER, None, None),
        ("", _JUMP_IF_AT_LEAST, _X32, "refuse", None),
        *(("", _JUMP_IF_EQUAL, number, "refuse", None) for number in machine.refused),
        ("", _JUMP_IF_EQUAL, machine.socket, "socket", None),
        ("", _JUMP_IF_EQUAL, machine.socketpair, "pair", "allow"),
        ("socket", _LOAD, _FIRST_ARGUMENT, None, None),
        *(("", _JUMP_IF_EQUAL, family, "allow", None) for family in (_INET, _INET6)),
        ("", _JUMP_IF_EQUAL, _NETLINK, "allow", "refuse"),
        ("pair", _LOAD, _SECOND_ARGUMENT, None, None),
        ("", _AND, _TYPE_BITS, None, None),
        ("", _JUMP_IF_EQUAL, _STREAM, "allow", None),
        ("", _JUMP_IF_EQUAL, _SEQPACKET, "allow", "refuse"),
        ("refuse", _RETURN, _REFUSE, None, None),
        ("allow", _RETURN, _ALLOW, None, None),
    ]
    places = {name: number for number, (name, *_) in enumerate(lines) if name}
    code = b""
    for number, (_, operation, value, then, otherwise) in enumerate(lines):
        jumps = (0 if name is None else places[name] - number - 1 for name in (then, otherwise))
        code += struct.pack("HBBI", operation, *jumps, value)
    return code
