"""Watchers of one shard that have ended because their keys have another owner now.

Their clients come again with a revision of the former owner. Each is answered as compacted once, and lists again.
"""

from __future__ import annotations

from collections import OrderedDict

from esp.core.wire.context import WireContext


class Moved:
    """The names of such watchers, and how many there are of each; at most `max_resume_positions` names."""

    __slots__ = ("_context", "_names")

    def __init__(self, context: WireContext) -> None:
        self._context = context
        self._names: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: bytes) -> None:
        """A watcher has ended."""
        self._names[name] = self._names.pop(name, 0) + 1
        if len(self._names) > self._context.limits.max_resume_positions:
            self._context.reached("max_resume_positions")
            self._names.popitem(last=False)

    def takes(self, name: bytes) -> bool:
        """Whether the client of such a watcher may have come again; True once for each of them."""
        left = self._names.pop(name, 0)
        if left > 1:
            self._names[name] = left - 1
        return left > 0
