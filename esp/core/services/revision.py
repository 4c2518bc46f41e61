"""Revisions where more than one shard is concerned: what an answer's header says, and what a client's number means.

An answer of several shards bears a vector token (`esp.core.tokens`) as its header's revision. A client that gives it
back means, on each shard, that shard's revision in the vector; so a number of a request is translated before the shard
sees it. One that this proxy does not know gets etcd's "compacted": it is true that this history cannot be had here, and
every client then lists again.
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
    """The header for an answer merged from answers with these headers; there must be one at least.

    Args:
        headers: Those of the answers.
        identity: Who answers.
        revision: What it says; 0 for the lowest of theirs. That may show something twice to who watches from it, but
            never hides a change. It is for answers that are not about keys, such as a lease's.
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
    """What a revision that a client sent stands for, if it is a token; None for any other number.

    Raises:
        RpcError: it is a token that is not known here.
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
        RpcError: it is a token that is not known here, or one that says nothing about this shard.
    """
    position = position_of(tokens, number)
    if position is None:
        return number
    return part_of(position, shard)


def part_of(position: Position, shard: str) -> int:
    """The revision of `shard` that a position means.

    Raises:
        RpcError: it says nothing about this shard.
    """
    revision = position.revision(shard)
    if not revision:
        raise errors.COMPACTED.error()
    return revision


def read_at(position: Position, shard: str) -> int:
    """The revision at which `shard` is read for a position.

    Raises:
        RpcError: it says nothing about this shard; or it means what comes behind or before it, which is no moment.
    """
    if position.offset:
        raise errors.COMPACTED.error()
    return part_of(position, shard)
