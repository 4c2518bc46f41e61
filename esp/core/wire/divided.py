"""Header blocks that hold a part for each of several servers, apart because a type of bytes cannot be compiled."""

from __future__ import annotations

from typing import Final

COMPOSITE: Final = b"esp1:"
"""The beginning of a value that holds a part for each of several servers; a server gets only its own part."""


class DividedBlock(bytes):
    """A header block with a `COMPOSITE` value. The type says so; other blocks need not be searched for such a value."""

    __slots__ = ()
