"""WatchResponses: those of a shard, passed on as the bytes that came, and messages that esp makes itself.

etcd writes the fields of a message in the order of their numbers: the header, the watch id, then all others. So esp
keeps the bytes on both sides of the watch id. The message for another watcher is the same bytes with another id
between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from esp.core.identity import Identity
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.watch.create import Create
from esp.core.services.watch.peek import CREATED, WATCH_ID
from esp.core.varint import varint
from esp.core.wire.frames import pack_u32
from esp.core.wire.message import prefix

NO_ID: Final = -1
"""The watch id of replies to refused creates, and of progress for all watchers of a stream."""
DUPLICATE_ID: Final = "mvcc: duplicate watch ID provided on the WatchStream"

_PROGRESS_NOTIFY: Final = bytes((4 << 3, 1))
_HEADER: Final = 1 << 3 | 2
_FRAGMENT: Final = bytes((7 << 3, 1))
_EVENTS: Final = bytes((11 << 3 | 2,))
_parse = rpc_pb2.WatchResponse.FromString
_OF_KEY: Final = b"\0\0\0\0%c\x0a%c\x0a%c%b\x20\x01\x38%b"
_OF_RANGE: Final = b"\0\0\0\0%c\x0a%c\x0a%c%b\x12%c%b\x20\x01\x38%b"
"""Creates as nearly all are, with their prefixes: see `Spec.create_request`."""
_SHORT: Final = 0x80 - 9
"""Below so many bytes of keys and number, each length in a create is one byte."""
_new_spec = tuple.__new__  # half as long as the constructor that NamedTuple makes


class Spec(NamedTuple):
    """The range and options of a create, without the revision to begin with. Equal specs see equal messages."""

    key: bytes
    range_end: bytes
    filters: tuple[int, ...]
    prev_kv: bool
    fragment: bool

    @classmethod
    def of(cls, create: Create, key: bytes, range_end: bytes) -> Spec:
        """The spec of a client's create, perhaps for another range."""
        return _new_spec(cls, (key, range_end, create.filters, create.prev_kv, create.fragment))

    def create_request(self, watch_id: int, start_revision: int) -> bytes:
        """The create request, with its gRPC prefix, in the bytes that protobuf would write.

        The request always asks for progress, which moves the revision to resume from: a quiet watcher's revision does
        not fall behind a compaction.
        """
        key, range_end, filters, prev_kv, fragment = self
        number = varint(watch_id)
        size = len(key) + len(range_end) + len(number)
        if size < _SHORT and key and range_end and not (start_revision or filters or prev_kv or fragment):
            to = len(range_end)
            return _OF_RANGE % (size + 9, size + 7, len(key), key, to, range_end, number)
        if size < _SHORT and key and not (range_end or start_revision or filters or prev_kv or fragment):
            return _OF_KEY % (size + 7, size + 5, len(key), key, number)
        create = b"\x0a" + varint(len(key)) + key if key else b""
        if range_end:
            create += b"\x12" + varint(len(range_end)) + range_end
        if start_revision:
            create += b"\x18" + varint(start_revision)
        create += _PROGRESS_NOTIFY
        if filters:
            create += b"\x2a" + varint(len(filters)) + bytes(filters)  # etcd's are below 128
        if prev_kv:
            create += b"\x30\x01"
        create += b"\x38" + number
        if fragment:
            create += b"\x40\x01"
        length = varint(len(create))
        return b"\0" + pack_u32(1 + len(length) + len(create)) + b"\x0a" + length + create


PROGRESS_REQUEST: Final = prefix(
    rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()).SerializeToString()
)


def cancel_request(watch_id: int) -> bytes:
    """The request to cancel, with its gRPC prefix."""
    cancel = rpc_pb2.WatchCancelRequest(watch_id=watch_id)
    return prefix(rpc_pb2.WatchRequest(cancel_request=cancel).SerializeToString())


class Response:
    """A WatchResponse: its bytes around the watch id, and the parsed message.

    Attributes:
        head: the header's field, as it came.
        tail: everything behind the watch id, as it came.
        message: the parsed message.
        revision: the header's revision.
        first, last: the lowest and the highest revision of the events; 0 without events.
        fragment: more of the same response follows.
    """

    __slots__ = ("_encoded", "_under", "first", "fragment", "head", "last", "message", "revision", "tail")

    def __init__(self, head: bytes, tail: bytes, message: rpc_pb2.WatchResponse) -> None:
        self.head = head
        self.tail = tail
        self.message = message
        self.revision = message.header.revision
        self.fragment = message.fragment
        self._under: tuple[int, Response] | None = None
        self._encoded: dict[int, bytes] = {}
        events = message.events
        if events:
            self.first = events[0].kv.mod_revision
            self.last = events[-1].kv.mod_revision
        else:
            self.first = self.last = 0

    @classmethod
    def parse(cls, body: bytes) -> Response:
        """The message in `body`, which has no gRPC prefix.

        Raises:
            DecodeError: the body is no WatchResponse.
        """
        message = _parse(body)
        watch_id = message.watch_id
        head, tail = _around_id(body, watch_id) or _apart(message)
        return cls(head, tail, message)

    @classmethod
    def of(cls, message: rpc_pb2.WatchResponse) -> Response:
        """A message that esp has made."""
        return cls.parse(message.SerializeToString())

    @property
    def size(self) -> int:
        """Bytes of the message, about."""
        return len(self.head) + len(self.tail)

    def encode(self, watch_id: int) -> bytes:
        """The message for the watcher `watch_id`, with its gRPC prefix: one object, however many clients get it."""
        data = self._encoded.get(watch_id)
        if data is None:
            field = _id_field(watch_id)
            size = len(self.head) + len(field) + len(self.tail)
            data = self._encoded[watch_id] = b"\0" + pack_u32(size) + self.head + field + self.tail
        return data

    def keep(self, wanted: Callable[[kv_pb2.Event], bool]) -> Response | None:
        """The message with the wanted events only; None when there are none."""
        kept = [event for event in self.message.events if wanted(event)]
        if len(kept) == len(self.message.events):
            return self
        if not kept:
            return None
        message = rpc_pb2.WatchResponse()
        message.header.CopyFrom(self.message.header)
        message.watch_id = self.message.watch_id
        message.fragment = self.fragment
        message.events.extend(kept)
        return Response.of(message)

    def marked(self, *, fragment: bool) -> Response:
        """The message, with the mark `fragment` (more of the response follows) set or removed."""
        if self.fragment == fragment:
            return self
        tail = self.tail
        if fragment and tail.startswith(_EVENTS):
            marked = Response(self.head, _FRAGMENT + tail, self.message)
        elif not fragment and tail.startswith(_FRAGMENT + _EVENTS):
            marked = Response(self.head, tail[len(_FRAGMENT) :], self.message)
        else:
            message = rpc_pb2.WatchResponse()
            message.CopyFrom(self.message)
            message.fragment = fragment
            return Response.of(message)
        marked.fragment = fragment
        return marked

    def since(self, revision: int) -> Response | None:
        """The message with the events of `revision` and later only; None when there are none."""
        if self.first >= revision:
            return self
        if self.last < revision:
            return None
        return self.keep(lambda event: event.kv.mod_revision >= revision)

    def before(self, revision: int) -> Response | None:
        """The message with the events of revisions before `revision` only; None when there are none."""
        if self.last < revision:
            return self
        if self.first >= revision:
            return None
        return self.keep(lambda event: event.kv.mod_revision < revision)

    def lowered(self, revision: int) -> Response:
        """The message with this revision in its header where its own is higher."""
        if self.revision <= revision:
            return self
        header = rpc_pb2.ResponseHeader()
        header.CopyFrom(self.message.header)
        header.revision = revision
        lowered = Response(header_field(header), self.tail, self.message)
        lowered.revision, lowered.fragment = revision, self.fragment
        return lowered

    def under(self, identity: Identity, token: int) -> Response:
        """The message with esp's own ids and a token in its header, for a watcher over several shards.

        Watchers at the same position share the object.
        """
        if self._under is None or self._under[0] != token:
            header = rpc_pb2.ResponseHeader()
            header.CopyFrom(self.message.header)
            header.cluster_id = identity.cluster_id
            header.member_id = identity.member_id
            header.revision = token
            self._under = token, Response(header_field(header), self.tail, self.message)
            self._under[1].fragment = self.fragment
        return self._under[1]


def as_one(responses: Sequence[Response]) -> tuple[Response, ...]:
    """Messages marked as the fragments of one response."""
    last = len(responses) - 1
    return tuple(response.marked(fragment=at < last) for at, response in enumerate(responses))


def joined(responses: Sequence[Response]) -> Response:
    """The fragments of one response as that response, under the last one's header."""
    parts = [response.marked(fragment=False) for response in responses]
    if len(parts) == 1:
        return parts[0]
    message = rpc_pb2.WatchResponse()
    message.CopyFrom(parts[0].message)
    message.fragment = False
    for part in parts[1:]:
        message.events.extend(part.message.events)
    return Response(parts[-1].head, b"".join([part.tail for part in parts]), message)


def compacted(response: Response, compact_revision: int) -> Response:
    """The end of a watcher, with the header of its last message: history begins at `compact_revision`."""
    header = rpc_pb2.ResponseHeader()
    header.CopyFrom(response.message.header)
    header.revision = 0  # as etcd has it there
    return canceled(header_field(header), compact_revision)


def _around_id(body: bytes, watch_id: int) -> tuple[bytes, bytes] | None:
    """The bytes before and behind the watch id; None if the fields are not in the order of their numbers."""
    at = 0
    if body and body[0] == _HEADER:
        if len(body) < 2 or body[1] > 0x7F:
            return None
        at = 2 + body[1]
    if not watch_id:
        return None if body[at : at + 1] == WATCH_ID else (body[:at], body[at:])
    id_field = _id_field(watch_id)
    if not body.startswith(id_field, at):
        return None
    return body[:at], body[at + len(id_field) :]


def _apart(message: rpc_pb2.WatchResponse) -> tuple[bytes, bytes]:
    """The bytes before and behind the watch id, for a message in another order: serialises the fields anew."""
    rest = rpc_pb2.WatchResponse()
    rest.CopyFrom(message)
    rest.ClearField("header")
    rest.ClearField("watch_id")
    return header_field(message.header) if message.HasField("header") else b"", rest.SerializeToString()


@lru_cache(4096)
def _id_field(watch_id: int) -> bytes:
    """The field of the watch id; absent for 0, as proto3 has it."""
    return WATCH_ID + varint(watch_id) if watch_id else b""


def encoded(head: bytes, watch_id: int, tail: bytes) -> bytes:
    """The message of `head` and `tail` for the watcher `watch_id`, with its gRPC prefix."""
    field = _id_field(watch_id)
    return b"".join((b"\0", pack_u32(len(head) + len(field) + len(tail)), head, field, tail))


def header_field(header: rpc_pb2.ResponseHeader) -> bytes:
    """The field that holds `header`: a message's head."""
    return rpc_pb2.WatchResponse(header=header).SerializeToString()


def raised(head: bytes, revision: int) -> bytes:
    """`head` with `revision` where its own is lower."""
    header = rpc_pb2.WatchResponse.FromString(head).header
    if header.revision >= revision:
        return head
    header.revision = revision
    return header_field(header)


def created(head: bytes) -> Response:
    """The reply to a create that was granted."""
    return Response.parse(head + CREATED)


def refused(head: bytes, reason: str) -> Response:
    """The reply to a create that was refused."""
    return _behind(head, rpc_pb2.WatchResponse(watch_id=NO_ID, created=True, canceled=True, cancel_reason=reason))


def canceled(head: bytes, compact_revision: int = 0) -> Response:
    """The end of a watcher: the client has canceled it, or its history begins at `compact_revision`."""
    return _behind(head, rpc_pb2.WatchResponse(canceled=True, compact_revision=compact_revision))


def _behind(head: bytes, message: rpc_pb2.WatchResponse) -> Response:
    return Response.parse(head + message.SerializeToString())
