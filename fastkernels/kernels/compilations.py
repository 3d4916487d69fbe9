"""How many kernels Triton has made ready in this process: whoever launches one first waits for it."""

from __future__ import annotations

from typing import Any

from fastkernels.kernels.backend import HAS_TRITON

_num_made = 0


def num_kernels_made() -> int:
    """Compiled, or fetched from Triton's cache on disk; one for each dtype and constant that it depends on."""
    return _num_made


def _watch() -> None:
    from triton import knobs

    before = knobs.runtime.jit_post_compile_hook

    def note(**facts: Any) -> Any:
        global _num_made
        _num_made += 1
        return before(**facts) if before is not None else None

    knobs.runtime.jit_post_compile_hook = note


if HAS_TRITON:
    _watch()
