"""Inherits everything from the operator that it should replace."""

from __future__ import annotations

from fastkernels.tasks.baseline.L1.silu_and_mul import SiluAndMul as Baseline


class SiluAndMul(Baseline):
    pass
