"""The position of a watcher over several shards, and the vector token that names the position for clients.

The position is, for each shard, the revision up to which all events have been passed on to the client. Each message has
the token of the position behind the message. So a client that resumes from a header goes on exactly there.
"""

from __future__ import annotations

from collections.abc import Sequence

from esp.core.pb import rpc_pb2
from esp.core.services.revision import token
from esp.core.services.watch.messages import Response, canceled, created, header_field
from esp.core.services.watch.positions import Positions, Watched
from esp.core.services.watch.tap import Client, Tap


class Span:
    """The position of one watcher.

    Attributes:
        taps: the watcher's part in each shard.
        is_told: the client knows of the watcher, and no message is held back any more.
        last_token: the highest token that the client has got.
    """

    __slots__ = ("_client", "_positions", "_term", "_watched", "is_told", "last_token", "taps")

    def __init__(self, client: Client, positions: Positions, watched: Watched, taps: Sequence[Tap]) -> None:
        """`watched` names the watcher's range, options and client in `positions`."""
        self.taps = taps
        self.last_token = 0
        self.is_told = False
        self._term = 0
        self._client = client
        self._positions = positions
        self._watched: Watched | None = watched
        positions.begin(watched)

    def vector(self) -> dict[str, int]:
        """The position, by the shard's name."""
        return {tap.shard: self.passed(tap) for tap in self.taps}

    def passed(self, tap: Tap) -> int:
        """The position in the shard of one part."""
        # Before the client knows of the watcher, messages are held: the tap has passed them on, but the client has not
        # got them.
        if self.is_told and tap.position > tap.passed:
            tap.passed = tap.position - 1
        return tap.passed

    def make_header(self, revision: int | None = None) -> bytes:
        """Makes a header for a message of esp's own, with `revision` or with a token of the position."""
        identity = self._client.routing.identity
        if revision is None:
            revision = self.last_token = token(self._client.routing, self.vector())
        header = rpc_pb2.ResponseHeader(
            cluster_id=identity.cluster_id, member_id=identity.member_id, revision=revision, raft_term=self._term
        )
        return header_field(header)

    def created(self, replies: Sequence[Response]) -> Response:
        """The reply to the create, made of the shards' replies."""
        self._term = max(reply.message.header.raft_term for reply in replies)
        return created(self.make_header())

    def events(self, tap: Tap, responses: Sequence[Response]) -> list[Response]:
        """A message of one shard, or its fragments, with the token of the position behind the message."""
        first, last = responses[0].first, responses[-1].last
        tap.passed = max(tap.passed, last)
        told = self.last_token = token(self._client.routing, self.vector(), of_message=True)
        if self._watched is not None:
            self._positions.reached(self._watched, tap.shard, first, last, told)
        return [response.under(self._client.routing.identity, told) for response in responses]

    def progress(self, number: int) -> Response:
        """The message that all events up to the position have come; `number` is the position's token."""
        self.last_token = number
        return Response(self.make_header(number), b"", rpc_pb2.WatchResponse())

    def compacted(self) -> Response:
        """The end of the watcher. A client that watches from its `compact_revision` goes on behind the position."""
        return canceled(self.make_header(0), token(self._client.routing, self.vector()) + 1)

    def end(self, *, may_return: bool) -> None:
        """The watcher has ended; with `may_return` the client did not ask for that and was not told why."""
        if self._watched is not None:
            watched, self._watched = self._watched, None
            self._positions.end(watched, may_return=may_return)
