"""Replaces each token in a request to one shard by the revision that the token stands for on that shard."""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from esp.core.pb import rpc_pb2
from esp.core.services.kv.txn_look import Look
from esp.core.services.pace import Pace
from esp.core.services.revision import on_shard, part_of, position_of, read_at
from esp.core.tokens import Tokens
from esp.core.varint import varint

TOKEN_BYTES: Final = 8
"""The bytes of a token in a message."""
_FILTERS = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")


def translate_filters(tokens: Tokens, request: rpc_pb2.RangeRequest, shard: str) -> bool:
    """Replaces the tokens in the revision filters of a Range to one shard; False if there are none.

    Raises:
        RpcError: as `on_shard`.
    """
    found = False
    for name in _FILTERS:
        number = getattr(request, name)
        if tokens.is_token(number):
            setattr(request, name, on_shard(tokens, number, shard))
            found = True
    return found


def translate_txn(tokens: Tokens, message: bytes, found: Look, shard: str) -> Generator[None, None, bytes]:
    """The message of a transaction to one shard, with its tokens replaced, in steps.

    Raises:
        RpcError: as `on_shard`, and as `read_at` for revisions to read at.
    """
    if not found.tokens:
        return message
    written, pace = bytearray(message), Pace()
    for noted in found.tokens:
        if pace.is_over():
            yield
        place = slice(noted >> 1, (noted >> 1) + TOKEN_BYTES)
        token = message[place]
        number = sum((byte & 0x7F) << 7 * index for index, byte in enumerate(token))
        position = position_of(tokens, number)
        assert position is not None, "only tokens are noted"
        revision = read_at(position, shard) if noted & 1 else part_of(position, shard)
        written[place] = varint(revision, TOKEN_BYTES)  # in as many bytes as the token, so that no length changes
    return bytes(written)
