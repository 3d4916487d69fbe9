"""What an engine is built from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from fastkernels.errors import UsageError

FAKE_DEVICE = "fake"
STATE_DTYPES = ("auto", "float32", "bfloat16", "float16")


class Warm(StrEnum):
    """When kernels are compiled and graphs captured: at first use, or all before the first request.

    On a CPU FULL compiles decode steps, which takes about ten seconds; LAZY leaves them eager.
    """

    LAZY = "lazy"
    FULL = "full"


class LoadFormat(StrEnum):
    """Where weights come from: the checkpoint's safetensors where there are any, or the seed alone."""

    AUTO = "auto"
    SAFETENSORS = "safetensors"
    DUMMY = "dummy"


@dataclass(frozen=True)
class EngineConfig:
    """One engine: the model, where it runs, and its limits; names as in vLLM's EngineArgs.

    model: a Hugging Face checkpoint directory, the path of a config.json, or a preset's name (the last two with
        random weights by seed). tokenizer: another folder to take tokenizer and chat template from. load_format:
        "dummy" gives a checkpoint random weights by seed too. dtype None or "auto": the configuration's. device None:
        the GPU when there is one; "fake" runs scheduler, cache and sampling rules without a model.
        tensor_parallel_size: ranks, each on a GPU of its own from cuda:0 on; then device has no index.
        enable_expert_parallel: each rank holds other experts of a mixture whole, instead of a slice of every expert;
        one rank alone holds all either way.
    num_pages None: on a GPU what gpu_memory_utilization leaves beside weights and activations, else 512.
    max_num_batched_tokens: tokens in one step. max_num_seqs: requests in one step. max_model_len None: the model's.
    max_num_waiting: requests that may wait; a server refuses more. candidates: implementation sets that replace ops.
    mamba_ssm_cache_dtype: of Mamba-2's states. "auto" is the activations', which halves what a step of a bf16 model
        moves; "float32" keeps what rounding drops.
    """

    model: str
    tokenizer: str | None = None
    load_format: LoadFormat = LoadFormat.AUTO
    dtype: str | None = None
    device: str | None = None
    tensor_parallel_size: int = 1
    enable_expert_parallel: bool = False
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
    mamba_ssm_cache_dtype: str = "auto"
    seed: int = 0
    candidates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not str(field.type).startswith("int") or value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"{field.name} is {value!r}; it must be a whole number.")
            if field.name != "seed" and value < 1:
                raise UsageError(f"{field.name} is {value}; the least is 1.")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise UsageError(f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be in (0, 1].")
        if self.mamba_ssm_cache_dtype not in STATE_DTYPES:
            known = ", ".join(STATE_DTYPES)
            raise UsageError(f"mamba_ssm_cache_dtype is {self.mamba_ssm_cache_dtype!r}; it can be {known}.")
        if self.dtype == "auto":
            object.__setattr__(self, "dtype", None)
        for name, kind in (("warm", Warm), ("load_format", LoadFormat)):
            if getattr(self, name) not in tuple(kind):
                known = ", ".join(kind)
                raise UsageError(f"{name} is {getattr(self, name)!r}; it can be {known}.")
            object.__setattr__(self, name, kind(getattr(self, name)))
        object.__setattr__(self, "candidates", tuple(str(c) for c in self.candidates))

    @property
    def is_fake(self) -> bool:
        return self.device == FAKE_DEVICE
