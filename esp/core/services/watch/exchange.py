"""The requests and replies of one Watch call to a shard.

Replies to creates come in the order of the creates. Events and the ends of watchers have the watch id. The answer to a
progress request is about all watchers of the call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from esp.core.services.watch.call import WatchCall
from esp.core.services.watch.messages import NO_ID, PROGRESS_REQUEST, Response, Spec, created
from esp.core.services.watch.outbox import ClientsConnection, Outbox
from esp.core.services.watch.peek import CREATED, WATCH_ID, granted, one_event
from esp.core.services.watch.progress_requests import ProgressRequests
from esp.core.shard import Shard
from esp.core.varint import varint
from esp.core.wire.status import Status


class Asker(Protocol):
    """An object that asks for the progress of a call's watchers."""

    def on_upstream_progress(self, upstream: Exchange, response: Response, times: int) -> None:
        """The shard's answer to `times` progress requests of this asker."""

    def on_bug(self) -> None:
        """An exception came out of `on_upstream_progress`: log it and end the client's stream."""


class ShardWatcher(Protocol):
    """A watcher of the shard, in an upstream's call: gets the messages with its watch id there."""

    @property
    def id(self) -> int:
        """The watch id upstream."""

    @property
    def asked(self) -> Spec:
        """The range and options of the create."""

    def ask_for_fragments(self) -> bool:
        """Makes `asked` want fragments; False if it does already."""

    def get_past_fragments(self) -> bool:
        """Drops the kept fragments, for which there is no memory; False if they must come again."""

    @property
    def next(self) -> int:
        """The revision to create the watcher from."""

    @property
    def is_over(self) -> bool:
        """Whether the watcher has ended; the shard's reply to the cancel may still come."""

    @property
    def awaits_cancel(self) -> bool:
        """Whether the shard's reply to the cancel is wanted."""

    def outboxes(self) -> Iterable[Outbox]:
        """The outboxes of all clients that the watcher feeds or is about to feed."""

    def pass_on_one(self, head: bytes, tail: bytes, revision: int) -> bool:
        """Takes a message with one event, in its bytes before and behind the watch id; False to have it parsed."""

    def on_response(self, response: Response) -> None:
        """Events, progress, or the end."""

    def on_created(self, response: Response) -> None:
        """The reply to a create."""

    def on_answer(self, response: Response) -> None:
        """The reply to `Exchange.ask`."""

    def on_granted(self, status: Status) -> None:
        """The shard granted the duplicate create of `Exchange.ask`, which an etcd refuses; the waiters get `status`."""

    def on_break(self) -> None:
        """The call broke; the watcher is created again in the next."""

    def on_cancel_lost(self) -> None:
        """The call broke; so the shard's reply to the cancel does not come."""


_GRANT: Final = b"%b" + WATCH_ID + b"%b" + CREATED
"""A reply that grants a create, of its header and its watch id."""


class _Question(NamedTuple):
    """A create that is not meant to be granted: `Exchange.ask`."""

    source: ShardWatcher


class Exchange:
    """The requests and replies of the open call.

    Attributes:
        shard: the shard that is called.
        crowd: the one connection that is fed, in whose turns the call is read; None if several connections are fed.
        sources: the watchers of the shard in this call, by the watch id upstream.
        head: the last header that came, b"" before the first.
    """

    def __init__(self, shard: Shard, crowd: ClientsConnection | None) -> None:
        self.shard = shard
        self.crowd = crowd
        self.sources: dict[int, ShardWatcher] = {}
        self.head = b""
        self._call: WatchCall | None = None
        self._next_id = 0
        self._replies: deque[ShardWatcher | _Question] = deque()
        self._progress = ProgressRequests[Asker]()
        self._steps: deque[Iterator[None]] = deque()
        self._grant: Response | None = None  # the last reply that granted a create

    def begin_anew(self) -> None:
        """Leaves the open call, for another one."""
        raise NotImplementedError

    def take_id(self) -> int:
        """A watch id for the next source. Never 0, because etcd would then choose an id itself."""
        self._next_id += 1
        return self._next_id

    # Requests.

    def _send_create(self, call: WatchCall, source: ShardWatcher) -> None:
        self._replies.append(source)
        call.request(source.asked.create_request(source.id, source.next))

    def ask(self, source: ShardWatcher) -> None:
        """Creates a live source once more. The shard's refusal goes to `ShardWatcher.on_answer`."""
        if self._call is not None:
            self._replies.append(_Question(source))
            self._call.request(source.asked.create_request(source.id, 0))

    def ask_progress(self, asker: Asker) -> None:
        """Asks for the revision up to which all events of all watchers have come; `asker` is told if etcd answers."""
        if self._progress.add(asker):
            self._send_progress_request()

    def _send_progress_request(self) -> None:
        if self._call is not None:
            self._progress.on_sent()
            self._call.request(PROGRESS_REQUEST)

    def forget_asker(self, asker: Asker) -> None:
        """`asker` wants no progress any more."""
        self._progress.forget(asker)

    # The turns of a crowd.

    def do(self, steps: Iterator[None]) -> None:
        """Does the `steps` that a message causes: at once, or in turns if the call is read in turns."""
        if self.crowd is not None:
            self._steps.append(steps)
        else:
            for _ in steps:
                pass

    def take_steps(self) -> Iterator[Iterator[None]]:
        """The steps that messages of this call have caused, in their order."""
        while self._steps:
            yield self._steps.popleft()

    # From the shard.

    def is_current(self, call: WatchCall) -> bool:
        """Whether `call` is the call that is open, and not one that was left."""
        return call is self._call

    def on_message(self, body: bytes) -> None:
        """A WatchResponse.

        Raises:
            DecodeError: the message is none.
        """
        if body.endswith(CREATED) and self._take_grant(body):
            return
        seen = one_event(body)
        if seen is not None:
            watch_id, head, tail, revision = seen
            source = self.sources.get(watch_id)
            if source is not None:
                self.head = body[:head]
                if source.pass_on_one(self.head, body[tail:], revision):
                    self.shard.watch_events += 1
                    return
        response = Response.parse(body)
        if response.revision:
            self.head = response.head
        message = response.message
        if message.created:
            if self._replies:
                self._on_created(self._replies.popleft(), response)
        elif message.watch_id == NO_ID:
            self._on_progress(response)
        else:
            source = self.sources.get(message.watch_id)
            if source is not None:
                self.shard.watch_events += len(message.events)
                source.on_response(response)

    def _take_grant(self, body: bytes) -> bool:
        """Takes the reply that grants the oldest create, as nearly all replies do. False, without effect, for others.

        Replies with the same header, as nearly all have while many watchers begin, are one object.
        """
        waiting = self._replies[0] if self._replies else None
        if waiting is None or isinstance(waiting, _Question):
            return False
        watch_id = waiting.id
        reply = self._grant
        if reply is None or _GRANT % (reply.head, varint(watch_id)) != body:
            seen = granted(body)
            if seen is None or seen[0] != watch_id:
                return False
            reply = created(body[: seen[1]])
            if not reply.revision:
                return False
            self._grant = reply
        self.head = reply.head
        self._replies.popleft()
        if self.sources.get(watch_id) is waiting:
            waiting.on_created(reply)
        return True

    def _on_created(self, waiting: ShardWatcher | _Question, response: Response) -> None:
        if isinstance(waiting, _Question):
            if response.message.canceled:
                waiting.source.on_answer(response)
            else:
                # The events of this watcher would go to another. (An etcd before 3.4, or its grpc-proxy, chooses ids
                # itself.)
                waiting.source.on_granted(self.shard.blamed("watches twice under one id").status)
                self.begin_anew()
        elif not response.message.canceled and response.message.watch_id != waiting.id:
            status = self.shard.blamed("gives a watch another id than was asked for").status
            for outbox in set(waiting.outboxes()):
                outbox.stop(status)
            self.begin_anew()
        elif self.sources.get(waiting.id) is waiting:
            waiting.on_created(response)

    def _on_progress(self, response: Response) -> None:
        told = self._progress.on_answer()
        if self._progress.is_wanted:
            self._send_progress_request()
        self.do(self._tell_progress(told, response))

    def _tell_progress(self, told: Mapping[Asker, int], response: Response) -> Iterator[None]:
        for asker, times in told.items():
            try:
                asker.on_upstream_progress(self, response, times)
            except Exception:
                asker.on_bug()
            yield
