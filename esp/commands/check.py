"""`esp check`: the status of every endpoint of every shard, and all problems. Exit code 1 if there are problems."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from esp.commands.output import CommandError, Format, json_key, write, write_json, write_table
from esp.core import config as configs
from esp.core.config import Config
from esp.core.health import EndpointHealth, Finding, Health, ShardHealth, examine
from esp.core.keys import KeyRange, format_key, format_range
from esp.core.namespace import Namespace

UNKNOWN = "?"
"""The cell of an unknown value."""


def run(config: Path | None, output: Format) -> None:
    """Print the status and the problems of all shards.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: there are problems; they have been printed.
    """
    # The output has everything that the shard clients log here.
    logging.getLogger("esp").addHandler(logging.NullHandler())
    loaded = configs.load(configs.find(config, os.environ))
    health = asyncio.run(examine(loaded))
    if output is Format.JSON:
        _write_json(loaded, health)
    else:
        _write_text(loaded, health)
    if health.problems:
        raise CommandError(f"not healthy: {_counted(len(health.problems), 'problem')}")


def _write_text(loaded: Config, health: Health) -> None:
    owned = [(shard, format_range(part)) for shard, part in loaded.shard_map.split(KeyRange(b"", None))]
    write_table(["SHARD", "KEYS"], owned)
    write("")
    if loaded.namespace is not None:
        keys, prefix = format_range(loaded.namespace.keys), format_key(loaded.namespace.prefix)
        write(f'Namespace: clients see the keys {keys}, without "{prefix}".')
        write(f"The shards of these keys: {', '.join(_owners(loaded, loaded.namespace))}.")
        write("")
    troubled = {finding.endpoint for finding in health.problems} - {None}
    rows = [(shard, endpoint) for shard in health.shards for endpoint in shard.endpoints]
    # No column without content: rows shall fit into 80 columns.
    width = None if any(_tells_alarms(endpoint) for _, endpoint in rows) else -1
    write_table(
        ["SHARD", "ENDPOINT", "LEADER", "VERSION", "DB SIZE", "REVISION", "LATENCY", "ALARMS"][:width],
        [_row(shard, endpoint)[:width] for shard, endpoint in rows],
        marked=[number for number, (_, endpoint) in enumerate(rows) if endpoint.endpoint in troubled],
    )
    for title, findings in (("Problems", health.problems), ("Notes", health.notes)):
        if findings:
            write(f"\n{title}:")
            for finding in findings:
                write(f"  {_subject(finding)}{finding.text}")
    if not health.problems:
        write(f"\nHealthy: {_counted(len(health.shards), 'shard')}, {_counted(len(rows), 'endpoint')}.")


def _owners(loaded: Config, namespace: Namespace) -> list[str]:
    """The shards that own keys of the namespace, in key order."""
    return list(dict.fromkeys(segment.shard for segment in loaded.shard_map.split(namespace.keys)))


def _row(shard: ShardHealth, health: EndpointHealth) -> list[str]:
    member = health.member
    return [
        shard.name,
        str(health.endpoint),
        _leader(shard, health),
        member.version if member is not None else UNKNOWN,
        _human_size(member.db_size) if member is not None else UNKNOWN,
        str(member.revision) if member is not None else UNKNOWN,
        _latency(health),
        UNKNOWN if (alarms := _own_alarms(health)) is None else ",".join(alarms) or "none",
    ]


def _leader(shard: ShardHealth, health: EndpointHealth) -> str:
    """The cell LEADER of a member: "yes" if it leads, "no" if the leader that it names is listed and agrees.

    Otherwise the leader that the member names: an endpoint of the shard that does not agree, the id of a member, or
    "none".
    """
    member = health.member
    if member is None:
        return UNKNOWN
    if not member.leader_id:
        return "none"
    if member.leader_id == member.member_id:
        return "yes"
    for other in shard.endpoints:
        if other.member is not None and other.member.member_id == member.leader_id:
            return "no" if other.member.leader_id == member.leader_id else str(other.endpoint)
    return f"{member.leader_id:x}"


def _latency(health: EndpointHealth) -> str:
    if not health.reachable:
        return "down"
    return f"{health.latency * 1000:.1f} ms" if health.latency is not None else UNKNOWN


def _tells_alarms(health: EndpointHealth) -> bool:
    """Whether the member has alarms, or is reachable and does not tell them."""
    return bool(_own_alarms(health)) or (health.reachable and health.alarms is None)


def _own_alarms(health: EndpointHealth) -> list[str] | None:
    """The alarms of this member; those of its whole cluster if the member's id is unknown. None if unknown."""
    if health.alarms is None:
        return None
    own = health.member.member_id if health.member is not None else None
    return [alarm.name for alarm in health.alarms if own in (None, alarm.member_id)]


def _subject(finding: Finding) -> str:
    """The shards and the endpoint in front of a finding; "" if it is about esp itself."""
    if not finding.shards:
        return ""
    shards = ", ".join(f'"{name}"' for name in finding.shards)
    subject = f"shard {shards}" if len(finding.shards) == 1 else f"shards {shards}"
    return f"{subject}: " if finding.endpoint is None else f"{subject}, {finding.endpoint}: "


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _human_size(size: int) -> str:
    """The size in decimal units with at least two digits, as etcdctl prints sizes."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.1f} {unit}" if amount < 9.95 and unit != "B" else f"{amount:.0f} {unit}"


def _write_json(loaded: Config, health: Health) -> None:
    """The JSON form.

    `healthy` is true if the exit code is 0. `namespace` is null, or has the `prefix` of clients' keys, and the names of
    the `shards` that own keys with that prefix. `shards` are in the order of the config. In their `ranges` a key is
    {"text", "base64"}, without `text` if the key is not UTF-8; `end` is null for no upper bound.

    In an endpoint, null stands for an unknown value. `error` is the reason: why the endpoint is unreachable, or the
    text of its refusal. Ids are hexadecimal text, as etcdctl shows them; `leader_id` is "0" if the member knows of no
    leader. `db_size` is in bytes. `alarms` are those of this member.

    `problems` and `notes` have a `kind` for programs (`esp.core.health.Kind`), the names of the `shards`, the
    `endpoint` (null if several are concerned) and a `text` for people.
    """
    write_json(
        {
            "healthy": not health.problems,
            "config": str(loaded.path),
            "namespace": None
            if loaded.namespace is None
            else {"prefix": json_key(loaded.namespace.prefix), "shards": _owners(loaded, loaded.namespace)},
            "shards": [
                {
                    "name": shard.name,
                    "ranges": [_json_range(part) for part in shard.ranges],
                    "endpoints": [_json_endpoint(endpoint) for endpoint in shard.endpoints],
                }
                for shard in health.shards
            ],
            "problems": _json_findings(health.problems),
            "notes": _json_findings(health.notes),
        }
    )


def _json_range(part: KeyRange) -> dict[str, Any]:
    return {"start": json_key(part.start), "end": None if part.end is None else json_key(part.end)}


def _json_endpoint(health: EndpointHealth) -> dict[str, Any]:
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
        "alarms": _own_alarms(health),
    }


def _json_findings(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "kind": finding.kind,
            "shards": list(finding.shards),
            "endpoint": None if finding.endpoint is None else str(finding.endpoint),
            "text": finding.text,
        }
        for finding in findings
    ]
