"""Closed loops on streams: a put whose event a watcher waits for, and keepalives of leases."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

from google.protobuf.message import DecodeError

from esp.core.load.loop import ClosedLoop
from esp.core.pb import rpc_pb2
from esp.core.wire.client import ClientConnection
from esp.core.wire.client_stream import ClientStream
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.response import ResponseHead
from esp.core.wire.status import RpcError

WATCH: Final = b"/etcdserverpb.Watch/Watch"
KEEP_ALIVE: Final = b"/etcdserverpb.Lease/LeaseKeepAlive"
PUT: Final = b"/etcdserverpb.KV/Put"
MOST_BYTES: Final = 2**31 - 1


class StreamLoop(ClosedLoop):
    """Requests of one connection that are answered on one stream; each slot has one request open at any time."""

    __slots__ = ("_began", "_connection", "_reader", "_stream")

    def __init__(self, connection: ClientConnection, slots: int) -> None:
        super().__init__()
        self._connection = connection
        self._began = [0.0] * slots
        self._reader = MessageReader(MOST_BYTES)
        self._stream = _Stream(connection, self)

    def message(self, message: bytes) -> None:
        """Takes a message of the stream; raises DecodeError."""
        raise NotImplementedError

    def read(self, payload: bytes) -> None:
        """Takes a piece of the stream."""
        try:
            for message in self._reader.feed(payload):
                self.message(message)
        except (RpcError, DecodeError) as error:
            self.lost(f"the answer cannot be read: {error}")

    def settle(self, slot: int) -> None:
        """The request of a slot is answered, if it is open."""
        began = self._began[slot]
        if began:
            self._began[slot] = 0.0
            self.answered(slot, began)

    def lost(self, text: str) -> None:
        """The stream has ended: all open requests have failed, and nothing more can be sent."""
        for slot, began in enumerate(self._began):
            if began:
                self._began[slot] = 0.0
                self.failed(slot, text, goes_on=False)

    def end(self) -> None:
        """Ends the stream."""
        self._stream.cancel()
        self.flush()

    def flush(self) -> None:
        """Sends what is queued."""
        self._connection.context.flush_soon()


class _Stream(ClientStream):
    """The stream of a loop."""

    __slots__ = ("_loop",)

    def __init__(self, connection: ClientConnection, loop: StreamLoop) -> None:
        super().__init__(connection)
        self._loop = loop

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The head, or the end."""
        if end or not head.opens:
            self._loop.lost(head.outcome().message or "the stream has ended")

    def on_data(self, payload: bytes, end: bool) -> None:
        """Answers."""
        self.consumed(len(payload))
        self._loop.read(payload)

    def on_reset(self, code: int, reason: str) -> None:
        """The stream is gone."""
        self._loop.lost(reason or f"the stream was reset ({code})")


class KeepaliveLoop(StreamLoop):
    """Keepalives of some leases, one open for each."""

    __slots__ = ("_leases", "_messages", "_metadata")

    def __init__(self, connection: ClientConnection, leases: Sequence[int], metadata: bytes) -> None:
        super().__init__(connection, len(leases))
        self._metadata = metadata
        self._leases = {lease: slot for slot, lease in enumerate(leases)}
        self._messages = [prefix(rpc_pb2.LeaseKeepAliveRequest(ID=lease).SerializeToString()) for lease in leases]

    def begin(self) -> None:
        """Opens the stream, and sends the first keepalives."""
        self._connection.call(self._stream, (KEEP_ALIVE, self._metadata), b"", None, end=False)
        for slot in range(len(self._messages)):
            self.next(slot)
        self.flush()

    def next(self, slot: int) -> None:
        """Sends a keepalive."""
        self.open += 1
        self._began[slot] = perf_counter()
        self._stream.send_data(self._messages[slot], False)

    def message(self, message: bytes) -> None:
        """Takes an answer."""
        answer = rpc_pb2.LeaseKeepAliveResponse.FromString(message)
        slot = self._leases.get(answer.ID)
        if slot is None:
            return
        if answer.TTL <= 0 and self._began[slot]:
            self._began[slot] = 0.0
            self.failed(slot, "the lease has ended")
        else:
            self.settle(slot)


class _Put(ClientStream):
    """A put of which only a failure is of interest."""

    __slots__ = ("_loop", "_slot")

    def __init__(self, connection: ClientConnection, loop: WatchLoop, slot: int) -> None:
        super().__init__(connection)
        self._loop = loop
        self._slot = slot

    def on_answer(self, head: ResponseHead, payload: bytes, trailers: ResponseHead) -> None:
        """The put is done."""

    def on_headers(self, head: ResponseHead, end: bool) -> None:
        """The end."""
        status = head.outcome() if end else None
        if status is not None and status.code:
            self._loop.put_failed(self._slot, status.message)

    def on_data(self, payload: bytes, end: bool) -> None:
        """A piece of the answer."""
        self.consumed(len(payload))

    def on_reset(self, code: int, reason: str) -> None:
        """The stream is gone."""
        self._loop.put_failed(self._slot, reason or f"the stream was reset ({code})")


class WatchLoop(StreamLoop):
    """Watchers of one key each, all on one stream. A key is put when its watcher has got the event of the last put."""

    __slots__ = ("_created", "_creates", "_metadata", "_puts")

    def __init__(self, connection: ClientConnection, keys: Sequence[bytes], value: bytes, metadata: bytes) -> None:
        super().__init__(connection, len(keys))
        self._metadata = metadata
        self._created = 0
        self._puts = [prefix(rpc_pb2.PutRequest(key=key, value=value).SerializeToString()) for key in keys]
        self._creates = []
        for slot, key in enumerate(keys):
            create = rpc_pb2.WatchCreateRequest(key=key, watch_id=slot + 1)
            self._creates.append(prefix(rpc_pb2.WatchRequest(create_request=create).SerializeToString()))

    def begin(self) -> None:
        """Opens the stream, and creates the watchers; the puts begin when all are created."""
        self._connection.call(self._stream, (WATCH, self._metadata), b"", None, end=False)
        for create in self._creates:
            self._stream.send_data(create, False)
        self.flush()

    def next(self, slot: int) -> None:
        """Puts the key of a watcher."""
        self.open += 1
        self._began[slot] = perf_counter()
        if self._connection.has_room:
            call = _Put(self._connection, self, slot)
            self._connection.call_whole(call, (PUT, self._metadata), b"", self._puts[slot])
        else:
            self.put_failed(slot, self._connection.why_over or "the server takes no more calls")

    def put_failed(self, slot: int, text: str) -> None:
        """A put has failed, so there may be no event."""
        if self._began[slot]:
            self._began[slot] = 0.0
            self.failed(slot, text, goes_on=not self._connection.ended)

    def message(self, message: bytes) -> None:
        """Takes a message of the stream."""
        response = rpc_pb2.WatchResponse.FromString(message)
        if response.canceled:
            self.lost(f"a watch was canceled: {response.cancel_reason or 'compacted'}")
        elif response.created:
            self._created += 1
            if self._created == len(self._puts):
                for slot in range(len(self._puts)):
                    if not self.stopped:
                        self.next(slot)
        elif response.events:
            self.settle(response.watch_id - 1)
