"""Auth tokens over several shards: one token of a client stands for a token of each shard.

A shard's token means something in that shard only. So a client that authenticates gets a *composite* token, which
holds the tokens of all shards by name: `esp1:CHECKSUM:NAME=TOKEN,NAME=TOKEN`, in the order of the names. No proxy
remembers a composite token, so any proxy with these shards can take the token apart, and the token outlives its proxy.
A composite token is as secret as its parts.

A shard gets its own part only. `OwnParts` takes the token apart at the one place where heads of calls leave for a
shard, so no code that asks a shard can leave this out. If a composite token lacks a part for one of the shards in
force, all shards get `INVALID` in its place (`TokenCheck`). A shard whose auth is on refuses `INVALID`, as any token
that it does not know. A shard whose auth is off ignores it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar
from zlib import crc32

from esp.core.wire.divided import COMPOSITE
from esp.core.wire.hpack import Fields, decode, encode

INVALID: Final = b"esp-no-token-of-these-shards"
"""The token that shards get in place of one that esp cannot take apart; no simple token and no JWT looks like this."""
FIELDS: Final = frozenset((b"token", b"authorization"))
"""The metadata in which etcd looks for a token, in this order."""
MAX_PARTS: Final = 2048
"""Shards whose tokens one token can hold."""
MEMO_ENTRIES: Final = 1024
MEMO_BYTES: Final = 4_194_304
"""The bounds of a memo: its entries, and the bytes of their keys and values together."""

_BEARER: Final = b"Bearer "
_PART: Final = re.compile(rb"[!-+\--~]+")  # printable, without blank and comma; so are simple tokens and JWTs

Value = TypeVar("Value", bytes, bool)


class _Own(bytes):
    """A block that stands for a token of esp's own; no bytes of a client are ever of this type."""

    __slots__ = ()


OWN: Final = _Own()
"""The metadata of a call that esp makes for itself: in their place a shard gets the token of esp's own user there."""


class NoToken(ValueError):
    """A shard's token is of a form that no etcd gives, and cannot be part of a composite token."""

    def __init__(self, shard: str) -> None:
        super().__init__(shard)
        self.shard = shard


def join(tokens: Mapping[str, str]) -> str:
    """The composite token of these tokens, by the names of their shards.

    Raises:
        NoToken: one of the tokens cannot be a part of a composite token.
    """
    for shard, token in tokens.items():
        if not _PART.fullmatch(token.encode()):
            raise NoToken(shard)
    body = ",".join(f"{name}={tokens[name]}" for name in sorted(tokens))
    return f"{COMPOSITE.decode()}{crc32(body.encode()):08x}:{body}"


def split(token: bytes) -> dict[str, bytes] | None:
    """The shards' tokens in a composite token, by name; None if `token` is not composite, or damaged.

    The inverse of `join`. Each set of tokens has exactly one form; any other form is None. The work is bounded, because
    any client can write a valid checksum.
    """
    head, _, body = token.removeprefix(COMPOSITE).partition(b":")
    if not token.startswith(COMPOSITE) or head != b"%08x" % crc32(body):
        return None
    parts = body.split(b",", MAX_PARTS)
    if len(parts) > MAX_PARTS:
        return None
    tokens: dict[str, bytes] = {}
    last = b""
    for part in parts:
        name, _, value = part.partition(b"=")
        if name <= last or not name.isascii() or not _PART.fullmatch(value):
            return None
        last = name
        tokens[name.decode()] = value
    return tokens


def _composite(value: bytes) -> dict[str, bytes] | None:
    """The shards' tokens in the value of a field, with or without "Bearer" in front; None as for `split`."""
    return split(value.removeprefix(_BEARER))


class _Memo(Generic[Value]):
    """A memo of a function of byte strings that come again and again. A full memo is emptied.

    Attributes:
        made: how often the function was called, because the memo did not have the result.
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
        memo: the results, by encoded metadata.
        own: the metadata that the shard gets in place of `OWN`.
    """

    __slots__ = ("_shard", "memo", "own")

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self.memo = _Memo(self._of)
        self.own = b""

    def of(self, metadata: bytes) -> bytes:
        """The metadata for this shard, made of a client's; both are encoded as in `RequestHead.forward`."""
        return self.own if metadata is OWN else self.memo.get(metadata)

    def _of(self, metadata: bytes) -> bytes:
        return encode([(name, self._part(value) if name in FIELDS else value) for name, value in decode(metadata)])

    def _part(self, value: bytes) -> bytes:
        if COMPOSITE not in value:
            return value
        parts = _composite(value)
        if parts is None or self._shard not in parts:
            return INVALID
        # Older etcds do not take a token behind "Bearer", so the word stays only where the client sent it.
        return value[: -len(value.removeprefix(_BEARER))] + parts[self._shard]


class TokenCheck:
    """Tells the tokens that hold a part for each of these shards from other tokens.

    Attributes:
        memo: the verdicts, by token.
    """

    __slots__ = ("_shards", "memo")

    def __init__(self, shards: Iterable[str]) -> None:
        self._shards = frozenset(shards)
        self.memo = _Memo(self._holds_all)

    def checked(self, fields: Fields) -> Fields:
        """A request's fields, with `INVALID` in place of a token that lacks a part for one of these shards."""
        return [
            (name, INVALID) if name in FIELDS and not self.memo.get(value) else (name, value) for name, value in fields
        ]

    def _holds_all(self, value: bytes) -> bool:
        parts = _composite(value)
        return parts is not None and self._shards <= parts.keys()
