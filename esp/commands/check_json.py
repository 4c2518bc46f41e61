"""The JSON of `esp check`, and what it shares with the text.

docs/json.md has the fields. Later versions add fields, and never change one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from esp.commands.output import json_key
from esp.core.config import Config
from esp.core.health import (
    EndpointHealth,
    Finding,
    Health,
    ProxyHealth,
    ShardHealth,
    ShardKeys,
    Stray,
    Unlisted,
    Verdict,
    verdict_of,
)
from esp.core.keys import KeyRange
from esp.core.namespace import Namespace
from esp.core.tls_files import day_of
from esp.core.wording import shards_quoted


def json_of(loaded: Config, health: Health) -> dict[str, Any]:
    """The whole object; null stands for an unknown value."""
    return {
        "healthy": not health.problems,
        "config": str(loaded.path),
        "namespace": None
        if loaded.namespace is None
        else {"prefix": json_key(loaded.namespace.prefix), "shards": owners(loaded, loaded.namespace)},
        "shards": [_shard(shard, verdict_of(shard), health) for shard in health.shards],
        "map": loaded.shard_map.fingerprint,
        "proxies": None if health.proxies is None else [_proxy(loaded, proxy) for proxy in health.proxies],
        "problems": _findings(health.problems),
        "notes": _findings(health.notes),
    }


def owners(loaded: Config, namespace: Namespace) -> list[str]:
    """The shards that own keys of the namespace, in key order."""
    return list(dict.fromkeys(segment.shard for segment in loaded.shard_map.split(namespace.keys)))


def own_alarms(health: EndpointHealth) -> list[str] | None:
    """The alarms of this member; those of its whole cluster if the member's id is unknown. None if unknown."""
    if health.alarms is None:
        return None
    own = health.member.member_id if health.member is not None else None
    return [alarm.name for alarm in health.alarms if own in (None, alarm.member_id)]


def _shard(shard: ShardHealth, verdict: Verdict, health: Health) -> dict[str, Any]:
    return {
        "name": shard.name,
        "state": verdict.state,
        "verdict": verdict.text,
        "ranges": [json_range(part) for part in shard.ranges],
        "endpoints": [_endpoint(endpoint) for endpoint in shard.endpoints],
        "unlisted_members": [_unlisted(unlisted) for unlisted in shard.unlisted],
        "keys": None if health.keys is None else _keys(health.keys[shard.name]),
    }


def json_range(part: KeyRange) -> dict[str, Any]:
    """A range in JSON: its start, and its end or null."""
    return {"start": json_key(part.start), "end": None if part.end is None else json_key(part.end)}


def _keys(keys: ShardKeys) -> dict[str, Any]:
    return {
        "owned": keys.owned,
        "strays": None if keys.strays is None else [_stray(stray) for stray in keys.strays],
        "error": keys.refusal or None,
    }


def _stray(stray: Stray) -> dict[str, Any]:
    return {
        "range": json_range(stray.range),
        "owner": stray.owner,
        "count": stray.count,
        "samples": [json_key(key) for key in stray.samples],
    }


def _endpoint(health: EndpointHealth) -> dict[str, Any]:
    member = health.member
    return {
        "endpoint": str(health.endpoint),
        "reachable": health.reachable,
        "error": None if health.refusal is None else health.refusal.message,
        "cluster_id": None if member is None else f"{member.cluster_id:x}",
        "member_id": None if member is None else f"{member.member_id:x}",
        "leader_id": None if member is None else f"{member.leader_id:x}",
        "is_leader": None if member is None else member.leader_id == member.member_id,
        "is_learner": None if member is None else member.is_learner,
        "version": None if member is None else member.version,
        "db_size": None if member is None else member.db_size,
        "revision": None if member is None else member.revision,
        "latency_seconds": None if health.latency is None else round(health.latency, 6),
        "alarms": own_alarms(health),
        "errors": None if member is None else list(member.errors),
        "db_size_in_use": None if member is None else member.db_in_use,
        "db_quota": health.quota,
        "raft_term": None if member is None else member.raft_term,
        "raft_index": None if member is None else member.raft_index,
        "raft_applied_index": None if member is None else member.raft_applied,
        "round_trips": _round_trips(health),
        "clock_ahead_seconds": None
        if health.clock is None
        else {"low": round(health.clock.low, 3), "high": round(health.clock.high, 3)},
        "certificate_ends": None if health.certificate_ends is None else day_of(health.certificate_ends),
    }


def _round_trips(health: EndpointHealth) -> dict[str, Any] | None:
    p50, p99 = health.round_trip(0.5), health.round_trip(0.99)
    if p50 is None or p99 is None:
        return None
    return {"count": len(health.round_trips), "p50_seconds": round(p50, 6), "p99_seconds": round(p99, 6)}


def _unlisted(unlisted: Unlisted) -> dict[str, Any]:
    member = unlisted.member
    return {
        "member_id": f"{member.member_id:x}",
        "name": member.name,
        "client_urls": list(member.client_urls),
        "is_learner": member.is_learner,
        "alive": not unlisted.trouble,
        "error": unlisted.trouble or None,
    }


def _proxy(loaded: Config, proxy: ProxyHealth) -> dict[str, Any]:
    wrong = [sample for sample in proxy.samples if sample.answered != sample.owner]
    return {
        "proxy": str(proxy.endpoint),
        "reachable": not proxy.error,
        "error": proxy.error or None,
        "latency_seconds": None if proxy.latency is None else round(proxy.latency, 6),
        "esp": proxy.esp,
        "map": proxy.map,
        "same_map": None if proxy.map is None else proxy.map == loaded.shard_map.fingerprint,
        "epoch": int(proxy.epoch) if proxy.epoch is not None and proxy.epoch.isdecimal() else None,
        "reads": len(proxy.samples),
        "wrong_reads": [
            {
                "key": json_key(sample.key),
                "owner": sample.owner,
                "answered_by": sample.answered or None,
                "error": sample.error or None,
            }
            for sample in wrong
        ],
    }


def _findings(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "kind": finding.kind,
            "shards": list(finding.shards),
            "endpoint": None if finding.endpoint is None else str(finding.endpoint),
            "text": finding.text,
        }
        for finding in findings
    ]


def subject_of(finding: Finding) -> str:
    """The shards and the endpoint, or the proxy, in front of a finding; "" if it is about esp itself."""
    if finding.kind.startswith("proxy-"):
        return "" if finding.endpoint is None else f"proxy {finding.endpoint}: "
    if not finding.shards:
        return ""
    subject = shards_quoted(finding.shards)
    return f"{subject}: " if finding.endpoint is None else f"{subject}, {finding.endpoint}: "
