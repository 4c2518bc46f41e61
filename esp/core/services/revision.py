"""The header of an answer that several shards gave together.

This is the one place where the revision of such an answer is chosen. For now it is the lowest of the shards'
revisions: too low for some of them, so that who reads or watches from it may see something again or be told that it
is compacted, but never misses a change. Vector tokens will be minted here, and translated back to each shard's
own revision when a client returns one.
"""

from __future__ import annotations

from collections.abc import Sequence

from esp.core.identity import Identity
from esp.core.pb import rpc_pb2


def merged_header(headers: Sequence[rpc_pb2.ResponseHeader], identity: Identity) -> rpc_pb2.ResponseHeader:
    """The header for an answer merged from answers with these headers; there must be one at least."""
    return rpc_pb2.ResponseHeader(
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        revision=min(header.revision for header in headers),
        raft_term=max(header.raft_term for header in headers),
    )
