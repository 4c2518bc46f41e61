"""Numbers of clients that may be of before their keys came to the shard that owns them now.

After a move all revisions of the keys are higher than any that the former owner has given, and their order is the same.
So a comparison for equality with a number of before fails, as it must, and one with 0 tells whether a key is there. But
"older than" and "newer than" would tell nothing: whoever asks for the newest key below its own old number, as locks do,
would find none. Such questions are refused. Versions count anew, and a number does not tell of when it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from esp.core import errors
from esp.core.former import Former
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.handlers import parse
from esp.core.services.kv.validate import has_revision_filter
from esp.core.shard import Shard
from esp.core.tokens import Tokens
from esp.core.wire.status import Status

FIRST: Final = 1
"""The highest number with the same meaning on each shard: no key has a lower revision."""
_Compare = rpc_pb2.Compare
_ORDERS: Final = frozenset((_Compare.GREATER, _Compare.LESS))
_FILTERS: Final = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")


def has_revisions(message: bytes) -> bool:
    """Whether a Range, a message with its prefix, is at a revision, or filtered by some."""
    request = parse(rpc_pb2.RangeRequest, message)
    return bool(request.revision) or has_revision_filter(request)


class BeforeMove:
    """The ranges that have moved, for the requests of one layout; false if there are none.

    Args:
        former: the ranges.
        shards: the shards of the layout.
        tokens: the revisions over several shards that clients may name.
    """

    def __init__(self, former: Former, shards: Mapping[str, Shard], tokens: Tokens) -> None:
        self._former = former
        self._shards = shards
        self._tokens = tokens

    def __bool__(self) -> bool:
        return bool(self._former)

    def is_stale(self, keys: KeyRange, owner: str, revision: int) -> bool:
        """Whether a plain revision to read at is from before; `owner` owns all keys."""
        return self._former.is_stale(keys, owner, revision, self._shards[owner].seen)

    def refuse_filters(self, request: rpc_pb2.RangeRequest, owner: str) -> Status | None:
        """Why a Range cannot be filtered by these revisions; `owner` owns all its keys."""
        keys = KeyRange.of_request(request.key, request.range_end)
        for name in _FILTERS:
            if refusal := self.refuse_order(keys, owner, getattr(request, name)):
                return refusal
        return None

    def refuse_order(self, keys: KeyRange, owner: str, number: int) -> Status | None:
        """Why revisions of keys cannot be ordered with this number."""
        if self._tokens.is_token(number):
            return self._refuse_token(keys, owner, number)
        if number <= FIRST:
            return None
        last = self._former.last_before(keys, owner)
        return errors.before_move(keys.start, last) if number <= last else None

    def refuse_compare(self, keys: KeyRange, owner: str, target: int, result: int, number: int) -> Status | None:
        """Why keys cannot be compared so."""
        if target == _Compare.VERSION:
            if number <= 0 or (result == _Compare.LESS and number == FIRST):
                return None  # whether the key is there
            return errors.version_before_move(keys.start) if self._former.last_before(keys, owner) else None
        if target not in (_Compare.CREATE, _Compare.MOD):
            return None
        if self._tokens.is_token(number):
            return self._refuse_token(keys, owner, number)
        return self.refuse_order(keys, owner, number) if result in _ORDERS else None

    def _refuse_token(self, keys: KeyRange, owner: str, number: int) -> Status | None:
        """A token of before names a moment at which the owner may have had copies of some of the keys."""
        floor, position = self._former.floor(keys, owner), self._tokens.position(number)
        if not floor or position is None or not position.revision(owner):
            return None  # whoever translates it says so
        return errors.before_move(keys.start, floor) if position.revision(owner) < floor else None
