"""esp between clients and etcds that the test plays itself, so that tests read as transcripts.

world = World(b"m")                       # two shards, cut at "m"
client = world.client()
client.creates(key=b"a")
call, [create] = world.etcds[0].hears()
world.etcds[0].says(call, created(create.watch_id, 5))
assert client.hears() == [created(0, 5)]
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from typing import Any

from esp.core import errors
from esp.core.background import Background
from esp.core.config import Endpoint
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.routing import Routing
from esp.core.services.watch.service import PATH, Watch
from esp.core.shard import Shard
from esp.core.shard_map import ShardMap
from esp.core.tokens import Tokens, Vector
from esp.core.wire import frames
from esp.core.wire.frames import ErrorCode
from esp.core.wire.limits import Limits
from esp.core.wire.message import MessageReader
from esp.core.wire.status import Status
from tests.core.wire.conversation import HEAD, Frame, call, data, headers, meet, message, rst, split, trailers, window
from tests.core.wire.upstream import dial

WatchResponse = rpc_pb2.WatchResponse
WatchRequest = rpc_pb2.WatchRequest
CLUSTER = 0xC0FFEE


def header(revision: int, shard: int = 0) -> rpc_pb2.ResponseHeader:
    """The header that every member of a shard's cluster writes."""
    return rpc_pb2.ResponseHeader(cluster_id=CLUSTER + shard, member_id=7, revision=revision, raft_term=2)


def created(watch_id: int, revision: int, *, shard: int = 0) -> WatchResponse:
    return WatchResponse(header=header(revision, shard), watch_id=watch_id, created=True)


def refused(reason: str, revision: int = 1) -> WatchResponse:
    return WatchResponse(header=header(revision), watch_id=-1, created=True, canceled=True, cancel_reason=reason)


def canceled(watch_id: int, revision: int, *, shard: int = 0) -> WatchResponse:
    return WatchResponse(header=header(revision, shard), watch_id=watch_id, canceled=True)


def compacted(watch_id: int, revision: int, *, shard: int = 0) -> WatchResponse:
    return WatchResponse(header=header(0, shard), watch_id=watch_id, canceled=True, compact_revision=revision)


def progress(watch_id: int, revision: int) -> WatchResponse:
    return WatchResponse(header=header(revision), watch_id=watch_id)


def put(key: bytes, revision: int, value: bytes = b"v") -> kv_pb2.Event:
    return kv_pb2.Event(kv=kv_pb2.KeyValue(key=key, value=value, mod_revision=revision, create_revision=1, version=2))


def events(
    watch_id: int, *several: kv_pb2.Event, revision: int | None = None, fragment: bool = False, shard: int = 0
) -> WatchResponse:
    """A message with events; of live events unless the header's revision is given."""
    now = several[-1].kv.mod_revision if revision is None else revision
    return WatchResponse(header=header(now, shard), watch_id=watch_id, events=several, fragment=fragment)


class Timers:
    """Timers in place of the event loop's; no timer rings by itself."""

    def __init__(self) -> None:
        self._waiting: dict[Timer, None] = {}

    def __call__(self, seconds: float, callback: Callable[[], None], on_bug: Callable[[], None]) -> Timer:
        timer = Timer(self, callback)
        self._waiting[timer] = None
        return timer

    def drop(self, timer: Timer) -> None:
        self._waiting.pop(timer, None)

    def ring(self) -> None:
        """Lets time pass until all set timers have rung."""
        for timer in list(self._waiting):
            self.drop(timer)
            timer.callback()


class Timer:
    def __init__(self, timers: Timers, callback: Callable[[], None]) -> None:
        self._timers = timers
        self.callback = callback

    def cancel(self) -> None:
        self._timers.drop(self)


class Client:
    """One Watch call of a client."""

    def __init__(self, world: World, stream: int, metadata: tuple[tuple[bytes, bytes], ...]) -> None:
        self.world = world
        self.stream = stream
        self.metadata = metadata
        self._reader = MessageReader(2**31 - 1)
        self._heard: list[WatchResponse] = []
        self.status: Status | None = None
        self.reset = False

    def asks(self, **request: Any) -> None:
        body = message(WatchRequest(**request).SerializeToString())
        for at in range(0, len(body), 16384):
            self.world.sends(data(self.stream, body[at : at + 16384]))

    def creates(self, **create: Any) -> None:
        self.asks(create_request=rpc_pb2.WatchCreateRequest(**create))

    def cancels(self, watch_id: int) -> None:
        self.asks(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id))

    def asks_progress(self) -> None:
        self.asks(progress_request=rpc_pb2.WatchProgressRequest())

    def half_closes(self) -> None:
        self.world.sends(data(self.stream, end=True))

    def leaves(self) -> None:
        self.world.sends(rst(self.stream))

    def reads(self, size: int) -> None:
        """Gives window for `size` more bytes."""
        self.world.sends(window(self.stream, size), window(0, size))

    def take(self, frame: Frame) -> None:
        if frame.kind == frames.DATA:
            self._heard += map(WatchResponse.FromString, self._reader.feed(frame.payload))
        elif frame.kind == frames.RST_STREAM:
            self.reset = True
        elif frame.flags & frames.END_STREAM:
            fields = dict(self.world.decode(frame.payload))
            self.status = Status(int(fields[b"grpc-status"]), fields.get(b"grpc-message", b"").decode())

    def hears(self) -> list[WatchResponse]:
        """The messages that have come since the last call."""
        self.world.listen()
        heard, self._heard = self._heard, []
        return heard


class Etcd:
    """A shard that the test plays: it sends only the test's messages."""

    def __init__(self, world: World, shard: Shard) -> None:
        self.world = world
        self.shard = shard
        self.paths: dict[int, dict[bytes, bytes]] = {}
        self._readers: dict[int, MessageReader] = {}
        self.ended: set[int] = set()
        self.comes()

    def comes(self) -> None:
        """Begins to take connections."""
        self._caller = dial(context=self.world.context)
        self.shard._streams.connection = self._caller.connection
        self._readers.clear()
        self.ended.clear()
        self.shard._streams.go()
        self.world.context.flush()

    def goes(self) -> None:
        """Goes away, and its connections with it."""
        self.shard._streams.connection = None
        self._caller.connection.lost("gone")
        self.world.context.flush()

    def moves(self) -> None:
        """Makes esp choose another member, to which it has no connection yet."""
        self.shard._links._retire(self.shard._streams)
        self.world.context.flush()

    def all_heard(self) -> list[tuple[int, WatchRequest]]:
        """The call and the content of each request since the last time."""
        heard = []
        for frame in split(self._caller.said()):
            if frame.kind == frames.HEADERS:
                self.paths[frame.stream] = dict(self.world.decode(frame.payload))
                self._readers[frame.stream] = MessageReader(2**31 - 1)
            elif frame.kind == frames.RST_STREAM:
                self.ended.add(frame.stream)
            elif frame.kind == frames.DATA:
                bodies = self._readers[frame.stream].feed(frame.payload)
                heard += [(frame.stream, WatchRequest.FromString(body)) for body in bodies]
        return heard

    def hears(self) -> tuple[int, list[Any]]:
        """The requests in one call since the last time: creates, cancels and progress requests."""
        heard = self.all_heard()
        calls = {stream for stream, _ in heard}
        assert len(calls) == 1, heard
        return calls.pop(), [getattr(request, str(request.WhichOneof("request_union"))) for _, request in heard]

    def hears_nothing(self) -> None:
        assert self.all_heard() == []

    def says(self, stream: int, *responses: WatchResponse) -> None:
        """Sends messages, all in one piece."""
        parts = [] if stream not in self._caller.connection.streams else [b""]
        assert parts, f"call {stream} is over"
        if not self._caller.connection.streams[stream].headers_seen:
            parts.append(headers(stream, HEAD))
        for response in responses:
            body = message(response.SerializeToString())
            parts += [data(stream, body[at : at + 16384]) for at in range(0, len(body), 16384)]
        self._caller.hears(*parts)

    def ends(self, stream: int, status: Status) -> None:
        head = [] if self._caller.connection.streams[stream].headers_seen else HEAD
        self._caller.hears(headers(stream, head + trailers(status), end=True))

    def resets(self, stream: int) -> None:
        self._caller.hears(rst(stream, ErrorCode.INTERNAL_ERROR))

    def window_given(self) -> int:
        """The bytes of window that streams have got since the last time. Drops the other frames that came."""
        said = list(split(self._caller.said()))
        return sum(
            int.from_bytes(frame.payload, "big")
            for frame in said
            if frame.kind == frames.WINDOW_UPDATE and frame.stream
        )


class NotRun:
    """A task that never runs, because nothing awaits here. Tests with real shards show its work."""

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        pass

    def cancel(self) -> None:
        pass


class Searching:
    """The search for the position of a compacted watcher: runs until it has to wait, and on when the test lets it."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self.goes_on()

    def goes_on(self) -> bool:
        """Runs on; False if the search has ended."""
        try:
            self._work.send(None)
        except (StopIteration, RuntimeError):
            return False
        return True

    def cancel(self) -> None:
        with suppress(ValueError):  # the search ends itself while it runs
            self._work.close()


class Asleep:
    """A wait that ends when the test says so."""

    def __init__(self, seconds: float) -> None:
        pass

    def __await__(self) -> Generator[None, None, None]:
        yield


class World:
    """esp, with one connection for all clients and one for each shard.

    Attributes:
        compacted: of each shard, the lowest revision at which it can be read, if `compacts` has told.
    """

    def __init__(self, *boundaries: bytes, owners: tuple[int, ...] | None = None, limits: Limits | None = None) -> None:
        self._client, self._server = meet(limits, find=lambda head: self.watch)
        self.context = self._server.context
        self.spawned = 0
        owners = owners or tuple(range(len(boundaries) + 1))
        names = [f"s{number}" for number in range(max(owners) + 1)]
        edges: list[bytes | None] = [b"", *boundaries, None]
        ranges = [
            (names[owner], KeyRange(start or b"", end))
            for owner, start, end in zip(owners, edges[:-1], edges[1:], strict=True)
        ]
        self.background = Background()
        self.background.start = self._start  # type: ignore[method-assign,assignment]
        shards = [Shard(name, [Endpoint("localhost", 2379)], self.context, self.background) for name in names]
        layout = Layout.of(ShardMap.build(ranges, names), shards)
        self.routing = Routing(layout, Tokens(self.context, instance=1))
        self.watch = Watch(self.routing, self.background, self.context)
        self.etcds = [Etcd(self, shard) for shard in shards]
        self.compacted: list[int] = []
        self.searching: list[Searching] = []
        self._clients: dict[int, Client] = {}
        self._next = 1

    def compacts(self, *revisions: int) -> None:
        """Notes that each shard has compacted up to its revision: searches for history get that answer from now on."""
        self.compacted = list(revisions)
        for number, shard in enumerate(self.routing.shards.values()):
            shard.forward_unary = partial(self._reads, number)  # type: ignore[method-assign]

    async def _reads(self, shard: int, head: object, body: bytes, **named: object) -> bytes:
        if rpc_pb2.RangeRequest.FromString(body).revision < self.compacted[shard]:
            raise errors.COMPACTED.error()
        return rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=1)).SerializeToString()

    def search_on(self) -> None:
        """Lets the searches for positions of compacted watchers go on."""
        self.searching = [one for one in self.searching if one.goes_on()]

    def _start(self, work: Coroutine[Any, Any, None], **_: object) -> NotRun | Searching:
        if self.compacted and work.__name__ == "_find":
            self.searching.append(Searching(work))
            return self.searching[-1]
        work.close()
        self.spawned += 1
        return NotRun()

    def position(self, message: WatchResponse) -> tuple[int, ...]:
        """The revisions for which the token in a message's header stands."""
        vector = self.routing.tokens.vector(message.header.revision)
        assert vector is not None, message
        return vector.revisions

    def mint(self, *revisions: int) -> int:
        """A token for these revisions of the shards."""
        return self.routing.tokens.mint(Vector(self.routing.map.names, revisions))

    def means(self, number: int) -> tuple[tuple[int, ...], int] | None:
        """The revisions that a token stands for, and what was added to the token."""
        position = self.routing.tokens.position(number)
        return None if position is None else (position.vector.revisions, position.offset)

    def client(self, *metadata: tuple[bytes, bytes]) -> Client:
        """A client that opens a stream."""
        client = self._clients[self._next] = Client(self, self._next, metadata)
        self.sends(headers(self._next, call(PATH, *metadata)))
        self._next += 2
        return client

    def sends(self, *said: bytes) -> None:
        self._client.sends(*said)

    def listen(self) -> None:
        for frame in self._server.frames():
            if frame.stream in self._clients:
                self._clients[frame.stream].take(frame)

    def drains(self, status: Status) -> None:
        self._server.connection.drain(status)
        self._server.flush()

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        from hpack import Decoder

        return list(Decoder(2**20).decode(block, raw=True))

    def holds_nothing(self) -> None:
        """Checks that all memory was given back, and that no shard has a watcher left."""
        assert self.context.buffers.used == 0
        assert self.watch.watchers.used == 0
        assert self.watch._pools == {}
        for etcd in self.etcds:
            assert etcd._caller.connection.streams == {}
            assert etcd.shard._streams.standing == {}


def live(world: World, client: Client, shard: int = 0, revision: int = 5, **create: Any) -> tuple[int, int]:
    """Makes a watcher, of which the client knows; gives the shard's call and the watcher's id there."""
    client.creates(**create)
    stream, [asked] = world.etcds[shard].hears()
    world.etcds[shard].says(stream, created(asked.watch_id, revision, shard=shard))
    [reply] = client.hears()
    assert reply.created
    assert not reply.canceled
    return stream, asked.watch_id
