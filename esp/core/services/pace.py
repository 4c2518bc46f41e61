"""The steps in which esp looks through a large request, so that others have their turn in between."""

from __future__ import annotations

LOOKED_AT_ONCE = 100
"""Compares and operations in one step, which takes some 0.3 ms."""


class Pace:
    """Counts work, and says when others should have their turn."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = LOOKED_AT_ONCE

    def is_over(self) -> bool:
        """Counts one compare or operation; True after every LOOKED_AT_ONCE."""
        self._left -= 1
        if self._left:
            return False
        self._left = LOOKED_AT_ONCE
        return True
