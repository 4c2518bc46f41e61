"""Tokens of other proxies: calls with such a token wait while the proxy that has minted it is asked, and begin anew.

A token tells the number of its process. If another registered proxy has that number, or has got the tokens of one that
drained, it is asked, ASK_SECONDS at most; while a proxy drains its tokens may be on their way, so that is asked again.
What nobody knows is answered as any unknown token: compacted. Tokens are asked for together, one question at a time for
each proxy, and are known here from then on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Final

import msgspec

from esp.core.background import Background, all_of
from esp.core.fleet import PATH, Peer, PeerError, Registered, UnsealedError, answer, answering_for, asked
from esp.core.services.anew import Anew, Find, Held
from esp.core.tokens import Tokens, UnknownTokenError, Vector, number_of
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.server_stream import OVERLOADED, Handler, ServerCall
from esp.core.wire.status import Code, Status

ASK_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 0.05
"""Seconds until a token is asked for again while a proxy that may know it drains."""
MOST_TOKENS: Final = 1000
"""The most tokens in one question."""
GIVEN_AT_ONCE: Final = 2000
MOST_WAITING: Final = 10_000
"""The most calls and watches that wait for tokens, and the most tokens that others are asked for, also if nobody waits
for them any more; of more, the tokens count as unknown."""
MOST_UNKNOWN: Final = 10_000
"""The most tokens that are remembered as unknown to all."""
UNKNOWN_SECONDS: Final = 1.0
"""Seconds for which a token that nobody knows is not asked for again."""
_STRANGER: Final = Status(Code.PERMISSION_DENIED, "esp: this call is for the proxies of the same shards")


class _Question(msgspec.Struct):
    """What another proxy wants to know, or wants to be known."""

    tokens: list[int] = []
    """Tokens to be told."""
    given: list[tuple[int, int, list[int]]] = []
    """Tokens that are handed on: token, the place of its shards in `shards`, revisions."""
    shards: list[list[str]] = []


class _Answer(msgspec.Struct):
    """The tokens that are known, as in `_Question`; or how many were taken."""

    known: list[tuple[int, int, list[int]]] = []
    shards: list[list[str]] = []
    taken: int = 0


class Fellows:
    """The other proxies, and what is asked of them.

    Args:
        others: tells the other processes, by number.
        secret: tells by which proxies know each other.
        peers: tells the URLs under which others reach this proxy.
        look: has the others read anew.
        looks: tells how often they were read.
        connect: makes the connection to another proxy.

    Attributes:
        heir_of: the numbers whose tokens were given to this process.
        counters: counts tokens: `asked` of others and known there, `unknown` to all, `told` to others, `given` to
            others, `taken` from others, `dropped` because too many calls waited.
    """

    def __init__(
        self,
        tokens: Tokens,
        background: Background,
        find: Find,
        others: Callable[[], Mapping[int, Registered]],
        secret: Callable[[], bytes],
        peers: Callable[[], tuple[str, ...]],
        look: Callable[[], object],
        looks: Callable[[], int],
        connect: Callable[[Registered], Peer],
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._tokens = tokens
        self._background = background
        self._anew = Anew(find)
        self._others = others
        self._secret = secret
        self._here = peers
        self._look = look
        self._looks = looks
        self._connect = connect
        self._peers: dict[tuple[str, ...], Peer] = {}
        self._wanted: dict[int, asyncio.Future[bool]] = {}
        self._since: dict[
            int, tuple[float, int]
        ] = {}  # of these: when they were first asked for, and after how many looks
        self._unknown: OrderedDict[int, float] = OrderedDict()
        self._calls: dict[_Waiting, None] = {}
        self._watches = 0
        self.heir_of: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        tokens.elsewhere = self

    @property
    def waiting(self) -> int:
        """The calls and watches that wait for tokens."""
        return len(self._calls) + self._watches

    @property
    def wanted(self) -> int:
        """The tokens that others are asked for."""
        return len(self._wanted)

    def installed(self) -> None:
        """Another layout is in force."""
        self._anew.forget()

    def close(self) -> None:
        """Ends the connections to other proxies."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    # Asking.

    def may_know(self, token: int) -> bool:
        """As `Elsewhere` has it."""
        if token in self._unknown and monotonic() - self._unknown[token] < UNKNOWN_SECONDS:
            return False
        if not self._others():
            return False
        if self.waiting >= MOST_WAITING or len(self._wanted) >= MOST_WAITING:
            self.counters["dropped"] += 1
            return False
        return True

    def take(self, stream: ServerCall, message: bytes, error: UnknownTokenError) -> None:
        """Takes over a call with an unknown token: it begins anew when the token is known, or known by nobody."""
        if stream.is_over:
            return
        if stream.responded or not stream.hold(len(message)):
            stream.finish(OVERLOADED if not stream.responded else error.status)
            return
        waiting = _Waiting(self._calls, stream, message)
        self._background.start(self._begin(waiting, error.token), on_bug=stream.on_bug)

    async def _begin(self, waiting: _Waiting, token: int) -> None:
        await self._learnt(token)
        if waiting in self._calls:
            self._anew.begin_in_turn(waiting)

    async def learn(self, token: int) -> None:
        """Returns when the token is known, or known by nobody; for a watch."""
        self._watches += 1
        try:
            await self._learnt(token)
        finally:
            self._watches -= 1

    async def _learnt(self, token: int) -> None:
        await asyncio.wait([self._want(token)])  # others may wait for the same, so it is not cancelled with this

    def _want(self, token: int) -> asyncio.Future[bool]:
        found = self._wanted.get(token)
        if found is None:
            found = self._wanted[token] = asyncio.get_running_loop().create_future()
            if self._task is None or self._task.done():
                self._task = self._background.start(self._ask_wanted())
        return found

    async def _ask_wanted(self) -> None:
        since = self._since
        try:
            while self._wanted:
                wanted = list(self._wanted)
                for token in wanted:
                    since.setdefault(token, (monotonic(), self._looks()))
                may_come = await self._ask(wanted)
                for token in wanted:
                    if self._tokens.vector(token) is not None:
                        self._settle(token, is_known=True)
                    elif token not in may_come or monotonic() - since[token][0] > ASK_SECONDS:
                        self._settle(token, is_known=False)
                if all(token in since for token in self._wanted):
                    await asyncio.sleep(AGAIN_SECONDS)
        finally:
            for token in list(self._wanted):
                self._settle(token, is_known=False)

    def _settle(self, token: int, *, is_known: bool) -> None:
        self.counters["asked" if is_known else "unknown"] += 1
        if not is_known:
            self._unknown[token] = monotonic()
            self._unknown.move_to_end(token)
            while len(self._unknown) > MOST_UNKNOWN:
                self._unknown.popitem(last=False)
        self._since.pop(token, None)
        waiter = self._wanted.pop(token)
        if not waiter.done():
            waiter.set_result(is_known)

    async def _ask(self, tokens: list[int]) -> set[int]:
        """Asks for tokens; those of them that are to be asked for again.

        That is so while a proxy drains, and of which nobody has told until the anchor was asked who there is.
        """
        by_proxy: dict[tuple[str, ...], tuple[Registered, list[int]]] = {}
        silent, here, others = set(), self._here(), self._others()
        for token in tokens:
            there = [one for one in answering_for(others, number_of(token)) if one.peers != here]
            if not there:
                silent.add(token)
            for one in there:
                by_proxy.setdefault(one.peers, (one, []))[1].append(token)
        more: set[int] = set()
        asked_now = [self._ask_one(one, some[:MOST_TOKENS]) for one, some in by_proxy.values()]
        for (one, some), has_answered in zip(by_proxy.values(), await all_of(asked_now), strict=True):
            more.update(some[MOST_TOKENS:])
            if one.leaves:
                more.update(some)
            elif not has_answered:
                silent.update(some)
        if any(one.leaves for one in others.values()):
            more |= silent
        # The look that was under way when the token came may have been too early.
        unseen = {token for token in silent if self._looks() < self._since[token][1] + 2}
        if unseen:
            self._look()
        return more | unseen

    async def _ask_one(self, one: Registered, tokens: list[int]) -> bool:
        question = msgspec.json.encode(_Question(tokens=tokens))
        try:
            body = await self._peer(one).ask(self._secret(), question, ASK_SECONDS / 2)
            known = msgspec.json.decode(body, type=_Answer)
            self._adopt(known.known, known.shards)
        except (PeerError, ValueError, IndexError):
            return False
        return True

    def _peer(self, one: Registered) -> Peer:
        peer = self._peers.get(one.peers)
        if peer is None:
            for gone in set(self._peers) - {other.peers for other in self._others().values()}:
                self._peers.pop(gone).close()
            peer = self._peers[one.peers] = self._connect(one)
        return peer

    def _adopt(self, given: Iterable[tuple[int, int, list[int]]], shards: list[list[str]]) -> int:
        names = [tuple(some) for some in shards]
        count = 0
        for token, place, revisions in given:
            if not self._tokens.is_token(token) or len(names[place]) != len(revisions):
                raise ValueError("no token")
            self._tokens.adopt(token, Vector(names[place], tuple(revisions)))
            count += 1
        return count

    # Handing on.

    async def hand_on(self, heir: Registered, tokens: Sequence[tuple[int, Vector]]) -> None:
        """Gives tokens to another proxy, the newest first.

        Raises:
            PeerError: it has not taken them.
        """
        for first in range(0, len(tokens), GIVEN_AT_ONCE):
            some = tokens[first : first + GIVEN_AT_ONCE]
            given, shards = packed(some)
            question = msgspec.json.encode(_Question(given=given, shards=shards))
            body = await self._peer(heir).ask(self._secret(), question, ASK_SECONDS)
            try:
                taken = msgspec.json.decode(body, type=_Answer).taken
            except ValueError:
                taken = 0
            if taken != len(some):
                raise PeerError(f"{', '.join(heir.peers)}: it has taken {taken} of {len(some)} tokens")
            self.counters["given"] += taken

    # Answering.

    def answer(self, message: bytes) -> bytes | None:
        """The sealed answer to another proxy's message; None if it is no other proxy."""
        secret = self._secret()
        try:
            question = msgspec.json.decode(asked(secret, message), type=_Question)
            taken = self._adopt(question.given, question.shards)
            numbers = {number_of(token) for token, _, _ in question.given}
            if numbers - self.heir_of:
                self.heir_of |= numbers
                self._look()
        except (UnsealedError, ValueError, IndexError):
            return None
        self.counters["taken"] += taken
        known: list[tuple[int, Vector]] = []
        for token in question.tokens[:MOST_TOKENS]:
            vector = self._tokens.vector(token)
            if vector is not None:
                known.append((token, vector))
        self.counters["told"] += len(known)
        told, shards = packed(known)
        return answer(secret, message, msgspec.json.encode(_Answer(told, shards, taken)))


def packed(tokens: Iterable[tuple[int, Vector]]) -> tuple[list[tuple[int, int, list[int]]], list[list[str]]]:
    """Tokens as they are told, and the shards that they name."""
    places: dict[tuple[str, ...], int] = {}
    told = []
    for token, vector in tokens:
        place = places.setdefault(vector.shards, len(places))
        told.append((token, place, list(vector.revisions)))
    return told, [list(names) for names in places]


class _Waiting(Held):
    """A call that waits for a token."""

    __slots__ = ()


class AskHandler(Handler):
    """Answers other proxies."""

    forwards = False
    idempotent = True

    def __init__(self, fellows: Fellows) -> None:
        self._fellows = fellows

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Answers a proxy of the same shards, and nobody else."""
        answered = self._fellows.answer(message[PREFIX_SIZE:])
        if answered is None:
            stream.finish(_STRANGER)
        else:
            stream.respond(answered)


def handlers(fellows: Fellows) -> Mapping[bytes, Handler]:
    """The handler of the RPC between proxies, by path."""
    return {PATH: AskHandler(fellows)}
