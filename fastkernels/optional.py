"""Packages that only some commands need, and what to install for them."""

from __future__ import annotations

from fastkernels.errors import EnvironmentProblem

_MODULES = {
    "causal-conv1d": ("causal_conv1d",),
    "cuda": ("pynvml", "triton"),
    "fla": ("fla",),
    "gsplat": ("gsplat",),
    "liger": ("liger_kernel",),
    "mamba-ssm": ("mamba_ssm",),
    "media": ("PIL", "av", "scipy", "soundfile", "transformers"),
    "oracles": ("diffusers", "torch_geometric"),
    "ray": ("ray",),
    "server": ("fastapi", "prometheus_client", "starlette", "uvicorn"),
    "structured": ("xgrammar",),
    "track": ("alembic", "mlflow", "sqlalchemy", "sqlparse"),
    "train": ("sklearn",),
}
"""By the extra of pyproject.toml that brings them; of several extras the one that most commands need."""


def missing_package(error: ModuleNotFoundError) -> EnvironmentProblem | None:
    """What to install when one of these is missing; None for any other module."""
    package = (error.name or "").partition(".")[0]
    for extra, modules in _MODULES.items():
        if package in modules:
            return EnvironmentProblem(
                f"This needs the Python package {package}, which is not installed: pip install 'fastkernels[{extra}]', "
                f"or in a checkout pip install -e '.[{extra}]'."
            )
    return None
