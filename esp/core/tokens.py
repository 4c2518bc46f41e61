"""Vector tokens: one revision number that stands for a revision of each of several shards.

Each shard counts revisions of its own, so no number computed from theirs can say "this moment" for all of them:
whatever order it has, it is ahead of one shard or behind another. A token computes nothing. It is a fresh number,
remembered here together with the vector of shard revisions that it stands for; given back, it is looked up.

The number is an int64 of which etcd's own revisions never come near:

    bit 63      62      61 .. 17                    16 .. 1         0
        0       1       ticks of 1/16384 s          instance        1: "after" the position
                        since 2025-01-01

Numbers grow with time in a process, so that clients see revisions that do not go back. `token + 1` is the same
position seen from behind: the first revision of each shard that is not part of it. The instance tells processes apart:
a token that another process minted is not in this one's table, and unknown is what it must be. In one network namespace
no two processes have the same instance (see `claim_instance`); others draw at random out of 65,536.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from esp.core.wire.context import WireContext

EPOCH: Final = 1735689600
"""2025-01-01 in Unix time."""
TICKS_PER_SECOND: Final = 1 << 14
INSTANCES: Final = 1 << 16
MARK: Final = 1 << 62
"""What every token has and no revision."""
_INSTANCE_SHIFT: Final = 1
_TICK_SHIFT: Final = 17
_AFTER: Final = 1
_END: Final = (1 << 63) - (1 << 54)
"""The last 97 days of the 68 years that tokens last for have none: clients write 2**63 - 1, say, for no upper bound."""
_REUSE_TICKS: Final = TICKS_PER_SECOND

Vector = tuple[int, ...]
"""A revision of each shard, by its index in the shard map; 0 where the position says nothing about a shard."""


class Position(NamedTuple):
    """What a number that a client gave back stands for.

    Attributes:
        vector: the revisions.
        is_after: whether what comes behind them is meant: the client has added 1.
    """

    vector: Vector
    is_after: bool

    def revision(self, shard: int) -> int:
        """The revision of `shard` that the number means there; 0 when it means none."""
        revision = self.vector[shard]
        return revision + 1 if revision and self.is_after else revision


class Tokens:
    """The tokens of this process: mints them, remembers the newest, and looks up what comes back.

    Attributes:
        minted, known, unknown: how many were handed out, and how many that came back were in the table and were not.
    """

    def __init__(
        self,
        shards: int,
        context: WireContext,
        *,
        instance: int | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Of `shards` shards. `max_tokens` and `token_seconds` of the context's limits bound what is remembered."""
        self.minted = self.known = self.unknown = 0
        self._context = context
        self._now = now
        self._claim: socket.socket | None = None
        self._instance = instance  # claimed when it is first needed
        self._vectors: dict[int, Vector] = {}
        # Apart, so that a busy watch does not make a client's list forgotten between two of its pages.
        self._of_answers: deque[int] = deque()
        self._of_messages: deque[int] = deque()
        self._last_tick = 0
        self._newest = 0
        self._newest_is_answers = False
        self._highest: Vector = (0,) * shards

    def __len__(self) -> int:
        return len(self._vectors)

    def close(self) -> None:
        """Lets go of the instance number; nothing is minted any more."""
        if self._claim is not None:
            self._claim.close()

    # Minting.

    def mint(self, vector: Sequence[int], *, of_message: bool = False) -> int:
        """The token for a position; the last one again where that is new and stands for the same.

        Those of a watch's messages, which are many, are counted apart from those of answers.
        """
        wanted = tuple(vector)
        newest = self._newest
        is_new = self._ticks() - _ticks_of(newest) < _REUSE_TICKS
        if newest and is_new and self._vectors.get(newest) == wanted and (of_message or self._newest_is_answers):
            return newest
        tick = max(self._ticks(), self._last_tick + 1)
        self._last_tick = tick
        if self._instance is None:
            self._instance, self._claim = claim_instance()
        number = self._newest = MARK | tick << _TICK_SHIFT | self._instance << _INSTANCE_SHIFT
        self.minted += 1
        self._vectors[number] = wanted
        self._newest_is_answers = not of_message
        order = self._of_messages if of_message else self._of_answers
        order.append(number)
        self._highest = tuple(map(max, self._highest, wanted))
        self.expire()
        if len(order) > self._context.limits.max_tokens:
            self._context.reached("max_tokens")
            self._vectors.pop(order.popleft(), None)
        return number

    @property
    def highest(self) -> Vector:
        """The highest revision of each shard that a token stands for: what a client may have heard of."""
        return self._highest

    # What comes back.

    def is_token(self, number: int) -> bool:
        """Whether a proxy can have minted it, or its successor: not whether this one has.

        The clock has no say in it: it may have been wrong then, or be now.
        """
        return MARK <= number < _END

    def position(self, number: int) -> Position | None:
        """What a token stands for; None when it is not, or no longer, known here."""
        vector = self.vector(number)
        if vector is None:
            self.unknown += 1
            return None
        self.known += 1
        return Position(vector, bool(number & _AFTER))

    def vector(self, number: int) -> Vector | None:
        """The vector of a token of this process, for a look that is not a client's; None when it is forgotten."""
        if _ticks_of(number) < self._oldest_tick():
            return None
        return self._vectors.get(number & ~_AFTER)

    # Bounds.

    def expire(self) -> None:
        """Forgets what is older than `token_seconds`."""
        oldest = self._oldest_tick()
        for order in (self._of_answers, self._of_messages):
            while order and _ticks_of(order[0]) < oldest:
                self._context.reached("token_seconds")
                self._vectors.pop(order.popleft(), None)

    def _oldest_tick(self) -> int:
        return self._ticks() - int(self._context.limits.token_seconds * TICKS_PER_SECOND)

    def _ticks(self) -> int:
        return int((self._now() - EPOCH) * TICKS_PER_SECOND)


def _ticks_of(number: int) -> int:
    return (number ^ MARK) >> _TICK_SHIFT


def claim_instance() -> tuple[int, socket.socket | None]:
    """An instance number that no other process of this network namespace has for as long as the socket is open.

    The claim is a name in the abstract namespace of Unix sockets, which the kernel frees when its owner is gone. Where
    there is no such thing, the number is only drawn at random.
    """
    for _ in range(100):
        instance = random.SystemRandom().randrange(INSTANCES)
        if sys.platform != "linux":
            break
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0esp-token-instance-{instance}")
        except OSError:
            claim.close()
        else:
            return instance, claim
    return instance, None
