"""A client's metadata: fields that change etcd's answer, for the calls that esp makes itself, and esp's own fields."""

from __future__ import annotations

from typing import Final

from esp.core.auth_tokens import FIELDS
from esp.core.wire.hpack import Fields, encode
from esp.core.wire.request import RequestHead
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, Status

SHARD: Final = b"esp-shard"
"""Names the one shard that a call is for."""
READ: Final = b"esp-read"
"""The way in which several shards are read, for this call, in place of the configured one.

`snapshot`: all at one moment; `each`: each shard at its own moment; `default`: as where nothing is configured.
"""

_OWN: Final = (SHARD, READ)
_READS: Final = (b"snapshot", b"each", b"default")
LOAD_BEARING: Final = frozenset((b"token", b"authorization", b"hasleader", b"client-api-version"))


def refuse(head: RequestHead) -> Status | None:
    """The fault in the metadata for esp, for a call of any kind; None without one."""
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


def has_token(head: RequestHead) -> bool:
    """Whether the call comes with an auth token, whatever that is worth."""
    return any(name in FIELDS for name, _ in head.fields)


def load_bearing(head: RequestHead) -> Fields:
    """Whose call it is, and what it asks of etcd besides its message. Calls with the same may share a stream."""
    return [field for field in head.fields if field[0] in LOAD_BEARING]


def call_head(path: bytes, metadata: Fields) -> Forward:
    """The head of a call to a shard, as `RequestHead.forward`."""
    return path, encode(metadata)
