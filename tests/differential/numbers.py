"""Revisions that programs have seen, and the numbers in requests that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

Revisions = Mapping[int, int]
"""The revision of each shard that a token covers, by the shard's number."""


@dataclass(frozen=True)
class Seen:
    """A revision in an answer.

    Attributes:
        alone: that of the single etcd; for a token the single etcd's last revision with this state.
        esp: that of esp.
        revisions: the meaning of a token; None for any other revision.
        is_apart: the single etcd was never in the state that the token stands for, so `alone` means nothing.
    """

    alone: int
    esp: int
    revisions: Revisions | None = None
    is_apart: bool = False


class Number(NamedTuple):
    """A revision for a request.

    Attributes:
        alone, esp: the number for each side.
        revisions: the meaning of the token that the number is made of; None if there is none.
        is_apart: the single etcd has no such number.
        offset: 1 for token + 1, -1 for token - 1: the revisions to add on each shard.
        is_unknown: the number looks like a token, but is none.
    """

    alone: int
    esp: int
    revisions: Revisions | None = None
    is_apart: bool = False
    offset: int = 0
    is_unknown: bool = False

    @property
    def is_token(self) -> bool:
        return self.revisions is not None

    def on_shard(self, shard: int) -> int:
        """The revision that the number means on a shard; that must be one that the token covers."""
        return self.esp if self.revisions is None else self.revisions[shard] + self.offset
