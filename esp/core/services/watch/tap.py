"""A client watcher's part in one shard: where it gets that shard's events from, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from esp.core.services.watch.messages import Response, Spec, as_one
from esp.core.services.watch.source import Source

if TYPE_CHECKING:
    from esp.core.services.watch.pool import Pool
    from esp.core.services.watch.stream import WatchStream
    from esp.core.services.watch.watcher import Watcher


class Tap:
    """A client watcher's part in one shard.

    Attributes:
        watcher: whose part it is.
        stream: the client's stream.
        outbox: the stream's way back to its client.
        pool: the sources it may join.
        shard: the index of its shard.
        passed: the highest revision up to which the watcher has passed all on to its client; -1 until "now" is known.
            Kept only where several shards feed the watcher.
        spec: what it watches in its shard.
        source: where its events come from; None when it is detached.
        next: while it stands in `source.fresh`, the lowest revision it has not passed on.
        is_created: the shard has replied to the create; what replies come after that is between it and the source.
        created: that reply, until the client has been told.
        is_plain: messages go to the client just as they come: the client knows its id, and it is the only part.
        owned: which events of the shard belong to the watcher; None for all.
    """

    __slots__ = (
        "_head",
        "created",
        "is_created",
        "is_plain",
        "next",
        "outbox",
        "owned",
        "passed",
        "pool",
        "shard",
        "source",
        "spec",
        "stream",
        "watcher",
    )

    def __init__(self, watcher: Watcher, pool: Pool, shard: int, spec: Spec) -> None:
        self.watcher = watcher
        self.shard = shard
        self.passed = -1
        self.spec = spec
        self.stream: WatchStream = watcher.stream
        self.outbox = watcher.stream.outbox
        self.pool = pool
        self.source: Source | None = None
        self.next = 0
        self.is_created = False
        self.created: Response | None = None
        self._head = b""
        self.is_plain = False
        self.owned: Callable[[bytes], bool] | None = None

    @property
    def first_key(self) -> bytes:
        """The first that it watches."""
        return self.spec.key

    def start(self, revision: int) -> None:
        """Wants what the shard has from `revision` on, 0 for now."""
        self.pool.start(self, self.spec, revision)

    def restart(self, revision: int) -> None:
        """Wants it anew, from `revision` on."""
        self.detach()
        self.start(revision)

    @property
    def position(self) -> int:
        """The lowest revision that it has not passed on."""
        source = self.source
        return source.next if source is not None and self in source.taps else self.next

    @property
    def is_own(self) -> bool:
        """Whether its events come in its client's own call to the shard, which is held back where they have to wait."""
        return self.source is not None and self.source.upstream.reader is not None

    @property
    def head(self) -> bytes:
        """The last header that its shard sent while it was fed; b"" before the first."""
        return self.source.upstream.head if self.source is not None else self._head

    def on_created(self, response: Response) -> None:
        """The shard watches."""
        if not self.is_created:
            self.is_created = True
            self.created = response
            if self.passed < 0:
                self.passed = response.revision
            self.watcher.on_part_created()

    def on_refused(self, response: Response) -> None:
        """The shard does not."""
        self.detach()
        self.watcher.on_part_refused(response)

    def deliver(self, responses: tuple[Response, ...]) -> None:
        """Events came, in a message or in the fragments of one, and it is not plain."""
        owned = self.owned
        if owned is not None:
            mine = (response.keep(lambda event: owned(event.kv.key)) for response in responses)
            responses = tuple(kept for kept in mine if kept is not None)
            if not responses:
                return
            responses = as_one(responses)
        self.watcher.on_events(self, responses)

    def on_progress(self, response: Response) -> None:
        """All events up to the header's revision have come."""
        if response.revision >= self.position - 1:
            self.watcher.on_progress(self, response)

    def on_canceled(self, response: Response) -> None:
        """The shard has ended the watcher."""
        self.detach()
        self.watcher.on_part_canceled(self, response)

    def detach(self) -> None:
        """Wants no more events; `next` says where it was."""
        source = self.source
        if source is not None:
            self.next = self.position
            self._head = source.upstream.head
            self.source = None
            source.remove(self)
