"""How likely a click is, by DLRMv2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.errors import UsageError
from fastkernels.pipelines.inputs import as_floats, as_integers
from fastkernels.pipelines.result import Result
from fastkernels.tasks.configs.dlrm import DLRMConfig


class DLRMPipeline:
    """{"dense": numbers, "ids": a list of ids for each feature} -> logits [1], probability [1].

    A feature may have no id, or up to max_ids of them.
    """

    def __init__(self, model: nn.Module, config: DLRMConfig, checkpoint: Path | None) -> None:
        self.model, self.config = model, config

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError names the feature whose ids are too many or outside its table."""
        config = self.config
        if not {"dense", "ids"} <= set(inputs):
            raise UsageError(f"A request has 'dense' and 'ids', got {', '.join(inputs) or 'nothing'}.")
        dense = as_floats(inputs["dense"], "dense", f"{config.num_dense_features} finite numbers")
        if dense.shape != (config.num_dense_features,) or not bool(torch.isfinite(dense).all()):
            raise UsageError(f"dense is {config.num_dense_features} finite numbers, got {list(dense.shape)}.")
        try:
            given = list(inputs["ids"])
        except TypeError as error:
            raise UsageError(
                f"ids is {inputs['ids']!r:.80}; it has a list for each of {config.num_features} features."
            ) from error
        if len(given) != config.num_features:
            raise UsageError(f"ids has a list for each of {config.num_features} features, got {len(given)}.")
        ids = torch.full((config.num_features, config.max_ids), -1)
        for number, (some, limit) in enumerate(zip(given, config.num_embeddings_per_feature, strict=True)):
            row = as_integers(some, f"ids[{number}]", "a list of ids").flatten()
            if len(row) > config.max_ids:
                raise UsageError(f"Feature {number} has {len(row)} ids; the most is {config.max_ids}.")
            if len(row) and not 0 <= int(row.min()) <= int(row.max()) < limit:
                raise UsageError(f"Feature {number} has ids in [0, {limit}), got {row.tolist()[:8]}.")
            ids[number, : len(row)] = row
        return {"dense": dense, "ids": ids}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = next(self.model.parameters()).dtype
        return {"logits": self.model(batch["dense"].to(dtype), batch["ids"])[:, None]}

    def finish(self, result: dict[str, Tensor]) -> Result:
        logits = result["logits"].float().cpu()
        return Result({"logits": logits, "probability": logits.sigmoid()})

    def example_requests(self, num: int, seed: int) -> list[dict[str, Any]]:
        """Numbers and ids by seed; some features have no id, some several."""
        generator = torch.Generator().manual_seed(seed)
        requests = []
        for _ in range(num):
            counts = torch.randint(0, min(3, self.config.max_ids) + 1, (self.config.num_features,), generator=generator)
            ids = [
                torch.randint(n, (int(count),), generator=generator).tolist()
                for n, count in zip(self.config.num_embeddings_per_feature, counts, strict=True)
            ]
            dense = torch.randn(self.config.num_dense_features, generator=generator)
            requests.append({"dense": dense.tolist(), "ids": ids})
        return requests
