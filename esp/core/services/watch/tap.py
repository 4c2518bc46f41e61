"""A client watcher's part in one shard: the source of that shard's events, and the part's position."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from esp.core.background import Background
from esp.core.routing import Routing
from esp.core.services.watch.messages import Response, Spec, as_one
from esp.core.services.watch.outbox import Outbox
from esp.core.services.watch.pool import Pool
from esp.core.services.watch.source import Source
from esp.core.services.watch.upstream import Upstream
from esp.core.wire.hpack import Fields


class Client(Protocol):
    """The stream of a client, as the files below the watchers see it."""

    @property
    def outbox(self) -> Outbox:
        """The way back to the client."""

    @property
    def routing(self) -> Routing:
        """The shards."""

    @property
    def background(self) -> Background:
        """Owner of the tasks and timers of the stream."""

    @property
    def metadata(self) -> Fields:
        """The client's metadata that goes along with esp's own questions to shards."""

    def upstream(self, pool: Pool) -> Upstream:
        """The client's own upstream to the shard of `pool`."""


class Whole(Protocol):
    """The watcher that a tap is a part of."""

    @property
    def stream(self) -> Client:
        """The client's stream."""

    def on_part_created(self) -> None:
        """The shard of a part watches."""

    def on_part_refused(self, response: Response) -> None:
        """A shard has refused to watch its part."""

    def on_events(self, tap: Tap, responses: Sequence[Response]) -> None:
        """Events of one shard, in the order in which it sent them: a message, or the fragments of one."""

    def on_progress(self, tap: Tap, response: Response) -> None:
        """All events of one shard up to a revision have come."""

    def on_part_canceled(self, tap: Tap, response: Response) -> None:
        """A shard has ended its part."""


class Tap:
    """A client watcher's part in one shard.

    Attributes:
        outbox: the way back to the client.
        pool: the sources that the part may join.
        shard: the name of its shard.
        passed: the highest revision up to which the watcher has passed on all events to its client; -1 until "now" is
            known. Kept only if several shards feed the watcher.
        spec: the range and options that are watched in the shard.
        source: the source of the events; None when the tap is detached.
        next: while the tap does not stand in `source.taps`, the lowest revision that the tap has not passed on.
        is_created: the shard has replied to the create; further replies to creates concern the source only.
        created: that reply, until the client has got it.
        plain_id: the watch id under which a message goes to the client as it came; None unless the client knows the
            watcher, the part is the only one, and all events of the shard belong to it.
        owned: selects the events of the shard that belong to the watcher; None for all.
        is_part: several shards feed the watcher.
        until: the last revision whose events are passed on, while the watcher goes over to another shard; else 0.
        has_all: meanwhile: all events up to that revision have come.
        came: meanwhile: set when something has come.
    """

    __slots__ = (
        "_head",
        "_whole",
        "came",
        "created",
        "has_all",
        "is_created",
        "is_part",
        "next",
        "outbox",
        "owned",
        "passed",
        "plain_id",
        "pool",
        "shard",
        "source",
        "spec",
        "until",
    )

    def __init__(self, whole: Whole, pool: Pool, shard: str, spec: Spec, *, is_part: bool) -> None:
        self._whole = whole
        self.shard = shard
        self.passed = -1
        self.spec = spec
        self.outbox = whole.stream.outbox
        self.pool = pool
        self.source: Source | None = None
        self.next = 0
        self.is_part = is_part
        self.is_created = False
        self.created: Response | None = None
        self._head = b""
        self.plain_id: int | None = None
        self.owned: Callable[[bytes], bool] | None = None
        self.until = 0
        self.has_all = False
        self.came: asyncio.Event | None = None

    @property
    def first_key(self) -> bytes:
        """The first watched key."""
        return self.spec.key

    def start(self, revision: int) -> None:
        """Begins to take the shard's events from `revision` on, 0 for now."""
        self.pool.start(self, self.spec, revision)

    def own_upstream(self) -> Upstream:
        """The client's own call to the shard."""
        return self._whole.stream.upstream(self.pool)

    def restart(self, revision: int) -> None:
        """Leaves the source, and begins anew from `revision` on."""
        self.detach()
        self.start(revision)

    @property
    def position(self) -> int:
        """The lowest revision that the tap has not passed on."""
        source = self.source
        return source.next if source is not None and self in source.taps else self.next

    @property
    def is_own(self) -> bool:
        """Whether the events come in the client's own call to the shard, which esp holds back while they wait."""
        return self.source is not None and self.source.upstream.reader is not None

    @property
    def head(self) -> bytes:
        """The last header that the shard sent while it fed the tap; b"" before the first."""
        return self.source.upstream.head if self.source is not None else self._head

    def on_created(self, response: Response) -> None:
        """The shard watches."""
        if not self.is_created:
            self.is_created = True
            self.created = response
            if self.passed < 0:
                self.passed = response.revision
            self._whole.on_part_created()

    def on_refused(self, response: Response) -> None:
        """The shard has refused the create."""
        self.detach()
        self._whole.on_part_refused(response)

    def deliver(self, responses: tuple[Response, ...]) -> None:
        """Events: a message, or the fragments of one."""
        watch_id = self.plain_id
        if watch_id is not None:
            self.outbox.send_together([response.encode(watch_id) for response in responses], is_own=self.is_own)
            return
        if self.came is not None:
            self.came.set()
            kept = [kept.lowered(self.until) for one in responses if (kept := one.before(self.until + 1)) is not None]
            if not kept:
                self.has_all = True
                return
            responses = as_one(kept)
        owned = self.owned
        if owned is not None:
            mine = [response.keep(lambda event: owned(event.kv.key)) for response in responses]
            responses = tuple([kept for kept in mine if kept is not None])
            if not responses:
                return
            responses = as_one(responses)
        self._whole.on_events(self, responses)

    def on_progress(self, response: Response) -> None:
        """All events up to the header's revision have come."""
        if self.came is not None and response.revision >= self.until:
            self.has_all = True
            self.came.set()
        elif response.revision >= self.position - 1:
            self._whole.on_progress(self, response)

    def cross(self, until: int) -> None:
        """Passes on only events up to a revision from now on."""
        self.until, self.plain_id, self.came = until, None, asyncio.Event()

    def crossed(self, pool: Pool, shard: str) -> None:
        """Goes on at another shard, once it is started there."""
        self.detach()
        self.until, self.has_all, self.came = 0, False, None
        self.pool, self.shard = pool, shard

    def on_canceled(self, response: Response) -> None:
        """The shard has ended the watcher."""
        self.detach()
        self._whole.on_part_canceled(self, response)

    def detach(self) -> None:
        """Leaves the source; `next` then has the tap's position."""
        source = self.source
        if source is not None:
            self.next = self.position
            self._head = source.upstream.head
            self.source = None
            source.remove(self)
