"""Names that callers choose for their requests, beside ids that the engine can tell apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterable


class PublicIds:
    """What callers name requests by, and the engine's own id for each call.

    Ids of callers may come again, even at once: the engine may still say something of a call that was left, and none of
    it belongs to the next one.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._open: dict[str, set[str]] = {}

    def begin(self, public_id: str) -> str:
        """The engine's id of a new call; never given twice."""
        engine_id = f"{public_id}~{next(self._numbers)}"
        self._open.setdefault(public_id, set()).add(engine_id)
        return engine_id

    def end(self, public_id: str, engine_id: str) -> None:
        calls = self._open[public_id]
        calls.discard(engine_id)
        if not calls:
            del self._open[public_id]

    def open_calls(self, public_ids: Iterable[str]) -> dict[str, list[str]]:
        """The engine's ids of the calls that are open, for those public ids that have any."""
        return {one: sorted(self._open[one]) for one in public_ids if one in self._open}
