"""The metadata of a client's call that changes what etcd answers, for calls that esp makes in its place."""

from __future__ import annotations

from typing import Final

from esp.core.wire.hpack import Fields, encode
from esp.core.wire.request import RequestHead
from esp.core.wire.request_encoder import Forward

_LOAD_BEARING: Final = frozenset((b"token", b"authorization", b"hasleader", b"client-api-version"))


def load_bearing(head: RequestHead) -> Fields:
    """Whose call it is, and what it asks of etcd besides its message. Calls with the same may share a stream."""
    return [field for field in head.fields if field[0] in _LOAD_BEARING]


def call_head(path: bytes, metadata: Fields) -> Forward:
    """The head of a call to a shard, as `RequestHead.forward`."""
    return path, encode(metadata)
