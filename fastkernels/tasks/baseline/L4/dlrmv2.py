"""DLRMv2: how likely a click is, from numbers and from ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.embedding_bag import EmbeddingBag
from fastkernels.tasks.baseline.L2.dense_mlp import DenseMLP
from fastkernels.tasks.baseline.L2.low_rank_cross_net import LowRankCrossNet
from fastkernels.tasks.configs.dlrm import DLRMConfig


class DLRM_DCN(Op):  # noqa: N801 - the library of record's name
    """over_arch(cross_net([dense_arch(dense_features), embedding_bag(ids)])).

    Shapes:  dense_features: [num_rows, num_dense_features]; ids: [num_rows, num_features, num_ids], negative for
             none; logits: [num_rows].
    Dtypes:  ids int64; weights and activations bf16, fp16 or fp32.
    Returns: logits. No argument is written to.
    Errors:  those of its parts.
    Source:  Naumov et al. 2019 (https://arxiv.org/abs/1906.00091) with Wang et al. 2020
             (https://arxiv.org/abs/2008.13535), MLPerf's DLRMv2; modules as torchrec's DLRM_DCN.
    """

    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^(model\.)?sparse_arch\.embedding_bag_collection\.embedding_bags\.", ""),
        (r"^(model\.)?dense_arch\.model\._mlp\.(\d+)\._linear\.", r"dense_arch.layers.\2."),
        (r"^(model\.)?inter_arch\.crossnet\.([VW])_kernels\.(\d+)$", r"cross_net.\2.\3.weight"),
        (r"^(model\.)?inter_arch\.crossnet\.bias\.(\d+)$", r"cross_net.W.\2.bias"),
        (r"^cross_net\.V", "cross_net.v"),
        (r"^cross_net\.W", "cross_net.w"),
        (r"^(model\.)?over_arch\.model\.0\._mlp\.(\d+)\._linear\.", r"over_arch.layers.\2."),
    )

    spec = OpSpec(
        inputs={
            "dense_features": TensorSpec(("num_rows", "num_dense_features")),
            "ids": TensorSpec(
                ("num_rows", "num_features", "num_ids"), dtype="int64", role=Role.COUPLED, bound="num_embeddings"
            ),
        },
        outputs={"logits": TensorSpec(("num_rows",))},
        examples=(
            {"config": DLRMConfig.tiny()},
            {
                "config": DLRMConfig.tiny(
                    num_embeddings_per_feature=(7,), embedding_dim=13, dense_arch_layer_sizes=(13,)
                )
            },
        ),
        example_axes={"num_rows": (257, 129), "num_ids": (4, 1)},
    )

    def __init__(self, config: DLRMConfig, prefix: str = "") -> None:
        super().__init__()
        self.num_dense_features = config.num_dense_features
        self.num_features = config.num_features
        self.num_embeddings = tuple(config.num_embeddings_per_feature)
        self.dense_arch = DenseMLP(config.num_dense_features, config.dense_arch_layer_sizes)
        self.embedding_bag = EmbeddingBag(config.num_embeddings_per_feature, config.embedding_dim)
        self.cross_net = LowRankCrossNet(config.interaction_size, config.dcn_num_layers, config.dcn_low_rank_dim)
        self.over_arch = DenseMLP(config.interaction_size, config.over_arch_layer_sizes, ends_in_relu=False)
        tables = {f"t_cat_{i}": i for i in range(config.num_features)}
        self.packed_modules: Mapping[str, Mapping[str, int]] = {"embedding_bag": tables}
        last = len(config.over_arch_layer_sizes) - 1
        self.weight_renames = (  # type: ignore[misc]
            *self.weight_renames,
            (r"^(model\.)?over_arch\.model\.1\.", f"over_arch.layers.{last}."),
        )

    def forward(self, dense_features: Tensor, ids: Tensor) -> Tensor:
        rows = torch.cat([self.dense_arch(dense_features)[:, None], self.embedding_bag(ids)], dim=1)
        return self.over_arch(self.cross_net(rows.flatten(1)))[:, 0]

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return self.embedding_bag.coupled_inputs(sizes, generator)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        dense_features, ids = inputs["dense_features"], inputs["ids"]
        bags = self.embedding_bag.cost({"ids": ids}, {"y": dense_features[:0]})
        dense = sum(p.numel() for name, p in self.named_parameters() if "embedding_bag" not in name)
        given = dense_features.numel() + outputs["logits"].numel() + dense
        num_bytes = bags.num_bytes + given * dense_features.element_size()
        return Cost(num_bytes, bags.num_flops + 2 * len(ids) * dense)
