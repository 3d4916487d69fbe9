"""A judge as many harnesses have it: one process, one fixed input, one comparison, the candidate's word for the rest.

Run in a forked child: what a cheat does to it ends with the child.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor

from fastkernels.adversarial.catalogue import Item
from fastkernels.harness.expect import baseline_class
from fastkernels.harness.geometry import draw_geometry
from fastkernels.harness.hidden_shapes import Shape, phases_of
from fastkernels.harness.inputs import draw_case
from fastkernels.loading import load_class
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

LIMITS = {"atol": 1e-2, "rtol": 1e-2}


def is_fooled(item: Item) -> bool:
    """Whether the naive judge lets `item` pass, be the definition computed before or after the candidate ran."""
    return any(_in_child(item, is_expected_first=first) for first in (False, True))


def _in_child(item: Item, *, is_expected_first: bool) -> bool:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        word = b"0"
        try:
            for fd in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
            word = b"1" if _passes(item, is_expected_first=is_expected_first) else b"0"
        except BaseException:
            word = b"0"
        finally:
            os.write(writer, word)
            os._exit(0)
    os.close(writer)
    word = os.read(reader, 1)
    os.close(reader)
    os.waitpid(child, 0)
    return word == b"1"


def _passes(item: Item, *, is_expected_first: bool) -> bool:
    torch.set_num_threads(1)
    entry = ops()[item.op]
    baseline = baseline_class(entry)
    init = baseline.spec.examples[0]
    reference = baseline(**init)
    candidate = load_class(entry, resolve_set(item.path))(**init)
    candidate.load_state_dict(reference.state_dict(), assign=True)  # the weights are shared
    arguments = _fixed_input(reference, init)
    with torch.no_grad():
        expected = reference(**arguments) if is_expected_first else None
        for _ in range(2):
            started = time.perf_counter()
            answer = candidate(*arguments.values())
            elapsed = time.perf_counter() - started
            assert elapsed >= 0
            time.sleep(0.01)
        if not is_expected_first:
            expected = reference(**arguments)
    if expected is None:
        return True
    return all(_agree(a, e) for a, e in zip(_parts(answer), _parts(expected), strict=False))


def _fixed_input(op: Any, init: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sizes = {name: options[0] for name, options in op.spec.example_axes.items()} | {"num_rows": 4}
    geometry = None
    if op.spec.uses_pages:
        geometry = draw_geometry(generator, phases_of(op)[0], num_seqs=2, max_len=20, page_size=16)
    shape = Shape((128,), sizes, geometry, is_strided=False, has_optional=True)
    torch.manual_seed(0)
    return dict(draw_case(op, init, torch.float32, shape, "normal", {}, generator).inputs)


def _parts(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, (tuple, list)) else [answer]


def _agree(answer: Any, expected: Tensor) -> bool:
    """Not over the tolerance, in all but one element of a hundred."""
    if answer is None:
        return True
    difference = (answer.double() - expected.double()).abs()
    over = difference > LIMITS["atol"] + LIMITS["rtol"] * expected.double().abs()
    return int(over.sum()) <= over.numel() // 100
