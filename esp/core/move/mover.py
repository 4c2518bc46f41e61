"""A mover: keys are copied while the source is written, the source is cut, the target is opened; or all is given up.

Whatever a mover does is compared by the shards (docs/decisions/2026-11-30-one-map.md): it may be killed at any moment,
sleep, and be taken over by another one. Between the cut and the opening nobody is served for the range, so all that can
be done before is done before, and the move is given up when that takes longer than `Move.pause`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from time import monotonic
from typing import Final

from esp.core import errors, lease_sync
from esp.core.background import Background, all_of
from esp.core.giving_up import MoveError, give_up
from esp.core.lease_sync import Copied, CopyTtl
from esp.core.move.chain import Chain
from esp.core.move.copies import Copies
from esp.core.move.feed import Feed
from esp.core.move.purging import purge
from esp.core.move.raising import raise_counter, write_rate
from esp.core.move.revisions import Revision
from esp.core.move.snapshot import Snapshot
from esp.core.move.taking import replaced, take_over
from esp.core.move.troubles import CALL_SECONDS, CompactedError, TakenOverError, count, failures
from esp.core.shard import TXN, Shard, ask_for_esp
from esp.core.shared_map import (
    ChangeError,
    Held,
    Move,
    Next,
    Phase,
    SharedMap,
    carry_out,
    cutting,
    go_over,
    read,
    target_opening,
)
from esp.core.wire.status import RpcError
from esp.core.wording import counted, shard_called

SMALL: Final = 100
"""Revisions that may be left to copy when the source is cut."""
STILL_SECONDS: Final = 0.3
"""Seconds for which few are left before the source is cut."""
FOLLOW_SECONDS: Final = 900.0
"""The longest that the source is followed until few are left."""
POLL_SECONDS: Final = 0.02
RATE_SECONDS: Final = 1.0
COPIES_A_SECOND: Final = 1500
"""A slow guess, for the writes that come meanwhile."""
SPARE: Final = 2000
"""Revisions by which the counter is raised in any case."""
MAX_RAISE: Final = 20_000_000


class Stage(StrEnum):
    """What a mover does. The names are part of the JSON form."""

    CLEARING = "clearing"
    RAISING = "raising"
    LISTING = "listing"
    COPYING = "copying"
    FOLLOWING = "following"
    CUT = "cut"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Told:
    """How far a mover is.

    Attributes:
        stage: what it does.
        done: how many keys, or revisions, of this stage.
        total: of how many; None if that is not known.
        bytes: copied so far, by this mover.
        lag: revisions of the source that have come and are not copied.
    """

    stage: Stage
    done: int = 0
    total: int | None = None
    bytes: int = 0
    lag: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that was carried out.

    Attributes:
        map: the map in force.
        cut: the source's last revision of the range.
        opened: the target's first one.
        keys: the writes of this mover.
        bytes: their bytes.
        pause: seconds from the cut to the opening, as this mover saw them; None if it did not cut.
    """

    map: SharedMap
    cut: int
    opened: int
    keys: int
    bytes: int
    pause: float | None


class GivenUpError(MoveError):
    """The move was given up after the cut, and the range stays with its source."""


class Mover:
    """One mover of a move that is decided, and of which it is `Move.mover`.

    Args:
        change: the move.
        shards: the shards that are reached, by name.
        silent: why others are not.
        tell: hears how far it is.
        margin: revisions by which the target's counter is raised above the source's; None for a guess.
        by: who gives it up, if that has to be.
    """

    def __init__(
        self,
        change: Next,
        shards: Mapping[str, Shard],
        silent: Mapping[str, str],
        tell: Callable[[Told], object],
        *,
        margin: int | None,
        by: str,
    ) -> None:
        assert change.move is not None, "it moves keys"
        assert change.before is not None, "it moves keys"
        self._change = change
        self._move: Move = change.move
        self._before: SharedMap = change.before
        self._shards = shards
        self._silent = silent
        self._tell = tell
        self._margin = margin
        self._by = by
        self._source = self._reached(self._move.source)
        self._target = self._reached(self._move.target)
        self._anchor = self._reached(change.after.anchor)
        self._guard = self._before.guards[self._move.target]
        self._feed: Feed | None = None
        self._background = Background()

    def _reached(self, name: str) -> Shard:
        shard = self._shards.get(name)
        if shard is None:
            raise MoveError(
                f"{shard_called(name)} is not reached: {self._silent.get(name, 'the config does not name it')}"
            )
        return shard

    async def run(self) -> Moved:
        """Moves.

        Raises:
            GivenUpError: it was given up.
            TakenOverError: somebody else goes on with it.
            MoveError: it does not go on; it can be resumed, or aborted.
        """
        try:
            return await self._run()
        finally:
            await self._watch(None)

    async def _run(self) -> Moved:
        there = await self._look(self._target)
        held = await self._look(self._source)
        if there.guard == self._change.after.guards[self._target.name]:  # another mover has opened it
            self._must_hold(self._source, held)
            await self._told()
            return Moved(self._change.after, held.guard_revision, there.guard_revision, 0, 0, None)
        copies = await take_over(self._target, self._guard, self._move.mover)
        held = await self._look(self._source)
        is_cut = held.guard == self._change.after.guards[self._source.name]
        try:
            chain = await self._copied(copies, is_cut=is_cut)
        except CompactedError:
            if is_cut:
                raise
            copies = await take_over(self._target, self._guard, self._move.mover)
            chain = await self._copied(await self._begun(copies), is_cut=False)
        if is_cut:
            return await self._finished(chain, held.guard_revision, None)
        await self._follow(chain)
        if self._move.phase is Phase.COPY:
            await self._go_over(Phase.CUT)
        await self._watch(Feed(self._source, self._move.range, chain.copies.at, fence=True))
        await self._follow(chain)
        await self._must_be_low(chain.copies)
        self._tell(Told(Stage.CUT))
        return await self._finished(chain, None, monotonic())

    # Copies.

    async def _copied(self, copies: Copies, *, is_cut: bool) -> Chain:
        """All copies of the snapshot; the source is watched from there."""
        if is_cut and copies.at < max(1, copies.base):
            raise MoveError("the source is cut, and not all was copied before; esp move --abort gives the move up")
        if not copies.base:
            copies = await self._begun(copies)
        chain = Chain(self._target, self._guard, copies, self._bring_lease, self._revision)
        await self._watch(Feed(self._source, self._move.range, max(copies.base, copies.at), fence=is_cut))
        if copies.at < copies.base:
            await self._copy(chain)
        return chain

    async def _begun(self, copies: Copies) -> Copies:
        """Copies of which nothing is done yet: the target has none, and its counter is high."""
        target, range_, before = self._target, self._move.range, copies
        copies = Copies(self._move.mover)
        if copies != before and not await replaced(target, self._guard, before.encode(), copies):
            raise TakenOverError("another mover copies these keys; leave it to that")
        await purge(
            target,
            self._guard,
            range_,
            copies=copies.encode(),
            rate=1e9,
            progress=lambda done: self._tell(Told(Stage.CLEARING, done)),
        )
        await self._raise(copies)
        with failures(target):
            first = (await count(target, range_)).header.revision
        with failures(self._source):
            base = (await count(self._source, range_)).header.revision
        begun = copies._replace(first=first, base=base)
        if not await replaced(target, self._guard, copies.encode(), begun):
            raise TakenOverError("another mover copies these keys; leave it to that")
        return begun

    async def _raise(self, copies: Copies) -> None:
        with failures(self._source):
            found = await count(self._source, self._move.range)
        with failures(self._target):
            there = (await count(self._target, self._move.range)).header.revision
        margin = self._margin
        if margin is None:
            rate = await write_rate(self._source, RATE_SECONDS)
            margin = SPARE + round(2 * rate * (10 + found.count / COPIES_A_SECOND))
        by = found.header.revision + margin - there
        if by > MAX_RAISE:
            raise MoveError(
                f"the counter of {shard_called(self._target.name)} is {by:,} revisions too low, which would take too "
                "long; make it anew with a higher one (etcdutl snapshot restore --bump-revision), see docs/move.md"
            )
        if by > 0:
            await raise_counter(
                self._target,
                self._guard,
                copies.encode(),
                by,
                lambda done: self._tell(Told(Stage.RAISING, done, by)),
            )

    async def _copy(self, chain: Chain) -> None:
        snapshot = Snapshot(self._source, self._move.range, chain.copies.base)
        await snapshot.read(lambda keys: self._tell(Told(Stage.LISTING, keys)))
        batches: asyncio.Queue[list[Revision] | None] = asyncio.Queue(4)

        async def reads() -> None:
            async for batch in snapshot.revisions(chain.copies.at):
                await batches.put(batch)
            await batches.put(None)

        async def writes() -> None:
            while (batch := await batches.get()) is not None:
                await chain.write(batch)
                lag = 0 if self._feed is None else len(self._feed)
                self._tell(Told(Stage.COPYING, min(chain.keys, len(snapshot)), len(snapshot), chain.bytes, lag))

        await all_of([reads(), writes()])

    async def _follow(self, chain: Chain) -> None:
        """Copies what comes, until few are left for a while."""
        feed = self._feed
        assert feed is not None, "it is watched"
        until, calm = monotonic() + FOLLOW_SECONDS, monotonic()
        while monotonic() - calm < STILL_SECONDS:
            if monotonic() > until:
                raise MoveError(
                    "the source is written faster than the target takes it: it has been followed for "
                    f"{FOLLOW_SECONDS / 60:.0f} minutes, and {len(feed):,} revisions are left"
                )
            if len(feed) > SMALL or not feed.is_live:
                calm = monotonic()
            revisions = feed.taken(4 * SMALL)
            if revisions:
                await chain.write(revisions)
            else:
                await asyncio.sleep(POLL_SECONDS)
            self._tell(Told(Stage.FOLLOWING, chain.copies.at, None, chain.bytes, len(feed)))

    async def _bring_lease(self, lease: int) -> bool:
        others = [shard for shard in self._shards.values() if shard not in (self._source, self._target)]
        try:
            done = await lease_sync.copy(lease, [self._source, *others], self._target, CopyTtl.GRANTED)
        except RpcError as error:
            raise MoveError(
                f"the lease {lease:x} cannot be brought to {shard_called(self._target.name)}: {error.status.message}"
            ) from None
        return done is not Copied.GONE

    async def _revision(self) -> int:
        with failures(self._source):
            return (await count(self._source, self._move.range)).header.revision

    async def _must_be_low(self, copies: Copies) -> None:
        now = await self._revision()
        if now + SMALL >= copies.first:
            raise MoveError(
                f"the source has written {now - copies.base:,} revisions since the move began, more than the counter "
                f"of {shard_called(self._target.name)} was raised by; esp move --abort, then move again with a higher "
                "--margin"
            )

    # Cut and opening.

    async def _finished(self, chain: Chain, fence: int | None, begun: float | None) -> Moved:
        """Cuts unless the source is cut at `fence`, copies the rest, opens; or gives up."""
        try:
            async with asyncio.timeout(self._move.pause / 1000):
                if fence is None:
                    fence = await self._cut()
                opened = await self._opened(chain, fence)
            pause = None if begun is None else monotonic() - begun
        except BaseException as error:
            if isinstance(error, TakenOverError):
                raise
            map_ = await asyncio.shield(give_up(self._change, self._shards, self._silent, by=self._by))
            if map_ != self._change.after:
                why = str(error) or f"it took longer than {self._move.pause / 1000:g} s"
                if not isinstance(error, (MoveError, ChangeError, RpcError, TimeoutError)):
                    raise
                raise GivenUpError(f"the range stays with {shard_called(self._source.name)}: {why}") from None
            here, there = await self._look(self._source), await self._look(self._target)
            self._must_hold(self._source, here)
            self._must_hold(self._target, there)
            opened, pause, fence = there.guard_revision, None, here.guard_revision
        self._tell(Told(Stage.OPEN, chain.keys, None, chain.bytes))
        await self._told()
        return Moved(self._change.after, fence, opened, chain.keys, chain.bytes, pause)

    def _must_hold(self, shard: Shard, held: Held) -> None:
        """Refuses a shard that has another guard than the move gave it: what it holds tells nothing of the move."""
        if held.guard != self._change.after.guards[shard.name]:
            raise TakenOverError(
                f"{shard_called(self._target.name)} owns the range since epoch {self._change.after.epoch}, but the map "
                "has changed again since; esp map show tells it, and esp move --resume deletes what is left"
            )

    async def _cut(self) -> int:
        """The revision at which the source is cut."""
        try:
            answer = await ask_for_esp(self._source, TXN, cutting(self._change), seconds=CALL_SECONDS)
            if answer.succeeded:
                return answer.header.revision
        except RpcError as error:
            if not errors.is_unreachable(errors.undecided(error.status)):
                raise MoveError(f"{shard_called(self._source.name)}: {error.status.message}") from None
        while True:
            held = await self._look(self._source)
            if held.guard == self._change.after.guards[self._source.name]:
                return held.guard_revision
            if held.guard != self._before.guards[self._source.name]:
                raise TakenOverError("the move was given up by somebody else")
            raise MoveError(f"{shard_called(self._source.name)} was not cut")

    async def _opened(self, chain: Chain, fence: int) -> int:
        """Copies up to the fence, and opens the target; its revision."""
        assert self._feed is not None, "it is watched"
        while chain.copies.at < fence:
            revisions = await self._feed.take(SMALL * 4)
            await chain.write([one for one in revisions if one.number <= fence])
        copies = chain.copies
        if copies.first < fence:
            raise MoveError(
                "the source has written more than the target's counter was raised by; use a higher --margin"
            )
        if copies.until > fence:
            raise MoveError("leases have ended on the source since it was cut")
        with failures(self._source):
            here, there = await all_of(
                [count(self._source, self._move.range, fence), count(self._target, self._move.range)]
            )
        if here.count != there.count:
            raise MoveError(
                f"{shard_called(self._source.name)} has {counted(here.count, 'key')} and "
                f"{shard_called(self._target.name)} {there.count:,}: leases may have ended on one of them only "
                "(esp lease-sync)"
            )
        with failures(self._target):
            answer = await ask_for_esp(
                self._target, TXN, target_opening(self._change, copies.encode()), seconds=CALL_SECONDS
            )
        if answer.succeeded:
            return answer.header.revision
        held = await self._look(self._target)
        if held.guard == self._change.after.guards[self._target.name]:
            return held.guard_revision
        raise TakenOverError("the move was given up, or is carried out by somebody else")

    async def _told(self) -> None:
        """The anchor and the others learn that the target is open."""
        opened = self._change.opened()
        try:
            await go_over(self._anchor, self._change, opened)
        except ChangeError:
            held = await self._look(self._anchor)
            if held.next is None or held.next.after != self._change.after:
                return
            opened = held.next
        try:
            async for _ in carry_out(opened, self._shards, self._silent):
                pass
        except ChangeError as error:
            raise MoveError(f"{shard_called(self._target.name)} owns the range now, but {error}") from None

    # What both use.

    async def _go_over(self, phase: Phase) -> None:
        to = self._change.with_move(replace(self._move, phase=phase))
        try:
            await go_over(self._anchor, self._change, to)
        except ChangeError as error:
            raise TakenOverError(str(error)) from None
        self._change, self._move = to, replace(self._move, phase=phase)

    async def _look(self, shard: Shard) -> Held:
        held = (await read([shard], CALL_SECONDS))[shard.name]
        if not isinstance(held, Held):
            raise MoveError(f"{shard_called(shard.name)}: {held.message}")
        return held

    async def _watch(self, feed: Feed | None) -> None:
        """Watches the source by another feed, or by none."""
        await self._background.close()
        self._feed = feed
        if feed is not None:
            self._background.start(feed.run(), on_bug=feed.on_bug)
