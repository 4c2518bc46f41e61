"""Copies on the target of a move: one transaction for each revision of the source, in its order, several under way.

Each transaction compares what the one before has written under `COPIES_KEY`. So those that overtake others do nothing,
none is done twice, and none comes late; and of two movers only one copies. etcd does what comes together mostly in
order: about one in ten has to be sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

from esp.core import errors
from esp.core.background import all_of
from esp.core.export import told
from esp.core.giving_up import MoveError
from esp.core.move.copies import Copies, decode_copies
from esp.core.move.revisions import Revision, Write
from esp.core.move.troubles import CALL_SECONDS, TakenOverError
from esp.core.pb import rpc_pb2
from esp.core.shard import GUARD_KEY, RANGE, TXN, Shard, ask_for_esp
from esp.core.shared_map import COPIES_KEY, HELD_KEYS, MapFormatError
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wording import shard_called

MOST_AT_ONCE: Final = 24
"""Transactions under way: with more, more of them overtake others."""
MOST_BYTES: Final = 2 << 20
"""Bytes under way."""
PATIENCE: Final = 120
"""How often in succession the target may do nothing."""
PAUSE_SECONDS: Final = 0.25
_Compare = rpc_pb2.Compare

Lacking = Callable[[int], Awaitable[bool]]
"""Brings a lease to the target; False if it has ended."""
Ended = Callable[[], Awaitable[int]]
"""The source's revision by now: what has ended has ended by then."""


class Link(NamedTuple):
    """One transaction: its writes, and what stands under `COPIES_KEY` after it."""

    writes: tuple[Write, ...]
    after: Copies


class Chain:
    """The copies of one mover.

    Args:
        target: the shard.
        guard: the guard of the target while it does not own the range yet.
        copies: what is under `COPIES_KEY`, written by this mover.
        lacking: brings leases.
        ended: tells the source's revision.

    Attributes:
        copies: what is done.
        keys: the writes that were done.
        bytes: their bytes.
    """

    def __init__(self, target: Shard, guard: str, copies: Copies, lacking: Lacking, ended: Ended) -> None:
        self.copies = copies
        self.keys = self.bytes = 0
        self._target = target
        self._guard = guard.encode()
        self._lacking = lacking
        self._ended = ended
        self._at_once = MOST_AT_ONCE

    async def write(self, revisions: Iterable[Revision]) -> None:
        """Writes revisions, in order.

        Raises:
            TakenOverError: another mover copies, or the move was given up.
            MoveError: the target does not take them.
        """
        links: list[Link] = []
        before = self.copies
        for revision in revisions:
            if revision.number > before.at:
                links += self._links(revision, before)
                before = links[-1].after
        done = idle = 0
        while done < len(links):
            count = await self._round(links, done)
            done += count
            idle = 0 if count else idle + 1
            if idle > PATIENCE:
                raise MoveError(f"{shard_called(self._target.name)} has done nothing for long; look at it")

    def _links(self, revision: Revision, before: Copies) -> list[Link]:
        """The transactions of a revision: its deletes may take several, its puts are one."""
        most = max(2, self._target.max_txn_ops - 1)
        puts = [write for write in revision.writes if write.value is not None]
        deletes = [write for write in revision.writes if write.value is None]
        after = before._replace(at=revision.number, part=0, until=max(before.until, revision.until))
        links = []
        while deletes and len(deletes) + len(puts) > most:
            some, deletes = deletes[:most], deletes[most:]
            before = before._replace(part=before.part + 1)
            links.append(Link(tuple(some), before))
        links.append(Link((*deletes, *puts), after))
        return links

    async def _round(self, links: list[Link], done: int) -> int:
        """Sends the next transactions together; says how many are done."""
        batch: list[Link] = []
        size = 0
        for link in links[done : done + self._at_once]:
            size += _size(link)
            if batch and size > MOST_BYTES:
                break
            batch.append(link)
        befores = [self.copies, *(link.after for link in batch)]
        answers = await all_of([self._send(before, link) for before, link in zip(befores, batch, strict=False)])
        count = 0
        while count < len(answers) and answers[count] is True:
            count += 1
        if count:
            self._advance(batch[:count])
        if count == len(batch):
            self._at_once = min(MOST_AT_ONCE, self._at_once + 1)
        elif isinstance(status := answers[count], Status) or not count:
            if status == errors.LEASE_NOT_FOUND:
                await self._mend(links, done + count)
            else:
                count += await self._look(batch[count:], status if isinstance(status, Status) else None)
        else:
            self._at_once = max(4, min(self._at_once, 2 * count))
        return count

    def _advance(self, links: Sequence[Link]) -> None:
        self.copies = links[-1].after
        for link in links:
            self.keys += len(link.writes)
            self.bytes += _size(link)

    async def _look(self, batch: Sequence[Link], status: Status | None) -> int:
        """Finds out how many transactions are done of which that is not known; `status` is the answer to the first."""
        if status is not None:
            if not _may_pass(status):
                raise MoveError(self._refused(batch[0], status))
            await asyncio.sleep(PAUSE_SECONDS)
        held = await held_copies(self._target, self._guard)
        if held is None or held == self.copies:
            return 0
        for number, link in enumerate(batch):
            if link.after == held:
                self._advance(batch[: number + 1])
                return number + 1
        raise TakenOverError("another mover copies these keys; leave it to that")

    async def _mend(self, links: list[Link], place: int) -> None:
        """Brings the leases of a transaction to the target, or leaves out those that have ended."""
        until, writes = 0, []
        for write in links[place].writes:
            if write.lease and write.value is not None and not await self._lacking(write.lease):
                until = await self._ended()  # the source has deleted the key, which is still to come
                writes.append(write._replace(lease=0))
            else:
                writes.append(write)
        links[place] = links[place]._replace(writes=tuple(writes))
        for number in range(place, len(links)):
            after = links[number].after
            links[number] = links[number]._replace(after=after._replace(until=max(after.until, until)))

    async def _send(self, before: Copies, link: Link) -> bool | Status:
        try:
            answer = await ask_for_esp(self._target, TXN, self._request(before, link), seconds=CALL_SECONDS)
        except RpcError as error:
            return error.status
        return answer.succeeded

    def _request(self, before: Copies, link: Link) -> rpc_pb2.TxnRequest:
        operations = [_put(COPIES_KEY, link.after.encode())]
        operations += [_delete(one.key) if one.value is None else _put(*one) for one in link.writes]
        return rpc_pb2.TxnRequest(
            compare=[equal(GUARD_KEY, self._guard), equal(COPIES_KEY, before.encode())], success=operations
        )

    def _refused(self, link: Link, status: Status) -> str:
        if status == errors.TOO_MANY_OPS:
            return (
                f"{shard_called(self._target.name)} does not take the {len(link.writes)} writes of one transaction of "
                "the source; raise its --max-txn-ops above the source's"
            )
        if status == errors.REQUEST_TOO_LARGE:
            return (
                f"{shard_called(self._target.name)} does not take a write that is as large as one of the source; raise "
                "its --max-request-bytes"
            )
        return told(self._target, errors.undecided(status))


async def held_copies(target: Shard, guard: bytes) -> Copies | None:
    """What the target holds under `COPIES_KEY`; None if it does not answer for now.

    Raises:
        TakenOverError: the target has another guard: it was opened, or the move was given up; or nothing is copied.
        MoveError: the target refuses.
    """
    key, range_end = HELD_KEYS.to_request()
    try:
        answer = await ask_for_esp(
            target, RANGE, rpc_pb2.RangeRequest(key=key, range_end=range_end), seconds=CALL_SECONDS
        )
    except RpcError as error:
        if _may_pass(error.status):
            return None
        raise MoveError(told(target, error.status)) from None
    values = {pair.key: pair.value for pair in answer.kvs}
    if values.get(GUARD_KEY) != guard or COPIES_KEY not in values:
        raise TakenOverError(
            f"{shard_called(target.name)} takes no copies any more: the move was given up, or carried out by others"
        )
    try:
        return decode_copies(values[COPIES_KEY])
    except MapFormatError as error:
        raise MoveError(f"the copies on {shard_called(target.name)} {error}") from None


def _may_pass(status: Status) -> bool:
    return status.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED) or status in (
        errors.TOO_MANY_REQUESTS,
        errors.NOT_PRIMARY,
    )


def still(guard: str, copies: bytes | None) -> list[_Compare]:
    """The comparisons by which a shard has this guard, and holds these copies; or none, if `copies` is None.

    A shard keeps its guard from the decision on a move until it is opened: the guard alone does not tell whether
    somebody has begun to copy keys there meanwhile.
    """
    if copies is None:
        held = _Compare(key=COPIES_KEY, target=_Compare.CREATE, result=_Compare.EQUAL, create_revision=0)
    else:
        held = equal(COPIES_KEY, copies)
    return [equal(GUARD_KEY, guard.encode()), held]


def equal(key: bytes, value: bytes) -> _Compare:
    """The comparison of a key's value."""
    return _Compare(key=key, target=_Compare.VALUE, result=_Compare.EQUAL, value=value)


def _put(key: bytes, value: bytes | None, lease: int = 0) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, lease=lease))


def _delete(key: bytes) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key))


def _size(link: Link) -> int:
    return sum(len(write.key) + len(write.value or b"") for write in link.writes) + 200
