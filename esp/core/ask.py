"""Questions to shards: one unary RPC, asked of one shard or of several at once.

An answer is a parsed message. Bytes that are no such message are an error whose text blames the shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message

from esp.core import errors
from esp.core.background import all_of
from esp.core.pb import rpc_pb2
from esp.core.shard import Shard
from esp.core.wire.server_stream import ServerStream
from esp.core.wire.status import RpcError, Status

Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Answer]):
    """A unary RPC of etcd.

    Attributes:
        path: the path of its calls.
        answer: the type of its answers.
        idempotent: whether a call is sent again when its connection breaks and nobody knows whether etcd has acted.
    """

    path: bytes
    answer: type[Answer]
    idempotent: bool


RANGE: Final = Method(b"/etcdserverpb.KV/Range", rpc_pb2.RangeResponse, idempotent=True)
COMPACT: Final = Method(b"/etcdserverpb.KV/Compact", rpc_pb2.CompactionResponse, idempotent=False)
STATUS: Final = Method(b"/etcdserverpb.Maintenance/Status", rpc_pb2.StatusResponse, idempotent=True)
ALARMS: Final = Method(b"/etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmResponse, idempotent=True)
"""With the action GET only."""
LEASE_GRANT: Final = Method(b"/etcdserverpb.Lease/LeaseGrant", rpc_pb2.LeaseGrantResponse, idempotent=False)
LEASE_REVOKE: Final = Method(b"/etcdserverpb.Lease/LeaseRevoke", rpc_pb2.LeaseRevokeResponse, idempotent=False)
LEASE_TIME_TO_LIVE: Final = Method(
    b"/etcdserverpb.Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveResponse, idempotent=True
)
LEASE_LEASES: Final = Method(b"/etcdserverpb.Lease/LeaseLeases", rpc_pb2.LeaseLeasesResponse, idempotent=True)


async def ask(
    shard: Shard,
    method: Method[Answer],
    request: Message,
    *,
    metadata: bytes = b"",
    seconds: float | None = None,
    down: ServerStream | None = None,
) -> Answer:
    """One shard's answer.

    Args:
        shard: the shard to ask.
        method: the RPC.
        request: the message of the call.
        metadata: the metadata of the call, encoded as in `RequestHead.forward`.
        seconds: the longest time to wait; etcd is told the deadline. None to wait for ever.
        down: the client's call that the shard is asked for, whose memory holds the bytes of the answer; None where
            they are not to be counted.

    Raises:
        RpcError: the shard's status as it came; Unavailable if the shard cannot be reached; DeadlineExceeded after
            `seconds`; Internal for an answer that cannot be read.
    """
    body = await shard.forward_unary(
        (method.path, metadata),
        request.SerializeToString(),
        idempotent=method.idempotent,
        timeout=seconds,
        down=down,
    )
    return shard.parsed(method.answer, body)


async def ask_all(
    shards: Iterable[Shard],
    method: Method[Answer],
    request: Message | Callable[[Shard], Message],
    *,
    metadata: bytes = b"",
    seconds: float | None = None,
    down: ServerStream | None = None,
) -> dict[str, Answer | Status]:
    """The answer of each shard, or the status with which the shard refused or failed, by the shard's name.

    All shards are asked at once; the failure of one cuts no other short. A shard that takes longer than `seconds` has
    the status "request timed out". Cancelling the caller cancels every call.

    Args:
        shards: the shards to ask; the outcomes are in their order.
        method: the RPC.
        request: the message of each call, or a function that makes a shard's message.
        metadata: as for `ask`.
        seconds: as for `ask`.
        down: as for `ask`.
    """

    async def outcome(shard: Shard) -> tuple[str, Answer | Status]:
        message: Any = request(shard) if callable(request) else request
        try:
            answer = await ask(shard, method, message, metadata=metadata, seconds=seconds, down=down)
        except RpcError as error:
            return shard.name, errors.undecided(error.status)
        return shard.name, answer

    return dict(await all_of(map(outcome, shards)))


def answers_of(outcomes: dict[str, Answer | Status]) -> dict[str, Answer]:
    """The outcomes that are answers, by the shard's name."""
    return {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, Status)}


def failures_of(outcomes: dict[str, Answer | Status]) -> dict[str, Status]:
    """The outcomes that are failures, by the shard's name."""
    return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Status)}
