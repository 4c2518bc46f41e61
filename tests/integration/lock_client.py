"""A client of the Lock and Election services, for their tests."""

from __future__ import annotations

import grpc

from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from tests.harness import Server, connect, wait_until
from tests.integration.lease_client import Client
from tests.stubs import v3election_pb2_grpc, v3lock_pb2_grpc

LOST = (grpc.StatusCode.UNKNOWN, "etcdserver: requested lease not found")
SECONDS = 30


class Locks(Client):
    """Locks and elections of one server, with its leases and keys."""

    def __init__(self, server: Server) -> None:
        self.channel = connect(server)
        super().__init__(self.channel)
        self._lock = v3lock_pb2_grpc.LockStub(self.channel)
        self._election = v3election_pb2_grpc.ElectionStub(self.channel)

    def lock(self, name: bytes, lease: int = 0, seconds: float = SECONDS) -> v3lock_pb2.LockResponse:
        return self.locking(name, lease, seconds).result()

    def locking(self, name: bytes, lease: int = 0, seconds: float = SECONDS) -> grpc.Future:
        """A call that may wait."""
        return self._lock.Lock.future(v3lock_pb2.LockRequest(name=name, lease=lease), timeout=seconds)

    def waiting(self, name: bytes, lease: int, seconds: float = SECONDS) -> grpc.Future:
        """A call for a lock that somebody else has, when its key is there."""
        call = self.locking(name, lease, seconds)
        key = name + b"/%x" % lease
        wait_until(lambda: key in self.under(name))
        assert not call.done()
        return call

    def unlock(self, key: bytes) -> v3lock_pb2.UnlockResponse:
        return self._lock.Unlock(v3lock_pb2.UnlockRequest(key=key), timeout=SECONDS)

    def campaign(self, name: bytes, lease: int = 0, value: bytes = b"") -> v3election_pb2.CampaignResponse:
        return self.campaigning(name, lease, value).result()

    def campaigning(self, name: bytes, lease: int = 0, value: bytes = b"") -> grpc.Future:
        request = v3election_pb2.CampaignRequest(name=name, lease=lease, value=value)
        return self._election.Campaign.future(request, timeout=SECONDS)

    def proclaim(self, leader: v3election_pb2.LeaderKey | None, value: bytes) -> v3election_pb2.ProclaimResponse:
        request = v3election_pb2.ProclaimRequest(leader=leader, value=value)
        return self._election.Proclaim(request, timeout=SECONDS)

    def leader(self, name: bytes) -> v3election_pb2.LeaderResponse:
        return self._election.Leader(v3election_pb2.LeaderRequest(name=name), timeout=SECONDS)

    def observe(self, name: bytes, seconds: float = SECONDS) -> grpc.Call:
        return self._election.Observe(v3election_pb2.LeaderRequest(name=name), timeout=seconds)

    def resign(self, leader: v3election_pb2.LeaderKey | None) -> v3election_pb2.ResignResponse:
        return self._election.Resign(v3election_pb2.ResignRequest(leader=leader), timeout=SECONDS)

    def under(self, name: bytes) -> list[bytes]:
        """The keys of a lock or an election."""
        asked = rpc_pb2.RangeRequest(key=name + b"/", range_end=name + b"0")
        return [row.key for row in self.kv.Range(asked, timeout=SECONDS).kvs]

    def close(self) -> None:
        self.channel.close()
