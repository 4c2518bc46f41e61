"""An HTTP/2 server on a real port that says what the test makes it say, for what no etcd does on demand.

    async with ScriptedEtcd() as etcd:
        connection = await etcd.accepts()
        call = await connection.hears()
        connection.says(headers(call.stream, HEAD + trailers(), end=True))

It is a peer on the wire, and nothing of an etcd: only the version, which a shard asks every member for, it tells by
itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from hpack import Decoder

from esp.core.config import Endpoint
from esp.core.pb import rpc_pb2
from esp.core.wire import frames
from esp.core.wire.frames import PREFACE, SETTINGS_ACK, settings
from esp.core.wire.status import Code, Status
from tests.core.wire.conversation import HEAD, Frame, data, headers, message, ping, split, trailers, window

STATUS = b"/etcdserverpb.Maintenance/Status"
LOCK_ESP = b"/v3lockpb.Lock/Esp"
"""A method that no etcd has: esp asks for it to tell a client port from a peer port."""
VERSION = "3.6.99"
UNTOLD = Status(Code.UNIMPLEMENTED, "not told")


@dataclass
class HeardCall:
    """A call as far as it was heard."""

    stream: int
    fields: dict[bytes, bytes]
    body: bytearray = field(default_factory=bytearray)
    whole: bool = False

    @property
    def path(self) -> bytes:
        return self.fields[b":path"]


class ScriptedConnection:
    """One connection to it.

    Attributes:
        calls: every call heard, but for those after the version, in order.
        statuses: how often it was asked for its version.
        untold: those of these questions that it has not answered, as it does not tell (`ScriptedEtcd.tells`).
        silent: acknowledges, answers and grants nothing from here on.
    """

    def __init__(self, etcd: ScriptedEtcd, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.etcd = etcd
        self.calls: list[HeardCall] = []
        self.statuses = 0
        self.untold: list[HeardCall] = []
        self.silent = False
        self.closed = False
        self._streams: dict[int, HeardCall] = {}
        self._answered: set[int] = set()
        self._reader = reader
        self._writer = writer
        self._heard: list[Frame] = []
        self._news = asyncio.Event()
        self._decoder = Decoder()

    async def run(self) -> None:
        try:
            await self._reader.readexactly(len(PREFACE))
            while True:
                head = await self._reader.readexactly(frames.HEADER_SIZE)
                body = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                (frame,) = split(head + body)
                self._on(frame)
                self._heard.append(frame)
                self._news.set()
                if self.etcd.on_frame is not None:
                    self.etcd.on_frame(self, frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed = True
            self._news.set()
            self._writer.close()

    def _on(self, frame: Frame) -> None:
        call = self._streams.get(frame.stream)
        if frame.kind == frames.HEADERS:
            call = self._streams[frame.stream] = HeardCall(
                frame.stream, dict(self._decoder.decode(frame.payload, raw=True))
            )
            if call.path == STATUS:
                self.statuses += 1
            elif call.path != LOCK_ESP:
                self.calls.append(call)
                self.etcd.calls.append(call)
        elif frame.kind == frames.DATA:
            assert call is not None
            call.body += frame.payload
        if self.silent:
            return
        if frame.kind == frames.SETTINGS and not frame.flags & frames.ACK:
            self.says(SETTINGS_ACK)
        elif frame.kind == frames.PING and not frame.flags & frames.ACK:
            self.says(ping(frame.payload, ack=True))
        elif frame.kind == frames.DATA and frame.payload:
            self.says(window(0, len(frame.payload)), window(frame.stream, len(frame.payload)))
        if call is not None and frame.kind in (frames.DATA, frames.HEADERS) and frame.flags & frames.END_STREAM:
            call.whole = True
            if call.path == LOCK_ESP:
                untold = Status(Code.UNIMPLEMENTED, "unknown method Esp for service v3lockpb.Lock")
                self.says(headers(call.stream, HEAD + trailers(untold), end=True))
            elif call.path == STATUS and self.etcd.version is None:
                self.says(headers(call.stream, HEAD + trailers(self.etcd.untold), end=True))
            elif call.path == STATUS and self.etcd.tells:
                header = rpc_pb2.ResponseHeader(revision=self.etcd.revision)
                status = rpc_pb2.StatusResponse(header=header, version=self.etcd.version, leader=self.etcd.leader)
                self.answers(call, status.SerializeToString())
            elif call.path == STATUS:
                self.untold.append(call)

    def call(self, stream: int) -> HeardCall | None:
        """The call on that stream, as far as it was heard."""
        return self._streams.get(stream)

    def answered(self, stream: int) -> bool:
        """Whether anything of an answer was said on that stream."""
        return stream in self._answered

    def says(self, *said: bytes) -> None:
        self._answered.update(f.stream for f in split(b"".join(said)) if f.kind == frames.HEADERS)
        if not self._writer.is_closing():
            self._writer.write(b"".join(said))

    def answers(self, call: HeardCall, content: bytes = b"") -> None:
        """OK, with one message."""
        stream = call.stream
        self.says(headers(stream, HEAD), data(stream, message(content)), headers(stream, trailers(), end=True))

    async def _until(self, found: object) -> object:
        while not (what := found()):  # type: ignore[operator]
            assert not self.closed, "the connection has ended"
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 20)
        return what

    async def hears(self) -> HeardCall:
        """The next call that is whole."""
        call = await self._until(lambda: next((c for c in self.calls if c.whole), None))
        assert isinstance(call, HeardCall)
        self.calls.remove(call)
        return call

    async def hears_head(self) -> HeardCall:
        """The next call, whole or not."""
        await self._until(lambda: self.calls)
        return self.calls.pop(0)

    async def hears_frame(self, kind: int, stream: int | None = None) -> Frame:
        """The next frame of that kind."""

        def found() -> Frame | None:
            return next((f for f in self._heard if f.kind == kind and stream in (None, f.stream)), None)

        frame = await self._until(found)
        assert isinstance(frame, Frame)
        self._heard.remove(frame)
        return frame

    async def ends(self) -> None:
        """esp has closed it."""
        while not self.closed:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 20)

    def hangs_up(self, *, abort: bool = False) -> None:
        """Closes it, after what was said; or at once, with a TCP reset."""
        if abort:
            self._writer.transport.abort()
        else:
            self._writer.close()


class ScriptedEtcd:
    """The listener.

    Attributes:
        greeting: the settings it begins with; None: it says nothing at all.
        calls: every call heard on any connection, but for those after the version.
        version, revision, leader: what it says of itself; no version: `untold`, an error.
        tells: whether it answers that at all.
        on_frame: called with every frame heard.
    """

    def __init__(self, greeting: dict[int, int] | None = {}, *, silent: bool = False, port: int = 0) -> None:  # noqa: B006
        self.greeting = greeting
        self.port = port
        self.silent = silent
        self.version: str | None = VERSION
        self.untold = UNTOLD
        self.tells = True
        self.revision = 1
        self.leader = 7
        self.calls: list[HeardCall] = []
        self.connections: list[ScriptedConnection] = []
        self.on_frame = None
        self._new: asyncio.Queue[ScriptedConnection] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.endpoint = Endpoint("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = ScriptedConnection(self, reader, writer)
        connection.silent = self.silent
        if self.greeting is not None:
            connection.says(settings(self.greeting))
        self.connections.append(connection)
        self._new.put_nowait(connection)
        await connection.run()

    async def accepts(self) -> ScriptedConnection:
        """The next connection."""
        return await asyncio.wait_for(self._new.get(), 20)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self.connections:
            connection.hangs_up(abort=True)
            if kind is None:
                await connection.ends()
