"""Triton's interpreter without what it does anew at every call and every operation: the same values, sooner."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from triton import language
from triton.language import core
from triton.runtime import interpreter


def install() -> None:
    """In a process that interprets kernels, before the first launch."""
    interpreter._patch_lang = _Patched(interpreter._patch_lang)
    interpreter._get_np_dtype = _known_by_name(interpreter._get_np_dtype)
    core.tuple.__init__ = _init_tuple
    core.tuple.type = property(_type_of_tuple, lambda self, value: self.__dict__.update(type=value))
    core.block_type.to_ir = _block_to_ir
    core.block_type.with_element_ty = _with_element_ty
    core.tensor.__init__ = _init_tensor


class _Patched:
    """Every function that a kernel calls searches the whole language for what to patch, which its launch has done."""

    def __init__(self, patch: Any) -> None:
        self.patch = patch
        self.modules_of = cache(_modules_of)
        self.modules: set[str] = set()
        self.scope: Any = None

    def __call__(self, function: Any) -> Any:
        modules = self.modules_of(function)
        if self.scope is None:
            self.scope, self.modules = self.patch(function), set(modules)
            restore = self.scope.restore

            def ended() -> None:
                self.scope = None
                restore()

            self.scope.restore = ended
        elif not modules <= self.modules:
            self.scope._changes += self.patch(function)._changes
            self.modules |= modules
        return self.scope


def _modules_of(function: Any) -> set[str]:
    """Through which of its two modules a function knows the language."""
    values = function.__globals__.values()
    return {module.__name__ for module in (language, core) if any(value is module for value in values)}


def _known_by_name(find: Any) -> Any:
    """Of a block its element's: found by a table of all types that is made at every call."""
    found: dict[str, Any] = {}

    def find_once(of: Any) -> Any:
        element = of.scalar
        if element.name not in found:
            found[element.name] = find(element)
        return found[element.name]

    return find_once


def _init_tuple(self: Any, args: Any, type: Any = None) -> None:
    """A tuple's type is made of its values' names, and is hardly ever asked for."""
    self.values = list(args)
    if type is not None:
        self.type = type if isinstance(type, core.tuple_type) else core.tuple_type(type)


def _type_of_tuple(self: Any) -> Any:
    if "type" not in self.__dict__:
        self.__dict__["type"] = core._type_for_tuple_values(self.values)
    return self.__dict__["type"]


def _block_to_ir(self: Any, builder: Any) -> Any:
    """The interpreter's own types are the language's."""
    element = self.element_ty.to_ir(builder)
    return self if element is self.element_ty else builder.get_block_ty(element, self.shape)


_blocks: dict[tuple[tuple[int, ...], str], Any] = {}


def _with_element_ty(self: Any, scalar_ty: Any) -> Any:
    """Types are never written to."""
    if scalar_ty.is_ptr():  # whose name does not tell its address space
        return core.block_type(scalar_ty, self.shape)
    key = (tuple(self.shape.values), scalar_ty.name)
    if key not in _blocks:
        _blocks[key] = core.block_type(scalar_ty, self.shape)
    return _blocks[key]


def _sizes(lengths: Any) -> tuple[Any, Any]:
    return core.tuple([core.constexpr(n) for n in lengths]), core.constexpr(math.prod(lengths))


_SCALAR = _sizes(())


def _init_tensor(self: Any, handle: Any, type: Any) -> None:
    """Tensors of one type share their shape."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    if not type.is_block():
        self.shape, self.numel = _SCALAR
        return
    if "sizes" not in type.__dict__:
        type.sizes = _sizes(type.shape)
    self.shape, self.numel = type.sizes
