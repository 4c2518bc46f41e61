"""Progress of watchers over several shards.

Progress means "all events up to R have come", where R is a token. Clients compare this token as a number with other
tokens that they have. So the statement must be true for all lower tokens, of any answer or watcher. In a round

1. the watcher's position gets a token, as for a message: tokens minted later are higher;
2. each shard is asked for its revision, by a linearizable read: no token minted so far stands for a later revision;
3. each shard's watch is asked for its progress, until every part of the watcher has reached that revision;
4. then the client gets the token of step 1, unless events were sent meanwhile: their tokens would be higher.

If the watcher has reached all tokens that exist, the client gets a new token for its new position instead, so that a
client that resumes from there needs less of the history. If events overtook a round, and there are tokens that the
watcher has not reached, the round begins again. A shard that is unreachable or behind holds up the progress, as in
etcd. The revision of a write on one shard is lower than any token; comparing it with a token says nothing.

etcd before 3.4.31 and 3.5.13 may send its progress before earlier events (etcd issue 15220). esp does not trust such an
answer: only events count, and progress under the watcher's own id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from esp.core.background import Timer, all_of
from esp.core.pb import rpc_pb2
from esp.core.services.revision import token
from esp.core.services.watch.exchange import Exchange
from esp.core.services.watch.messages import Response
from esp.core.services.watch.progress_requests import tells_in_order
from esp.core.services.watch.source import Source
from esp.core.services.watch.tap import Tap
from esp.core.services.watch.watcher import Watcher, WatcherStream
from esp.core.shard import RANGE, ask
from esp.core.wire.hpack import encode
from esp.core.wire.status import RpcError

READ_SECONDS: Final = 5.0
"""Seconds that a shard may take to answer with its revision."""
PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""The first and the longest pause, in seconds, before a round that events overtook begins again. Doubled each time:
while events never cease, the shards are not asked without end."""


class _Round:
    """The steps for one watcher until its client is told.

    Attributes:
        token: the token of the watcher's position when the round began.
        wanted: the revision that each shard has to reach, by the shard's name; None until the shards have told.
        asked: the source that fed each part when its progress was asked for.
        heard: the revision that the shard answered, by the part.
    """

    __slots__ = ("asked", "heard", "token", "wanted")

    def __init__(self, token: int) -> None:
        self.token = token
        self.wanted: dict[str, int] | None = None
        self.asked: dict[Tap, Source] = {}
        self.heard: dict[Tap, int] = {}


class SpanProgress:
    """The rounds of the watchers of one client's stream: one for each watcher at a time, the newest.

    The shards are asked for their revisions for all watchers together; a watcher that comes meanwhile waits for the
    next time.
    """

    __slots__ = ("_asked", "_later", "_overtaken", "_pause", "_rounds", "_stream", "_task", "_waiting")

    def __init__(self, stream: WatcherStream) -> None:
        self._stream = stream
        self._rounds: dict[Watcher, _Round] = {}
        self._waiting: dict[Watcher, None] = {}
        self._overtaken: dict[Watcher, None] = {}
        self._later: Timer | None = None
        self._pause = PAUSE
        self._task: asyncio.Task[None] | None = None
        self._asked: set[Exchange] = set()

    def ask(self, watchers: Iterable[Watcher]) -> None:
        """Begins a round for each of these watchers, as soon as possible. They are live, and over several shards."""
        self._waiting.update(dict.fromkeys(watchers))
        self._begin()

    def _begin(self) -> None:
        if self._task is not None:
            return
        waiting, self._waiting = self._waiting, {}
        rounds = {
            watcher: _Round(token(self._stream.routing, watcher.span.vector()))
            for watcher in waiting
            if watcher.span is not None and not watcher.is_dead
        }
        if rounds:
            self._rounds.update(rounds)
            self._task = self._stream.background.start(self._run(rounds), on_bug=self._stream.outbox.fail)

    def _begin_later(self, watcher: Watcher) -> None:
        self._overtaken[watcher] = None
        if self._later is None:
            self._later = self._stream.background.later(self._pause, self._begin_again, self._stream.outbox.fail)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _begin_again(self) -> None:
        self._later = None
        overtaken, self._overtaken = self._overtaken, {}
        self.ask(overtaken)

    async def _run(self, rounds: dict[Watcher, _Round]) -> None:
        try:
            await self._ask(rounds)
        except RpcError:
            for watcher, one in rounds.items():
                self._drop(watcher, one)
        finally:
            self._task = None
        self._begin()
        self._stream.outbox.context.flush()

    async def _ask(self, rounds: dict[Watcher, _Round]) -> None:
        """Steps 2 and 3: the shards are asked once for all watchers together.

        Raises:
            RpcError: a shard does not tell its revision.
        """
        keys: dict[str, bytes] = {}
        for watcher in rounds:
            for tap in watcher.taps:
                keys.setdefault(tap.shard, tap.first_key)
        read = await all_of([self._revision(shard, key) for shard, key in keys.items()])
        revisions = dict(zip(keys, read, strict=True))
        for watcher, one in rounds.items():
            if self._rounds.get(watcher) is one:
                one.wanted = {tap.shard: revisions[tap.shard] for tap in watcher.taps}
                self._ask_shards(watcher, one)

    async def _revision(self, shard: str, key: bytes) -> int:
        """The shard's present revision, from a read of `key`. The client may read the key, because it watches it."""
        request = rpc_pb2.RangeRequest(key=key, count_only=True)
        metadata = encode(self._stream.metadata)
        answer = await ask(self._stream.routing.shards[shard], RANGE, request, metadata=metadata, seconds=READ_SECONDS)
        return answer.header.revision

    def _ask_shards(self, watcher: Watcher, one: _Round) -> None:
        if self._tell_if_reached(watcher, one):
            return
        upstreams: set[Exchange] = set()
        for tap in watcher.taps:
            source = tap.source
            if source is not None and source.is_live and tells_in_order(source.upstream.shard.version_in_use):
                one.asked[tap] = source
                upstreams.add(source.upstream)
        self._asked = {upstream for upstream in self._asked if upstream.sources} | upstreams
        for upstream in upstreams:
            upstream.ask_progress(self)

    def on_upstream_progress(self, upstream: Exchange, response: Response, times: int) -> None:
        """A shard has answered with the progress of the watchers that `upstream` feeds."""
        for watcher, one in list(self._rounds.items()):
            for tap, source in one.asked.items():
                if tap.source is source and source.is_live and source.upstream is upstream:
                    one.heard[tap] = max(response.revision, one.heard.get(tap, 0))
            self._tell_if_reached(watcher, one)

    def on_events(self, watcher: Watcher) -> None:
        """A watcher's client was sent events, for which the watcher's round may wait."""
        one = self._rounds.get(watcher)
        if one is not None:
            self._tell_if_reached(watcher, one)

    def on_own_progress(self, watcher: Watcher) -> None:
        """A shard has told a watcher's part its progress, unasked."""
        one, span = self._rounds.get(watcher), watcher.span
        if one is None or (span is not None and span.last_token > one.token):
            self.ask([watcher])
        elif one.wanted is not None:
            self._ask_shards(watcher, one)  # asks again: etcd does not answer every request

    def on_bug(self) -> None:
        """An exception came out of `on_upstream_progress`."""
        self._stream.outbox.on_bug()

    def _tell_if_reached(self, watcher: Watcher, one: _Round) -> bool:
        """Tells the client and ends the round, if the watcher has reached the wanted revisions; else False."""
        span = watcher.span
        if one.wanted is None or span is None or watcher.is_dead:
            return False
        for tap in watcher.taps:
            if tap.source is None or not tap.source.is_live:
                return False
            if tap.source is one.asked.get(tap):
                tap.passed = max(tap.passed, one.heard.get(tap, 0))
        vector = span.vector()
        if any(vector[shard] < revision for shard, revision in one.wanted.items()):
            return False
        routing = self._stream.routing
        number = one.token
        if not any(routing.tokens.may_be_known(shard, revision) for shard, revision in vector.items()):
            number = token(routing, vector)
        elif span.last_token > number:
            self._begin_later(watcher)
            return False
        self._drop(watcher, one)
        self._overtaken.pop(watcher, None)
        self._pause = PAUSE
        self._stream.outbox.send(span.progress(number).encode(watcher.id))
        return True

    def _drop(self, watcher: Watcher, one: _Round) -> None:
        if self._rounds.get(watcher) is one:
            del self._rounds[watcher]

    def forget(self, watcher: Watcher) -> None:
        """The watcher is gone."""
        self._rounds.pop(watcher, None)
        self._waiting.pop(watcher, None)
        self._overtaken.pop(watcher, None)

    def forget_all(self) -> None:
        """All watchers are gone: every round ends."""
        self._rounds.clear()
        self._waiting.clear()
        self._overtaken.clear()
        if self._later is not None:
            self._later.cancel()
        if self._task is not None:
            self._task.cancel()
        for upstream in self._asked:
            upstream.forget_asker(self)
        self._asked.clear()
