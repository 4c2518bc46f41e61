"""Tokens in a request that goes to one shard: each becomes the revision that it stands for on that shard."""

from __future__ import annotations

from collections.abc import Generator

from esp.core.pb import rpc_pb2
from esp.core.services.kv.txn import Look
from esp.core.services.pace import Pace
from esp.core.services.revision import on_shard, position_of, read_at
from esp.core.tokens import Tokens

_COMPARED = ("mod_revision", "create_revision")
_FILTERS = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")


def translate_filters(tokens: Tokens, request: rpc_pb2.RangeRequest, shard: str) -> None:
    """Writes the revisions by which a Range filters for the one shard that it goes to.

    Raises:
        RpcError: as `on_shard`.
    """
    for name in _FILTERS:
        number = getattr(request, name)
        if tokens.is_token(number):
            setattr(request, name, on_shard(tokens, number, shard))


def translate_txn(tokens: Tokens, found: Look, shard: str) -> Generator[None, None, None]:
    """Writes the revisions in a transaction and in those nested in it for the one shard that it goes to, in steps.

    Raises:
        RpcError: as `on_shard`, and as `read_at` for what it reads.
    """
    pace = Pace()
    for compare in found.compares:
        if pace.is_over():
            yield
        name = compare.WhichOneof("target_union")
        if name in _COMPARED:
            setattr(compare, name, on_shard(tokens, getattr(compare, name), shard))
    for asked in found.reads:
        if pace.is_over():
            yield
        position = position_of(tokens, asked.revision)
        if position is not None:
            asked.revision = read_at(position, shard)
        translate_filters(tokens, asked, shard)
