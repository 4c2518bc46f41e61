"""The common part of all handlers of KV calls over several shards."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from esp.core.keys import KeyRange
from esp.core.log.first_key import BEGINNING
from esp.core.routing import Routing
from esp.core.services.gate import LARGE_REQUEST, Entry, Gate
from esp.core.services.handlers import CoroutineCall, Counted
from esp.core.shard import Shard
from esp.core.wire.message import prefix
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import RpcError, Status


class Routed(Counted):
    """A handler of calls whose message names keys."""

    reads = True

    def __init__(self, routing: Routing, gate: Gate) -> None:
        super().__init__(gate)
        self.routing = routing
        self.spawn = gate.spawn
        self.shards = dict(routing.shards)  # a plain dict is quicker to look up
        self.owner = routing.map.owner
        self.starts = routing.map.starts
        self.owners = [self.shards[name] for name in routing.map.owners]  # owns from `starts`, at the same place, on

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Routes a message that no fast path of a subclass has taken."""
        try:
            self.route(stream, message)
        except RpcError as error:
            self.routing.tokens.refused(stream, message, error)

    def route(self, stream: ServerCall, message: bytes) -> None:
        """Sends the call to its shard or shards.

        Raises:
            RpcError: the call is refused.
        """
        raise NotImplementedError

    def pass_on(self, stream: ServerCall, request: Any, shard: Shard) -> None:
        """Sends a parsed request on, serialised anew: so the shard reads the same in it as esp has."""
        self.send(stream, prefix(request.SerializeToString()), shard)

    def outdated(self, stream: ServerCall, message: bytes) -> Callable[[], object] | None:
        """What is done with a call if one of its shards refuses it because it came by an outdated map."""
        outdated = self.routing.outdated
        return None if outdated is None else partial(outdated, stream, message)

    def serve_across(
        self,
        stream: ServerCall,
        shards: Iterable[str],
        message: bytes,
        work: Callable[[CoroutineCall], Coroutine[Any, Any, None]],
        *,
        costly: bool = False,
    ) -> None:
        """Runs `work` for a call that spans shards, when there are places for it at `shards`, which it asks first.

        `costly`: as for `Gate.let_in`.
        """

        def begin(entry: Entry) -> None:
            call = CoroutineCall(stream, entry, self.outdated(stream, message))
            call.start(self.spawn, work(call), entry.close)

        size = len(message)
        weight = self.gate.places_for(size) if size > LARGE_REQUEST else 1
        self.gate.let_in(stream, shards, size, begin, weight=weight, costly=costly, asked=message[:BEGINNING])

    def span(self, key_range: KeyRange) -> tuple[list[str], bytes]:
        """The names of the shards that a range spans, and the first boundary inside the range, for a refusal's text."""
        shard_map = self.routing.map
        names = [segment.shard for segment in shard_map.split(key_range)]
        return names, shard_map.first_boundary(key_range) or b""


def check(status: Status | None) -> None:
    """Raises `status` as an RpcError, if there is one."""
    if status is not None:
        raise status.error()
