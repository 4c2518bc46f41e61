"""Asks all shards, their endpoints, and the members that are no endpoints, and judges what they tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from time import time
from typing import Any, Final

from esp.core.apiservers import holds, namespace_key, roots_in_question
from esp.core.background import all_of
from esp.core.config import Config, ShardConfig
from esp.core.fleet import Registered, registered
from esp.core.health.accounts import Accounts, compare, find, where_on
from esp.core.health.clocks import judge_certificates, judge_clocks
from esp.core.health.connecting import connecting, settled, trouble_of
from esp.core.health.endpoint import examine_endpoint
from esp.core.health.facts import Health, ShardHealth, ShardKeys
from esp.core.health.findings import judge, with_certificates, with_cuts, with_findings
from esp.core.health.lag import judge_lag
from esp.core.health.leases import Lists, differing, judge_leases
from esp.core.health.members import judge_members, look_for, missing_of
from esp.core.health.proxies import Proxies, ask_proxies, judge_proxies
from esp.core.health.shared import judge_shared_map, moving_in
from esp.core.health.space import judge_space
from esp.core.health.strays import count_keys, judge_keys
from esp.core.health.versions import judge_versions
from esp.core.keys import KeyRange
from esp.core.kubernetes import cuts
from esp.core.server_certificates import ServerCertificates
from esp.core.shard import Shard
from esp.core.shared_map import DisagreeError, Held, newest, read
from esp.core.tls_files import TlsFiles
from esp.core.tls_paths import TlsFileError
from esp.core.wire.context import WireContext
from esp.core.wire.status import RpcError, Status

ANSWER_SECONDS: Final = 2.0
"""Seconds for one endpoint: to connect, and to get all answers."""

ACCOUNTS_SECONDS: Final = 10.0
"""How long the users and roles of all shards may take to be told, and the leases as long again."""

MAX_SUSPECTED: Final = 64
"""The most prefixes below which a kube-apiserver's keys are looked for."""


async def examine(
    config: Config,
    seconds: float = ANSWER_SECONDS,
    *,
    keys: bool = False,
    proxies: Proxies | None = None,
    now: Callable[[], float] = time,
) -> Health:
    """The health of all endpoints, asked at once. Each has `seconds`, and a member that is no endpoint as long again.

    Raises nothing: failures are in the answer.

    Args:
        config: names the shards.
        seconds: the time for each endpoint.
        keys: have the shards count their keys, which takes the longer, the more there are.
        proxies: running proxies that are asked too; None for none.
        now: this machine's clock, with which those of the members are compared.
    """
    context, files = WireContext(config.limits), TlsFiles()

    async def ask(shard: ShardConfig) -> ShardHealth:
        one = partial(examine_endpoint, of=shard, context=context, files=files, seconds=seconds, now=now)
        endpoints = tuple(await all_of(map(one, shard.endpoints)))
        unlisted = await look_for(missing_of(endpoints), endpoints, one)
        return ShardHealth(shard.name, shard.ranges, endpoints, tuple(unlisted))

    told: list[Any] = await all_of(
        [
            all_of(map(ask, config.shards)),
            _accounts(config, context, files, seconds),
            _leases(config, context, files),
            _shared_map(config, context, files, seconds),
        ]
    )
    held, registered = told[3]
    health = judge(told[0])
    for judge_more in (judge_members, judge_versions, judge_space, judge_lag):
        health = with_findings(health, *judge_more(health.shards))
    health = with_findings(health, (), [*judge_clocks(health.shards), *judge_certificates(health.shards, now())])
    health = with_findings(with_findings(health, *compare(told[1])), (), where_on(told[1]))
    health = with_findings(health, *judge_leases(told[2]))
    health = with_findings(health, *judge_shared_map(config, held, registered))
    if keys:
        counts = await _keys(config, context, files, seconds, moving_in(held))
        health = replace(with_findings(health, judge_keys(counts), ()), keys=counts)
    if proxies is not None:
        found_proxies = await ask_proxies(config, health.shards, proxies)
        health = replace(with_findings(health, *judge_proxies(config, found_proxies)), proxies=found_proxies)
    shard_map, assumed = config.shard_map, config.apiserver_roots
    at_work = await _roots_at_work(config, context, files, seconds) if len(config.shards) > 1 else []
    found = [cut for root in dict.fromkeys((*assumed, *at_work)) for cut in cuts(shard_map, root)]
    if config.tls is not None:
        with suppress(TlsFileError):  # the files have changed since the config was checked
            ServerCertificates(config.tls, files)
    return with_certificates(with_cuts(health, found, at_work=bool(at_work)), files.expiries(), now())


async def _leases(config: Config, context: WireContext, files: TlsFiles) -> Lists | str | None:
    """The leases that shards lack, by name, or why they are not told; None if there is nothing to compare."""
    if len(config.shards) == 1:
        return None
    async with connecting(config, context, files) as shards:
        try:
            async with asyncio.timeout(ACCOUNTS_SECONDS):
                for shard in shards.values():
                    await settled(shard)
                    if not shard.is_ready:
                        return None  # the endpoints' findings say why
                return await differing(shards)
        except TimeoutError:
            return f"not within {ACCOUNTS_SECONDS:g} s"


async def _shared_map(
    config: Config, context: WireContext, files: TlsFiles, seconds: float
) -> tuple[dict[str, Held | Status], list[Registered]]:
    """What each shard that can be asked holds of the map on the shards, by name; and the registered proxies."""
    async with connecting(config, context, files) as shards:
        troubles = await all_of([trouble_of(shard, seconds) for shard in shards.values()])
        answering = [shard for shard, trouble in zip(shards.values(), troubles, strict=True) if not trouble]
        held = await read(answering, seconds)
        with suppress(DisagreeError, RpcError):
            told = newest(held)
            anchor = None if told is None else shards.get(told.map.anchor)
            if anchor in answering:
                return held, list((await registered(anchor, seconds)).values())
        return held, []


async def _accounts(config: Config, context: WireContext, files: TlsFiles, seconds: float) -> dict[str, Accounts]:
    """The auth of each shard, by name, as far as the shard tells.

    With a single shard it only matters whether esp can authenticate.
    """
    if len(config.shards) == 1 and not any(shard.user for shard in config.shards):
        return {}
    async with connecting(config, context, files) as shards:
        found = {name: Accounts(refusal=f"not within {ACCOUNTS_SECONDS:g} s") for name in shards}

        async def ask(name: str, shard: Shard) -> None:
            await settled(shard)
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
            await settled(shard)
        if not await is_there(config.compact_key):
            return []
        suspected = roots_in_question(config.shard_map)[:MAX_SUSPECTED]
        seen = await all_of([is_there(namespace_key(root)) for root in suspected])
        return [
            *config.apiserver_roots,
            *(root for root, there in zip(suspected, seen, strict=True) if there),
        ]

    async with connecting(config, context, files) as shards:
        try:
            return await asyncio.wait_for(find(shards), seconds)
        except TimeoutError:
            return []


async def _keys(
    config: Config, context: WireContext, files: TlsFiles, seconds: float, moving: KeyRange | None
) -> dict[str, ShardKeys]:
    """The keys of each shard, by name; each shard may take `seconds` to be connected."""

    async def count(shard: Shard) -> ShardKeys:
        if trouble := await trouble_of(shard, seconds):
            return ShardKeys(refusal=trouble)
        return await count_keys(config, shard, moving)

    async with connecting(config, context, files) as shards:
        return dict(zip(shards, await all_of(map(count, shards.values())), strict=True))
