"""What a client asks for in a create: read from the bytes where these have the usual form, else by protobuf."""

from __future__ import annotations

from typing import Final

from esp.core.pb import rpc_pb2
from esp.core.services.watch.peek import number

FILTERS: Final = frozenset(rpc_pb2.WatchCreateRequest.FilterType.values())
"""The filters that etcd knows."""

# Tags of one byte: the number of the field, and its kind: bytes (2) or a number (0).
_CREATE = 1 << 3 | 2
_KEY = 1 << 3 | 2
_RANGE_END = 2 << 3 | 2
_START_REVISION = 3 << 3
_PROGRESS_NOTIFY = 4 << 3
_PREV_KV = 6 << 3
_WATCH_ID = 7 << 3
_FRAGMENT = 8 << 3


class Create:
    """The fields of a WatchCreateRequest; `filters` without those that etcd does not know, in order."""

    __slots__ = ("filters", "fragment", "key", "prev_kv", "progress_notify", "range_end", "start_revision", "watch_id")

    def __init__(self, key: bytes, range_end: bytes) -> None:
        self.key = key
        self.range_end = range_end
        self.start_revision = self.watch_id = 0
        self.progress_notify = self.prev_kv = self.fragment = False
        self.filters: tuple[int, ...] = ()

    @classmethod
    def of(cls, request: rpc_pb2.WatchCreateRequest) -> Create:
        """The fields of a parsed request."""
        create = cls(request.key, request.range_end)
        create.start_revision = request.start_revision
        create.progress_notify = request.progress_notify
        create.filters = tuple(sorted({each for each in request.filters if each in FILTERS}))
        create.prev_kv = request.prev_kv
        create.watch_id = request.watch_id
        create.fragment = request.fragment
        return create


def create_in(body: bytes) -> Create | None:
    """The create in a WatchRequest that has nothing else, as protobuf reads it.

    None means only that the message has to be parsed. A result means: each field comes at most once and in the order of
    the field numbers, as every protobuf library writes them, without filters.
    """
    end = len(body)
    key = range_end = b""
    try:
        if body[0] != _CREATE:
            return None
        size, at = number(body, 1)
        if at + size != end:
            return None
        if at < end and body[at] == _KEY:
            size, start = number(body, at + 1)
            at = start + size
            key = body[start:at]
        if at < end and body[at] == _RANGE_END:
            size, start = number(body, at + 1)
            at = start + size
            range_end = body[start:at]
        create = Create(key, range_end)
        if at == end:
            return create
        if body[at] == _START_REVISION:
            create.start_revision, at = number(body, at + 1)
        if at < end and body[at] == _PROGRESS_NOTIFY:
            flag, at = number(body, at + 1)
            create.progress_notify = flag != 0
        if at < end and body[at] == _PREV_KV:
            flag, at = number(body, at + 1)
            create.prev_kv = flag != 0
        if at < end and body[at] == _WATCH_ID:
            create.watch_id, at = number(body, at + 1)
        if at < end and body[at] == _FRAGMENT:
            flag, at = number(body, at + 1)
            create.fragment = flag != 0
    except IndexError:
        return None
    return create if at == end else None
