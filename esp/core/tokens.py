"""Vector tokens: one revision number that stands for a revision of each of several shards.

Each shard counts its own revisions. No number computed from them can mean "this moment" for all shards: every such
number would be ahead of one shard or behind another. So a token is not computed. Every token is a fresh number.
`Tokens` remembers the number with the vector of shard revisions that it stands for, and looks it up when a client sends
it back.

The number lies between 2**52 and 2**53. So it is above every revision that an etcd can reach (`MARK`), and exact as a
double, the only kind of number in JavaScript, jq, Lua and PHP:

    bit 52      51 .. 8                       7 .. 2      1 .. 0
       1        ticks of 1/16384 s            instance    0: the position; 1 and 2: "+ 1" and "+ 2", behind it
                since 2025-01-01, modulo SPAN             3: "- 1" of the next number

Numbers grow with time in a process, so that clients see revisions that do not go back. After 33.7 years, in October
2058, the numbers begin again with the lowest. `token + 1` is the position behind the token: on each shard the first
revision after the token's. A token plus 1 or 2, or minus 1, is never another token.

The instance tells processes apart: a token that another process minted must be unknown here. In one network namespace
no two processes have the same instance (`claim_instance`). Processes of different namespaces draw one of 64 instances
at random. Two of them may take each other's tokens for their own only if they drew the same instance and minted a token
in the same tick. A process draws another instance when it meets a number with its own instance that it has not minted.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from esp.core.errors import COMPACTED
from esp.core.wire.context import WireContext
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import RpcError, Status

EPOCH: Final = 1735689600
"""2025-01-01 in Unix time."""
TICKS_PER_SECOND: Final = 1 << 14
SPAN: Final = (1 << 44) - (1 << 37)
"""Ticks after which numbers begin anew. The 97 days below 34 years keep out 2**53 - 1, which JavaScript's clients write
for no upper bound."""
INSTANCES: Final = 1 << 6
MARK: Final = 1 << 52
"""The bit that every token has and no revision has: a million writes a second take more than a century to get there."""
MOST_SHARDS: Final = 1024
"""The most shards, present and former ones, whose highest revision is remembered."""
_INSTANCE_SHIFT: Final = 2
_TICK_SHIFT: Final = 8
_STEP: Final = 3
_END: Final = MARK | SPAN << _TICK_SHIFT
_IN_A_STEP: Final = 200
_REUSE_TICKS: Final = TICKS_PER_SECOND
_DRAW_TICKS: Final = TICKS_PER_SECOND
"""Ticks for which a process keeps an instance at least, whatever numbers clients send: a second."""

log = logging.getLogger("esp.tokens")


class Vector(NamedTuple):
    """A revision of each of several shards. The vector names the shards, so its meaning outlives changes of the map.

    Attributes:
        shards: the names; all vectors of a shard map have the same tuple.
        revisions: the revision of each shard, in the order of the names; 0 for a shard without a revision here.
    """

    shards: tuple[str, ...]
    revisions: tuple[int, ...]

    def revision(self, shard: str) -> int:
        """The revision of a shard, by name; 0 if the vector has none."""
        return self.revisions[self.shards.index(shard)] if shard in self.shards else 0


class Position(NamedTuple):
    """The meaning of a number that a client sent.

    Attributes:
        vector: the revisions.
        offset: the client's number minus the token, -1 to 2: the number of revisions to add on each shard.
    """

    vector: Vector
    offset: int

    def revision(self, shard: str) -> int:
        """The revision of `shard` that the number stands for; 0 if there is none."""
        revision = self.vector.revision(shard)
        return revision + self.offset if revision else 0

    def start(self, shard: str) -> int:
        """The revision from which a watch of several shards begins on `shard`; 0 if the number has no meaning there.

        The offset skips one revision at most. A `compact_revision` is token + 1 (`span`), and some clients begin at the
        revision behind it; they must lose nothing on shards that have not compacted.
        """
        revision = self.vector.revision(shard)
        return revision + min(self.offset, 1) if revision else 0


class UnknownTokenError(RpcError):
    """A token that this process does not know, and another proxy may.

    Attributes:
        token: the token.
    """

    def __init__(self, token: int, status: Status) -> None:
        super().__init__(status)
        self.token = token


class Elsewhere(Protocol):
    """The tokens of other proxies."""

    def may_know(self, token: int) -> bool:
        """Whether another proxy has to be asked for a token before it counts as unknown."""

    def take(self, stream: ServerCall, message: bytes, error: UnknownTokenError) -> None:
        """Takes over a call with an unknown token: it begins anew when the token is known, or known by nobody."""

    async def learn(self, token: int) -> None:
        """Returns when the token is known, or known by nobody."""


class Shared(Protocol):
    """The tokens that several processes share, from the point of view of one."""

    def last_tick(self) -> int:
        """The highest tick of any process."""

    def tell(self, tick: int) -> None:
        """This process mints a token with this tick."""

    def find(self, tick: int, number: int, instance: int) -> Vector | None:
        """The vector of a token of any process; None if none knows it."""

    def highest(self, shard: str) -> int | None:
        """The highest revision of a shard in any token of any process; None if it is not known."""

    def numbers(self) -> Iterable[int]:
        """The numbers with which any process has minted."""

    @property
    def ring(self) -> Written:
        """The memory in which the others read this process's tokens."""


class Written(Protocol):
    """The memory with the tokens of one process."""

    def add_instance(self, instance: int) -> None:
        """From now on the process mints with this number."""

    def name(self, shards: tuple[str, ...]) -> None:
        """Tokens have revisions of these shards."""

    def raise_highest(self, shard: str, revision: int) -> None:
        """A token has this revision of a shard."""

    def add(self, tick: int, number: int, vector: Vector, *, of_message: bool) -> bool:
        """Adds a token. True if another gave way to it."""


def is_token(number: int) -> bool:
    """Whether any proxy can have minted the number, or the number below it. This proxy need not know the token.

    The answer does not depend on the clock, which may have been wrong then, or may be wrong now.
    """
    return MARK <= number < _END


class Tokens:
    """The tokens of this process: mints tokens, remembers the newest, and looks up those that clients send.

    Attributes:
        minted: tokens handed out.
        known, unknown: looked-up tokens that this process, or another with which it shares them, knew or did not know.
        highest: the highest revision of each shard, by name, in any token: clients may know of it.
        forgotten_shards: shards dropped from `highest`, because there were more than MOST_SHARDS.
    """

    def __init__(
        self,
        context: WireContext,
        *,
        instance: int | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`max_tokens` and `token_seconds`, of the limits of `context`, bound the memory of tokens."""
        self.minted = self.known = self.unknown = self.forgotten_shards = 0
        self._context = context
        self._now = now
        self._claim: socket.socket | None = None
        self._instance = instance  # claimed when it is first needed
        self._vectors: dict[int, Vector] = {}
        # In separate tables: tokens of a busy watch must not push out the token of a client that reads a list in pages.
        self._of_answers: deque[int] = deque()
        self._of_messages: deque[int] = deque()
        self._claimed_at = 0
        self._last_tick = 0
        self._forgotten = 0  # the latest tick of which a token was forgotten
        self._newest = 0
        self._newest_is_answers = False
        self._shared: Shared | None = None
        self.highest: dict[str, int] = {}
        self.elsewhere: Elsewhere | None = None
        self.numbers = range(INSTANCES)
        self._until = 0  # the last tick of a number that was granted; 0 for a number that was drawn
        self._adopted: dict[int, Vector] = {}
        self._of_others: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def most_used(self) -> int:
        """The number of tokens of answers, or of watch messages: whichever is higher."""
        return max(len(self._of_answers), len(self._of_messages))

    @property
    def adopted(self) -> int:
        """Tokens of other proxies that are known here."""
        return len(self._adopted)

    @property
    def instance(self) -> int | None:
        """The number with which this process mints; None before the first token."""
        return self._instance

    @property
    def newest(self) -> int:
        """The newest token of this process; 0 before the first."""
        return self._newest

    @property
    def last_tick(self) -> int:
        """The tick of the newest token."""
        return self._last_tick

    def now(self) -> int:
        """The present tick."""
        return self._ticks()

    def grant(self, number: int, after: int, until: int) -> None:
        """Mints from now on with a number that is this process's alone from behind one tick up to another.

        Without a grant, or behind its end, the process draws one of `numbers`.
        """
        if number != self._instance or not self._until:
            self.close()
            self._claim = None
            self._instance = number
            self._last_tick = max(self._last_tick, after)
            self._claimed_at = max(self._ticks(), self._last_tick)
            if self._shared is not None:
                self._shared.ring.add_instance(number)
        self._until = until

    def adopt(self, token: int, vector: Vector) -> None:
        """Knows a token of another proxy from now on, for as long as its own."""
        if token in self._adopted or token in self._vectors:
            return
        self._adopted[token] = vector
        self._of_others.append(token)
        for shard, revision in zip(vector.shards, vector.revisions, strict=True):
            if revision > self.highest.get(shard, 0):
                self.highest[shard] = revision
        if len(self._of_others) > self._context.limits.max_tokens:
            self._context.reached("max_tokens")
            self._adopted.pop(self._of_others.popleft(), None)

    def newer(self, than: int) -> list[tuple[int, Vector]]:
        """The tokens minted here after another one, the newest first; of 0, also those of other proxies."""
        found = []
        for token in reversed(self._vectors):
            if token <= than:
                break
            found.append((token, self._vectors[token]))
        return found if than else [*found, *reversed(self._adopted.items())]

    def shared_numbers(self) -> Iterable[int]:
        """The numbers of the processes with which the tokens are shared, now or before."""
        return () if self._shared is None else self._shared.numbers()

    def close(self) -> None:
        """Gives the instance number back. No token is minted after this."""
        if self._claim is not None:
            self._claim.close()

    def share(self, shared: Shared) -> None:
        """Shares the tokens with other processes, before the first is minted; else see `share_gradually`."""
        self._shared = shared
        if self._instance is not None:
            shared.ring.add_instance(self._instance)

    async def share_gradually(self, shared: Shared) -> None:
        """Shares the tokens with other processes from now on, and those minted so far, which takes many steps."""
        written = [0, 0]
        orders = (self._of_answers, self._of_messages)
        for of_message, order in enumerate(orders):
            tokens = list(order)
            for first in range(0, len(tokens), _IN_A_STEP):
                for token in tokens[first : first + _IN_A_STEP]:
                    written[of_message] = self._write(shared, token, bool(of_message))
                await asyncio.sleep(0)
        for of_message, order in enumerate(orders):
            since = [token for token in order if self._tick_of(token) > written[of_message]]
            for token in since:  # minted meanwhile
                self._write(shared, token, bool(of_message))
        for shard, revision in self.highest.items():
            shared.ring.name((shard,))
            shared.ring.raise_highest(shard, revision)
        shared.tell(self._last_tick)
        self.share(shared)

    def _write(self, shared: Shared, token: int, of_message: bool) -> int:
        """Writes a token for the others; its tick."""
        tick = self._tick_of(token)
        vector = self._vectors.get(token)
        if vector is not None:
            shared.ring.add_instance(number_of(token))
            shared.ring.add(tick, token, vector, of_message=of_message)
        return tick

    def _tick_of(self, token: int) -> int:
        ticks = self._ticks()
        return ticks - _age(token, ticks)

    # Minting.

    def mint(self, vector: Vector, *, of_message: bool = False) -> int:
        """The token for a position: the newest token if it stands for the same position, else a new one.

        Watch messages bring many tokens, so these are counted apart from tokens in answers.
        """
        newest, shared, ticks, last = self._newest, self._shared, self._ticks(), self._last_tick
        if shared is not None:
            last = max(last, shared.last_tick())
        is_new = ticks - last < _REUSE_TICKS and last == self._last_tick
        if newest and is_new and self._vectors.get(newest) == vector and (of_message or self._newest_is_answers):
            return newest
        tick = self._last_tick = max(ticks, last + 1)
        if self._instance is None or tick > self._until > 0:
            self._draw()
        number = self._newest = _number(tick, self._instance or 0)
        self.minted += 1
        self._vectors[number] = vector
        self._newest_is_answers = not of_message
        order = self._of_messages if of_message else self._of_answers
        order.append(number)
        highest = self.highest
        if shared is not None:
            shared.tell(tick)
            shared.ring.name(vector.shards)
        for shard, revision in zip(vector.shards, vector.revisions, strict=True):
            if revision > highest.get(shard, 0):
                highest[shard] = revision
                if shared is not None:
                    shared.ring.raise_highest(shard, revision)
        gave_way = shared is not None and shared.ring.add(tick, number, vector, of_message=of_message)
        if gave_way and len(order) < self._context.limits.max_tokens:
            self._context.reached("max_shared_token_bytes")
        if len(highest) > MOST_SHARDS:
            self.highest = {shard: highest[shard] for shard in vector.shards if shard in highest}
            self.forgotten_shards += len(highest) - len(self.highest)
        self.expire()
        if len(order) > self._context.limits.max_tokens:
            self._context.reached("max_tokens")
            self._forget(order)
        return number

    # Looking up.

    is_token = staticmethod(is_token)

    def position(self, number: int) -> Position | None:
        """The meaning of a token; None if this process never knew the token, or has forgotten it.

        Raises:
            UnknownTokenError: another proxy has to be asked.
        """
        token, offset = _taken_apart(number)
        vector = self.vector(token)
        if vector is None:
            if self._may_be_elsewhere(token):
                raise UnknownTokenError(token, COMPACTED)
            self.unknown += 1
            self._look_for_a_double(token)
            return None
        self.known += 1
        return Position(vector, offset)

    def vector(self, token: int) -> Vector | None:
        """The vector of a token of this process, for esp's own use; None if the token is forgotten."""
        ticks = self._ticks()
        age = _age(token, ticks)
        if age > self._lifetime():
            return None
        vector = self._vectors.get(token) or self._adopted.get(token)
        if vector is None and self._shared is not None:
            vector = self._shared.find(ticks - age, token, number_of(token))
        return vector

    def refused(self, stream: ServerCall, message: bytes, error: RpcError) -> None:
        """Ends a call with an error, unless another proxy has to be asked for its token first."""
        if isinstance(error, UnknownTokenError) and self.elsewhere is not None:
            self.elsewhere.take(stream, message, error)
        else:
            stream.finish(error.status)

    async def learn(self, number: int) -> None:
        """Has other proxies asked for the token in a number of a client's, which this one does not know."""
        if self.elsewhere is not None:
            await self.elsewhere.learn(_taken_apart(number)[0])

    def must_ask(self, number: int) -> bool:
        """Whether another proxy has to be asked for the token in a number of a client's."""
        if self.elsewhere is None or not is_token(number):
            return False
        token, _ = _taken_apart(number)
        return self.vector(token) is None and self._may_be_elsewhere(token)

    def _may_be_elsewhere(self, token: int) -> bool:
        """Whether another proxy may know a token that this one does not: an old one nobody does."""
        if self.elsewhere is None or self._age(token) > self._lifetime():
            return False
        return self.elsewhere.may_know(token)

    def may_be_known(self, shard: str, revision: int) -> bool:
        """Whether a token of any process may stand for more than this revision of a shard: clients may know of it."""
        if revision < self.highest.get(shard, 0):
            return True
        if self._shared is None:
            return False
        highest = self._shared.highest(shard)
        return highest is None or revision < highest

    def _look_for_a_double(self, token: int) -> None:
        """Draws another instance if `token` has this one, but only another process can have minted the token."""
        age = self._age(token)
        if self._until or number_of(token) != self._instance or age > self._lifetime():
            return
        now = self._ticks()
        if now - age > max(self._claimed_at, self._forgotten) and now - self._claimed_at >= _DRAW_TICKS:
            log.warning("another proxy, or a client, makes revisions with the number of this process; it draws anew")
            self._draw()

    def _draw(self) -> None:
        before = self._claim
        self._instance, self._claim = claim_instance(but=self._instance, among=self.numbers)
        self._until = 0
        self._claimed_at = max(self._ticks(), self._last_tick)
        if self._shared is not None:
            self._shared.ring.add_instance(self._instance)
        if before is not None:
            before.close()

    # Bounds.

    def expire(self) -> None:
        """Forgets tokens that are older than `token_seconds`."""
        for order in (self._of_answers, self._of_messages):
            while order and self._age(order[0]) > self._lifetime():
                self._context.reached("token_seconds")
                self._forget(order)
        while self._of_others and self._age(self._of_others[0]) > self._lifetime():
            self._context.reached("token_seconds")
            self._adopted.pop(self._of_others.popleft(), None)

    def _forget(self, order: deque[int]) -> None:
        token = order.popleft()
        self._vectors.pop(token, None)
        self._forgotten = max(self._forgotten, self._ticks() - self._age(token))

    def _lifetime(self) -> int:
        return int(self._context.limits.token_seconds * TICKS_PER_SECOND)

    def _age(self, token: int) -> int:
        return _age(token, self._ticks())

    def _ticks(self) -> int:
        return max(0, int((self._now() - EPOCH) * TICKS_PER_SECOND))


def number_of(token: int) -> int:
    """The number of the process that has minted a token."""
    return token >> _INSTANCE_SHIFT & INSTANCES - 1


def _number(tick: int, instance: int) -> int:
    return MARK | tick % SPAN << _TICK_SHIFT | instance << _INSTANCE_SHIFT


def _age(token: int, ticks: int) -> int:
    """Ticks since the token was made, at the time `ticks`; below 0 for a token of the future."""
    age = (ticks - ((token ^ MARK) >> _TICK_SHIFT)) % SPAN
    return age if age <= SPAN // 2 else age - SPAN


def _taken_apart(number: int) -> tuple[int, int]:
    """The token in a number that a client sent, and the offset that the client has added."""
    step = number & _STEP
    return (number + 1, -1) if step == _STEP else (number - step, step)


def claim_instance(*, but: int | None = None, among: range = range(INSTANCES)) -> tuple[int, socket.socket | None]:
    """An instance number that no other process of this network namespace has for as long as the socket is open.

    The claim is a name in the abstract namespace of Unix sockets, which the kernel frees when its owner is gone. If the
    system has no abstract namespace, or if all numbers are taken, the number is only drawn at random.

    Args:
        but: an instance that must not be drawn.
        among: those that may be drawn, more than one.
    """
    drawn = [instance for instance in among if instance != but]
    random.SystemRandom().shuffle(drawn)
    for instance in drawn if sys.platform == "linux" else ():
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0esp-token-instance-{instance}")
        except OSError:
            claim.close()
        else:
            return instance, claim
    return drawn[0], None
