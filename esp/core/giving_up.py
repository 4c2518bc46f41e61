"""A move that is given up: the range stays with its source, whatever the mover does later.

Any proxy does so with a move that nobody goes on with between the cut and the opening, or carries out the rest. Each
proxy goes by how long it has itself seen the same; no two clocks are compared. A mover that is only slow can do nothing
afterwards, and several proxies may do the same at once: each step is compared by the shards.

This stands apart from `move`, because proxies need nothing of what movers do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from esp.core.shard import Shard
from esp.core.shared_map import (
    ChangeError,
    Held,
    How,
    Next,
    Phase,
    SharedMap,
    carry_out,
    given_back,
    go_over,
    read,
)
from esp.core.wire.status import Status
from esp.core.wording import shard_called

CALL_SECONDS: Final = 10.0
_TRIES: Final = 3
GRACE_SECONDS: Final = 2.0
"""Seconds beyond `Move.pause` that a mover has."""


class MoveError(Exception):
    """A move cannot begin or go on; the text is a clause for people."""


async def give_up(change: Next, shards: Mapping[str, Shard], silent: Mapping[str, str], *, by: str) -> SharedMap:
    """Gives a move up, or carries it out if its target is open already; the map that is in force then.

    Anybody may do so at any time. If somebody else has ended the move before, the answer is `change.after` if it was
    carried out, whatever came later, and else the map that is in force by now.

    Raises:
        MoveError: a shard that is needed does not answer; the move can be given up later, by anybody.
    """
    decided = await _decided(change, shards, by)
    if isinstance(decided, SharedMap):
        return decided
    result = decided.result
    try:
        async for outcome in carry_out(decided, shards, silent):
            if outcome.how is How.OPEN:
                result = decided.after
    except ChangeError as error:
        raise MoveError(str(error)) from None
    return result


async def _decided(change: Next, shards: Mapping[str, Shard], by: str) -> Next | SharedMap:
    """The change, decided so that anybody can go on with it; or to which map it has led, if it has ended."""
    anchor = shards.get(change.after.anchor)
    if anchor is None:
        raise MoveError(f"{shard_called(change.after.anchor)} decides on the map, and is not reached")
    failure: ChangeError | None = None
    for _ in range(_TRIES):
        if change.move is None or not change.is_open:
            return change
        assert change.before is not None, "it moves keys"
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        back = given_back(change.before, change.move, at=at, by=by, moves=change.after.moves[:-1])
        decided = change.with_move(replace(change.move, phase=Phase.ABORT, back=back))
        try:
            await go_over(anchor, change, decided)
        except ChangeError as error:
            failure = error
        else:
            return decided
        held = (await read([anchor], CALL_SECONDS))[anchor.name]
        if isinstance(held, Held):
            if held.next is None or held.next.after != change.after:
                return _led_to(change, held)
            change = held.next
    raise MoveError(str(failure))


def _led_to(change: Next, anchor: Held) -> SharedMap:
    """The map to which a move has led that somebody has ended, by what the anchor holds: each change ends there."""
    if anchor.map is None:
        raise MoveError(
            f"{shard_called(change.after.anchor)} does not tell the map any more; look again (esp map show)"
        )
    return change.after if any(one.epoch == change.after.epoch for one in anchor.map.moves) else anchor.map


class Hanging:
    """What a proxy has seen of the move that is under way."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = 0.0

    def is_due(self, change: Next | None, found: Mapping[str, Held | Status], now: float) -> bool:
        """Whether somebody has to go on with the change; then it is due again after the same time.

        Args:
            change: what the anchor has decided.
            found: what the shards hold.
            now: the time by any clock that goes on.
        """
        move = None if change is None else change.move
        if change is None or move is None or not _keeps_clients_waiting(change, found):
            self._seen = None
            return False
        seen = move.id, move.phase, move.mover
        if seen != self._seen:
            self._seen, self._since = seen, now
        if now - self._since < move.pause / 1000 + GRACE_SECONDS:
            return False
        self._since = now
        return True


def _keeps_clients_waiting(change: Next, found: Mapping[str, Held | Status]) -> bool:
    if not change.is_open:
        return True
    assert change.move is not None, "it is open for a mover"
    source = found.get(change.move.source)
    return isinstance(source, Held) and source.guard == change.after.guards[change.move.source]
