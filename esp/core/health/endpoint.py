"""Asks one endpoint for all that it tells, through a shard client of its own: the code that the proxy runs.

So an endpoint that is reachable here is reachable for the proxy. The calls are Maintenance/Status and
Cluster/MemberList, which a member answers from its own knowledge, and Maintenance/Alarm, which a member answers only
with a quorum. Then come the member's pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic
from typing import Any, Final

from google.protobuf.message import Message

from esp.core import errors
from esp.core.background import Background, all_of
from esp.core.config import Endpoint, ShardConfig
from esp.core.health.connecting import POLL_SECONDS
from esp.core.health.facts import Alarm, EndpointHealth, Listed, Member
from esp.core.health.page import pages_of
from esp.core.pb import rpc_pb2
from esp.core.shard import ALARMS, MEMBER_LIST, STATUS, Method, Shard, ask_for_esp
from esp.core.tls_files import TlsFiles
from esp.core.wire.context import WireContext
from esp.core.wire.status import Code, RpcError, Status

ROUND_TRIPS: Final = 20
"""How many Status calls show the round trips; fewer if half of the time is over."""


async def examine_endpoint(
    endpoint: Endpoint,
    of: ShardConfig,
    context: WireContext,
    files: TlsFiles,
    seconds: float,
    now: Callable[[], float],
) -> EndpointHealth:
    """The health of one endpoint of a shard, asked in `seconds` at most; `now` is this machine's clock."""
    until = monotonic() + seconds
    async with Background() as background:
        shard = Shard.of(replace(of, endpoints=(endpoint,)), context, background, files)
        background.start(shard.run())
        while not shard.is_ready:
            if shard.barred is not None:
                return EndpointHealth(endpoint, True, refusal=errors.IS_ESP)
            if shard.troubles or monotonic() > until:
                reason = shard.troubles.get(endpoint, f"no answer within {seconds:g} s")
                return EndpointHealth(endpoint, False, refusal=Status(Code.UNAVAILABLE, reason))
            await asyncio.sleep(POLL_SECONDS)
        health = await _ask(shard, endpoint, until)
    if health.member is None and health.refusal == errors.IS_ESP:
        return health
    needs_metrics = health.quota is None and health.member is not None
    pages = await pages_of(endpoint, of.tls, max(0.1, until - monotonic()), now, metrics=needs_metrics)
    return replace(
        health,
        quota=health.quota or pages.quota,
        clock=pages.clock,
        certificate_ends=pages.certificate_ends,
    )


async def _ask(shard: Shard, endpoint: Endpoint, until: float) -> EndpointHealth:
    alarm_request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)
    (status, latency), (alarms, _), (members, _) = await all_of(
        [
            _timed(shard, STATUS, rpc_pb2.StatusRequest(), until),
            _timed(shard, ALARMS, alarm_request, until),
            _timed(shard, MEMBER_LIST, rpc_pb2.MemberListRequest(), until),
        ]
    )
    told = status if isinstance(status, rpc_pb2.StatusResponse) else None
    return EndpointHealth(
        endpoint,
        reachable=True,
        latency=latency if told else None,
        member=_member(told) if told else None,
        alarms=tuple(_alarms(alarms)) if isinstance(alarms, rpc_pb2.AlarmResponse) else None,
        refusal=next((one for one in (status, alarms) if isinstance(one, Status)), None),
        members=tuple(map(_listed, members.members)) if isinstance(members, rpc_pb2.MemberListResponse) else None,
        round_trips=await _round_trips(shard, until) if told else (),
        quota=told.dbSizeQuota or None if told else None,
    )


async def _round_trips(shard: Shard, until: float) -> tuple[float, ...]:
    """Seconds of a few Status calls, one after the other, from the lowest up. They take half of the time at most."""
    enough = (monotonic() + until) / 2
    found: list[float] = []
    while len(found) < ROUND_TRIPS and monotonic() < enough:
        answer, seconds = await _timed(shard, STATUS, rpc_pb2.StatusRequest(), until)
        if isinstance(answer, Status):
            break
        found.append(seconds)
    return tuple(sorted(found))


async def _timed(shard: Shard, method: Method[Any], request: Message, until: float) -> tuple[Message | Status, float]:
    """The answer of a Maintenance RPC, or the status of its failure; and the seconds that the call took."""
    began = monotonic()
    told: Message | Status
    try:
        told = await ask_for_esp(shard, method, request, seconds=max(0.001, until - began))
    except RpcError as error:
        late = error.status.code == Code.DEADLINE_EXCEEDED
        told = Status(Code.DEADLINE_EXCEEDED, "no answer in time") if late else error.status
    return told, monotonic() - began


def _member(status: rpc_pb2.StatusResponse) -> Member:
    return Member(
        cluster_id=status.header.cluster_id,
        member_id=status.header.member_id,
        leader_id=status.leader,
        is_learner=status.isLearner,
        version=status.version,
        db_size=status.dbSize,
        revision=status.header.revision,
        db_in_use=status.dbSizeInUse or None,
        raft_term=status.raftTerm,
        raft_index=status.raftIndex,
        raft_applied=status.raftAppliedIndex or None,
        errors=tuple(status.errors),
    )


def _listed(member: rpc_pb2.Member) -> Listed:
    return Listed(member.ID, member.name, tuple(member.clientURLs), tuple(member.peerURLs), member.isLearner)


def _alarms(response: rpc_pb2.AlarmResponse) -> Iterator[Alarm]:
    for alarm in response.alarms:
        known = alarm.alarm in rpc_pb2.AlarmType.values()
        yield Alarm(alarm.memberID, rpc_pb2.AlarmType.Name(alarm.alarm) if known else str(alarm.alarm))
