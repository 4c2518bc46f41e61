"""The leases that this proxy has seen, and the verdict on a lease if shards disagree about it.

A lease lives on every shard. If one shard says that it has no such lease while others have it, one of two things has
happened. Both look the same from outside:

- The lease has ended there. Its keys on that shard are gone, so the whole lease is dead, and its owner must learn that.
- The shard never had the lease: the shard was unreachable during the grant, or is new. Then nothing was lost, and the
  lease can be granted there.

The verdict is "never had" only if esp knows that: this proxy itself granted the lease without that shard, or the shard
has never had a key. In all other cases the verdict is "ended". A lease that is wrongly called dead ends a session; a
lease that is wrongly called alive lets two clients hold a lock. So it is safe to lose an entry of this table.

There is one delay. Another proxy may have granted a lease without a shard, and grants it there when the shard is back.
So a shard that was unreachable counts as unreachable for SETTLE_SECONDS more, for leases of which this proxy does not
know whether the shard had them.

With `leases: strict` a lease that one shard does not have is dead, whatever the reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from math import inf
from time import monotonic
from typing import Final

from esp.core.pb import rpc_pb2
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import Fields

log = logging.getLogger("esp.lease")

SWEPT_AT_ONCE: Final = 1000
KEPT_SECONDS: Final = 600.0
"""Seconds that an ended lease is remembered: after a change of leader a shard keeps leases longer than their TTL."""
MISSED_SECONDS: Final = 60.0
"""Seconds that esp remembers that shards lacked leases: longer than a call that was refused for that is under way."""
SETTLE_SECONDS: Final = 3.0
"""Seconds that other proxies have to grant the leases that a shard missed. Each connects anew within 2.4 seconds, and
begins within half a second."""
ID_BITS: Final = (1 << 64) - 1
"""A mask to show ids as etcdctl does, without a sign."""
UNKNOWN: Final = 0.0
MISSED: Final = -1.0


class Lacking(Enum):
    """Why a shard lacks a lease."""

    MISSED = auto()
    """The shard never had the lease."""
    ENDED = auto()
    """The shard had the lease, or may have had it."""
    UNSETTLED = auto()
    """The reason is not known, and another proxy may be about to grant the lease there."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on a lease.

    Attributes:
        dead: the lease is dead; shards that still have it should lose it.
        missed: shards that never had the lease and should get it.
    """

    dead: bool
    missed: tuple[str, ...] = ()


ALIVE: Final = Judgement(dead=False)
DEAD: Final = Judgement(dead=True)


class Known:
    """One lease, as far as this proxy has seen it.

    Attributes:
        until: for each shard, by name, the `monotonic` time until which the shard surely keeps the lease; MISSED for a
            shard that never had it; UNKNOWN if this proxy has not seen the lease there, for an unknown reason.
        elsewhere: the same for a shard that is not in `until` because it joined the layout later.
        since: the `monotonic` time at which the lease was brought to a shard that had missed it.
        metadata: the client's metadata, with which esp repairs the lease later.
    """

    __slots__ = ("elsewhere", "metadata", "since", "until")

    def __init__(self, until: dict[str, float], metadata: Fields, elsewhere: float) -> None:
        self.until = until
        self.metadata = metadata
        self.elsewhere = elsewhere
        self.since: dict[str, float] | None = None  # None for most leases

    def on(self, shard: str) -> float:
        """The entry of `until` for a shard, whether or not the shard was in the layout when the lease was seen."""
        return self.until.get(shard, self.elsewhere)


class LeaseTable:
    """The leases that this proxy knows of.

    Attributes:
        tolerant: whether a shard that is unreachable, or lacks a lease, may be left out.
        counters: the number of unusual events, by name.
        left_out: shards that answers about leases left out, and that have not answered since.
        look: called before a verdict that depends on who is away, or was just now; set by the repairs.
    """

    def __init__(self, context: WireContext, *, tolerant: bool) -> None:
        self.tolerant = tolerant
        self.counters: Counter[str] = Counter()
        self._context = context
        self._known: dict[int, Known] = {}
        self._settled_at: dict[str, float] = {}
        self._missed_at = -inf
        self._told_of: set[str] = set()
        self.left_out: set[str] = set()
        self.look: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, lease_id: int) -> Known | None:
        """The entry of a lease."""
        return self._known.get(lease_id)

    def forget(self, lease_id: int) -> None:
        """The lease has ended."""
        self._known.pop(lease_id, None)

    def granted(self, lease_id: int, until: Mapping[str, float], metadata: Fields) -> None:
        """Notes a new lease, on these shards and no other. Forgets an earlier lease with the same id.

        `until` has the end of the lease on each shard, by name.
        """
        self._known.pop(lease_id, None)
        self._add(lease_id, Known(dict(until), metadata, MISSED))

    def renewed(self, lease_id: int, ttls: Mapping[str, int], sent: float, metadata: Fields) -> None:
        """Notes the shards' answers to a keepalive that was sent at `sent`. A TTL of 0 or below is no renewal."""
        known = self._known.get(lease_id)
        if known is None:
            until = {shard: sent + ttl if ttl > 0 else UNKNOWN for shard, ttl in ttls.items()}
            self._add(lease_id, Known(until, metadata, UNKNOWN))
            return
        known.metadata = metadata
        until = known.until
        for shard, ttl in ttls.items():
            if ttl > 0:
                until[shard] = sent + ttl

    def seen(self, lease_id: int, shard: str, until: float) -> None:
        """Notes that the lease lives on that shard, if the lease is in the table."""
        known = self._known.get(lease_id)
        if known is not None:
            if known.on(shard) <= 0:
                self._missed_at = monotonic()
                known.since = {**(known.since or {}), shard: monotonic()}
            known.until[shard] = max(known.on(shard), until)

    def _add(self, lease_id: int, known: Known) -> None:
        if len(self._known) >= self._context.limits.max_known_leases:
            self._context.reached("max_known_leases")
            del self._known[next(iter(self._known))]
        self._known[lease_id] = known

    def was_on(self, lease_id: int, shard: str) -> bool:
        """Whether the lease was seen on that shard."""
        known = self._known.get(lease_id)
        return known is not None and known.on(shard) > 0

    def missed(self, lease_id: int, shard: str) -> None:
        """Notes that the lease never was on that shard, if the lease is in the table."""
        known = self._known.get(lease_id)
        if known is not None:
            known.until[shard] = MISSED
            self._missed_at = monotonic()

    def missed_on(self, shard: str) -> list[int]:
        """The live leases that never were on that shard."""
        return [lease_id for lease_id, known in self._known.items() if known.on(shard) == MISSED]

    def is_settled(self, now: float) -> bool:
        """Whether, as far as this proxy knows, no shard lacks a lease that lives, and none did in the last minute."""
        self.look()
        return now >= max(self._settled_at.values(), default=0.0) and now >= self._missed_at + MISSED_SECONDS

    def away(self, shard: str) -> None:
        """The shard has no connection."""
        self._settled_at[shard] = inf

    def returned(self, shard: str, now: float) -> None:
        """The shard is reachable again."""
        self._told_of.discard(shard)
        self._settled_at[shard] = now + SETTLE_SECONDS

    def judge(
        self, lease_id: int, lives: Mapping[str, bool | None], empty: Collection[str], asked: float = inf
    ) -> Judgement:
        """The verdict on a lease, from the shards' answers.

        Args:
            lease_id: the lease.
            lives: for each shard, by name, whether the shard has the lease; None for a shard that does not answer.
            empty: the shards that have never had a key.
            asked: the `monotonic` time of the question; by default just now.
        """
        if True not in lives.values():
            return DEAD
        missed = []
        for shard, here in lives.items():
            if here is False:
                lacking = self.judge_one(lease_id, shard, empty=shard in empty, asked=asked)
                if lacking is Lacking.ENDED:
                    self._tell_of(lease_id, shard)
                    return DEAD
                if lacking is Lacking.MISSED:
                    missed.append(shard)
        return Judgement(dead=False, missed=tuple(missed)) if missed else ALIVE

    def judge_one(self, lease_id: int, shard: str, *, empty: bool, asked: float = inf) -> Lacking:
        """The reason why a shard lacks a lease that lives elsewhere; with `empty` the shard has never had a key.

        If the lease came to the shard after the time `asked`, the shard's answer is out of date.
        """
        known = self._known.get(lease_id)
        seen = UNKNOWN if known is None else known.on(shard)
        if self.tolerant and known is not None and known.since and asked <= known.since.get(shard, -inf):
            return Lacking.UNSETTLED
        if not self.tolerant or seen > 0:
            return Lacking.ENDED
        if seen == MISSED or empty:
            return Lacking.MISSED
        self.look()
        if monotonic() < self._settled_at.get(shard, 0.0):
            return Lacking.UNSETTLED
        return Lacking.ENDED

    def _tell_of(self, lease_id: int, shard: str) -> None:
        """Logs that a lease is dead because a shard lacks it, although the shard may just have missed the lease."""
        if not self.tolerant or self.was_on(lease_id, shard):
            return
        self.counters["unknown_taken_for_ended"] += 1
        if shard not in self._told_of:
            self._told_of.add(shard)
            log.warning(
                "shard %s lacks lease %x, which lives elsewhere and may have ended there: it is dead; more are counted",
                shard,
                lease_id & ID_BITS,
            )

    def left(self, lease_id: int, shard: str, now: float) -> int | None:
        """Whole seconds for which a silent shard surely keeps a lease; None if the shard is to be left out."""
        known = self._known.get(lease_id)
        left = int(known.on(shard) - now) if known is not None else 0
        if left > 0:
            return left
        self.leave_out(shard)
        return None

    def leave_out(self, shard: str) -> None:
        """Notes, and logs once, that an answer about a lease leaves out this shard."""
        self.counters["left_out"] += 1
        if shard not in self.left_out:
            self.left_out.add(shard)
            log.warning("shard %s does not answer: leases live on without it until it does", shard)

    def answers(self, shard: str) -> None:
        """Notes an answer of a shard that may have been left out."""
        if shard in self.left_out:
            self.left_out.discard(shard)
            self.returned(shard, monotonic())  # of a frozen shard, which has kept its connection
            log.info("shard %s answers again: leases count on it", shard)

    def drop_shard(self, shard: str) -> None:
        """The shard has left the layout. The table keeps its entries: the shard may come back."""
        self._settled_at.pop(shard, None)
        self._told_of.discard(shard)
        self.left_out.discard(shard)

    def sweep(self, now: float) -> None:
        """Forgets leases that have ended on all shards. Looks at a part of the table at a time: nobody has to wait."""
        known = self._known
        for lease_id in list(islice(known, SWEPT_AT_ONCE)):
            entry = known.pop(lease_id)
            if max(entry.until.values()) + KEPT_SECONDS > now:
                known[lease_id] = entry


def is_empty(header: rpc_pb2.ResponseHeader) -> bool:
    """Whether the shard that wrote this header has never had a key: then no lease has lost a key there."""
    return header.revision == 1
