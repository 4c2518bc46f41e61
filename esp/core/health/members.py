"""The members of a shard's cluster beside the shard's endpoints: who is missing, and whether they live.

The cluster's own list names the client URLs that its members advertise. Such a URL may be one that only other machines
can use; then the member is told as silent at that URL.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from esp.core.background import all_of
from esp.core.config import Endpoint, endpoint_at
from esp.core.health.facts import EndpointHealth, Finding, Kind, Listed, ShardHealth, Unlisted

MAX_ASKED: Final = 16
"""The most members of one shard that are asked although they are no endpoints; etcd advises against more than seven."""

AskEndpoint = Callable[[Endpoint], Awaitable[EndpointHealth]]


def missing_of(endpoints: Iterable[EndpointHealth]) -> list[Listed]:
    """The members that the cluster lists and no endpoint leads to.

    Empty if an endpoint is unreachable whose URL no member advertises: it may lead to any of them.
    """
    endpoints = tuple(endpoints)
    listed = _list_of(endpoints)
    known = {each.member.member_id for each in endpoints if each.member is not None}
    by_url = {url.rstrip("/"): member.member_id for member in listed for url in member.client_urls}
    for each in endpoints:
        if each.member is None:
            if str(each.endpoint) not in by_url:
                return []
            known.add(by_url[str(each.endpoint)])
    return [member for member in listed if member.member_id not in known]


def _list_of(endpoints: tuple[EndpointHealth, ...]) -> tuple[Listed, ...]:
    """The list of the member that has applied most of the log."""
    told = [each for each in endpoints if each.members is not None]
    newest = max(told, key=lambda each: (each.member.raft_applied or 0) if each.member else 0, default=None)
    return (newest.members or ()) if newest is not None else ()


async def look_for(missing: Iterable[Listed], endpoints: Iterable[EndpointHealth], ask: AskEndpoint) -> list[Unlisted]:
    """Asks each of these members at the client URLs that it advertises."""
    listed = [each.endpoint for each in endpoints]
    return await all_of([_look(member, ask, listed) for member in list(missing)[:MAX_ASKED]])


async def _look(member: Listed, ask: AskEndpoint, listed: list[Endpoint]) -> Unlisted:
    if not member.name and not member.client_urls:
        return Unlisted(member, None, "has been added, and has never started")
    troubles = []
    for url in member.client_urls:
        try:
            endpoint = endpoint_at(url)
        except ValueError:
            troubles.append(f"advertises the client URL {url}, which esp cannot use")
            continue
        if endpoint.tls is not listed[0].tls:
            troubles.append(f"advertises {url}, and the endpoints of the shard are {str(listed[0]).partition(':')[0]}")
            continue
        if is_loopback(endpoint) and not any(map(is_loopback, listed)):
            troubles.append(f"advertises {url}, which other machines cannot reach; mend its --advertise-client-urls")
            continue
        found = await ask(endpoint)
        if found.member is not None and found.member.member_id == member.member_id:
            return Unlisted(member, found, "")
        if found.member is not None:
            troubles.append(f"advertises {url}, where another member answers")
        else:
            reason = found.refusal.message if found.refusal is not None else "no reason known"
            troubles.append(f"does not answer at {url}: {reason}")
    return Unlisted(member, None, "; ".join(troubles) or "advertises no client URL")


def is_loopback(endpoint: Endpoint) -> bool:
    """Whether only programs on the same machine can reach it."""
    try:
        return ipaddress.ip_address(endpoint.host).is_loopback
    except ValueError:
        return endpoint.host == "localhost"


def judge_members(shards: Iterable[ShardHealth]) -> tuple[list[Finding], list[Finding]]:
    """The problems and the notes about members and endpoints."""
    problems: list[Finding] = []
    notes: list[Finding] = []
    shards = tuple(shards)
    for shard in shards:
        for each in shard.unlisted:
            (problems if each.trouble else notes).append(_unlisted(shard, each))
        notes += _same_members(shard)
    return problems, [*notes, *_single(shards)]


def _unlisted(shard: ShardHealth, each: Unlisted) -> Finding:
    member = each.member
    who = f"{'learner' if member.is_learner else 'member'} {member.name or 'without a name'} ({member.member_id:x})"
    if each.trouble:
        cure = "; start it, or remove it from the cluster (etcdctl member remove)"
        text = f"{who} of its cluster, not among its endpoints, {each.trouble}{cure}"
        return Finding(Kind.DEAD_MEMBER, (shard.name,), None, text)
    where = each.found.endpoint if each.found is not None else "its URL"
    cure = "promote it first" if member.is_learner else "add it, so that esp can use it when others fail"
    text = f"{who} of its cluster lives at {where} and is not among its endpoints; {cure}"
    return Finding(Kind.UNLISTED_MEMBER, (shard.name,), None, text)


def _same_members(shard: ShardHealth) -> Iterator[Finding]:
    led: dict[int, list[str]] = defaultdict(list)
    for each in shard.endpoints:
        if each.member is not None:
            led[each.member.member_id].append(str(each.endpoint))
    for member_id, urls in led.items():
        if len(urls) > 1:
            text = f"{' and '.join(urls)} lead to the same member ({member_id:x}); name each member once"
            yield Finding(Kind.SAME_MEMBER, (shard.name,), None, text)


def _single(shards: tuple[ShardHealth, ...]) -> Iterator[Finding]:
    alone = tuple(shard.name for shard in shards if len(shard.endpoints) == 1)
    if alone:
        many = len(alone) > 1
        text = f"{'have' if many else 'has'} one endpoint{' each' if many else ''}: while that is down, so are its keys"
        yield Finding(Kind.SINGLE_ENDPOINT, alone, None, text)
