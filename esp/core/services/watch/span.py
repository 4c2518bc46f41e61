"""What a watcher has that several shards feed: a position, and its name for clients, a vector token.

The position is, for each shard, the revision up to which everything has been passed on to the client. Each message
bears the token of the position behind it: whoever resumes from a header goes on exactly there.
"""

from __future__ import annotations

from collections.abc import Sequence

from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.revision import token
from esp.core.services.watch.messages import Response, canceled, created, header_field
from esp.core.services.watch.positions import Positions, Watched
from esp.core.services.watch.tap import Tap


class Span:
    """The position of one watcher.

    Attributes:
        taps: the watcher's part in each shard.
        is_told: the client knows of the watcher, and nothing is held back any more.
        last_token: the highest that its client has been told.
    """

    __slots__ = ("_positions", "_routing", "_term", "_watched", "is_told", "last_token", "taps")

    def __init__(self, routing: Routing, positions: Positions, watched: Watched, taps: Sequence[Tap]) -> None:
        """`watched` is what `positions` tells watchers apart by."""
        self.taps = taps
        self.last_token = 0
        self.is_told = False
        self._term = 0
        self._routing = routing
        self._positions = positions
        self._watched: Watched | None = watched
        positions.begin(watched)

    def vector(self) -> dict[int, int]:
        """The position, by shard."""
        return {tap.shard: self.passed(tap) for tap in self.taps}

    def passed(self, tap: Tap) -> int:
        """The position in the shard of one part."""
        # Before the client knows of the watcher, messages are held: what the tap has passed on has not reached it.
        if self.is_told and tap.position > tap.passed:
            tap.passed = tap.position - 1
        return tap.passed

    def header(self, revision: int | None = None) -> bytes:
        """A header for a message of esp's own; without a `revision` it has the token of the position."""
        identity = self._routing.identity
        if revision is None:
            revision = self.last_token = token(self._routing, self.vector())
        header = rpc_pb2.ResponseHeader(
            cluster_id=identity.cluster_id, member_id=identity.member_id, revision=revision, raft_term=self._term
        )
        return header_field(header)

    def created(self, replies: Sequence[Response]) -> Response:
        """The reply to the create, of those of the shards."""
        self._term = max(reply.message.header.raft_term for reply in replies)
        return created(self.header())

    def events(self, tap: Tap, responses: Sequence[Response]) -> list[Response]:
        """A message of one shard, or its fragments, under the token of the position behind it."""
        first, last = responses[0].first, responses[-1].last
        tap.passed = max(tap.passed, last)
        told = self.last_token = token(self._routing, self.vector(), of_message=True)
        if self._watched is not None:
            self._positions.reached(self._watched, tap.shard, first, last, told)
        return [response.under(self._routing.identity, told) for response in responses]

    def progress(self, number: int) -> Response:
        """That all events up to the position have come; `number` is its token."""
        self.last_token = number
        return Response(self.header(number), b"", rpc_pb2.WatchResponse())

    def compacted(self) -> Response:
        """The end of the watcher. Who begins again from its `compact_revision` goes on behind the position."""
        return canceled(self.header(0), token(self._routing, self.vector()) + 1)

    def end(self, *, may_return: bool) -> None:
        """The watcher has ended; its client may come again, unless it wanted that or was told why."""
        if self._watched is not None:
            watched, self._watched = self._watched, None
            self._positions.end(watched, may_return=may_return)
