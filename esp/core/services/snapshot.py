"""A moment at which several shards can be read together, found without a clock that they share.

All shards are looked at in rounds: each is asked for its revision, for how many keys it has in the ranges concerned,
and whether one of them was written since the round before. A round begins when all have answered the last. So a shard
that is as it was in the round before was so all the time between the two rounds. From this follow two ways to be sure:

- All shards are as in the round before: then all of that was true at once between the rounds.
- All but one are unchanged over three rounds: then what the one was found to be in the middle round, whenever in that
  round that was, was so together with the others. So a snapshot is found however often one shard is written.

What a look does not show is a key that came and went between two. So where a shard has made more revisions, the keys
are counted at each of them, too, before it counts as unchanged.

The first round can be the reading itself: where nothing is written, its answers are the snapshot after one more round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, NoReturn

from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.handlers import CoroutineCall
from esp.core.services.reading import Parts, read_all
from esp.core.services.revision import token
from esp.core.wire.status import Code, Status

MOST_COUNTS: Final = 128
"""How often a shard's ranges are counted at revisions made meanwhile; where that is not enough, they have changed."""

_Ranges = Mapping[int, Sequence[KeyRange]]


class _Look(NamedTuple):
    """How a shard was found in a round: its revision, how many keys each range had, and whether they were as before."""

    revision: int
    counts: list[int]
    is_as_before: bool = False


_Round = dict[int, _Look]


class Snapshot(NamedTuple):
    """A moment.

    Attributes:
        revision: the token for it.
        answers: what was read first, where it is of that moment; else it has to be read at the token.
    """

    revision: int
    answers: dict[int, Parts] | None


async def snapshot(
    call: CoroutineCall, routing: Routing, parts: Mapping[int, Sequence[rpc_pb2.RangeRequest]], tries: int
) -> Snapshot:
    """A moment at which these parts of each shard, without a revision of their own, can be read.

    Raises:
        RpcError: a shard's, as it came; Unavailable when keys changed in each of `tries` rounds.
    """
    for asked in parts.values():
        for part in asked:
            part.serializable = False  # what a member that lags behind tells is of no moment after the call began
    answers = await read_all(call, routing, parts)
    ranges: _Ranges = {
        shard: list(dict.fromkeys(KeyRange.of_request(part.key, part.range_end) for part in asked))
        for shard, asked in parts.items()
    }
    first: _Round = {}
    for shard, asked in parts.items():
        counted = {
            KeyRange.of_request(part.key, part.range_end): response.count
            for part, response in zip(asked, answers[shard].responses, strict=True)
        }
        first[shard] = _Look(answers[shard].header.revision, [counted[part] for part in ranges[shard]])
    if len(parts) == 1:
        return Snapshot(token(routing, _revisions(first)), answers)
    rounds = [first]
    for _ in range(tries):
        rounds = [*rounds[-2:], await _round(call, routing, ranges, rounds[-1])]
        changed = {shard for shard, look in rounds[-1].items() if not look.is_as_before}
        if not changed:
            found = rounds[-2]
            if found is first:
                return Snapshot(token(routing, _revisions(found)), answers)
            break
        if len(rounds) == 3 and len(changed | {s for s, look in rounds[1].items() if not look.is_as_before}) == 1:
            found = rounds[1]
            break
    else:
        _fail(call, routing, changed, tries)
    call.stream.release(sum(answer.held for answer in answers.values()))
    return Snapshot(token(routing, _revisions(found)), None)


def _fail(call: CoroutineCall, routing: Routing, changed: Iterable[int], tries: int) -> NoReturn:
    call.stream.connection.context.reached("max_snapshot_tries")
    names = ", ".join(sorted(routing.shards[shard].name for shard in changed))
    raise Status(
        Code.UNAVAILABLE,
        f"esp: no snapshot in {tries} tries, since keys of the range kept changing on {names}; "
        "try again, read fewer keys, or read each shard at its own moment (esp-read: each)",
    ).error()


def counting(ranges: _Ranges) -> dict[int, list[rpc_pb2.RangeRequest]]:
    """Parts that only count, for a snapshot whose reading comes later."""
    return {shard: [_count(part) for part in asked] for shard, asked in ranges.items()}


def _revisions(found: _Round) -> dict[int, int]:
    return {shard: look.revision for shard, look in found.items()}


async def _round(call: CoroutineCall, routing: Routing, ranges: _Ranges, before: _Round) -> _Round:
    """Looks at every shard once more."""
    asked = {
        shard: [
            *(_count(part) for part in parts),
            *(_changed_since(part, before[shard].revision) for part in parts),
        ]
        for shard, parts in ranges.items()
    }
    looks: _Round = {}
    between: dict[int, list[rpc_pb2.RangeRequest]] = {}
    for shard, answer in (await read_all(call, routing, asked)).items():
        revision, counts = before[shard].revision, before[shard].counts
        now = [response.count for response in answer.responses[: len(counts)]]
        is_as_before = now == counts and not any(response.kvs for response in answer.responses[len(counts) :])
        made = range(revision + 1, answer.header.revision)
        if is_as_before and made:
            is_as_before = len(made) * len(counts) <= MOST_COUNTS
            if is_as_before:
                between[shard] = [_count(part, revision) for revision in made for part in ranges[shard]]
        looks[shard] = _Look(answer.header.revision, now, is_as_before)
    if between and sum(not look.is_as_before for look in looks.values()) <= 1:  # else it makes no difference
        for shard, answer in (await read_all(call, routing, between)).items():
            counted = [response.count for response in answer.responses]
            counts = looks[shard].counts
            if counted != counts * (len(counted) // len(counts)):
                looks[shard] = looks[shard]._replace(is_as_before=False)
    return looks


def _count(part: KeyRange, revision: int = 0) -> rpc_pb2.RangeRequest:
    key, range_end = part.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, count_only=True, revision=revision)


def _changed_since(part: KeyRange, revision: int) -> rpc_pb2.RangeRequest:
    key, range_end = part.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, min_mod_revision=revision + 1, keys_only=True, limit=1)
