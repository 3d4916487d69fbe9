"""The GPU kernels that a candidate's file defines, read from its text: nothing is imported or run."""

from __future__ import annotations

import ast
import re

_DECLARED = re.compile(r"__global__\b([^;{}]{1,500})")
_LAUNCH_BOUNDS = re.compile(r"__launch_bounds__\s*\([^()]*\)")
_NAME = re.compile(r"\b(\w+)\s*\(")


def defined_kernels(source: str) -> list[str]:
    """Names with what they are written in, in the order of the text: "scale (Triton)", "scale_kernel (CUDA)"."""
    found = [f"{name} (Triton)" for name in _triton_functions(source)]
    found += [f"{name} (CUDA)" for name in _cuda_functions(source)]
    return list(dict.fromkeys(found))


def _triton_functions(source: str) -> list[str]:
    """Functions whose decorators name `jit` of triton."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: nested beyond measure
        return []
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [f.name for f in functions if any(_is_triton_jit(d) for d in f.decorator_list)]


def _cuda_functions(source: str) -> list[str]:
    declared = (_NAME.search(_LAUNCH_BOUNDS.sub("", text)) for text in _DECLARED.findall(source))
    return [name.group(1) for name in declared if name]


def _is_triton_jit(decorator: ast.expr) -> bool:
    node = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(node, ast.Attribute):  # no ast.unparse: a candidate's text may be nested beyond measure
        return node.attr == "jit" and isinstance(node.value, ast.Name) and node.value.id == "triton"
    return isinstance(node, ast.Name) and node.id == "jit"
