"""The shipped sets on a GPU, in bfloat16, against the definitions in float64."""

from __future__ import annotations

import importlib

import pytest
import torch

from fastkernels.errors import EnvironmentProblem
from fastkernels.loading import load_class
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("set_name", ["liger", "torch_native", "torch_compile"])
@pytest.mark.parametrize(
    ("op", "init", "shapes"),
    [
        ("rms_norm", {"hidden_size": 4096}, [(37, 4096)]),
        ("rms_norm", {"hidden_size": 4096}, [(37, 4096), (37, 4096)]),
        ("silu_and_mul", {}, [(37, 2 * 14336)]),
    ],
)
def test_a_set_is_the_definition_to_rounding(
    set_name: str, op: str, init: dict[str, int], shapes: list[tuple[int, ...]]
) -> None:
    entry = ops()[op]
    baseline = getattr(importlib.import_module(entry.module), entry.class_name)
    torch.manual_seed(0)
    with torch.device("cuda"):
        try:
            built = load_class(entry, resolve_set(set_name))(**init).bfloat16()
        except EnvironmentProblem as problem:
            pytest.skip(str(problem))
        definition = baseline(**init).double()
        inputs = [torch.randn(shape).bfloat16() for shape in shapes]
    given, expected = built(*inputs), definition.reference(*[x.double() for x in inputs])
    for y, truth in zip(*(v if isinstance(v, tuple) else (v,) for v in (given, expected)), strict=True):
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(y.double(), truth, rtol=2**-6, atol=2**-7)
