"""The revision from which each shard is watched, for the `start_revision` of a client's create."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final, Protocol

from esp.core.keys import KeyRange
from esp.core.services.revision import position_of
from esp.core.services.watch.create import Create
from esp.core.services.watch.messages import Spec
from esp.core.services.watch.moved import Moved
from esp.core.services.watch.positions import Positions
from esp.core.services.watch.tap import Client, Tap
from esp.core.tokens import Vector
from esp.core.wire.status import RpcError

FROM_THE_BEGINNING: Final = 1
"""The only start revision with the same meaning on every shard."""


class Resuming(Client, Protocol):
    """The stream of a client that may have watched before."""

    @property
    def moved(self) -> Moved:
        """Watchers that have ended because their keys have another owner."""

    @property
    def positions(self) -> Positions:
        """Positions of watchers over several shards, for clients that resume."""


def name_of(client: Resuming, spec: Spec) -> bytes:
    """The name of a watcher: range, options and client. Short, since it outlives the watcher.

    The client's token is no part of the name: a client that comes again mostly has a new token. All clients that may
    watch a range see the same events, and the shards decide who may.
    """
    host = client.outbox.down.peer.rpartition(":")[0]
    leader = [value for name, value in client.metadata if name == b"hasleader"]
    return sha256(repr((host, leader, spec)).encode()).digest()


def watched(client: Resuming, request: Create) -> bytes:
    """The name, in `positions`, of the watcher over several shards for this request."""
    return name_of(client, Spec.of(request, request.key, request.range_end))


def choose_starts(
    client: Resuming,
    request: Create,
    shards: Sequence[str],
    keys: KeyRange,
    known: Vector | None = None,
) -> list[int] | None:
    """Chooses the revision from which each of `shards` is watched, 0 for now. `known` is where the client was.

    None if esp does not know the meaning of the client's number. Then the client gets `created`, and after that the
    end: the history is compacted.
    """
    start = request.start_revision
    routing = client.routing
    vector = None
    try:
        position = position_of(routing.tokens, start)
    except RpcError:
        return None
    if position is not None:
        vector = [position.start(shard) if len(shards) > 1 else position.revision(shard) for shard in shards]
    elif len(shards) == 1 or start <= FROM_THE_BEGINNING:
        if start == FROM_THE_BEGINNING and _have_come(client, keys):
            return None  # the history of the shards has copies of the keys
        return [start] * len(shards)
    else:
        if client.positions.others is None:
            known = client.positions.resume(watched(client, request), start)
        if known is not None:
            vector = [known.revision(shard) and known.revision(shard) + 1 for shard in shards]
    former = routing.layout.former
    if vector is not None and former:
        parts = routing.layout.segments(keys)
        revisions = dict(zip(shards, vector, strict=True))
        if any(revisions[part.shard] <= former.floor(part.range, part.shard) for part in parts):
            return None
    return None if vector is None or 0 in vector else vector


def _have_come(client: Resuming, keys: KeyRange) -> bool:
    """Whether some of the keys have come to a shard from another one that holds the same map."""
    layout = client.routing.layout
    return layout.is_guarded and any(layout.former.floor(part.range, part.shard) for part in layout.segments(keys))


def is_of_former_owner(client: Resuming, start_revision: int, keys: KeyRange, tap: Tap, start: int) -> bool:
    """Whether the client's revision is, or may be, of the shard to which the keys belonged before they moved.

    `start` is the revision from which the shard of `tap` would be watched.
    """
    former = client.routing.layout.former
    if not former:
        return False
    if client.routing.tokens.is_token(start_revision):
        return False  # `choose_starts` has looked at that
    return client.moved.takes(name_of(client, tap.spec)) or former.is_stale(
        keys, tap.shard, start - 1, tap.pool.shard.seen
    )
