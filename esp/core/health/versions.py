"""The versions of etcd that members run: too old, known to lose data, or not the same."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from esp.core.health.facts import Finding, Kind, ShardHealth
from esp.core.health.members import is_loopback

OLDEST_VERSION: Final = (3, 4)
"""The oldest etcd that esp is tested with."""
LOSSY: Final = ((3, 5, 0), (3, 5, 2))
"""The first and the last etcd that may lose acknowledged writes when it is killed (etcd issue 13766)."""


def judge_versions(shards: Iterable[ShardHealth]) -> tuple[list[Finding], list[Finding]]:
    """The problems and the notes about versions."""
    shards = tuple(shards)
    lossy = list(_lossy(shards))
    return (
        [finding for finding, is_trial in lossy if not is_trial],
        [
            *(finding for shard in shards for finding in _old(shard)),
            *(finding for finding, is_trial in lossy if is_trial),
            *(finding for shard in shards for finding in _skew(shard)),
            *_mixed(shards),
        ],
    )


def _version(text: str) -> tuple[int, int, int] | None:
    match = re.match(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _old(shard: ShardHealth) -> Iterator[Finding]:
    for health in shard.endpoints:
        version = _version(health.member.version) if health.member is not None else None
        if version is not None and version[:2] < OLDEST_VERSION:
            text = f"runs etcd {health.member.version if health.member else ''}; esp is tested with 3.4 and newer"
            yield Finding(Kind.OLD_VERSION, (shard.name,), health.endpoint, text)


def _lossy(shards: Iterable[ShardHealth]) -> Iterator[tuple[Finding, bool]]:
    """The findings, and whether each is about a trial: shards of which all members that answer are on this machine."""
    found: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for shard in shards:
        is_trial = all(is_loopback(health.endpoint) for health in shard.endpoints if health.member)
        for text in dict.fromkeys(health.member.version for health in shard.endpoints if health.member):
            version = _version(text)
            if version is not None and LOSSY[0] <= version <= LOSSY[1]:
                found[text, is_trial].append(shard.name)
    for (version_text, is_trial), names in found.items():
        text = (
            f"{'runs' if len(names) == 1 else 'run'} etcd {version_text}, which may lose acknowledged writes when it "
            "is killed (etcd issue 13766); run 3.5.3 or newer"
        )
        yield Finding(Kind.LOSSY_VERSION, tuple(names), None, text), is_trial


def _skew(shard: ShardHealth) -> Iterator[Finding]:
    """Members of one cluster that run different versions, as in an upgrade that has not come to its end."""
    found: dict[str, list[str]] = defaultdict(list)
    for health in shard.endpoints:
        if health.member is not None:
            found[health.member.version].append(str(health.endpoint))
    if len(found) > 1:
        groups = "; ".join(f"{version}: {', '.join(found[version])}" for version in sorted(found))
        text = f"its members run different versions ({groups}); bring the upgrade to its end"
        yield Finding(Kind.VERSION_SKEW, (shard.name,), None, text)


def _mixed(shards: Iterable[ShardHealth]) -> Iterator[Finding]:
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for shard in shards:
        versions = [_version(health.member.version) for health in shard.endpoints if health.member]
        for minor in dict.fromkeys(version[:2] for version in versions if version is not None):
            found[minor].append(shard.name)
    if len(found) > 1:
        groups = "; ".join(f"{major}.{minor}: {', '.join(found[major, minor])}" for major, minor in sorted(found))
        names = tuple(dict.fromkeys(name for minor in sorted(found) for name in found[minor]))
        text = f"run different minor versions of etcd ({groups}); what only the newer one can fails where the older is"
        yield Finding(Kind.MIXED_VERSIONS, names, None, text)
