"""Revisions over several shards: the revision in a merged header, and the meaning of a client's number on each shard.

An answer of several shards has a vector token (`esp.core.tokens`) as its header's revision. In a request, a token means
for each shard that shard's revision in the vector, so esp translates the number before the shard gets it. A token that
this proxy does not know gets etcd's "compacted". That is true, because this history is not available here; and every
client then lists again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from esp.core import errors
from esp.core.identity import Identity
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.tokens import Position, Tokens


def merged_header(
    headers: Sequence[rpc_pb2.ResponseHeader], identity: Identity, revision: int = 0
) -> rpc_pb2.ResponseHeader:
    """The header for an answer merged from answers with these headers.

    Args:
        headers: Headers of the answers, at least one.
        identity: The ids under which esp answers.
        revision: Revision of the merged header; 0 for the lowest of `headers`, as in answers that are not about keys,
            such as a lease's. A watch that begins at the lowest may show a change twice, but never misses one.
    """
    return rpc_pb2.ResponseHeader(
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        revision=revision or min(header.revision for header in headers),
        raft_term=max(header.raft_term for header in headers),
    )


def token(routing: Routing, revisions: Mapping[str, int], *, of_message: bool = False) -> int:
    """The token for these revisions, by the names of their shards; `of_message` as for `Tokens.mint`."""
    return routing.tokens.mint(routing.layout.vector(revisions), of_message=of_message)


def position_of(tokens: Tokens, number: int) -> Position | None:
    """The meaning of a revision that a client sent, if it is a token; None for any other number.

    Raises:
        RpcError: this proxy does not know the token.
        UnknownTokenError: another proxy may know it (`Tokens.refused`).
    """
    if not tokens.is_token(number):
        return None
    position = tokens.position(number)
    if position is None:
        raise errors.COMPACTED.error()
    return position


def on_shard(tokens: Tokens, number: int, shard: str) -> int:
    """A revision that a client sent, as `shard` counts.

    Raises:
        RpcError: the revision is a token that this proxy does not know, or that has no revision for this shard.
    """
    position = position_of(tokens, number)
    if position is None:
        return number
    return part_of(position, shard)


def part_of(position: Position, shard: str) -> int:
    """The revision of `shard` at a position.

    Raises:
        RpcError: the position has no revision for this shard.
    """
    revision = position.revision(shard)
    if not revision:
        raise errors.COMPACTED.error()
    return revision


def read_at(position: Position, shard: str) -> int:
    """The revision at which `shard` is read for a position.

    Raises:
        RpcError: the position has no revision for this shard, or is a token with an offset, which is no moment.
    """
    if position.offset:
        raise errors.COMPACTED.error()
    return part_of(position, shard)
