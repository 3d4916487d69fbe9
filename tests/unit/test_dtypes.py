import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastkernels.dtypes import whole_float32


@pytest.mark.parametrize(
    ("dtype", "is_cuda", "is_whole"),
    [(torch.float32, True, True), (torch.float32, False, False), (torch.bfloat16, True, False)],
)
def test_cudnn_rounds_no_float32_inside(dtype: torch.dtype, is_cuda: bool, is_whole: bool) -> None:
    cudnn: Any = torch.backends.cudnn
    names = ("enabled", "benchmark", "deterministic", "allow_tf32")
    before = {name: getattr(cudnn, name) for name in names}
    x: Any = SimpleNamespace(dtype=dtype, is_cuda=is_cuda)
    with contextlib.suppress(ArithmeticError), whole_float32(x):
        assert {name: getattr(cudnn, name) for name in names} == before | {"allow_tf32": not is_whole}
        raise ArithmeticError
    assert {name: getattr(cudnn, name) for name in names} == before
