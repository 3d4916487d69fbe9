"""DLRMv2 by torchrec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, randomize

_SIZES: dict[str, Any] = {
    "num_dense_features": 5,
    "num_embeddings_per_feature": [10, 37, 3],
    "embedding_dim": 8,
    "dense_arch_layer_sizes": [16, 8],
    "over_arch_layer_sizes": [12, 6, 1],
    "dcn_num_layers": 2,
    "dcn_low_rank_dim": 4,
    "max_ids": 4,
}
_MOST_ROWS = 4_000_000
"""Of one table where the whole 104 GB are not wanted."""
_IDS = 8


class DLRMOracle(Oracle):
    requires = ("torchrec", "torchrec.models.dlrm")
    preset = "dlrm-v2"
    layers_key = "dcn_num_layers"
    loads = (Load("published", (1, 2048)),)
    levels = (
        Level("dense_arch", "dense_arch"),
        Level("embedding_bag", "sparse_arch"),
        Level("cross_net", "inter_arch.crossnet"),
        Level("over_arch", "over_arch"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        one = {**_SIZES, "num_embeddings_per_feature": [7], "embedding_dim": 5, "dense_arch_layer_sizes": [5]}
        return {"three_tables": _SIZES, "one_table": {**one, "dcn_num_layers": 1, "max_ids": 1}}

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        from torchrec.models.dlrm import DLRM_DCN

        dim = sizes["embedding_dim"]
        tables = [
            EmbeddingBagConfig(name=f"t_cat_{i}", embedding_dim=dim, num_embeddings=n, feature_names=[f"cat_{i}"])
            for i, n in enumerate(sizes["num_embeddings_per_feature"])
        ]
        model = DLRM_DCN(
            EmbeddingBagCollection(tables=tables, device=torch.get_default_device()),
            dense_in_features=sizes["num_dense_features"],
            dense_arch_layer_sizes=list(sizes["dense_arch_layer_sizes"]),
            over_arch_layer_sizes=list(sizes["over_arch_layer_sizes"]),
            dcn_num_layers=sizes["dcn_num_layers"],
            dcn_low_rank_dim=sizes["dcn_low_rank_dim"],
        )
        model.sizes = dict(sizes)
        return randomize(model, seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        self.save_config(model, folder)
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")

    def save_config(self, model: nn.Module, folder: Path) -> Path:
        path = folder / "config.json"
        path.write_text(json.dumps({"architectures": ["DLRM_DCN"], **model.sizes}))  # type: ignore[dict-item]
        return path

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """One id a feature, several, as many as may be, and none at all."""
        generator, found = torch.Generator().manual_seed(3), []
        for count in (1, min(2, sizes["max_ids"]), sizes["max_ids"], 0):
            limits = sizes["num_embeddings_per_feature"]
            ids = [torch.randint(n, (count,), generator=generator).tolist() for n in limits]
            found.append({"dense": torch.randn(sizes["num_dense_features"], generator=generator).tolist(), "ids": ids})
        return found

    def answer(self, model: nn.Module, request: Request) -> Answer:
        dense = torch.tensor([request["dense"]])
        values = torch.tensor([i for some in request["ids"] for i in some], dtype=torch.int64)
        lengths = torch.tensor([len(some) for some in request["ids"]])
        with torch.no_grad():
            return {"logits": model(dense, _jagged(values, lengths))[0]}

    def published(self, num_layers: int | None) -> dict[str, Any]:
        """Tables of at most 4,000,000 rows, and 8 ids a feature."""
        sizes = super().published(num_layers)
        rows = [min(n, _MOST_ROWS) for n in sizes["num_embeddings_per_feature"]]
        return {**sizes, "num_embeddings_per_feature": rows, "max_ids": _IDS}

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """Every feature has max_ids ids."""
        generator = torch.Generator().manual_seed(num)
        limits, count = sizes["num_embeddings_per_feature"], sizes["max_ids"]
        ids = [torch.randint(n, (num, count), generator=generator) for n in limits]
        dense = torch.randn(num, sizes["num_dense_features"], generator=generator)
        return [{"dense": dense[i], "ids": [table[i] for table in ids]} for i in range(num)]

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        by_feature = batch["ids"].transpose(0, 1)
        lengths = torch.full((by_feature[..., 0].numel(),), by_feature.shape[-1], device=by_feature.device)
        return {"logits": model(batch["dense"], _jagged(by_feature.flatten(), lengths, len(by_feature)))}


def _jagged(values: Tensor, lengths: Tensor, num_features: int | None = None) -> Any:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    keys = [f"cat_{i}" for i in range(num_features or len(lengths))]
    return KeyedJaggedTensor.from_lengths_sync(keys=keys, values=values, lengths=lengths)


ORACLE = DLRMOracle()
