"""Progress of watchers that several shards feed.

"All events up to R have come" is told under a token, and clients compare it as a number with what they have heard of
before: a token that an answer bore, or the revision of a write on one shard, which is lower than any token. So it has
to be true for all of that. In a round

1. a number is reserved: tokens minted later are higher, and the claim is not about them;
2. each shard is asked for its revision, by a linearizable read: no client can have heard of a later one of it before;
3. each shard's watch is asked for its progress, until every part of the watcher has got as far as that revision;
4. then the reserved number is told, and stands for the position that the watcher has.

If the client was sent events under a higher number meanwhile, a new number will do as well when the watcher has seen
all that any token so far stands for. A shard that is away, or is behind, withholds the progress, as etcd does.

etcd before 3.4.31 and 3.5.13 may tell its progress before events that came earlier (etcd issue 15220), so there the
answer is not believed, and only what has come as events or under the watcher's own id counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from esp.core.pb import rpc_pb2
from esp.core.services.maintenance import version_key
from esp.core.services.metadata import call_head
from esp.core.services.reading import RANGE, all_of
from esp.core.services.watch.messages import Response
from esp.core.services.watch.source import Source, Tap
from esp.core.services.watch.upstream import Upstream
from esp.core.services.watch.watcher import Watcher
from esp.core.wire.status import RpcError

if TYPE_CHECKING:
    from esp.core.services.watch.stream import WatchStream

READ_SECONDS: Final = 5.0
"""How long a shard may take to tell its revision."""


class _Round:
    """One watcher's way to being told.

    Attributes:
        number: the reserved one.
        wanted: how far each shard has to be, by its index; None until they have said so.
        asked: what fed each part when its progress was asked for.
        heard: what the shards answered, by the part.
    """

    __slots__ = ("asked", "heard", "number", "wanted")

    def __init__(self, number: int) -> None:
        self.number = number
        self.wanted: dict[int, int] | None = None
        self.asked: dict[Tap, Source] = {}
        self.heard: dict[Tap, int] = {}


class SpanProgress:
    """The rounds of the watchers of one client's stream; one for each watcher at a time, the newest."""

    __slots__ = ("_asked", "_rounds", "_stream", "_tasks")

    def __init__(self, stream: WatchStream) -> None:
        self._stream = stream
        self._rounds: dict[Watcher, _Round] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked: set[Upstream] = set()

    def ask(self, watchers: Iterable[Watcher]) -> None:
        """Begins a round for each of these watchers, which are live and span shards."""
        tokens = self._stream.routing.tokens
        rounds = {watcher: _Round(tokens.reserve()) for watcher in watchers}
        if rounds:
            self._rounds.update(rounds)
            task = self._stream.spawn(self._run(rounds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, rounds: dict[Watcher, _Round]) -> None:
        try:
            await self._ask(rounds)
        except RpcError:
            for watcher, one in rounds.items():
                self._drop(watcher, one)
        except Exception:
            self._stream.on_bug()
        self._stream.down.connection.context.flush()

    async def _ask(self, rounds: dict[Watcher, _Round]) -> None:
        """Steps 2 and 3: the shards are asked once for all watchers together.

        Raises:
            RpcError: a shard does not tell its revision.
        """
        keys: dict[int, bytes] = {}
        for watcher in rounds:
            for tap in watcher.taps:
                keys.setdefault(tap.shard, tap.first_key)
        read = await all_of([self._revision(shard, key) for shard, key in keys.items()])
        revisions = dict(zip(keys, read, strict=True))
        for watcher, one in rounds.items():
            if self._rounds.get(watcher) is one:
                one.wanted = {tap.shard: revisions[tap.shard] for tap in watcher.taps}
                self._ask_shards(watcher, one)

    async def _revision(self, shard: int, key: bytes) -> int:
        """The shard's revision now. The key is one that the client may read, or it could not watch."""
        request = rpc_pb2.RangeRequest(key=key, count_only=True).SerializeToString()
        head = call_head(RANGE, self._stream.metadata)
        client = self._stream.routing.shards[shard]
        answer = await client.forward_unary(head, request, idempotent=True, timeout=READ_SECONDS)
        return rpc_pb2.RangeResponse.FromString(answer).header.revision

    def _ask_shards(self, watcher: Watcher, one: _Round) -> None:
        if self._finish(watcher, one):
            return
        upstreams: set[Upstream] = set()
        for tap in watcher.taps:
            source = tap.source
            if source is not None and source.is_live and _tells_in_order(source.upstream.shard.version):
                one.asked[tap] = source
                upstreams.add(source.upstream)
        for upstream in upstreams:
            self._asked.add(upstream)
            upstream.ask_progress(self)

    def on_upstream_progress(self, upstream: Upstream, response: Response, times: int) -> None:
        """A shard has said how far the watchers are that `upstream` feeds."""
        for watcher, one in list(self._rounds.items()):
            for tap, source in one.asked.items():
                if tap.source is source and source.is_live and source.upstream is upstream:
                    one.heard[tap] = max(response.revision, one.heard.get(tap, 0))
            self._finish(watcher, one)

    def on_own_progress(self, watcher: Watcher) -> None:
        """A shard has told a watcher's part its progress, unasked."""
        if watcher not in self._rounds:
            self.ask([watcher])

    def on_bug(self) -> None:
        """An exception came out of it."""
        self._stream.on_bug()

    def _finish(self, watcher: Watcher, one: _Round) -> bool:
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
        whole = [vector.get(shard, 0) for shard in range(len(routing.shards))]
        if span.last_token < one.number:
            number = one.number
            routing.tokens.fill(number, whole)
        elif all(vector[shard] >= routing.tokens.highest[shard] for shard in vector):
            number = routing.tokens.mint(whole)
        else:
            return False
        self._drop(watcher, one)
        self._stream.send(span.progress(number).encode(watcher.id))
        return True

    def _drop(self, watcher: Watcher, one: _Round) -> None:
        if self._rounds.get(watcher) is one:
            del self._rounds[watcher]

    def forget(self, watcher: Watcher) -> None:
        """The watcher is gone."""
        self._rounds.pop(watcher, None)

    def forget_all(self) -> None:
        """So are all."""
        self._rounds.clear()
        for task in tuple(self._tasks):
            task.cancel()
        for upstream in self._asked:
            upstream.forget_asker(self)
        self._asked.clear()


def _tells_in_order(version: str) -> bool:
    """Whether a progress that was asked for never overtakes events."""
    known = version_key(version)
    return known >= (3, 5, 13) or (3, 4, 31) <= known < (3, 5)
