"""The two sides of a differential run: one etcd, and esp over shards; and raw calls to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from esp.core.pb import kv_pb2, rpc_pb2
from tests.differential.mapping import Layout, Mapping
from tests.harness import EVERYTHING, Server, connect, metric, wait_until
from tests.watching import Requests

SECONDS = 30
"""Seconds after which a call or a wait fails the test."""


class Failure(NamedTuple):
    code: grpc.StatusCode
    text: str


Outcome = bytes | Failure


def ask(channel: grpc.Channel, method: str, request: Message, metadata: Sequence[tuple[str, str]] = ()) -> Outcome:
    """The bytes of the answer, or the failure of the call. A call without an answer fails the test."""
    try:
        return bytes(
            channel.unary_unary(f"/etcdserverpb.{method}")(
                request.SerializeToString(), timeout=SECONDS, metadata=list(metadata)
            )
        )
    except grpc.RpcError as error:
        return _failure(error)


def stream_range(
    channel: grpc.Channel, request: rpc_pb2.RangeRequest, metadata: Sequence[tuple[str, str]] = ()
) -> Outcome:
    """The chunks of a RangeStream, joined to the answer of a Range. Only the last chunk may have a header."""
    call = channel.unary_stream("/etcdserverpb.KV/RangeStream")
    whole = rpc_pb2.RangeResponse()
    try:
        for chunk in call(request.SerializeToString(), timeout=SECONDS, metadata=list(metadata)):
            assert not whole.HasField("header")
            whole.MergeFrom(rpc_pb2.RangeStreamResponse.FromString(chunk).range_response)
    except grpc.RpcError as error:
        return _failure(error)
    assert whole.HasField("header")
    return whole.SerializeToString()


def keep_alive(channel: grpc.Channel, lease_id: int) -> Outcome:
    """The answer to one request, after which the client half-closes."""
    call = channel.stream_stream("/etcdserverpb.Lease/LeaseKeepAlive")
    request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id).SerializeToString()
    try:
        [answer] = call(iter([request]), timeout=SECONDS)
    except grpc.RpcError as error:
        return _failure(error)
    return bytes(answer)


def _failure(error: grpc.RpcError) -> Failure:
    code, text = error.code(), error.details()
    assert code not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE), f"nothing was broken: {text}"
    return Failure(code, text)


class Talk:
    """A Watch call and every message that has come on it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.requests = Requests()
        self.heard: list[bytes] = []
        self._changed = threading.Condition()
        self._ended = False
        self._call = channel.stream_stream("/etcdserverpb.Watch/Watch")(
            request.SerializeToString() for request in self.requests
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for message in self._call:
                self._hear(message)
        except grpc.RpcError:
            pass  # the call is cancelled at the end; an earlier end shows in `wait_for`
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _hear(self, message: bytes) -> None:
        with self._changed:
            self.heard.append(message)
            self._changed.notify_all()

    def messages(self) -> list[rpc_pb2.WatchResponse]:
        with self._changed:
            heard = list(self.heard)
        return [rpc_pb2.WatchResponse.FromString(message) for message in heard]

    def wait_for(self, condition: Callable[[], bool], what: Callable[[], object]) -> None:
        """Waits until the condition holds; checks it after each message."""
        with self._changed:
            met = self._changed.wait_for(lambda: condition() or self._ended, SECONDS)
        is_there = met and condition()
        assert is_there, f"{what()} has not come; {len(self.heard)} messages: {self.messages()[-3:]}"

    def close(self) -> None:
        assert not self._ended, "nobody ended it"
        self._call.cancel()
        self.requests.half_close()
        self._thread.join()


class Observer:
    """The changes at each revision of an etcd, from now on."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.events: dict[int, list[kv_pb2.Event]] = {}
        self._taken = 0
        self._talk = Talk(channel)
        self._talk.requests.create(**EVERYTHING)
        self._talk.wait_for(lambda: bool(self._talk.heard), lambda: "created")

    def at(self, revision: int) -> list[kv_pb2.Event]:
        """The events of a revision; waits for them if they are on their way."""
        self._talk.wait_for(lambda: self._has(revision), lambda: f"revision {revision}")
        return self.events[revision]

    def _has(self, revision: int) -> bool:
        for message in self._talk.heard[self._taken :]:
            for event in rpc_pb2.WatchResponse.FromString(message).events:
                self.events.setdefault(event.kv.mod_revision, []).append(event)
            self._taken += 1
        return revision in self.events

    def close(self) -> None:
        self._talk.close()


class Clusters:
    """A single etcd, some shards, and esp in front of the shards. Only the test writes to them.

    Attributes:
        alone, shards, across: channels to the etcd, to each shard without esp, and to esp.
        etcds: the single etcd and the shards.
        exact: there is one shard, with the etcd's ids and revisions, so all bytes must be equal.
        streams: all etcds are new enough for RangeStream.
    """

    def __init__(
        self,
        alone: grpc.Channel,
        shards: Sequence[grpc.Channel],
        across: grpc.Channel,
        layout: Layout,
        etcds: Sequence[Server],
        *,
        streams: bool = False,
    ) -> None:
        self.alone = alone
        self.shards = list(shards)
        self.across = across
        self.layout = layout
        self.etcds = etcds
        self.exact = len(shards) == 1
        self.streams = streams
        self.leases_chosen = 1 << 40
        self.headers = [self._header(shard) for shard in shards]
        self.identity = self._header(across) if not self.exact else self.headers[0]
        assert self.exact or self.identity.cluster_id not in {header.cluster_id for header in self.headers}
        self.observer = Observer(alone)
        self._pool = ThreadPoolExecutor(len(shards) + 1)

    def close(self) -> None:
        self.observer.close()
        self._pool.shutdown()

    @staticmethod
    def _header(channel: grpc.Channel) -> rpc_pb2.ResponseHeader:
        answer = ask(channel, "KV/Range", rpc_pb2.RangeRequest(**EVERYTHING, count_only=True))
        assert isinstance(answer, bytes)
        return rpc_pb2.RangeResponse.FromString(answer).header

    def revisions(self) -> tuple[int, ...]:
        """The present revision of each shard, from the shard itself."""
        return tuple(self._header(shard).revision for shard in self.shards)

    def catch_up(self) -> None:
        """Waits until the watchers of every etcd have got past the present revision.

        etcd ends a watcher that has not as compacted, even if the compaction takes no event that the watcher wants.
        """
        for etcd in self.etcds:
            wait_until(lambda etcd=etcd: not metric(etcd, "etcd_debugging_mvcc_slow_watcher_total"))  # type: ignore[misc]

    def new_lease(self) -> int:
        """The id for a new lease."""
        self.leases_chosen += 1
        return self.leases_chosen

    def begin(self, *, wiped: bool = True) -> Mapping:
        """Deletes all keys and leases, and compacts all history; the mapping from then on.

        Without `wiped`, for etcds that were never written to: leaves them as they are, with their whole history.
        """
        if wiped:
            list(self._pool.map(_wipe, [self.alone, *self.shards]))
        return Mapping(self.layout, self._header(self.alone).revision, self.revisions(), compacted=wiped)


def _wipe(channel: grpc.Channel) -> None:
    """Deletes all keys and leases, and compacts all history; there is some, even in a new etcd."""
    leases = ask(channel, "Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest())
    assert isinstance(leases, bytes)
    for lease in sorted(status.ID for status in rpc_pb2.LeaseLeasesResponse.FromString(leases).leases):
        ask(channel, "Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease))
    while (revision := _delete_all(channel)) == 1:
        ask(channel, "KV/Put", rpc_pb2.PutRequest(key=b"a"))
    # This fails if nothing was written since the last compaction; then there is nothing to do.
    ask(channel, "KV/Compact", rpc_pb2.CompactionRequest(revision=revision))


def _delete_all(channel: grpc.Channel) -> int:
    """Deletes all keys; the revision after that."""
    deleted = ask(channel, "KV/DeleteRange", rpc_pb2.DeleteRangeRequest(**EVERYTHING))
    assert isinstance(deleted, bytes)
    return rpc_pb2.DeleteRangeResponse.FromString(deleted).header.revision


AnyClusters = TypeVar("AnyClusters", bound=Clusters)


@contextmanager
def clusters(
    alone: Server,
    shards: Sequence[Server],
    esp: Server,
    layout: Layout,
    *,
    streams: bool = False,
    kind: type[AnyClusters] = Clusters,  # type: ignore[assignment]
) -> Iterator[AnyClusters]:
    servers = [alone, *shards, esp]
    channels = [connect(server) for server in servers]
    both = kind(channels[0], channels[1:-1], channels[-1], layout, servers[:-1], streams=streams)
    try:
        yield both
    finally:
        both.close()
        for channel in channels:
            channel.close()
