"""Sends a write again that a shard refused because it lacks the lease, after granting the lease there.

etcd looks for the leases of a Put or a Txn before it changes anything. So a write that is refused for its lease was not
applied, and may be sent again. So may a Lock, Campaign or Proclaim: each begins with such a Txn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from time import monotonic
from typing import Any, Final

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.services.handlers import CoroutineCall, Spawn
from esp.core.services.lease.repair import LeaseRepair
from esp.core.services.metadata import load_bearing
from esp.core.services.pace import LOOKED_AT_ONCE
from esp.core.shard import Shard
from esp.core.wire.context import WireContext
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.server_stream import ServerCall
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wording import shard_called

CALL_SECONDS: Final = 2.0
MAX_LEASES: Final = 16
"""The most leases of one transaction that esp looks for."""


class LeaseRetry:
    """Grants the lease and sends the write again.

    Attributes:
        running: the writes that wait for that.
    """

    def __init__(self, repair: LeaseRepair, spawn: Spawn, context: WireContext) -> None:
        self._repair = repair
        self._spawn = spawn
        self._context = context
        self.running = 0

    def take(
        self,
        stream: ServerCall,
        message: bytes,
        puts: Iterable[rpc_pb2.PutRequest | None],
        status: Status,
        owner: Callable[[bytes], Shard],
        outdated: Callable[[], object] | None = None,
    ) -> bool:
        """Takes over a write to one shard that ended with `status`; False when that status is the answer.

        Args:
            stream: the client's call.
            message: the request, with its prefix.
            puts: the request's operations; any Put may name the missing lease, None stands for another operation.
            status: the refusal.
            owner: the shard that owns a key, in the layout that the write was routed by.
            outdated: takes the call over if that layout is outdated.
        """
        if status != errors.LEASE_NOT_FOUND:
            return False
        return self._begin(stream, lambda call: self._again(call, message, puts, owner), outdated)

    def take_unkept(self, stream: ServerCall, status: Status) -> bool:
        """As `take`, for a write that esp cannot send again, since it has not kept the bytes or has sent them twice.

        The answer is the refusal, unless a shard may lack a lease that lives: then it is Unavailable.
        """
        table = self._repair.table
        if status != errors.LEASE_NOT_FOUND or not table.tolerant or table.is_settled(monotonic()):
            return False
        text = "the shard lacks the lease, which may live: shards that missed leases get them now"
        stream.finish(errors.lease_unsettled(text))
        return True

    def take_call(
        self, stream: ServerCall, lease_id: int, status: Status, shard: Shard, again: Callable[[], None]
    ) -> bool:
        """Takes over a call that `shard` refused with `status` for the one lease that the call names; `again` sends it.

        False when `status` is the answer.
        """
        return self._begin(stream, lambda call: self._again_by(call, lease_id, status, shard, again))

    def _begin(
        self,
        stream: ServerCall,
        work: Callable[[CoroutineCall], Coroutine[Any, Any, None]],
        outdated: Callable[[], object] | None = None,
    ) -> bool:
        if not self._repair.table.tolerant:
            return False
        if stream.retried:
            return self.take_unkept(stream, errors.LEASE_NOT_FOUND)
        if self.running >= self._context.limits.max_waiting_requests:
            self._context.reached("max_waiting_requests")
            stream.finish(errors.TOO_MANY_REQUESTS)
            return True
        stream.retried = True
        call = CoroutineCall(stream, outdated=outdated)
        self.running += 1
        call.start(self._spawn, work(call), self._ended)
        return True

    def _ended(self) -> None:
        self.running -= 1

    async def _again(
        self,
        call: CoroutineCall,
        message: bytes,
        puts: Iterable[rpc_pb2.PutRequest | None],
        owner: Callable[[bytes], Shard],
    ) -> None:
        stream = call.stream
        key, leases = await _named(puts)
        shard = owner(key)  # the owner of all its keys: otherwise the write would not have gone to one shard
        if not await self._granted(stream, shard, leases):
            raise errors.LEASE_NOT_FOUND.error()
        body = await shard.forward_unary(
            stream.forward, message[PREFIX_SIZE:], idempotent=False, timeout=stream.remaining()
        )
        self._repair.table.counters["writes_retried"] += 1
        stream.respond(body)

    async def _again_by(
        self, call: CoroutineCall, lease_id: int, status: Status, shard: Shard, again: Callable[[], None]
    ) -> None:
        if not await self._granted(call.stream, shard, [lease_id]):
            raise status.error()
        self._repair.table.counters["writes_retried"] += 1
        again()

    async def _granted(self, stream: ServerCall, shard: Shard, leases: list[int]) -> bool:
        """Whether any of the leases is on the shard now; it need not be the lease that the shard did not find.

        Raises:
            RpcError: a lease may live, but it cannot be found out now; or a shard does not know the client's token any
                more, with which esp asks.
        """
        metadata = load_bearing(stream.head)
        granted = False
        unsettled: RpcError | None = None
        for lease_id in leases:
            try:
                granted |= await self._repair.ensure(lease_id, shard, metadata, _bounded(stream))
            except RpcError as error:
                if errors.is_unreachable(error.status) or error.status.code == Code.DEADLINE_EXCEEDED:
                    unsettled = RpcError(errors.undecided(error.status))
                elif error.status in errors.STALE_TOKEN and not self._repair.asks_as_itself:
                    unsettled = error
                elif not self._repair.table.is_settled(monotonic()):
                    text = f"{shard_called(shard.name)} lacks the lease, which may live; esp is refused: "
                    text += error.status.message
                    unsettled = errors.lease_unsettled(text).error()
                # else the shard's own answer stands: no shard has missed a lease
        if unsettled is not None and not granted:
            raise unsettled
        return granted


async def _named(puts: Iterable[rpc_pb2.PutRequest | None]) -> tuple[bytes, list[int]]:
    """A key of the puts, and their leases, MAX_LEASES at most. Works in steps, with others' turns in between."""
    key = b""
    leases: dict[int, None] = {}
    for number, put in enumerate(puts, 1):
        if number % LOOKED_AT_ONCE == 0:
            await asyncio.sleep(0)
        if put is not None and put.lease:
            key = put.key
            leases[put.lease] = None
            if len(leases) == MAX_LEASES:
                break
    return key, list(leases)


def _bounded(stream: ServerCall) -> float:
    remaining = stream.remaining()
    return CALL_SECONDS if remaining is None else min(CALL_SECONDS, remaining)
