"""Finds a moment at which several shards can be read together, without a clock that they share.

esp looks at all shards in rounds. A round begins when all shards have answered the one before. If a shard's state is
the same in two rounds, it was the same all the time between, and so also when the later round began. So there are two
proofs of a common moment:

- No shard has changed since the round began. Then all states were true together, at that moment.
- All shards but one are unchanged over three rounds. Then the state of that one shard in the middle round, at whatever
  time in the round, was true together with the others. So writes to one shard never prevent a snapshot.

The first round has a state to compare with, too: each shard had reached some revision before the call, that of any
earlier answer (`Shard.seen`). Keys that have not changed since then were the same when the first round began. So
without writes one round is enough.

The proof that nothing has changed since a revision that a shard had surely reached:
- The shard is still at that revision.
- Or, for one key that exists: its mod revision is not higher. If it had gone and come back, that would be higher.
- Or, for a range, or a key that does not exist: there are as many keys, and none with a higher mod revision. This does
  not exclude a key that came and went meanwhile. So if the shard has made more than one revision since, esp counts the
  keys at each revision between, too.

Each round reads all parts, so that its answers can be the snapshot. If they are large, later rounds only look for
changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Final, NamedTuple, NoReturn

from esp.core import errors
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.handlers import CoroutineCall, Keeps
from esp.core.services.kv.reading import Parts, read_all
from esp.core.services.revision import token
from esp.core.services.row_order import parse_row
from esp.core.wire.status import Code, RpcError, Status

MOST_COUNTS: Final = 128
"""The most counts of a shard's ranges at revisions between two rounds; beyond, the ranges count as changed."""
MOST_REREAD: Final = 16_384
"""If the first round's answers have at most so many bytes, each round reads them again."""

_Parts = Sequence[rpc_pb2.RangeRequest]
_Ranges = Mapping[str, Sequence[KeyRange]]


class Snapshot(NamedTuple):
    """A moment at which all shards can be read.

    Attributes:
        revision: the token for the moment.
        answers: the shards' answers, if they are of that moment; None if the parts have to be read at the token.
    """

    revision: int
    answers: dict[str, Parts] | None


class _Look(NamedTuple):
    """The state of a shard in a round.

    Attributes:
        revision: the shard's revision.
        counts: the number of keys in each range.
        mods: by range, the mod revision of its key, if the range is one key that exists; 0 for any other range.
        answers: the answers for the parts, if they were read since the last change; else None.
    """

    revision: int
    counts: dict[KeyRange, int]
    mods: dict[KeyRange, int]
    answers: Parts | None


async def snapshot(call: CoroutineCall, routing: Routing, parts: Mapping[str, _Parts], tries: int) -> Snapshot:
    """A moment at which all parts can be read; no part has a revision of its own.

    Args:
        call: the client's call.
        routing: the shards.
        parts: the parts to read, by the shard's name.
        tries: the most rounds after the first.

    Raises:
        RpcError: a shard's, as it came; Unavailable when keys of several shards changed in each of the rounds.
    """
    for asked in parts.values():
        for part in asked:
            part.serializable = False  # a member that lags behind would show a state from before the call began
    search = _Search(call, routing, parts)
    try:
        # Were all places given back between two rounds, another call would begin with each of them, and as many would
        # be at work as are sent.
        call.keeps = Keeps.LAST  # a shard that has stopped must not cost places at others
        await search.begin()
        call.keeps = Keeps.ALL
        for round_ in count():
            found = search.found(round_)
            if found is not None:
                answers = search.keep(found)
                return Snapshot(token(routing, {shard: look.revision for shard, look in found.items()}), answers)
            if round_ == tries:
                _fail(call, search.changed(round_), tries)
            call.enter_anew(parts)
            await search.go_on(round_ + 1)
    finally:
        call.keeps = Keeps.NOTHING
        for shard in parts:
            call.leave(shard)
    raise AssertionError("it counts for ever")


def _fail(call: CoroutineCall, changed: Iterable[str], tries: int) -> NoReturn:
    call.stream.connection.context.reached("max_snapshot_tries")
    names = ", ".join(sorted(changed))
    raise Status(
        Code.UNAVAILABLE,
        f"esp: no snapshot in {tries} tries, since keys of the range kept changing on {names}; "
        "try again, read fewer keys, or read each shard at its own moment (esp-read: each)",
    ).error()


def counting(ranges: _Ranges) -> dict[str, list[rpc_pb2.RangeRequest]]:
    """Parts that only count keys, for a snapshot that is read later."""
    return {shard: [_count(part) for part in asked] for shard, asked in ranges.items()}


class _Search:
    """The rounds, numbered from 0. The last two are remembered.

    `_since` has, for each shard, a round: from the beginning of that round on the shard surely had its present state.
    For a shard that the last round found changed, that is the next round.
    """

    def __init__(self, call: CoroutineCall, routing: Routing, parts: Mapping[str, _Parts]) -> None:
        self._call = call
        self._routing = routing
        self._parts = parts
        self._ranges: _Ranges = {
            shard: list(dict.fromkeys(KeyRange.of_request(part.key, part.range_end) for part in asked))
            for shard, asked in parts.items()
        }
        self._since: dict[str, int] = {}
        self._before: dict[str, _Look] = {}
        self._last: dict[str, _Look] = {}
        self._held: list[Parts] = []
        self._rereads = False

    async def begin(self) -> None:
        """Does the first round, which reads all parts."""
        seen = {shard: self._routing.shards[shard].seen for shard in self._parts}  # before the shards are asked
        answers = await read_all(self._call, self._routing, self._parts)
        self._held = list(answers.values())
        self._rereads = sum(answer.held for answer in self._held) <= MOST_REREAD
        for shard, answer in answers.items():
            look = self._last[shard] = _read(self._parts[shard], answer)
            is_as_before = look.revision == seen[shard] or all(
                0 < look.mods[keys] <= seen[shard] for keys in self._ranges[shard]
            )
            self._since[shard] = 0 if is_as_before else 1

    async def go_on(self, round_: int) -> None:
        """Does the next round, which has this number."""
        self._before, self._last = self._last, {}
        vague = {shard: self._vague(shard) for shard in self._parts}
        asked = {shard: self._asked(shard, vague[shard]) for shard in self._parts}
        for shard, answer in (await read_all(self._call, self._routing, asked)).items():
            look, is_as_before = self._look(shard, answer, vague[shard])
            self._last[shard] = look
            if not is_as_before:
                self._since[shard] = round_ + 1
        self._forget(self._before, self._last)
        changed = self.changed(round_)
        if len(changed) <= 1:  # with more there is no snapshot yet anyway
            for shard in await self._inconstant({shard: vague[shard] for shard in vague if shard not in changed}):
                self._since[shard] = round_ + 1

    def changed(self, round_: int) -> list[str]:
        """The shards that may have changed since this round began; the round is the last."""
        return [shard for shard, since in self._since.items() if since > round_]

    def found(self, round_: int) -> dict[str, _Look] | None:
        """The states of all shards at one moment, if the rounds up to this last one prove a moment; else None."""
        if len(self._parts) == 1 or not self.changed(round_):
            return self._last
        changed = self.changed(round_ - 1)
        if round_ and len(changed) == 1:
            return self._last | {changed[0]: self._before[changed[0]]}
        return None

    def keep(self, found: dict[str, _Look]) -> dict[str, Parts] | None:
        """The answers for these states, if all were read; else None. Drops all other answers."""
        answers = {shard: look.answers for shard, look in found.items() if look.answers is not None}
        if len(answers) < len(found):
            self._forget()
            return None
        self._forget(found)
        return answers

    def _forget(self, *but: Mapping[str, _Look]) -> None:
        kept = {id(look.answers) for looks in but for look in looks.values()}
        self._call.stream.release(sum(answer.held for answer in self._held if id(answer) not in kept))
        self._held = [answer for answer in self._held if id(answer) in kept]

    def _vague(self, shard: str) -> list[KeyRange]:
        """The ranges whose rows alone do not show whether they have changed: esp has to ask for changes, too."""
        return [keys for keys in self._ranges[shard] if not (self._rereads and self._before[shard].mods[keys])]

    def _asked(self, shard: str, vague: Iterable[KeyRange]) -> list[rpc_pb2.RangeRequest]:
        """The questions to a shard in a round: to read the parts, or to count each range; and then for changes."""
        first = self._parts[shard] if self._rereads else map(_count, self._ranges[shard])
        revision = self._before[shard].revision
        return [*first, *(_changed_since(keys, revision) for keys in vague)]

    def _look(self, shard: str, answer: Parts, vague: Sequence[KeyRange]) -> tuple[_Look, bool]:
        """The shard's state according to `answer`, and whether the shard is unchanged since the round before."""
        before = self._before[shard]
        changes = answer.responses[len(answer.responses) - len(vague) :]
        if self._rereads:
            look = _read(self._parts[shard], answer)
            self._held.append(answer)
        else:
            counts = {keys: rows.count for keys, rows in zip(self._ranges[shard], answer.responses, strict=False)}
            look = _Look(answer.header.revision, counts, dict.fromkeys(counts, 0), None)
            self._call.stream.release(answer.held)
        is_as_before = (
            look.counts == before.counts
            and not any(rows.kvs for rows in changes)
            and all(0 < mod <= before.revision for keys, mod in look.mods.items() if keys not in vague)
        )
        if is_as_before and look.answers is None:
            look = look._replace(answers=before.answers)
        return look, is_as_before

    async def _inconstant(self, vague: Mapping[str, Sequence[KeyRange]]) -> list[str]:
        """The shards where a key may have come to one of these ranges, and gone, between the last two rounds."""
        asked: dict[str, list[rpc_pb2.RangeRequest]] = {}
        inconstant: list[str] = []
        for shard, ranges in vague.items():
            made = range(self._before[shard].revision + 1, self._last[shard].revision)
            if len(made) * len(ranges) > MOST_COUNTS:
                inconstant.append(shard)
            elif made and ranges:
                asked[shard] = [_count(keys, revision) for revision in made for keys in ranges]
        if not asked:
            return inconstant
        try:
            answers = await read_all(self._call, self._routing, asked)
        except RpcError as error:
            if error.status != errors.COMPACTED:
                raise
            return [*inconstant, *asked]
        for shard, answer in answers.items():
            counts = [self._last[shard].counts[keys] for keys in vague[shard]]
            counted = [rows.count for rows in answer.responses]
            if counted != counts * (len(counted) // len(counts)):
                inconstant.append(shard)
            self._call.stream.release(answer.held)
        return inconstant


def _read(parts: _Parts, answer: Parts) -> _Look:
    """The state of a shard, from the answers to its parts."""
    counts: dict[KeyRange, int] = {}
    mods: dict[KeyRange, int] = {}
    for part, rows in zip(parts, answer.responses, strict=False):  # further answers are about changes
        keys = KeyRange.of_request(part.key, part.range_end)
        counts[keys] = rows.count
        mods.setdefault(keys, 0)
        if not part.range_end and len(rows.kvs) == 1 and len(rows.kvs[0]) <= MOST_REREAD:  # for one step
            mods[keys] = parse_row(rows.kvs[0]).mod_revision
    return _Look(answer.header.revision, counts, mods, answer)


def _count(part: KeyRange, revision: int = 0) -> rpc_pb2.RangeRequest:
    key, range_end = part.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, count_only=True, revision=revision)


def _changed_since(part: KeyRange, revision: int) -> rpc_pb2.RangeRequest:
    key, range_end = part.to_request()
    return rpc_pb2.RangeRequest(key=key, range_end=range_end, min_mod_revision=revision + 1, keys_only=True, limit=1)
