"""Revisions of the source, as they are written on the target: each as one transaction, so that no order changes."""

from __future__ import annotations

from typing import NamedTuple


class Write(NamedTuple):
    """A key that is put, or deleted if its value is None."""

    key: bytes
    value: bytes | None
    lease: int = 0


class Revision(NamedTuple):
    """What a revision of the source has written in the range.

    Attributes:
        number: the revision.
        writes: each key at most once.
        until: as in `Copies`: what is written here may be as it was up to this later revision.
        is_fence: the source's guard was written at this revision.
    """

    number: int
    writes: tuple[Write, ...]
    until: int = 0
    is_fence: bool = False
