"""What layers split over ranks share: published parameter names and loading of this rank's part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fastkernels.distributed.tensor_parallel import WeightSource
from fastkernels.errors import UnsupportedError

ShardId = str | int | None
"""Which of several checkpoint tensors goes into one parameter: "q", "k", "v", 0, 1; None when there is one."""


@dataclass(frozen=True)
class Shard:
    """Of full_size rows along `dim` of a checkpoint tensor, [start, start + size) go to `offset` of the parameter."""

    dim: int
    full_size: int
    start: int
    size: int
    offset: int = 0


def refuse_quantization(quant_config: None, layer: str) -> None:
    """Errors: UnsupportedError when a configuration is given."""
    if quant_config is not None:
        raise UnsupportedError(
            f"{layer} has no quantised weights yet; quant_config must be None, got {quant_config!r}."
        )


def _publish_names(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    assert isinstance(module, ShardedLayer)
    for own, published in module.published_names().items():
        if prefix + own in state:
            state[prefix + published] = state.pop(prefix + own)


def _own_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, ShardedLayer)
    present = dict(module.named_parameters())
    for own, published in module.published_names().items():
        if own in present and prefix + published in state:
            state[prefix + own] = state.pop(prefix + published)


class ShardedLayer(nn.Module):
    """A layer around one L1 op, named `inner`, that holds the weight.

    `layer.weight`, `layer.bias` and the keys of state_dict() are the published names ("qkv_proj.weight"), as in
    vLLM, though the parameter is the inner op's.
    """

    inner: str
    parameter_names: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_publish_names)
        self.register_load_state_dict_pre_hook(_own_names)

    @property
    def weight(self) -> nn.Parameter:
        return getattr(self, self.inner).weight

    @property
    def bias(self) -> nn.Parameter | None:
        separate = self._parameters.get("separate_bias")
        return separate if separate is not None else getattr(getattr(self, self.inner), "bias", None)

    def published_names(self) -> dict[str, str]:
        return {f"{self.inner}.weight": "weight", f"{self.inner}.bias": "bias", "separate_bias": "bias"}

    def shard(self, num_dims: int, shard_id: ShardId) -> Shard:
        """This rank's part of the weight (num_dims 2) or of the bias (1)."""
        raise NotImplementedError

    def checkpoint_shape(self, param: Tensor, shard_id: ShardId = None) -> tuple[int, ...]:
        """The shape of the checkpoint's tensor, before it is split over ranks."""
        shard = self.shard(param.dim(), shard_id)
        return tuple(shard.full_size if d == shard.dim else n for d, n in enumerate(param.shape))

    def weight_loader(self, param: nn.Parameter, loaded_weight: WeightSource, shard_id: ShardId = None) -> None:
        """Copy this rank's part of a checkpoint tensor into its place in the parameter."""
        shard = self.shard(param.dim(), shard_id)
        place = param.data.narrow(shard.dim, shard.offset, shard.size)
        place.copy_(loaded_weight.narrow(shard.dim, shard.start, shard.size))
