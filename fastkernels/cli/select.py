"""--target, --level and --architecture: which ops a command means."""

from __future__ import annotations

from collections.abc import Sequence

from fastkernels import registry
from fastkernels.errors import UsageError
from fastkernels.registry import OpEntry


def select_ops(targets: Sequence[str] | None, level: int | None, architecture: str | None) -> list[OpEntry]:
    """The ops that fit every choice given, all when none is; lowest level first.

    Errors: UnknownNameError; UsageError when no op fits.
    """
    chosen = set(registry.ops().values())
    if targets:
        chosen &= {entry for target in targets for entry in registry.find_ops(target)}
    if level is not None:
        chosen &= set(registry.ops_of_level(level))
    if architecture is not None:
        chosen &= set(registry.ops_of_architecture(architecture))
    if not chosen:
        words = [*(targets or []), *([f"level {level}"] if level else []), *([architecture] if architecture else [])]
        raise UsageError(f"No op is all of this: {', '.join(words)}. `fastkernels list` shows what there is.")
    return sorted(chosen)
