"""The count of kernels that somebody had to wait for."""

from __future__ import annotations

from importlib import reload
from typing import Any

import pytest

from fastkernels.kernels import compilations

knobs = pytest.importorskip("triton.knobs")


def test_what_triton_makes_ready_is_counted_and_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **facts: told.append(facts))
    reload(compilations)
    before = compilations.num_kernels_made()
    knobs.runtime.jit_post_compile_hook(key="a kernel", already_compiled=False)
    assert compilations.num_kernels_made() == before + 1
    assert told == [{"key": "a kernel", "already_compiled": False}]
