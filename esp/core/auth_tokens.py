"""Auth tokens over several shards: one token of a client stands for a token of each shard.

A shard's token means something in that shard only. So a client that authenticates gets a *composite* token, which
holds the tokens of all shards by name: `esp1:CHECKSUM:NAME=TOKEN,NAME=TOKEN`, in the order of the names. Nothing is
remembered of it, so any proxy with these shards takes it apart, and a token outlives its proxy. It is as secret as its
parts.

A shard gets its own part only. That is seen to where a call's head leaves for a shard (`OwnParts`), so that no way of
asking a shard can pass by it. A composite token that is none of all shards in force is not taken apart: all shards get
`INVALID` in its place (`TokenCheck`), which each refuses as it refuses a token that it does not know, where its auth is
on, and takes no notice of where it is off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar
from urllib.parse import quote, unquote_to_bytes
from zlib import crc32

from esp.core.wire.hpack import COMPOSITE, Fields, decode, encode

INVALID: Final = b"esp-no-token-of-these-shards"
"""What shards get in place of a token that esp cannot take apart; neither a simple token nor a JWT looks like it."""
FIELDS: Final = frozenset((b"token", b"authorization"))
"""The metadata in which etcd looks for a token, in this order."""
MEMO_ENTRIES: Final = 1024
MEMO_BYTES: Final = 4_194_304
"""What a memo may hold: entries, and bytes of what they are found by and of what they hold."""

_BEARER: Final = b"Bearer "
_PLAIN: Final = re.compile(rb"[!-~]+")  # printable, and no blank: what a header field carries as it is
_KEPT: Final = "!#$&'()*+/:;?@[]^`{|}"  # beside letters, digits and "_.-~"; "%", "=", "," and the rest are quoted

Value = TypeVar("Value", bytes, bool)


class _Own(bytes):
    """A block that stands for a token of esp's own; no bytes of a client are ever of this type."""

    __slots__ = ()


OWN: Final = _Own()
"""The metadata of a call that esp makes for itself: in their place a shard gets the token of esp's own user there."""


class NoToken(ValueError):
    """A shard's token cannot be sent in a header."""

    def __init__(self, shard: str) -> None:
        super().__init__(shard)
        self.shard = shard


def join(tokens: Mapping[str, str]) -> str:
    """The composite token of these tokens, by the names of their shards.

    Raises:
        NoToken: one cannot be sent in a header.
    """
    for shard, token in tokens.items():
        if not _PLAIN.fullmatch(token.encode()):
            raise NoToken(shard)
    body = ",".join(f"{name}={quote(tokens[name], safe=_KEPT)}" for name in sorted(tokens))
    return f"{COMPOSITE.decode()}{crc32(body.encode()):08x}:{body}"


def split(token: bytes) -> dict[str, bytes] | None:
    """The shards' tokens that a composite token holds, by name; None for what is none, or not whole.

    The inverse of `join`: each set of tokens has one form, and no other is taken.
    """
    head, _, body = token.removeprefix(COMPOSITE).partition(b":")
    if not token.startswith(COMPOSITE) or head != b"%08x" % crc32(body):
        return None
    tokens: dict[str, bytes] = {}
    for part in body.split(b","):
        name, _, quoted = part.partition(b"=")
        value = unquote_to_bytes(quoted)
        if not name or not name.isascii() or not _PLAIN.fullmatch(value):
            return None
        tokens[name.decode()] = value
    same = join({name: value.decode() for name, value in tokens.items()})
    return tokens if same.encode() == token else None


def _composite(value: bytes) -> dict[str, bytes] | None:
    """The shards' tokens in the value of a field: as `split`, whatever kind of token the field says it is."""
    return split(value.removeprefix(_BEARER))


class _Memo(Generic[Value]):
    """What was made of a few byte strings that come again and again; starts anew when it is full.

    Attributes:
        made: how often something was made, because it was not known.
    """

    __slots__ = ("_bytes", "_known", "_make", "made")

    def __init__(self, make: Callable[[bytes], Value]) -> None:
        self._make: Callable[[bytes], Value] = make
        self._known: dict[bytes, Value] = {}
        self._bytes = 0
        self.made = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: bytes) -> Value:
        known = self._known.get(key)
        if known is None:
            known = self._make(key)
            self.made += 1
            size = len(key) + (len(known) if isinstance(known, bytes) else 0)
            if len(self._known) >= MEMO_ENTRIES or self._bytes + size > MEMO_BYTES:
                self._known.clear()
                self._bytes = 0
            if size <= MEMO_BYTES:
                self._known[key] = known
                self._bytes += size
        return known


class OwnParts:
    """Clients' metadata as one shard gets them: in place of a composite token, that shard's part of the token.

    Attributes:
        memo: what was made of encoded metadata.
        own: what the shard gets in place of `OWN`.
    """

    __slots__ = ("_shard", "memo", "own")

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self.memo = _Memo(self._of)
        self.own = b""

    def of(self, metadata: bytes) -> bytes:
        """What this shard gets of metadata, both encoded as in `RequestHead.forward`."""
        return self.own if metadata is OWN else self.memo.get(metadata)

    def _of(self, metadata: bytes) -> bytes:
        return encode([(name, self._part(value) if name in FIELDS else value) for name, value in decode(metadata)])

    def _part(self, value: bytes) -> bytes:
        if COMPOSITE not in value:
            return value
        parts = _composite(value)
        if parts is None or self._shard not in parts:
            return INVALID
        # Not every etcd takes a token after that word.
        return value[: -len(value.removeprefix(_BEARER))] + parts[self._shard]


class TokenCheck:
    """Which tokens of clients hold a part for each of these shards.

    Attributes:
        memo: what was found out about tokens.
    """

    __slots__ = ("_shards", "memo")

    def __init__(self, shards: Iterable[str]) -> None:
        self._shards = frozenset(shards)
        self.memo = _Memo(self._holds_all)

    def checked(self, fields: Fields) -> Fields:
        """A request's fields, with `INVALID` in place of a token that is none of all these shards."""
        return [
            (name, INVALID) if name in FIELDS and not self.memo.get(value) else (name, value) for name, value in fields
        ]

    def _holds_all(self, value: bytes) -> bool:
        parts = _composite(value)
        return parts is not None and self._shards <= parts.keys()
