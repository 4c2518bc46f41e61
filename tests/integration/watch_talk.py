"""Watch streams in turns: what the test asks, and what it hears."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from esp.core.pb import rpc_pb2
from tests.harness import Server, connect, metric
from tests.stubs import rpc_pb2_grpc
from tests.watching import Requests, revision_of

Create = rpc_pb2.WatchCreateRequest
Put = rpc_pb2.PutRequest
EVERYTHING = {"key": b"\0", "range_end": b"\0"}
STOPPED = (grpc.StatusCode.UNAVAILABLE, "etcdserver: server stopped")
"""With this etcd's clients go on with a new stream."""
Heard = list[rpc_pb2.WatchResponse]


class Conversation:
    """One Watch stream, asked and heard in turns.

    Attributes:
        base: the revision of the etcd that owns the keys below "i", when the conversation began.
    """

    def __init__(
        self, server: Server, etcd: Server, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self.requests = Requests()
        self.base = revision_of(etcd)
        self.kv = rpc_pb2_grpc.KVStub(channel)
        self._etcd = etcd
        self._answers = rpc_pb2_grpc.WatchStub(channel).Watch(iter(self.requests), timeout=60, metadata=metadata)

    def hears(self, count: int = 1) -> Heard:
        return [next(self._answers) for _ in range(count)]

    def created(self, **create: Any) -> rpc_pb2.WatchResponse:
        """The reply to a create."""
        self.requests.create(**create)
        [reply] = self.hears()
        assert reply.created
        return reply

    def puts(self, key: bytes, value: bytes = b"v") -> int:
        return self.kv.Put(Put(key=key, value=value), timeout=30).header.revision

    def compact(self, revision: int) -> None:
        with connect(self._etcd) as channel:
            rpc_pb2_grpc.KVStub(channel).Compact(rpc_pb2.CompactionRequest(revision=revision))

    def hears_out(self) -> tuple[Heard, tuple[grpc.StatusCode, str]]:
        """Everything until the stream ends by itself, and how it does."""
        heard = []
        try:
            for answer in self._answers:
                heard.append(answer)  # noqa: PERF402 - what came before the error counts
        except grpc.RpcError as error:
            return heard, (error.code(), error.details())
        raise AssertionError("it ended well")

    def ends(self) -> None:
        self._answers.cancel()


@contextmanager
def talking(server: Server, etcd: Server, *metadata: tuple[str, str]) -> Iterator[Conversation]:
    with connect(server) as channel:
        conversation = Conversation(server, etcd, channel, metadata)
        yield conversation
        conversation.ends()


def watchers_in(etcd: Server) -> int:
    """How many watchers an etcd has."""
    return int(metric(etcd, "etcd_debugging_mvcc_watcher_total"))
