"""The health of the shards, for `esp check`.

    probe      asks all shards and endpoints, and has what they tell judged
    standing   whether running proxies keep their map while keys are mended
    proxies    asks running proxies, as a stock client
    mending    moves stray keys to their owners, or deletes them
    accounts   asks every shard for its users and roles, and compares them
    strays     asks every shard for keys that it does not own
    shared     judges the map that the shards hold
    leases     asks every shard for its leases, and compares them
    endpoint   asks one endpoint for all that it tells
    page       what a member tells as pages only: clock, quota, certificate
    connecting the shards' clients
    verdicts   one verdict for each shard, in words
    versions   versions of etcd that are too old, lossy, or not the same
    members    members that are not among the endpoints, and endpoints of one member
    space      files that are nearly full, and what a defragmentation would give back
    lag        members that lag behind
    clocks     clocks that differ, and certificates that end soon
    findings   the problems in the endpoints' answers
    facts      plain values: answers and findings

From the top down; each file imports only files below it.
"""

from esp.core.health.facts import (
    Clock,
    EndpointHealth,
    Finding,
    Health,
    Kind,
    ProxyHealth,
    ShardHealth,
    ShardKeys,
    Stray,
    Unlisted,
)
from esp.core.health.mending import Fate, How, Mended, MendError, always_so, left_in, mend
from esp.core.health.probe import examine
from esp.core.health.proxies import Proxies
from esp.core.health.standing import Standing
from esp.core.health.verdicts import State, Verdict, verdict_of

__all__ = [
    "Clock",
    "EndpointHealth",
    "Fate",
    "Finding",
    "Health",
    "How",
    "Kind",
    "MendError",
    "Mended",
    "Proxies",
    "ProxyHealth",
    "ShardHealth",
    "ShardKeys",
    "Standing",
    "State",
    "Stray",
    "Unlisted",
    "Verdict",
    "always_so",
    "examine",
    "left_in",
    "mend",
    "verdict_of",
]
