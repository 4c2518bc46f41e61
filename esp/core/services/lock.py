"""The Lock and Election services over several shards: each call goes whole to the shard that owns its keys.

The keys of a lock or an election NAME begin with NAME/. The key with the lowest create_revision holds the lock, so all
of them must be in one shard. esp refuses a call if a boundary divides its prefix. Unlock, Proclaim and Resign name a
key, and go to the owner of that key. Answers come back unchanged: header and revisions are that shard's.

- If the shard has missed the lease, esp grants the lease there and sends the call again (`LeaseRetry`). For lease 0
  etcd would grant a lease of 60 s itself. esp grants such a lease instead, on all shards, so that clients can renew and
  revoke it like any other.
- Lock and Campaign may wait for hours. So they go over the shard's connection for streams, and hold no places.
- If a Lock or Campaign breaks while it waits, esp does not send it again, and the client gets an error. etcd deletes
  the key of a broken call. A second call with the same lease has the same key, and etcd might delete it after that call
  has got the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from google.protobuf.message import Message

from esp.core import errors
from esp.core.keys import KeyRange, prefix_end
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.routing import Routing
from esp.core.services.gate import Entry, Gate
from esp.core.services.handlers import CoroutineCall, Counted, let_in_to_all, parse
from esp.core.services.lease import Grant, LeaseRetry, Leases
from esp.core.shard import Shard
from esp.core.wire.message import prefix
from esp.core.wire.server_stream import Handler, ServerCall
from esp.core.wire.status import Code, RpcError, Status

LOCK: Final = b"/v3lockpb.Lock/"
ELECTION: Final = b"/v3electionpb.Election/"
LEASE_TTL: Final = 60
"""Seconds of the lease that a call with lease 0 gets, as from etcd (clientv3, concurrency/session.go)."""
NO_LEADER_KEY: Final = Status(Code.UNKNOWN, '"leader" field must be provided')
CURE: Final = (
    "all keys that begin with its name and a slash have to be in one shard: take another name, or move the boundary"
)

Owner = Callable[[Any], Shard]
"""The shard to which a request goes; raises RpcError when esp refuses the request."""


def handlers(routing: Routing, gate: Gate, leases: Leases) -> Mapping[bytes, Handler]:
    """The handler of each RPC of both services, by path.

    Args:
        routing: the shards.
        gate: lets calls that may cost shards much begin, and grants of leases.
        leases: grants leases, and repairs those that a shard has missed.
    """
    of_lock, of_election = (partial(_owner_of_name, routing, what) for what in ("a lock", "an election"))
    of_leader = partial(_owner_of_leader, routing)

    grants = Grants(gate, routing.shards, leases.granting(routing.layout), leases.retry)

    def leased(request: type[Message], owner: Owner, bearer: Callable[[Any], Any], *, waits: bool) -> Handler:
        return Leased(gate, request, owner, bearer, grants, waits=waits)

    return {
        LOCK + b"Lock": leased(v3lock_pb2.LockRequest, of_lock, _itself, waits=True),
        LOCK + b"Unlock": ToOwner(gate, v3lock_pb2.UnlockRequest, lambda request: routing.owner(request.key)),
        ELECTION + b"Campaign": leased(v3election_pb2.CampaignRequest, of_election, _itself, waits=True),
        ELECTION + b"Proclaim": leased(v3election_pb2.ProclaimRequest, of_leader, _leader, waits=False),
        ELECTION + b"Leader": ToOwner(gate, v3election_pb2.LeaderRequest, of_election, reads=True),
        ELECTION + b"Observe": Observe(gate, v3election_pb2.LeaderRequest, of_election),
        ELECTION + b"Resign": ToOwner(gate, v3election_pb2.ResignRequest, of_leader),
    }


def _owner_of_name(routing: Routing, what: str, request: Any) -> Shard:
    """The owner of the prefix under which `what` has its keys."""
    start = request.name + b"/"
    keys = KeyRange(start, prefix_end(start))
    name = routing.map.sole_owner(keys)
    if name is None:
        names = [segment.shard for segment in routing.map.split(keys)]
        raise errors.spans(what, names, routing.map.first_boundary(keys) or b"", CURE).error()
    return routing.shards[name]


def _owner_of_leader(routing: Routing, request: Any) -> Shard:
    """The owner of the leader's key in the request."""
    if not request.HasField("leader"):
        raise NO_LEADER_KEY.error()
    return routing.owner(request.leader.key)


def _itself(request: Any) -> Any:
    return request


def _leader(request: Any) -> Any:
    return request.leader


class ToOwner(Counted):
    """Sends a call to one shard, serialised anew, so that no two parsers read it differently.

    Args:
        gate: lets calls that may cost the shard much begin.
        request: the type of the request.
        owner: finds the shard.
        reads: the call changes nothing, and its answer may be large.
    """

    def __init__(self, gate: Gate, request: type[Message], owner: Owner, *, reads: bool = False) -> None:
        super().__init__(gate)
        self.idempotent = self.reads = reads
        self._request = request
        self._owner = owner

    def on_message(self, stream: ServerCall, message: bytes) -> None:
        """Finds the shard, or refuses the call."""
        try:
            request, shard = self._read(message)
        except RpcError as error:
            stream.finish(error.status)
        else:
            self.go(stream, request, shard)

    def _read(self, message: bytes) -> tuple[Any, Shard]:
        """The request, and its shard.

        Raises:
            RpcError: the request is refused.
        """
        request = parse(self._request, message)
        return request, self._owner(request)

    def go(self, stream: ServerCall, request: Any, shard: Shard) -> None:
        """Sends the request."""
        self.send(stream, prefix(request.SerializeToString()), shard)


class Observe(ToOwner):
    """A stream of leaders. If it breaks, the client opens another, which begins with the present leader."""

    waits = True

    def send(self, stream: ServerCall, message: bytes, shard: Shard, *, late: bool = False) -> None:
        """Sends the request as a streaming call with one message."""
        shard.splice_stream(stream)
        if stream.sink is not None:
            stream.sink.request_data(message, True)


class Grants:
    """The granting of leases, for the calls of `Leased`."""

    def __init__(self, gate: Gate, shards: Mapping[str, Shard], grant: Grant, retry: LeaseRetry) -> None:
        self.retry = retry
        self._gate = gate
        self._shards = shards
        self._grant = grant

    def begin(self, stream: ServerCall, size: int, go_on: Callable[[int], None]) -> None:
        """Grants a lease of LEASE_TTL seconds on all shards, and calls `go_on` with its id; or ends the call."""

        async def work(call: CoroutineCall) -> None:
            try:
                granted = await self._grant(call, rpc_pb2.LeaseGrantRequest(TTL=LEASE_TTL))
            except RpcError as error:
                raise _as_told_by_a_lock(error.status).error() from None
            go_on(granted.ID)

        def begin(entry: Entry) -> None:
            call = CoroutineCall(stream, entry)
            call.start(self._gate.spawn, work(call), entry.close)

        let_in_to_all(self._gate, stream, self._shards, size, begin)


class Leased(ToOwner):
    """A call that attaches a key to a lease.

    Args:
        gate, request, owner: as for `ToOwner`.
        bearer: the message in a request that has the field `lease`.
        grants: the lease of a call without one, and the lease that a shard has missed.
        waits: whether the call may wait until another client gives up the lock.
    """

    def __init__(
        self,
        gate: Gate,
        request: type[Message],
        owner: Owner,
        bearer: Callable[[Any], Any],
        grants: Grants,
        *,
        waits: bool,
    ) -> None:
        super().__init__(gate, request, owner)
        self.waits = waits
        self._bearer = bearer
        self._grants = grants

    def go(self, stream: ServerCall, request: Any, shard: Shard) -> None:
        """Sends the request, with a lease of its own if it names none."""
        if self._bearer(request).lease:
            super().go(stream, request, shard)
            return

        def go_on(lease_id: int) -> None:
            self._bearer(request).lease = lease_id
            self.send(stream, prefix(request.SerializeToString()), shard, late=True)

        self._grants.begin(stream, request.ByteSize(), go_on)

    def send(self, stream: ServerCall, message: bytes, shard: Shard, *, late: bool = False) -> None:
        """Sends the request's bytes. A call that may wait goes without a place at the gate, however large it is."""
        if self.waits:
            shard.splice_waiting(stream, message)
        else:
            super().send(stream, message, shard, late=late)

    def recover(self, stream: ServerCall, message: bytes, status: Status) -> bool:
        """Sends the call once more if its shard lacks the lease, but the lease is alive."""
        if status.message != errors.LEASE_NOT_FOUND.message:  # these services send etcd's texts with the code Unknown
            return False
        if not message:
            return self._grants.retry.take_unkept(stream, errors.LEASE_NOT_FOUND)
        request, shard = self._read(message)
        again = partial(self.send, stream, message, shard, late=True)
        return self._grants.retry.take_call(stream, self._bearer(request).lease, status, shard, again)


def _as_told_by_a_lock(status: Status) -> Status:
    """The refusal of a grant, with the code that these services of etcd give to etcd's texts."""
    if errors.is_unreachable(status) or not status.message.startswith("etcdserver: "):
        return status
    return Status(Code.UNKNOWN, status.message)
