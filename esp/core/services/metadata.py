"""A client's metadata: fields that change etcd's answer, for the calls that esp makes itself, and esp's own fields."""

from __future__ import annotations

from typing import Final

from esp.core.auth_tokens import FIELDS
from esp.core.wire.hpack import Fields, encode
from esp.core.wire.request import RequestHead
from esp.core.wire.request_encoder import Forward
from esp.core.wire.status import Code, Status

SHARD: Final = b"esp-shard"
"""The metadata key that sends a call to the shard it names."""
READ: Final = b"esp-read"
"""The metadata key that says how this call reads several shards, whatever the config says.

`snapshot`: all shards at one moment; `each`: each shard at its own moment; `default`: as without any config.
"""

_OWN: Final = (SHARD, READ)
_READS: Final = (b"snapshot", b"each", b"default")
LOAD_BEARING: Final = frozenset((b"token", b"authorization", b"hasleader", b"client-api-version"))


def refuse(head: RequestHead) -> Status | None:
    """The refusal of a call with a fault in esp's own metadata keys; None if there is no fault."""
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
    """Whether the call has an auth token, valid or not."""
    return any(name in FIELDS for name, _ in head.fields)


def load_bearing(head: RequestHead) -> Fields:
    """The metadata that change etcd's answer: token and options. Calls with the same ones may share a stream."""
    return [field for field in head.fields if field[0] in LOAD_BEARING]


def call_head(path: bytes, metadata: Fields) -> Forward:
    """The head of a call to a shard, as `RequestHead.forward`."""
    return path, encode(metadata)
