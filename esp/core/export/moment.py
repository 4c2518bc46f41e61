"""A revision of each shard, all of one moment, without a clock that the shards share.

As for a snapshot of the proxy (`services/kv/snapshot.py`), the shards are asked in rounds; a round begins when all have
answered the one before. A shard that has the same revision in two rounds had it all the time between. So the revisions
of a round were true together if

- all shards had the same revisions in the round before: they were true when the later round began; or
- all shards but one had the same in the round before and the round after: the remaining one was read between.

The keys may be many and the rounds are to be short, so only the revisions are compared: writes outside of the range
count as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Final, NamedTuple

from esp.core.export.lines import ExportError
from esp.core.export.patience import CALL_SECONDS, told
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, Shard, ask_all_for_esp
from esp.core.wire.status import Status

SEARCH_SECONDS: Final = 5.0
"""Seconds for which a moment is looked for."""

_Headers = dict[str, rpc_pb2.ResponseHeader]


class Moment(NamedTuple):
    """The headers of all shards, by name.

    Attributes:
        headers: with the revisions.
        seconds: the time within which these revisions were read; 0.0 if they are of one moment.
    """

    headers: _Headers
    seconds: float


def of_one_moment(rounds: Sequence[Mapping[str, int]]) -> Mapping[str, int] | None:
    """The revisions by shard, if the last rounds, up to three, prove that they were true together; else None."""
    last = rounds[-1]
    if len(last) == 1:
        return last
    if len(rounds) > 1 and rounds[-2] == last:
        return last
    if len(rounds) > 2:
        middle = rounds[-2]
        changed = [name for name in last if not rounds[-3][name] == middle[name] == last[name]]
        if len(changed) == 1:
            return middle
    return None


async def moment(shards: Mapping[str, bytes], clients: Mapping[str, Shard], *, each: bool) -> Moment:
    """A moment at which the shards can be read.

    Args:
        shards: a key of each shard that may be read, by the shard's name.
        clients: the shards by name.
        each: take the first revisions, each of a moment of its own.

    Raises:
        ExportError: a shard does not answer; or keys of several shards changed all the time.
    """
    until = monotonic() + SEARCH_SECONDS
    headers: list[_Headers] = []
    while True:
        begun = monotonic()
        headers = [*headers[-2:], await _round(shards, clients)]
        if each and len(shards) > 1:
            return Moment(headers[-1], monotonic() - begun)
        revisions = [{name: header.revision for name, header in of.items()} for of in headers]
        found = of_one_moment(revisions)
        if found is not None:
            return Moment(headers[revisions.index(dict(found))], 0.0)
        if len(headers) > 2 and monotonic() > until:
            changed = ", ".join(name for name in shards if revisions[-1][name] != revisions[-2][name])
            raise ExportError(
                f"no moment was found in {SEARCH_SECONDS:.0f} s, since keys kept changing on {changed}; try again when "
                "less is written, or read each shard at its own moment (--each), some milliseconds apart"
            )


async def _round(shards: Mapping[str, bytes], clients: Mapping[str, Shard]) -> _Headers:
    """The header of each shard's answer to a linearizable read."""
    asked = [clients[name] for name in shards]
    outcomes = await ask_all_for_esp(
        asked, RANGE, lambda shard: rpc_pb2.RangeRequest(key=shards[shard.name], count_only=True), seconds=CALL_SECONDS
    )
    headers = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, Status):
            raise ExportError(told(clients[name], outcome))
        headers[name] = outcome.header
    return headers
