"""The Lease service over several shards: a lease lives on every shard, under one id.

So a lease is granted on all shards and revoked on all, and its TTL is the lowest of all. Each RPC says below what it
may leave out if a shard is unreachable. With `leases: strict` no shard is left out.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final

from google.protobuf.message import Message

from esp.core import errors, lease_sync
from esp.core.background import Background, all_of
from esp.core.layout import Layout
from esp.core.own_keys import is_own_lease
from esp.core.pb import rpc_pb2
from esp.core.services.entry import PLACES
from esp.core.services.gate import Gate
from esp.core.services.handlers import SMALL_CALL, AskAll, CoroutineCall, Keeps
from esp.core.services.lease.keepalive import PATH as KEEPALIVE_PATH
from esp.core.services.lease.keepalive import LeaseKeepAlive
from esp.core.services.lease.repair import LeaseRepair
from esp.core.services.lease.retry import LeaseRetry
from esp.core.services.lease.table import Lacking, LeaseTable, is_empty
from esp.core.services.metadata import load_bearing
from esp.core.services.revision import merged_header
from esp.core.services.row_order import in_turns, sort
from esp.core.shard import (
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    Answer,
    Method,
    Shard,
    answers_of,
    ask_all,
    failures_of,
)
from esp.core.wire.context import WireContext
from esp.core.wire.hpack import Fields
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import RpcError, Status

GRANT_SECONDS: Final = 2.0
"""Seconds that a tolerant grant waits for a silent shard."""
DEFAULT_SECONDS: Final = 7.0
"""Seconds that esp waits for a shard if the client sets no deadline: as long as an etcd waits for its cluster."""
ID_TRIES: Final = 3
LEASES_PATHS: Final = frozenset((LEASE_TIME_TO_LIVE.path, LEASE_LEASES.path, KEEPALIVE_PATH))
"""The RPCs that would show or keep alive the leases of proxies also with one shard, if they were passed on."""
LEASES_AT_ONCE: Final = 1024
"""Leases of one shard that are copied to the answer between two turns of the loop."""


Grant = Callable[[CoroutineCall, rpc_pb2.LeaseGrantRequest], Coroutine[Any, Any, rpc_pb2.LeaseGrantResponse]]
"""Grants a lease for a client's call; raises RpcError."""


class Leases:
    """The leases of a proxy: the handlers, the table of known leases, and the repairs.

    Args:
        layout: the shards.
        background: owner of the calls' coroutines and of the repairs.
        context: limits and counters.
        tolerant: whether an unreachable shard may be left out (`leases: tolerant`).
    """

    def __init__(self, layout: Layout, background: Background, context: WireContext, *, tolerant: bool) -> None:
        self.table = LeaseTable(context, tolerant=tolerant)
        self.repair = LeaseRepair(layout, self.table, context, background)
        self.retry = LeaseRetry(self.repair, background.start, context)
        self.keepalive = LeaseKeepAlive(layout, self.table, self.repair, context, background)
        self._background = background

    def handlers(self, layout: Layout, gate: Gate) -> Mapping[bytes, Handler]:
        """The handler of each RPC of the service, by path, for the shards of a layout; calls begin at `gate`."""
        fan_out = _FanOut(layout, self.table, self.repair)

        def unary(request: type[Message], work: _Work, weight: int = SMALL_CALL) -> Handler:
            return AskAll(gate, layout.shards, request, work, weight)

        return {
            LEASE_GRANT.path: unary(rpc_pb2.LeaseGrantRequest, fan_out.grant),
            LEASE_REVOKE.path: unary(rpc_pb2.LeaseRevokeRequest, fan_out.revoke),
            KEEPALIVE_PATH: self.keepalive,
            LEASE_TIME_TO_LIVE.path: unary(rpc_pb2.LeaseTimeToLiveRequest, fan_out.time_to_live),
            LEASE_LEASES.path: unary(rpc_pb2.LeaseLeasesRequest, fan_out.leases, PLACES),  # of all leases
        }

    def granting(self, layout: Layout) -> Grant:
        """Grants leases on the shards of a layout, as LeaseGrant does, for the calls of other services."""
        return _FanOut(layout, self.table, self.repair).grant

    def start(self) -> None:
        """Begins to repair leases."""
        self.repair.start()

    def install(self, layout: Layout) -> None:
        """Another layout is in force: its shards get the keepalives of all clients, and the leases that they lack."""
        self.repair.install(layout)
        self.keepalive.install(layout)

    def tick(self, now: float) -> None:
        """Looks at every deadline, and for shards that are reachable again."""
        self.keepalive.tick(now)
        for step in (self.repair.tick, partial(self.table.sweep, now)):
            self._background.guard("leases", step)


_Work = Callable[[CoroutineCall, Any], Coroutine[Any, Any, Message]]


class _FanOut:
    """The unary RPCs, each sent to all shards at once."""

    def __init__(self, layout: Layout, table: LeaseTable, repair: LeaseRepair) -> None:
        self._shards = layout.shards
        self._owner = layout.map.owner
        self._identity = layout.identity
        self._table = table
        self._repair = repair

    async def grant(self, call: CoroutineCall, request: rpc_pb2.LeaseGrantRequest) -> rpc_pb2.LeaseGrantResponse:
        """Grants a lease on every shard; if tolerant, on every reachable shard.

        If a shard refuses, the lease is taken back where it was granted, and the answer is that shard's error.

        Raises:
            RpcError: a shard's, as it came.
        """
        if self._hides(request.ID):
            raise errors.LEASE_EXISTS.error()
        if request.ID:
            return await self._grant(call, request)
        for _ in range(ID_TRIES):
            request.ID = secrets.randbits(63) or 1
            try:
                return await self._grant(call, request, own_id=True)
            except RpcError as error:
                if error.status != errors.LEASE_EXISTS:
                    raise
        raise errors.LEASE_EXISTS.error()

    async def _grant(
        self, call: CoroutineCall, request: rpc_pb2.LeaseGrantRequest, *, own_id: bool = False
    ) -> rpc_pb2.LeaseGrantResponse:
        tolerant = self._table.tolerant
        metadata = load_bearing(call.stream.head)
        sent = monotonic()
        seconds = DEFAULT_SECONDS
        if tolerant:
            # Half of the client's time at most: the client must hear of a lease that was granted without a shard.
            seconds = min(GRANT_SECONDS, (call.stream.remaining() or GRANT_SECONDS * 2) / 2)
        try:
            outcomes = await self._ask_all(call, LEASE_GRANT, request, seconds=seconds)
        except asyncio.CancelledError:
            if own_id:  # no client has heard of this id
                self._repair.end(request.ID, self._shards, metadata, drawn=True)
            raise
        granted = answers_of(outcomes)
        refusal = _refusal(outcomes, may_miss=tolerant and bool(granted))
        if refusal is not None:
            # No client has heard of an id that esp has drawn, except the owner of a lease with an equal id.
            ours = [name for name, told in outcomes.items() if told != errors.LEASE_EXISTS] if own_id else granted
            await self._take_back(call, request.ID, ours, metadata, drawn=own_id)
            raise refusal.error()
        self._repair.drop(request.ID, granted)
        until = {name: sent + answer.TTL for name, answer in granted.items()}
        self._table.granted(request.ID, until, metadata)
        if len(granted) < len(outcomes):
            self._table.counters["granted_without_a_shard"] += 1
            for name in self._shards:
                if name not in granted:
                    self._table.missed(request.ID, name)
                    self._repair.grant(request.ID, name, metadata)
        return rpc_pb2.LeaseGrantResponse(
            header=self._header(granted.values()),
            ID=request.ID,
            TTL=min(answer.TTL for answer in granted.values()),
        )

    async def _take_back(
        self, call: CoroutineCall, lease_id: int, shards: Iterable[str], metadata: Fields, *, drawn: bool
    ) -> None:
        """Revokes a lease where it was just granted; on shards that do not answer now, later."""
        left = set(shards)

        async def revoke(name: str) -> None:
            with suppress(RpcError):
                await lease_sync.revoke(self._shards[name], lease_id, metadata=metadata, seconds=GRANT_SECONDS)
                left.discard(name)

        try:
            await all_of([call.timed(revoke(name)) for name in left])
        finally:
            # Not in `revoke`: if the client goes in the turn of the loop in which these tasks begin, none of them runs.
            self._repair.end(lease_id, left, metadata, drawn=drawn)

    async def revoke(self, call: CoroutineCall, request: rpc_pb2.LeaseRevokeRequest) -> rpc_pb2.LeaseRevokeResponse:
        """Revokes a lease on every shard that has it. An unreachable shard is an error: the keys there still exist.

        Raises:
            RpcError: a shard's, as it came; "requested lease not found" only when no shard has it.
        """
        if self._hides(request.ID):
            raise errors.LEASE_NOT_FOUND.error()
        try:
            outcomes = await self._ask_all(call, LEASE_REVOKE, request)
        except asyncio.CancelledError:
            # Some shards may have revoked the lease by now, so it must not live on in the others.
            self._repair.revoke(request.ID, self._shards, load_bearing(call.stream.head))
            raise
        revoked = answers_of(outcomes)
        others = [failure for failure in failures_of(outcomes).values() if failure != errors.LEASE_NOT_FOUND]
        if all(map(errors.is_unreachable, others)):
            self._table.forget(request.ID)
        if others:
            # The lease must not live on there if the client gives up before the shard is reachable again.
            away = [name for name, failure in failures_of(outcomes).items() if errors.is_unreachable(failure)]
            self._repair.revoke(request.ID, away, load_bearing(call.stream.head))
            raise _worst(others).error()
        if not revoked:
            raise errors.LEASE_NOT_FOUND.error()
        return rpc_pb2.LeaseRevokeResponse(header=self._header(revoked.values()))

    async def time_to_live(
        self, call: CoroutineCall, request: rpc_pb2.LeaseTimeToLiveRequest
    ) -> rpc_pb2.LeaseTimeToLiveResponse:
        """The lowest TTL, and the keys of all shards, without keys on a shard that does not own them.

        An unreachable shard is an error, with one exception: if tolerant, without a question for keys, and if the lease
        lives on another shard. Then the known rest of the TTL on that shard counts, as long as there is any.

        Raises:
            RpcError: a shard's, as it came.
        """
        asked, asked_for = monotonic(), request.ID
        if self._hides(asked_for):
            request.ID = 0  # which no shard has
        outcomes = await self._ask_all(call, LEASE_TIME_TO_LIVE, request)
        for name in self._doubted(request.ID, answers_of(outcomes), asked):
            outcomes[name] = await self._ask_surely(call, self._shards[name], request)
        answers = answers_of(outcomes)
        living = {name: answer for name, answer in answers.items() if answer.TTL >= 0}
        refusal = _refusal(outcomes, may_miss=self._table.tolerant and bool(living) and not request.keys)
        if refusal is not None:
            raise refusal.error()
        response = rpc_pb2.LeaseTimeToLiveResponse(header=self._header(answers.values()), ID=asked_for, TTL=-1)
        lives = {name: name in living if name in answers else None for name in outcomes}
        empty = [name for name, answer in answers.items() if is_empty(answer.header)]
        if self._table.judge(request.ID, lives, empty, asked).dead:
            return response
        left = [answer.TTL for answer in living.values()]
        now = monotonic()
        for name, here in lives.items():
            if here is None and (seconds := self._table.left(request.ID, name, now)) is not None:
                left.append(seconds)
        response.TTL = min(left)
        response.grantedTTL = min(answer.grantedTTL for answer in living.values())
        keys: list[bytes] = []
        for name, answer in living.items():
            async for portion in in_turns(answer.keys):
                keys += [key for key in portion if self._owner(key) == name]
        response.keys.extend(await sort(keys, list, descend=False, limit=len(keys)))
        return response

    def _hides(self, lease_id: int) -> bool:
        """Whether clients see no such lease, because it is that of a proxy."""
        return is_own_lease(lease_id) and any(shard.guard is not None for shard in self._shards.values())

    def _doubted(
        self, lease_id: int, answers: Mapping[str, rpc_pb2.LeaseTimeToLiveResponse], asked: float
    ) -> list[str]:
        """The shards for whose answer a lease would be dead that another shard has; see `lease.doubt`."""
        lacking = [name for name, answer in answers.items() if answer.TTL < 0]
        if len(lacking) == len(answers):
            return []
        judge = partial(self._table.judge_one, lease_id, asked=asked)
        return [name for name in lacking if judge(name, empty=is_empty(answers[name].header)) is Lacking.ENDED]

    async def _ask_surely(
        self, call: CoroutineCall, shard: Shard, request: rpc_pb2.LeaseTimeToLiveRequest
    ) -> rpc_pb2.LeaseTimeToLiveResponse | Status:
        """The outcome of a shard whose member knows that it leads, if it does."""
        metadata = load_bearing(call.stream.head)
        call.asks(shard.name)
        try:
            await lease_sync.catch_up(shard, metadata=metadata, seconds=call.seconds(DEFAULT_SECONDS))
        except RpcError as error:
            return error.status
        finally:
            call.asked(shard.name)
        seconds = call.seconds(DEFAULT_SECONDS)
        outcomes = await ask_all(
            [shard], LEASE_TIME_TO_LIVE, request, metadata=call.metadata, seconds=seconds, down=call.stream, caller=call
        )
        return outcomes[shard.name]

    async def leases(self, call: CoroutineCall, request: rpc_pb2.LeaseLeasesRequest) -> rpc_pb2.LeaseLeasesResponse:
        """The leases of all shards, each once, shard after shard. A shard lists the lease that ends next first.

        A list takes a shard much time, so no two shards make one for the same call at once.

        Raises:
            RpcError: a shard's, as it came.
        """
        response = rpc_pb2.LeaseLeasesResponse()
        headers: list[rpc_pb2.ResponseHeader] = []
        told: set[int] = set()
        call.keeps = Keeps.LAST  # or another such call would begin before this one asks the next shard
        for shard in self._shards.values():
            call.enter_anew([shard.name])
            outcomes = await self._ask_all(call, LEASE_LEASES, request, shards=[shard])
            refusal = _refusal(outcomes, may_miss=False)
            if refusal is not None:
                raise refusal.error()
            answer = answers_of(outcomes)[shard.name]
            headers.append(answer.header)
            sizes = {shard.name: answer.ByteSize()}
            for at in range(0, len(answer.leases), LEASES_AT_ONCE):
                call.work_on(sizes)
                for lease in answer.leases[at : at + LEASES_AT_ONCE]:
                    if lease.ID not in told and not (shard.guard is not None and is_own_lease(lease.ID)):
                        told.add(lease.ID)
                        response.leases.append(lease)
                await asyncio.sleep(0)
        response.header.CopyFrom(merged_header(headers, self._identity))
        return response

    async def _ask_all(
        self,
        call: CoroutineCall,
        method: Method[Answer],
        request: Message,
        *,
        seconds: float = DEFAULT_SECONDS,
        shards: Iterable[Shard] | None = None,
    ) -> dict[str, Answer | Status]:
        """The outcome of each shard, or of these, by name; `seconds` is the longest to wait for a shard."""
        return await ask_all(
            self._shards.values() if shards is None else shards,
            method,
            request,
            metadata=call.metadata,
            seconds=call.seconds(seconds),
            # A call that changes something takes its answers even without memory for them: their outcome must be known.
            down=call.stream if method.idempotent else None,
            caller=call,
        )

    def _header(self, answers: Iterable[Any]) -> rpc_pb2.ResponseHeader:
        return merged_header([answer.header for answer in answers], self._identity)


def _refusal(outcomes: dict[str, Answer | Status], *, may_miss: bool) -> Status | None:
    """The refusal if a shard has failed; None if all have answered, or only unreachable ones failed and `may_miss`."""
    failures = list(failures_of(outcomes).values())
    if may_miss:
        failures = [failure for failure in failures if not errors.is_unreachable(failure)]
    return _worst(failures) if failures else None


def _worst(failures: Sequence[Status]) -> Status:
    """The first failure that is not just an unreachable shard; if all are, the first."""
    return next((failure for failure in failures if not errors.is_unreachable(failure)), failures[0])
