"""Asks every endpoint of every shard for its health.

Each endpoint is asked through a shard client of its own, the code that the proxy runs, so an endpoint that is reachable
here is reachable for the proxy. The calls are Maintenance/Status, which a member answers from its own knowledge, and
Maintenance/Alarm, which a member answers only with a quorum.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from time import monotonic, time
from typing import Any, Final

from google.protobuf.message import Message

from esp.core import errors
from esp.core.apiservers import holds, namespace_key, roots_in_question
from esp.core.background import Background, all_of
from esp.core.config import Config, Endpoint, ShardConfig
from esp.core.health.accounts import Accounts, compare, find
from esp.core.health.facts import Alarm, EndpointHealth, Health, Member, ShardHealth, ShardKeys
from esp.core.health.findings import judge, with_certificates, with_cuts, with_findings
from esp.core.health.strays import count_keys, judge_keys
from esp.core.kubernetes import cuts
from esp.core.pb import rpc_pb2
from esp.core.server_certificates import ServerCertificates
from esp.core.shard import ALARMS, STATUS, Method, Shard, ask_for_esp
from esp.core.tls_files import TlsFiles
from esp.core.tls_paths import TlsFileError
from esp.core.wire.context import WireContext
from esp.core.wire.status import Code, RpcError, Status

ANSWER_SECONDS: Final = 2.0
"""Seconds for one endpoint: to connect, and to get all answers."""

ACCOUNTS_SECONDS: Final = 10.0
"""How long the users and roles of all shards may take to be told."""

MAX_SUSPECTED: Final = 64
"""The most prefixes below which a kube-apiserver's keys are looked for."""

_POLL_SECONDS: Final = 0.01


async def examine(config: Config, seconds: float = ANSWER_SECONDS, *, keys: bool = False) -> Health:
    """The health of all endpoints, asked at once, in `seconds` at most. Raises nothing: failures are in the answer.

    With `keys`, the shards also count their keys, which takes the longer, the more there are.
    """
    context, files = WireContext(config.limits), TlsFiles()

    async def ask(shard: ShardConfig) -> ShardHealth:
        endpoints = await all_of([_examine(endpoint, shard, context, files, seconds) for endpoint in shard.endpoints])
        return ShardHealth(shard.name, shard.ranges, tuple(endpoints))

    told: list[Any] = await all_of([all_of(map(ask, config.shards)), _accounts(config, context, files, seconds)])
    health = with_findings(judge(told[0]), *compare(told[1]))
    if keys:
        counts = await _keys(config, context, files, seconds)
        health = replace(with_findings(health, judge_keys(counts), ()), keys=counts)
    shard_map, assumed = config.shard_map, config.apiserver_roots
    at_work = await _roots_at_work(config, context, files, seconds) if len(config.shards) > 1 else []
    found = [cut for root in dict.fromkeys((*assumed, *at_work)) for cut in cuts(shard_map, root)]
    if config.tls is not None:
        with suppress(TlsFileError):  # the files have changed since the config was checked
            ServerCertificates(config.tls, files)
    return with_certificates(with_cuts(health, found, at_work=bool(at_work)), files.expiries(), time())


async def _accounts(config: Config, context: WireContext, files: TlsFiles, seconds: float) -> dict[str, Accounts]:
    """The auth of each shard, by name, as far as the shard tells.

    With a single shard it only matters whether esp can authenticate.
    """
    if len(config.shards) == 1 and not any(shard.user for shard in config.shards):
        return {}
    async with _connecting(config, context, files) as shards:
        found = {name: Accounts(refusal=f"not within {ACCOUNTS_SECONDS:g} s") for name in shards}

        async def ask(name: str, shard: Shard) -> None:
            await _settled(shard)
            await find(found[name], shard, seconds)

        with suppress(TimeoutError):
            await asyncio.wait_for(all_of([ask(*each) for each in shards.items()]), ACCOUNTS_SECONDS)
        return found


async def _roots_at_work(config: Config, context: WireContext, files: TlsFiles, seconds: float) -> list[bytes]:
    """The directories of kube-apiservers' keys: found within `seconds`, or expected. Empty without a kube-apiserver."""

    async def find(shards: dict[str, Shard]) -> list[bytes]:
        async def is_there(key: bytes) -> bool:
            try:
                return await holds(shards[config.shard_map.owner(key)], key)
            except RpcError:
                return False

        for shard in shards.values():
            await _settled(shard)
        if not await is_there(config.compact_key):
            return []
        suspected = roots_in_question(config.shard_map)[:MAX_SUSPECTED]
        seen = await all_of([is_there(namespace_key(root)) for root in suspected])
        return [
            *config.apiserver_roots,
            *(root for root, there in zip(suspected, seen, strict=True) if there),
        ]

    async with _connecting(config, context, files) as shards:
        try:
            return await asyncio.wait_for(find(shards), seconds)
        except TimeoutError:
            return []


async def _keys(config: Config, context: WireContext, files: TlsFiles, seconds: float) -> dict[str, ShardKeys]:
    """The keys of each shard, by name; each shard may take `seconds` to be connected."""

    async def count(shard: Shard) -> ShardKeys:
        try:
            await asyncio.wait_for(_settled(shard), seconds)
        except TimeoutError:
            return ShardKeys(refusal=f"no answer within {seconds:g} s")
        if not shard.is_ready:
            return ShardKeys(refusal="; ".join(dict.fromkeys(shard.troubles.values())))
        return await count_keys(config, shard)

    async with _connecting(config, context, files) as shards:
        return dict(zip(shards, await all_of(map(count, shards.values())), strict=True))


@asynccontextmanager
async def _connecting(config: Config, context: WireContext, files: TlsFiles) -> AsyncIterator[dict[str, Shard]]:
    """The shards by name, which are connected as soon as that goes, for as long as the block runs."""
    async with Background() as background:
        shards = {shard.name: Shard.of(shard, context, background, files) for shard in config.shards}
        for shard in shards.values():
            background.start(shard.run())
        yield shards


async def _examine(
    endpoint: Endpoint, of: ShardConfig, context: WireContext, files: TlsFiles, seconds: float
) -> EndpointHealth:
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
            await asyncio.sleep(_POLL_SECONDS)
        return await _ask(shard, endpoint, until)


async def _settled(shard: Shard) -> None:
    """Waits until a shard is connected, or all of its endpoints have failed."""
    while True:
        if shard.is_ready or len(shard.troubles) == len(shard.endpoints):
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _ask(shard: Shard, endpoint: Endpoint, until: float) -> EndpointHealth:
    alarm_request = rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.GET)
    (status, latency), (alarms, _) = await all_of(
        [
            _timed(shard, STATUS, rpc_pb2.StatusRequest(), until),
            _timed(shard, ALARMS, alarm_request, until),
        ]
    )
    told_status = isinstance(status, rpc_pb2.StatusResponse)
    return EndpointHealth(
        endpoint,
        reachable=True,
        latency=latency if told_status else None,
        member=_member(status) if isinstance(status, rpc_pb2.StatusResponse) else None,
        alarms=tuple(_alarms(alarms)) if isinstance(alarms, rpc_pb2.AlarmResponse) else None,
        refusal=next((one for one in (status, alarms) if isinstance(one, Status)), None),
    )


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
    )


def _alarms(response: rpc_pb2.AlarmResponse) -> Iterator[Alarm]:
    for alarm in response.alarms:
        known = alarm.alarm in rpc_pb2.AlarmType.values()
        yield Alarm(alarm.memberID, rpc_pb2.AlarmType.Name(alarm.alarm) if known else str(alarm.alarm))
