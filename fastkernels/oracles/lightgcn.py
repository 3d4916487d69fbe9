"""LightGCN by torch_geometric."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, With, compiled, randomize

_SIZES: dict[str, Any] = {"num_users": 13, "num_items": 29, "embedding_dim": 16, "num_layers": 2, "num_edges": 120}


class LightGCNOracle(Oracle):
    requires = ("torch_geometric",)
    levels = (Level("propagation.spmm", "convs.0"),)
    preset = "lightgcn-movielens-1m"
    layers_key = "num_layers"
    loads = (Load("published", (1, 6040)),)

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "small": _SIZES,
            "one_layer": {**_SIZES, "num_layers": 1, "embedding_dim": 13},
            "empty_graph": {**_SIZES, "num_edges": 0},
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        from torch_geometric.nn import LightGCN

        num_users, num_items = sizes["num_users"], sizes["num_items"]
        model: Any = randomize(LightGCN(num_users + num_items, sizes["embedding_dim"], sizes["num_layers"]), seed)
        generator = torch.Generator().manual_seed(seed)
        shape = (sizes["num_edges"],)
        users = torch.randint(num_users, shape, generator=generator, device="cpu")
        liked = torch.rand(shape, generator=generator, device="cpu") ** 3  # some far more often than others
        items = (liked * num_items).long() + num_users
        one_way = torch.stack([users, items])
        model.edges = torch.cat([one_way, one_way.flip(0)], dim=1).to(model.embedding.weight.device)
        model.sizes = dict(sizes)
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        sizes: Any = model.sizes
        (folder / "graph").mkdir()
        edges: Any = model.edges
        save_file({"edge_index": edges.cpu()}, folder / "graph" / "edges.safetensors")
        body = {"architectures": ["LightGCN"], **sizes, "graph": "graph/edges.safetensors"}
        (folder / "config.json").write_text(json.dumps(body))
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "model.safetensors")

    def save_config(self, model: nn.Module, folder: Path) -> Path:
        """The folder: a graph is read from beside the weights."""
        self.save(model, folder)
        return folder

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        return [{"users": [0, 3, sizes["num_users"] - 1], "k": 4}, {"users": [5], "k": 1}, {"users": [2, 2], "k": 4}]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        sizes: Any = model.sizes
        items = torch.arange(sizes["num_users"], sizes["num_users"] + sizes["num_items"])
        users = torch.tensor(request["users"])
        with torch.no_grad():
            found = model.recommend(model.edges, src_index=users, dst_index=items, k=request["k"])  # type: ignore[operator]
        return {"items": found - sizes["num_users"]}

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """The best 20 items of one user each, the first ones."""
        k = min(20, sizes["num_items"])
        return [{"users": [i % sizes["num_users"]], "k": k} for i in range(num)]

    def batch(self, model: Any, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        first, num = model.sizes["num_users"], model.sizes["num_items"]
        items = torch.arange(first, first + num, device=model.edges.device)
        return {**super().batch(model, states), "items": items, "num_users": first}

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        users, k = batch["users"], batch["ranks"].shape[1]
        found = model.recommend(model.edges, src_index=users.flatten(), dst_index=batch["items"], k=k)
        return {"items": found.view(*users.shape, k) - batch["num_users"]}

    def modes(self, model: nn.Module, compile_mode: str | None) -> dict[str, Callable[[], Any]]:
        """Also with the graph's matrix made and normalised beforehand, by which no message is a tensor of its own."""
        return {**super().modes(model, compile_mode), "library_sparse": lambda: self._sparse(model)}

    def compiled(self, model: Any, mode: str) -> Any:
        return With(model, recommend=compiled(model.recommend, mode))

    def _sparse(self, model: Any) -> Any:
        from torch_geometric.nn import LightGCN
        from torch_geometric.nn.conv.gcn_conv import gcn_norm
        from torch_geometric.utils import to_torch_csr_tensor

        weight, num = model.embedding.weight, model.num_nodes
        sparse: Any = LightGCN(num, weight.shape[1], model.num_layers, normalize=False).to(weight)
        sparse.embedding, sparse.sizes = model.embedding, model.sizes
        edges, values = gcn_norm(model.edges, None, num, add_self_loops=False, dtype=weight.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what torch does not check in such matrices
            sparse.edges = to_torch_csr_tensor(edges, values, size=(num, num))  # the graph is symmetric
        return sparse


ORACLE = LightGCNOracle()
