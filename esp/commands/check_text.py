"""`esp check` for people: first a verdict for each shard, then the findings, then what each endpoint tells."""

from __future__ import annotations

from typing import Final

from rich.text import Text

from esp.commands.check_json import own_alarms, owners, subject_of
from esp.commands.rendered import Look, Page
from esp.core.config import Config
from esp.core.health import (
    Clock,
    EndpointHealth,
    Health,
    ProxyHealth,
    ShardHealth,
    ShardKeys,
    State,
    verdict_of,
)
from esp.core.keys import KeyRange, format_key, format_range
from esp.core.tls_files import day_of
from esp.core.wording import counted, shard_called, size_of

UNKNOWN: Final = "?"
"""The cell of an unknown value."""
_STYLES: Final = {State.UP: "green", State.DOWN: "bold red"}


def page_of(loaded: Config, health: Health, look: Look, *, wide: bool = False) -> Page:
    """The page for people. `wide` has all that each endpoint tells, and the ranges of each shard one by one."""
    page = Page(look)
    for shard in health.shards:
        _verdict(page, shard, health)
    if loaded.namespace is not None:
        keys, prefix = format_range(loaded.namespace.keys), format_key(loaded.namespace.prefix)
        page.line()
        page.line(f'Namespace: clients see the keys {keys}, without "{prefix}".')
        page.line(f"The shards of these keys: {', '.join(owners(loaded, loaded.namespace))}.")
    for title, style, findings in (("Problems", "red", health.problems), ("Notes", "yellow", health.notes)):
        if findings:
            page.line()
            page.line(f"{title}:", "bold")
            for finding in findings:
                page.line(finding.text, indent=2, start=Text(subject_of(finding), style))
    page.line()
    if wide:
        split = loaded.shard_map.split(KeyRange(b"", None))
        page.table(["SHARD", "KEYS"], [(shard, format_range(part)) for shard, part in split])
        page.line()
    _endpoints(page, health, wide=wide)
    if health.keys is not None:
        page.line()
        rows = [_keys_row(name, keys) for name, keys in health.keys.items()]
        page.table(["SHARD", "OWN KEYS", "STRAY KEYS"], rows)
    if health.proxies is not None:
        page.line()
        page.table(["PROXY", "ESP", "MAP", "EPOCH", "LATENCY", "READS"], map(_proxy_row, health.proxies))
    if not health.problems:
        count = sum(len(shard.endpoints) for shard in health.shards)
        page.line()
        page.line(f"Healthy: {counted(len(health.shards), 'shard')}, {counted(count, 'endpoint')}.", "green")
    return page


def _verdict(page: Page, shard: ShardHealth, health: Health) -> None:
    verdict = verdict_of(shard)
    problems = sum(shard.name in finding.shards for finding in health.problems)
    start = Text(f"{shard_called(shard.name)} ")
    start += Text(verdict.state, _STYLES.get(verdict.state, "bold yellow"))
    if verdict.state is State.UP and problems:
        start += Text(f", {counted(problems, 'problem')}", "red")
    page.line(f": {verdict.text}", start=start)


def _endpoints(page: Page, health: Health, *, wide: bool) -> None:
    troubled = {finding.endpoint for finding in health.problems} - {None}
    rows = [(shard, endpoint) for shard in health.shards for endpoint in shard.endpoints]
    # No column without content: rows shall fit into 80 columns.
    has_alarms = any(_tells_alarms(endpoint) for _, endpoint in rows)
    names = list(_everything(rows[0][1])) if wide else ["ALARMS"] if has_alarms else []
    page.table(
        ["SHARD", "ENDPOINT", "LEADER", "VERSION", "DB SIZE", "REVISION", "LATENCY", *names],
        [
            [*_row(shard, each), *(cell for name, cell in _everything(each).items() if name in names)]
            for shard, each in rows
        ],
        {number: "red" for number, (_, endpoint) in enumerate(rows) if endpoint.endpoint in troubled},
    )


def _everything(health: EndpointHealth) -> dict[str, str]:
    """The further cells of an endpoint, by the names of their columns."""
    member = health.member
    return {
        "ALARMS": UNKNOWN if (alarms := own_alarms(health)) is None else ",".join(alarms) or "none",
        "MEMBER": UNKNOWN if member is None else f"{member.member_id:x}",
        "IN USE": UNKNOWN if member is None or member.db_in_use is None else size_of(member.db_in_use),
        "QUOTA": UNKNOWN if health.quota is None else size_of(health.quota),
        "TERM": UNKNOWN if member is None else str(member.raft_term),
        "LOG": UNKNOWN if member is None else str(member.raft_index),
        "APPLIED": UNKNOWN if member is None or member.raft_applied is None else str(member.raft_applied),
        "P50": _milliseconds(health.round_trip(0.5)),
        "P99": _milliseconds(health.round_trip(0.99)),
        "CLOCK": UNKNOWN if health.clock is None else _ahead(health.clock),
        "CERTIFICATE ENDS": UNKNOWN if health.certificate_ends is None else day_of(health.certificate_ends),
    }


def _milliseconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{seconds * 1000:.1f} ms"


def _ahead(clock: Clock) -> str:
    """The difference of the clocks as far as it is known: "same" within a second."""
    if clock.low <= 0 <= clock.high:
        return "same"
    return f"{(clock.low + clock.high) / 2:+.0f} s"


def _row(shard: ShardHealth, health: EndpointHealth) -> list[str]:
    member = health.member
    return [
        shard.name,
        str(health.endpoint),
        _leader(shard, health),
        member.version if member is not None else UNKNOWN,
        size_of(member.db_size) if member is not None else UNKNOWN,
        str(member.revision) if member is not None else UNKNOWN,
        _latency(health),
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
    return bool(own_alarms(health)) or (health.reachable and health.alarms is None)


def _keys_row(name: str, keys: ShardKeys) -> list[str]:
    strays = UNKNOWN if keys.strays is None else str(sum(stray.count for stray in keys.strays))
    return [name, UNKNOWN if keys.owned is None else str(keys.owned), strays]


def _proxy_row(proxy: ProxyHealth) -> list[str]:
    right = sum(sample.answered == sample.owner for sample in proxy.samples)
    return [
        str(proxy.endpoint),
        proxy.esp or UNKNOWN,
        proxy.map or UNKNOWN,
        proxy.epoch or UNKNOWN,
        "down" if proxy.error else _milliseconds(proxy.latency),
        f"{right} of {len(proxy.samples)} right" if proxy.samples else UNKNOWN,
    ]
