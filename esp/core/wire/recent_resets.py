"""The streams that esp has reset lately: frames of the peer for them may still be on their way."""

from __future__ import annotations

from typing import Final

RECENTLY_RESET: Final = 1000


class RecentResets:
    """Ids of streams that were reset: the last `RECENTLY_RESET`, and every id up to the highest older one.

    So a burst of resets does not end the connection when frames arrive that the peer sent before it saw the resets.
    """

    __slots__ = ("_forgotten", "_ids")

    def __init__(self) -> None:
        self._ids: dict[int, None] = {}
        self._forgotten = 0

    def __len__(self) -> int:
        """How many ids are remembered one by one."""
        return len(self._ids)

    def __contains__(self, stream_id: int) -> bool:
        return stream_id in self._ids or stream_id <= self._forgotten

    def add(self, stream_id: int) -> None:
        """Remembers a stream that is reset now."""
        if len(self._ids) >= RECENTLY_RESET:
            oldest = next(iter(self._ids))
            del self._ids[oldest]
            self._forgotten = max(self._forgotten, oldest)
        self._ids[stream_id] = None
