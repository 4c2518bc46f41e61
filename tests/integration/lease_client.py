"""A client of the Lease and KV services, for the tests of leases."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue

import grpc

from esp.core.pb import rpc_pb2
from tests.harness import EVERYTHING
from tests.stubs import rpc_pb2_grpc

Grant = rpc_pb2.LeaseGrantRequest
KeepAlive = rpc_pb2.LeaseKeepAliveRequest
Put = rpc_pb2.PutRequest
Range = rpc_pb2.RangeRequest

NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
EXISTS = (grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists")
KEYS = (b"a", b"j", b"z")
"""One on each shard, where "i" and "r" are the boundaries."""


class Client:
    """The Lease and KV services of one server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.lease = rpc_pb2_grpc.LeaseStub(channel)
        self.kv = rpc_pb2_grpc.KVStub(channel)

    def grant(self, ttl: int = 60, lease_id: int = 0) -> int:
        return self.lease.LeaseGrant(Grant(TTL=ttl, ID=lease_id), timeout=30).ID

    def revoke(self, lease_id: int) -> None:
        self.lease.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=lease_id), timeout=30)

    def keep_alive(self, *ids: int) -> list[tuple[int, int]]:
        """Ids and TTLs of the answers; the stream is half-closed after the requests, and must end well."""
        answers = self.lease.LeaseKeepAlive(iter([KeepAlive(ID=lease_id) for lease_id in ids]), timeout=30)
        return [(answer.ID, answer.TTL) for answer in answers]

    def ttl(self, lease_id: int, *, keys: bool = False) -> rpc_pb2.LeaseTimeToLiveResponse:
        return self.lease.LeaseTimeToLive(rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=keys), timeout=30)

    def has(self, lease_id: int) -> bool:
        return self.ttl(lease_id).TTL >= 0

    def ids(self) -> list[int]:
        return [lease.ID for lease in self.lease.LeaseLeases(rpc_pb2.LeaseLeasesRequest(), timeout=30).leases]

    def put(self, key: bytes, lease_id: int) -> None:
        self.kv.Put(Put(key=key, lease=lease_id), timeout=30)

    def keys(self) -> list[bytes]:
        return [row.key for row in self.kv.Range(Range(**EVERYTHING), timeout=30).kvs]


class Session:
    """A keepalive stream that stays open, as etcd's own client has it."""

    def __init__(self, client: Client) -> None:
        self._requests: SimpleQueue[KeepAlive | None] = SimpleQueue()
        self._answers = client.lease.LeaseKeepAlive(self._sent(), timeout=60)

    def _sent(self) -> Iterator[KeepAlive]:
        yield from iter(self._requests.get, None)

    def ask(self, lease_id: int) -> None:
        self._requests.put(KeepAlive(ID=lease_id))

    def answer(self) -> int:
        """The TTL of the next answer."""
        return next(self._answers).TTL

    def renew(self, lease_id: int) -> int:
        self.ask(lease_id)
        return self.answer()

    def close(self) -> None:
        self._requests.put(None)
        self._answers.cancel()
