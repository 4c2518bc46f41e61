"""A client's metadata: what changes the answer of etcd, for calls that esp makes in its place, and what is for esp."""

from __future__ import annotations

from typing import Final

from esp.core.wire.hpack import Fields, encode
from esp.core.wire.request import RequestHead
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, Status

SHARD: Final = b"esp-shard"
"""Names the one shard that a call is for."""
READ: Final = b"esp-read"
"""Says how shards are read together, whatever the config says.

`snapshot` is all at one moment, `each` is each at its own, and `default` what the RPC does where nothing is configured.
"""

_OWN: Final = (SHARD, READ)
_READS: Final = (b"snapshot", b"each", b"default")
LOAD_BEARING: Final = frozenset((b"token", b"authorization", b"hasleader", b"client-api-version"))


def refuse(head: RequestHead) -> Status | None:
    """What is wrong with the metadata for esp, whatever the call is; None when nothing is."""
    said: dict[bytes, bytes] = {}
    for name, value in head.fields:
        if name in _OWN:
            if name == READ and value not in _READS:
                text = f"esp: the metadata key {READ.decode()} takes snapshot, each or default"
                return Status(Code.INVALID_ARGUMENT, text)
            if said.setdefault(name, value) != value:
                text = f"esp: the metadata key {name.decode()} comes with two different values; send one"
                return Status(Code.INVALID_ARGUMENT, text)
    return None


def load_bearing(head: RequestHead) -> Fields:
    """Whose call it is, and what it asks of etcd besides its message. Calls with the same may share a stream."""
    return [field for field in head.fields if field[0] in LOAD_BEARING]


def call_head(path: bytes, metadata: Fields) -> Forward:
    """The head of a call to a shard, as `RequestHead.forward`."""
    return path, encode(metadata)
