"""`reference` in the place of `forward`."""

from __future__ import annotations

import functools
from typing import Any

from fastkernels.context import reference_mode
from fastkernels.op import Op


def adapt(op_class: type[Op]) -> type[Op]:
    """The op with its definition for a forward; a composite runs over its parts' definitions."""
    is_composite = op_class.reference is Op.reference
    definition = op_class.forward if is_composite else op_class.reference

    @functools.wraps(op_class.forward)
    def forward(self: Op, *args: Any, **kwargs: Any) -> Any:
        with reference_mode():
            return definition(self, *args, **kwargs)

    return type(op_class.__name__, (op_class,), {"forward": forward, "__doc__": op_class.__doc__})
