"""Running proxies, asked by the stock client of gRPC: reachable, of the same map, and each key where the map says.

The map's fingerprint is in a proxy's page `/version`. An answer from inside one shard has the id of that shard's
cluster in its header, so a read of any key, there or not, tells who answered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final

import h11

from esp.core.background import all_of
from esp.core.config import Config, Endpoint, ShardTls, read_password
from esp.core.health.facts import Finding, Kind, ProxyHealth, Sample, ShardHealth
from esp.core.health.page import page_at
from esp.core.health.strays import scope_of
from esp.core.keys import format_key
from esp.core.pb import rpc_pb2
from esp.core.tls_paths import Files
from esp.core.wording import cured, shard_called

ANSWER_SECONDS: Final = 3.0
"""Seconds for each call to a proxy."""
MAX_SAMPLES: Final = 64
"""The most keys that are read through each proxy: the first key of as many ranges."""
AT_ONCE: Final = 8
MAX_WORD: Final = 64
"""The most characters of a proxy's version and the like."""
MAX_WRONG: Final = 3
"""The most keys of one proxy that are told one by one because they go elsewhere."""


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies to ask, and how.

    Attributes:
        endpoints: their addresses.
        files: the CA of their certificates, and a client's certificate and key; for https:// only.
    """

    endpoints: tuple[Endpoint, ...]
    files: Files


async def ask_proxies(config: Config, shards: Sequence[ShardHealth], proxies: Proxies) -> tuple[ProxyHealth, ...]:
    """The proxies, asked at once. Raises nothing: failures are in the answer."""
    clusters = clusters_of(shards)
    samples = samples_of(config)
    return tuple(await all_of([_ask(config, each, proxies.files, clusters, samples) for each in proxies.endpoints]))


def clusters_of(shards: Sequence[ShardHealth]) -> dict[int, str]:
    """The shard of each cluster id; without ids that several shards have, which tell nobody apart."""
    owners: dict[int, set[str]] = {}
    for shard in shards:
        for health in shard.endpoints:
            if health.member is not None:
                owners.setdefault(health.member.cluster_id, set()).add(shard.name)
    return {cluster: names.pop() for cluster, names in owners.items() if len(names) == 1}


def samples_of(config: Config) -> list[Sample]:
    """A key of each range, as many as are read: those of each shard's first range come first."""
    first: dict[str, Sample] = {}
    more: list[Sample] = []
    for segment in config.shard_map.split(scope_of(config)):
        start, end = segment.range
        after = start + b"\0"  # not the boundary itself: where a list begins, esp may refuse a read of the one key
        sample = Sample(after if end is None or after < end else start, segment.shard)
        if segment.shard in first:
            more.append(sample)
        else:
            first[segment.shard] = sample
    return [*first.values(), *more][:MAX_SAMPLES]


async def _ask(
    config: Config, endpoint: Endpoint, files: Files, clusters: Mapping[int, str], samples: Sequence[Sample]
) -> ProxyHealth:
    try:
        async with _Client(endpoint, files) as client:
            await client.log_in(config)
            began = monotonic()
            await client.call("/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest(), rpc_pb2.StatusResponse)
            latency = monotonic() - began
            told = await version_of(endpoint, files)
            known = [sample for sample in samples if sample.owner in clusters.values()]
            tried: list[Sample] = []
            for place in range(0, len(known), AT_ONCE):
                some = known[place : place + AT_ONCE]
                tried += await all_of([_try(config, client, sample, clusters) for sample in some])
    except (_CallError, OSError, ValueError) as error:
        return ProxyHealth(endpoint, error=str(error))
    untried = {sample.owner for sample in samples} - {sample.owner for sample in tried}
    esp, fingerprint, epoch = (told.get(name) for name in ("esp", "map", "epoch"))
    return ProxyHealth(endpoint, "", latency, esp, fingerprint, epoch, tuple(tried), len(untried), told.get("map_in"))


async def _try(config: Config, client: _Client, sample: Sample, clusters: Mapping[int, str]) -> Sample:
    key = sample.key if config.namespace is None else config.namespace.stripped(sample.key)
    try:
        request = rpc_pb2.RangeRequest(key=key or b"\0", count_only=True)
        answer = await client.call("/etcdserverpb.KV/Range", request, rpc_pb2.RangeResponse)
    except _CallError as error:
        return replace(sample, error=str(error))
    return replace(sample, answered=clusters.get(answer.header.cluster_id, ""))


async def version_of(endpoint: Endpoint, files: Files) -> dict[str, str]:
    """What the page `/version` tells of an esp; nothing if no esp is there, or no page comes."""
    told: object = None
    with suppress(OSError, TimeoutError, h11.ProtocolError, ValueError, RecursionError):
        _, page = await asyncio.wait_for(page_at(endpoint, ShardTls(files), "/version", ANSWER_SECONDS), ANSWER_SECONDS)
        told = json.loads(page)
    if not isinstance(told, dict):
        return {}
    return {name: str(told[name])[:MAX_WORD] for name in ("esp", "map", "epoch", "map_in") if name in told}


class _CallError(Exception):
    """A call has failed; the text is a clause for people."""


class _Client:
    """grpcio's client of one proxy."""

    def __init__(self, endpoint: Endpoint, files: Files) -> None:
        """A client that connects with the first call.

        Raises:
            OSError: a file of TLS cannot be read.
        """
        import grpc.aio  # a tenth of a second, and only this command needs it

        self._error = grpc.aio.AioRpcError
        target = str(endpoint).partition("://")[2]
        # Its own connection, and never through a proxy of HTTP that the environment names.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if endpoint.tls:
            ca, key, cert = (_read(path) for path in (files.ca, files.key, files.cert))
            self._channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca, key, cert), options)
        else:
            self._channel = grpc.aio.insecure_channel(target, options)
        self._metadata: tuple[tuple[str, str], ...] = ()

    async def __aenter__(self) -> _Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._channel.close()

    async def log_in(self, config: Config) -> None:
        """Sends further calls as esp's own user, if the config names one.

        Raises:
            _CallError: the user cannot authenticate.
            OSError, ValueError: the password cannot be read.
        """
        user = next((shard.user for shard in config.shards if shard.user is not None), None)
        if user is None:
            return
        request = rpc_pb2.AuthenticateRequest(name=user.name, password=read_password(user.password_file))
        try:
            answer = await self.call("/etcdserverpb.Auth/Authenticate", request, rpc_pb2.AuthenticateResponse)
        except _CallError as error:
            if "authentication is not enabled" in str(error):
                return
            raise
        self._metadata = (("token", answer.token),)

    async def call(self, path: str, request: Any, answer: Any) -> Any:
        """The answer to a unary call.

        Raises:
            _CallError: it failed.
        """
        method = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        try:
            return await method(request, timeout=ANSWER_SECONDS, metadata=self._metadata)
        except self._error as error:
            raise _CallError(_words(error.details() or error.code().name)) from None


def _words(details: str) -> str:
    """Grpcio's details without its own machinery: what went wrong with the last address."""
    if "Connection refused" in details:
        return "connection refused"
    if details == "Deadline Exceeded":
        return f"no answer within {ANSWER_SECONDS:g} s"
    return details.rpartition("Last error: ")[2]


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def judge_proxies(config: Config, proxies: Sequence[ProxyHealth]) -> tuple[list[Finding], list[Finding]]:
    """The problems and the notes about running proxies."""
    problems = [finding for proxy in proxies for finding in _problems(config, proxy)]
    maps = {proxy.map for proxy in proxies if proxy.map is not None}
    if len(maps) > 1:
        groups = [f"{', '.join(str(p.endpoint) for p in proxies if p.map == one)}: {one}" for one in sorted(maps)]
        text = f"running proxies have different shard maps ({'; '.join(groups)}): the same key is in different shards"
        problems.insert(0, Finding(Kind.PROXY_MAP, (), None, text))
    versions = sorted({proxy.esp for proxy in proxies if proxy.esp is not None})
    notes = []
    if len(versions) > 1:
        notes.append(
            Finding(Kind.PROXY_VERSION, (), None, f"running proxies are of different esps: {', '.join(versions)}")
        )
    return problems, notes


def _problems(config: Config, proxy: ProxyHealth) -> Iterator[Finding]:
    def finding(kind: Kind, text: str, *shards: str) -> Finding:
        return Finding(kind, shards, proxy.endpoint, text)

    if proxy.error:
        yield finding(Kind.PROXY_UNREACHABLE, f"cannot be used: {cured(proxy.error)}")
        return
    if proxy.esp is None:
        yield finding(Kind.PROXY_NO_ESP, "answers, and does not say that it is an esp")
    elif config.guards is not None and proxy.map_in != "shards":
        yield finding(
            Kind.PROXY_MAP,
            "serves by a map in its file, and the shards hold one for all; write map: shards into its config, and "
            "start it anew",
        )
    elif config.guards is not None and proxy.map != config.shard_map.fingerprint:
        yield finding(
            Kind.PROXY_MAP,
            f"serves by the map {proxy.map} of epoch {proxy.epoch}, and the shards hold {config.shard_map.fingerprint} "
            f"of epoch {config.shard_map.epoch}; it takes that by itself, and if it does not, its log says why",
        )
    elif proxy.map != config.shard_map.fingerprint:
        yield finding(
            Kind.PROXY_MAP,
            f"its shard map is {proxy.map}, and that of {config.path} is "
            f"{config.shard_map.fingerprint}; have it read the file again (esp reload), or name its file (-c)",
        )
    wrong = [sample for sample in proxy.samples if sample.error or sample.answered != sample.owner]
    for sample in wrong[:MAX_WRONG]:
        what = f"failed: {sample.error}" if sample.error else f"came from {_who(sample)}"
        text = f'a read of "{format_key(sample.key)}", which {shard_called(sample.owner)} owns, {what}'
        yield finding(Kind.PROXY_ROUTE, text, sample.owner)
    if len(wrong) > MAX_WRONG:
        text = f"{len(wrong) - MAX_WRONG} more of {len(proxy.samples)} reads went wrong"
        yield finding(Kind.PROXY_ROUTE, text)


def _who(sample: Sample) -> str:
    return shard_called(sample.answered) if sample.answered else "a cluster that is no shard of the config"
