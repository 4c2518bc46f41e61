"""A move is decided on the anchor; or taken over there by another mover."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from esp.core.giving_up import MoveError
from esp.core.keys import KeyRange
from esp.core.shard import Shard
from esp.core.shared_map import (
    ChangeError,
    Held,
    MapFormatError,
    Move,
    Next,
    Phase,
    SharedMap,
    decide,
    go_over,
    moved_to,
    moves_of,
)
from esp.core.wire.status import Status

DEFAULT_PAUSE: Final = 1000


def planned(
    before: SharedMap,
    told: Mapping[str, Held | Status],
    range_: KeyRange,
    target: str,
    *,
    pause: int,
    at: str,
    by: str,
) -> Next:
    """The move of a range, as it would be decided.

    Args:
        before: the map in force.
        told: what the shards hold.
        range_: the range.
        target: the shard that shall own it.
        pause: the longest time from the cut to the opening, in milliseconds.
        at: when.
        by: who.

    Raises:
        MoveError: the range cannot move there.
    """
    try:
        after = moved_to(before, range_, target, at=at, by=by, moves=moves_of(before, told))
    except MapFormatError as error:
        raise MoveError(f"the map {error}") from None
    source = before.map.owner(range_.start)
    move = Move(secrets.token_hex(6), range_, source, target, Phase.COPY, secrets.token_hex(16), pause)
    return Next(before, after, move)


async def announced(change: Next, shards: Mapping[str, Shard]) -> None:
    """Decides on a move.

    Raises:
        MoveError: the anchor holds another map by now, or another change is decided; or it does not answer.
    """
    try:
        await decide(shards[change.after.anchor], change)
    except ChangeError as error:
        raise MoveError(str(error)) from None


async def taken_over(change: Next, shards: Mapping[str, Shard]) -> Next:
    """The same move by another mover: whoever copied before is refused from its next steps on the anchor on.

    Raises:
        MoveError: somebody else goes on with it, or the anchor does not answer.
    """
    assert change.move is not None, "it moves keys"
    to = change.with_move(replace(change.move, mover=secrets.token_hex(16)))
    try:
        await go_over(shards[change.after.anchor], change, to)
    except ChangeError as error:
        raise MoveError(str(error)) from None
    return to
