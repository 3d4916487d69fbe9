"""Every sum of products in another order, where a model runs: answers that are right and not the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_MATMULS = (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm)
_CONVOLUTIONS: tuple[Any, ...] = (
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(functional.conv1d, functional.conv2d, functional.conv3d),
)


class OtherOrder(TorchFunctionMode):
    """Matrix products and convolutions as two halves over interleaved terms, added in float32 at least and rounded
    once, as production paths do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func in _MATMULS and _is_halved(args[0], -1) and args[1].dim() > 1:
            return _halves(func, args[0], -1, args[1], -2)
        if func in _CONVOLUTIONS and _is_whole(*args[:2]):
            return _convolution(func, *args, **kwargs)
        if func is torch.einsum and len(args) == 3:
            return _einsum(*args)
        return func(*args, **kwargs)


def _is_halved(x: Tensor, axis: int) -> bool:
    is_dense = x.layout is torch.strided
    return is_dense and x.is_floating_point() and x.dim() > 1 and x.shape[axis] > 1


def _halves(product: Callable[..., Tensor], a: Tensor, i: int, b: Tensor, j: int) -> Tensor:
    """The product over axis i of a and axis j of b, in two parts."""
    wide = torch.promote_types(a.dtype, torch.float32)
    parts = []
    for start in range(min(2, a.shape[i])):
        terms = torch.arange(start, a.shape[i], 2, device=a.device)
        parts.append(product(a.index_select(i, terms).to(wide), b.index_select(j, terms).to(wide)))
    return sum(parts[1:], start=parts[0]).to(torch.promote_types(a.dtype, b.dtype))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    y = _halves(lambda a, b: a @ b.mT, x.to(wide), x.dim() - 1, weight.to(wide), 1)
    return (y if bias is None else y + bias).to(x.dtype)


def _is_whole(x: Tensor, weight: Tensor) -> bool:
    """Of one group: channels of several are no one sum."""
    return x.dim() == weight.dim() and x.shape[1] == weight.shape[1] and x.shape[1] > 1


def _convolution(
    func: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    y = _halves(lambda a, b: func(a, b, None, *args, **kwargs), x.to(wide), 1, weight.to(wide), 1)
    return (y if bias is None else y + bias.view(-1, *[1] * (x.dim() - 2))).to(x.dtype)


def _einsum(equation: str, a: Tensor, b: Tensor) -> Tensor:
    inputs, _, output = equation.partition("->")
    first, _, second = inputs.replace(" ", "").partition(",")
    summed = [axis for axis in first if axis in second and axis not in output]
    if "." in equation or not summed:
        return torch.einsum(equation, a, b)
    return _halves(lambda x, y: torch.einsum(equation, x, y), a, first.index(summed[0]), b, second.index(summed[0]))
