"""Calls of every kernel at the sizes of the published models, for compiling ahead (ahead.py).

A call makes its tensors on the device "meta", so that a table of 26 GB takes no memory. Sizes are those of
engine/presets/; where a wrapper picks its way by shape, each way has a call.
"""

from __future__ import annotations

from fastkernels.kernels.launch import Launch
from fastkernels.kernels.launches import (
    attention,
    experts,
    gates,
    images,
    linear,
    rotations,
    rows,
    sampling,
    scenes,
    states,
    tables,
    unpublished,
)

_KINDS = (sampling, rows, rotations, attention, states, experts, linear, images, tables, gates, scenes, unpublished)


def launches() -> list[Launch]:
    """All of them; names are unlike."""
    return [launch for kind in _KINDS for launch in kind.launches()]
