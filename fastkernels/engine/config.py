"""What an engine is built from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from fastkernels.errors import UsageError

FAKE_DEVICE = "fake"


class Warm(StrEnum):
    """When kernels are compiled and graphs captured: at first use, or all before the first request.

    On a CPU FULL compiles decode steps, which takes about ten seconds; LAZY leaves them eager.
    """

    LAZY = "lazy"
    FULL = "full"


@dataclass(frozen=True)
class EngineConfig:
    """One engine: the model, where it runs, and its limits; names as in vLLM's EngineArgs.

    model: a Hugging Face checkpoint directory, the path of a config.json, or a preset's name (the last two with
        random weights by seed). dtype None: the configuration's. device None: the GPU when there is one; "fake"
        runs scheduler, cache and sampling rules without a model.
    num_pages None: on a GPU what gpu_memory_utilization leaves beside weights and activations, else 512.
    max_num_batched_tokens: tokens in one step. max_num_seqs: requests in one step. max_model_len None: the model's.
    max_num_waiting: requests that may wait; a server refuses more. candidates: implementation sets that replace ops.
    """

    model: str
    dtype: str | None = None
    device: str | None = None
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_num_waiting: int = 4096
    page_size: int = 16
    num_pages: int | None = None
    gpu_memory_utilization: float = 0.96
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    warm: Warm = Warm.LAZY
    seed: int = 0
    candidates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and field.name != "seed" and not isinstance(value, bool) and value < 1:
                raise UsageError(f"{field.name} is {value}; the least is 1.")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise UsageError(f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be in (0, 1].")
        object.__setattr__(self, "warm", Warm(self.warm))
        object.__setattr__(self, "candidates", tuple(str(c) for c in self.candidates))

    @property
    def is_fake(self) -> bool:
        return self.device == FAKE_DEVICE
