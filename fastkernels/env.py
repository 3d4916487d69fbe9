"""Every environment variable that FastKernels reads, and nothing else reads one."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """FASTKERNELS_HOME: where runs, captures and the MLflow store go; default ./runs beside the caller."""
    return Path(os.environ.get("FASTKERNELS_HOME", "runs"))


def candidate_dir() -> Path | None:
    """FASTKERNELS_CANDIDATE_DIR: the user's implementation set, instead of tasks/candidate."""
    value = os.environ.get("FASTKERNELS_CANDIDATE_DIR")
    return Path(value) if value else None


def triton_interpreted() -> bool:
    """TRITON_INTERPRET=1: Triton kernels run on the CPU through Triton's own interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def quiet_mlflow() -> None:
    """Unless the user has set them: MLflow sends no usage data, and gives an unreachable server up in seconds.

    https://mlflow.org/docs/latest/community/usage-tracking/
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


def api_key() -> str | None:
    """FASTKERNELS_API_KEY: what clients of `fastkernels serve` must send."""
    return os.environ.get("FASTKERNELS_API_KEY") or None


def visible_gpus(count: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES: names of the `count` GPUs that this process may use, as the variable has them."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def environment_without_gpu() -> dict[str, str]:
    """That of a process which sees no GPU, and whose libraries of linear algebra start no threads."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", **single}
