"""The few calls of the CUDA driver and runtime that torch does not offer, by the libraries that torch has loaded.

https://docs.nvidia.com/cuda/cuda-driver-api/ (stream memory operations, access policy windows).
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = 1, 2, 3
_LIMIT_PERSISTING_L2 = 6
_WAIT_EQUAL = 1
_REGISTER_PORTABLE_MAPPED = 3
_ATTRIBUTE_ACCESS_POLICY = 1


class _AccessPolicy(ctypes.Structure):
    """cudaAccessPolicyWindow, with room for the rest of the union that holds it."""

    _fields_ = (
        ("base", c_void_p),
        ("num_bytes", c_size_t),
        ("hit_ratio", c_float),
        ("hit_property", c_int),
        ("miss_property", c_int),
        ("rest", ctypes.c_char * 64),
    )


class Cuda:
    """Made once a context exists. Every method raises RuntimeError with the call's name when it fails."""

    def __init__(self) -> None:
        driver, runtime = _loaded("libcuda.so"), _loaded("libcudart.so")
        self._wait = _function(driver, "cuStreamWaitValue32_v2", c_void_p, c_uint64, c_uint32, c_uint)
        self._copy = _function(runtime, "cudaMemcpy", c_void_p, c_void_p, c_size_t, c_int)
        self._copy_async = _function(runtime, "cudaMemcpyAsync", c_void_p, c_void_p, c_size_t, c_int, c_void_p)
        self._copy_2d = _function(
            runtime, "cudaMemcpy2D", c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int
        )
        self._register = _function(runtime, "cudaHostRegister", c_void_p, c_size_t, c_uint)
        self._get_limit = _function(runtime, "cudaDeviceGetLimit", c_void_p, c_int)
        self._set_limit = _function(runtime, "cudaDeviceSetLimit", c_int, c_size_t)
        self._reset_l2 = _function(runtime, "cudaCtxResetPersistingL2Cache")
        self._set_attribute = _function(runtime, "cudaStreamSetAttribute", c_void_p, c_int, c_void_p)
        self._no_policy = _AccessPolicy()

    def register(self, address: int, num_bytes: int) -> None:
        """Let the device read host memory in stream order, and wait for words of it."""
        self._register(address, num_bytes, _REGISTER_PORTABLE_MAPPED)

    def wait_for_word(self, stream: int, address: int, value: int) -> None:
        """Hold a stream until the 32-bit word at `address` is `value`."""
        self._wait(stream, address, value & 0xFFFFFFFF, _WAIT_EQUAL)

    def copy(self, target: int, source: int, num_bytes: int, kind: int) -> None:
        self._copy(target, source, num_bytes, kind)

    def copy_pieces(self, target: int, source: int, width: int, step: int, count: int, kind: int) -> None:
        """`count` pieces of `width` bytes, `step` bytes apart, one after the other."""
        self._copy_2d(target, width, source, step, width, count, kind)

    def copy_in_stream(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> None:
        self._copy_async(target, source, num_bytes, kind, stream)

    def persisting_limit(self) -> int:
        """Bytes of the L2 cache that may be set aside."""
        value = c_size_t()
        self._get_limit(ctypes.byref(value), _LIMIT_PERSISTING_L2)
        return int(value.value)

    def drop_persisting_lines(self, stream: int, limit: int) -> None:
        """No part of the L2 cache is kept for anybody: policy of the stream, limit and lines as they were at first."""
        self._set_attribute(stream, _ATTRIBUTE_ACCESS_POLICY, ctypes.byref(self._no_policy))
        self._set_limit(_LIMIT_PERSISTING_L2, limit)
        self._reset_l2()


def _function(library: ctypes.CDLL, name: str, *argument_types: Any) -> Any:
    call = getattr(library, name)
    call.argtypes = argument_types

    def checked(*arguments: Any) -> None:
        status = call(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with error {status}.")

    return checked


def _loaded(name: str) -> ctypes.CDLL:
    """A library that this process has mapped already."""
    with open("/proc/self/maps") as maps:
        path = next((line.split()[-1] for line in maps if name in line), None)
    if path is None:
        raise RuntimeError(f"{name} is not loaded: is this torch built with CUDA?")
    return ctypes.CDLL(path)
