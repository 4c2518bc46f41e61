"""A checker for watches: writers with a known history, watchers that note all messages, and etcd's guarantees.

    with Writers(shards) as writers, watching(esp, key=b"\\0", range_end=b"\\0") as watch:
        ...                                        # a fault that clients must not notice
    check(watch, histories(shards), owner)

The truth is read afterwards from each shard's own history, without esp. The guarantees are those that etcd publishes
(https://etcd.io/docs/v3.5/learning/api_guarantees/): `ordered`, `unique`, `reliable`, `atomic`, `resumable` and
`bookmarkable`, each a function of its own.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import grpc

from esp.core.pb import kv_pb2, rpc_pb2
from tests.harness import EVERYTHING, PATIENCE, Server, connect
from tests.stubs import rpc_pb2_grpc

History = dict[int, list[kv_pb2.Event]]
"""The events of each revision of a shard, in their order."""
Owner = Callable[[bytes], int]
"""The shard of a key."""


class Requests:
    """The client's half of a Watch call: the test decides what is sent, and when."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[rpc_pb2.WatchRequest | None] = SimpleQueue()

    def create(self, **create: Any) -> None:
        self._queue.put(rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(**create)))

    def cancel(self, watch_id: int) -> None:
        self._queue.put(rpc_pb2.WatchRequest(cancel_request=rpc_pb2.WatchCancelRequest(watch_id=watch_id)))

    def progress(self) -> None:
        self._queue.put(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))

    def nothing(self) -> None:
        self._queue.put(rpc_pb2.WatchRequest())

    def half_close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[rpc_pb2.WatchRequest]:
        return iter(self._queue.get, None)


@dataclass
class Watch:
    """A single watcher on a stream, and its messages. The watcher does not resume, so a visible break fails the test.

    Attributes:
        create: the request.
        messages: in order, fragments joined; without `created`.
        created: the reply to the create.
        ended: the end of the stream, if it ended by itself.
    """

    create: dict[str, Any]
    messages: list[rpc_pb2.WatchResponse] = field(default_factory=list)
    created: rpc_pb2.WatchResponse | None = None
    ended: tuple[grpc.StatusCode, str] | None = None
    requests: Requests = field(default_factory=Requests)

    def run(self, answers: Iterator[rpc_pb2.WatchResponse]) -> None:
        try:
            for answer in answers:
                self._take(answer)
        except grpc.RpcError as error:
            self.ended = error.code(), error.details()

    def _take(self, answer: rpc_pb2.WatchResponse) -> None:
        if self.created is None:
            assert answer.created
            self.created = answer
        elif self.messages and self.messages[-1].fragment:
            assert answer.header == self.messages[-1].header
            joined = rpc_pb2.WatchResponse()
            joined.CopyFrom(self.messages[-1])
            joined.events.extend(answer.events)
            joined.fragment = answer.fragment
            self.messages[-1] = joined
        else:
            self.messages.append(answer)

    def events(self) -> list[kv_pb2.Event]:
        return [event for message in list(self.messages) for event in message.events]

    def wait_for(self, condition: Callable[[Watch], bool], seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition(self):
            assert self.ended is None, self.ended
            assert time.monotonic() < deadline, f"{self.create}: {len(self.messages)} messages, {self.messages[-1:]}"
            time.sleep(0.01)

    def wait_for_events(self, count: int) -> None:
        """Waits until at least `count` events have come."""
        self.wait_for(lambda watch: len(watch.events()) >= count)

    def covers(self, key: bytes) -> bool:
        """Whether the watcher covers `key`."""
        start, end = self.create["key"], self.create.get("range_end", b"")
        if not end:
            return bool(key == start)
        return bool(start <= key and (end == b"\0" or key < end))


@contextmanager
def watching(server: Server, metadata: Sequence[tuple[str, str]] = (), **create: Any) -> Iterator[Watch]:
    """A watcher that exists when the block begins, and ends with the block."""
    watch = Watch(create)
    watch.requests.create(**create)
    with connect(server) as channel:
        answers = rpc_pb2_grpc.WatchStub(channel).Watch(iter(watch.requests), metadata=list(metadata))
        thread = threading.Thread(target=watch.run, args=(answers,))
        thread.start()
        try:
            watch.wait_for(lambda watch: watch.created is not None)
            yield watch
        finally:
            ended = watch.ended
            answers.cancel()
            thread.join()
            watch.ended = ended


class Writers:
    """A writer for each shard, without esp: puts, deletes and transactions over a few keys, one after the other."""

    def __init__(self, shards: Sequence[Server], prefixes: Sequence[str], pause: float = 0.0) -> None:
        self.written = [0] * len(shards)
        self._pause = pause
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, shard, prefix))
            for number, (shard, prefix) in enumerate(zip(shards, prefixes, strict=True))
        ]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, shard: Server, prefix: str) -> None:
        chance = random.Random(number)
        with connect(shard) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            while not self._stopping.wait(self._pause):
                try:
                    kv.Txn(_random_txn(chance, prefix, self.written[number]), timeout=5)
                    self.written[number] += 1
                except grpc.RpcError:
                    self._stopping.wait(0.02)  # applied or not: the shard's history decides

    def wait_for_more(self, count: int = 100, shards: Sequence[int] | None = None) -> None:
        """Waits until each writer, or each of those of `shards`, has written `count` times more."""
        goals = {number: self.written[number] + count for number in shards or range(len(self.written))}
        deadline = time.monotonic() + PATIENCE
        while any(self.written[number] < goal for number, goal in goals.items()):
            assert time.monotonic() < deadline, "a writer stands still"
            time.sleep(0.01)


def _random_txn(chance: random.Random, prefix: str, number: int) -> rpc_pb2.TxnRequest:
    """A transaction that changes one key or several, each once; sometimes it deletes one."""
    keys = chance.sample([f"{prefix}{name}".encode() for name in range(8)], chance.choice((1, 1, 1, 2, 4)))
    operations = []
    for key in keys:
        if chance.random() < 0.2:
            operations.append(rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key)))
        else:
            value = b"%d" % number * chance.choice((1, 1, 20))
            operations.append(rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value)))
    return rpc_pb2.TxnRequest(success=operations)


def revision_of(shard: Server) -> int:
    """A shard's present revision."""
    with connect(shard) as channel:
        answer = rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(**EVERYTHING, count_only=True), timeout=30)
    return answer.header.revision


def history_of(shard: Server, start: int = 1) -> History:
    """A shard's own history from `start` on, a revision that must not be compacted."""
    last = revision_of(shard)
    history: History = {}
    requests = Requests()
    requests.create(**EVERYTHING, start_revision=start, prev_kv=True)
    with connect(shard) as channel:
        answers = rpc_pb2_grpc.WatchStub(channel).Watch(iter(requests), timeout=60)
        while max(history, default=start - 1) < last:
            answer = next(answers)
            # A longer wait would end with this call's own deadline, for which etcd answers Unknown.
            assert not answer.canceled, f"the truth before revision {answer.compact_revision} is compacted"
            for event in answer.events:
                history.setdefault(event.kv.mod_revision, []).append(event)
        answers.cancel()
    return history


def wanted(watch: Watch, history: History, start: int) -> History:
    """The part of `history` that `watch` must have got."""
    no_put = rpc_pb2.WatchCreateRequest.NOPUT in watch.create.get("filters", ())
    no_delete = rpc_pb2.WatchCreateRequest.NODELETE in watch.create.get("filters", ())
    seen: History = {}
    for revision, events in sorted(history.items()):
        kept = []
        for event in events:
            if revision < start or not watch.covers(event.kv.key):
                continue
            if (no_put and event.type == event.PUT) or (no_delete and event.type == event.DELETE):
                continue
            copy = kv_pb2.Event()
            copy.CopyFrom(event)
            if not watch.create.get("prev_kv"):
                copy.ClearField("prev_kv")
            kept.append(copy)
        if kept:
            seen[revision] = kept
    return seen


def by_shard(watch: Watch, owner: Owner) -> dict[int, list[rpc_pb2.WatchResponse]]:
    """The messages with events, by their shard. No message may have events of two shards."""
    messages: dict[int, list[rpc_pb2.WatchResponse]] = {}
    for message in watch.messages:
        shards = {owner(event.kv.key) for event in message.events}
        assert len(shards) <= 1, f"a message of several shards: {message}"
        for shard in shards:
            messages.setdefault(shard, []).append(message)
    return messages


# The guarantees, each for one shard's messages to one watcher.


def ordered(messages: Sequence[rpc_pb2.WatchResponse]) -> None:
    """Checks that events are ordered by revision: no event comes after a later one."""
    revisions = [event.kv.mod_revision for message in messages for event in message.events]
    assert revisions == sorted(revisions)
    for message in messages:
        assert message.header.revision >= message.events[-1].kv.mod_revision


def unique(messages: Sequence[rpc_pb2.WatchResponse]) -> None:
    """Checks that no event comes twice."""
    events = [(event.kv.mod_revision, event.kv.key) for message in messages for event in message.events]
    assert len(events) == len(set(events))


def reliable(messages: Sequence[rpc_pb2.WatchResponse], truth: History) -> None:
    """Checks that no event is missing, and none is invented."""
    told: History = {}
    for message in messages:
        for event in message.events:
            told.setdefault(event.kv.mod_revision, []).append(event)
    assert sorted(told) == sorted(truth)
    differs = [revision for revision in truth if told[revision] != truth[revision]]
    assert not differs, f"{differs}: told {told[differs[0]]}, but the shard has {truth[differs[0]]}"


def atomic(messages: Sequence[rpc_pb2.WatchResponse]) -> None:
    """Checks that the events of one revision come in one message."""
    home: dict[int, int] = {}
    for number, message in enumerate(messages):
        for event in message.events:
            assert home.setdefault(event.kv.mod_revision, number) == number


def bookmarkable(watch: Watch, truth: History) -> None:
    """Checks that all events up to R have come before a progress message with revision R."""
    told = 0
    for message in watch.messages:
        if message.events:
            told = message.events[-1].kv.mod_revision
        elif not message.canceled:
            assert not [revision for revision in truth if told < revision <= message.header.revision]


def resumable(server: Server, watch: Watch, truth: History) -> None:
    """Checks that a new watcher, from the revision after any event, gets the rest."""
    revisions = sorted(truth)
    for revision in (revisions[0], revisions[len(revisions) // 2], revisions[-1]):
        create = {**watch.create, "start_revision": revision}
        rest = {number: events for number, events in truth.items() if number >= revision}
        count = sum(map(len, rest.values()))
        with watching(server, **create) as again:
            again.wait_for(lambda again, count=count: len(again.events()) >= count)
        reliable([message for message in again.messages if message.events], rest)


def wait_until_told(watch: Watch, truths: dict[int, History], owner: Owner) -> None:
    """Waits until the last event of each shard has come."""
    last = {(shard, max(truth)) for shard, truth in truths.items() if truth}
    watch.wait_for(lambda watch: last <= {(owner(e.kv.key), e.kv.mod_revision) for e in watch.events()})


def check(watch: Watch, shards: Sequence[Server], owner: Owner, starts: dict[int, int]) -> None:
    """Checks all guarantees but `resumable`, for a watcher that must have got all events from `starts` on.

    Args:
        watch: the watcher, which is still open.
        shards: the shards, whose own histories are the truth.
        owner: the shard of a key, as an index into `shards`.
        starts: for each shard concerned, the first revision that the watcher must have got.
    """
    truths = {shard: wanted(watch, history_of(shards[shard], start), start) for shard, start in starts.items()}
    wait_until_told(watch, truths, owner)
    told = by_shard(watch, owner)
    for shard, truth in truths.items():
        messages = told.get(shard, [])
        ordered(messages)
        unique(messages)
        reliable(messages, truth)
        atomic(messages)
    if len(truths) == 1:
        bookmarkable(watch, next(iter(truths.values())))
    assert watch.ended is None, watch.ended


class Relay:
    """A relay between esp and a shard. It can be cut, which loses the bytes on their way; or hold requests back."""

    def __init__(self, server: Server) -> None:
        self._target = server.address
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._open = True
        self._flows = threading.Event()
        self._flows.set()
        self._holds_some = threading.Event()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}"

    def cut(self, *, stay: bool = False) -> None:
        """Ends all connections; with `stay` no new ones are made until `mend`."""
        with self._lock:
            self._open = not stay
            for each in self._sockets:
                _hang_up(each)
            self._sockets.clear()

    def mend(self) -> None:
        self._open = True

    def hold(self) -> None:
        """Lets nothing through to the shard until `release`."""
        self._holds_some.clear()
        self._flows.clear()

    def wait_until_it_holds(self, seconds: float = PATIENCE) -> None:
        """Waits until the relay holds back some bytes."""
        assert self._holds_some.wait(seconds)

    def release(self) -> None:
        self._flows.set()

    def close(self) -> None:
        self.release()
        self.cut(stay=True)
        _hang_up(self._listener)
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._open:
                    _hang_up(near)
                    continue
                host, _, port = self._target.rpartition(":")
                try:
                    far = socket.create_connection((host, int(port)))
                except OSError:
                    _hang_up(near)
                    continue
                self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink, source is near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        try:
            while data := source.recv(65536):
                if is_request and not self._flows.is_set():
                    self._holds_some.set()
                    self._flows.wait()
                sink.sendall(data)
        except OSError:
            pass
        _hang_up(source)
        _hang_up(sink)


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


@contextmanager
def relaying(server: Server) -> Iterator[Relay]:
    relay = Relay(server)
    try:
        yield relay
    finally:
        relay.close()
