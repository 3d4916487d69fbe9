"""What a worker of an eval run is started with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Order:
    """What a worker is started with: an engine's options, and the folder of the set that stands in for ops.

    gpus: the devices it may see, as CUDA_VISIBLE_DEVICES has them; None: as they are.
    """

    model: str
    dtype: str
    device: str
    tensor_parallel_size: int = 1
    enable_expert_parallel: bool = False
    candidates: tuple[str, ...] = ()
    gpus: tuple[str, ...] | None = None
    readable: tuple[str, ...] = ()

    @property
    def fills_its_device(self) -> bool:
        """An engine takes what memory a GPU has; nothing else runs there meanwhile."""
        return self.device.startswith("cuda")

    def options(self) -> dict[str, Any]:
        """For the worker, as JSON."""
        return {
            "model": self.model, "dtype": self.dtype, "device": self.device,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enable_expert_parallel": self.enable_expert_parallel, "candidates": list(self.candidates),
        }  # fmt: skip
