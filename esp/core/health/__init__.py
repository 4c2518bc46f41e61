"""The health of the shards, for `esp check`.

    probe      asks every endpoint of every shard for its status and alarms, and the shards for the rest
    accounts   asks every shard for its users and roles, and compares them
    strays     asks every shard for keys that it does not own
    verdicts   one verdict for each shard, in words
    findings   the problems in the endpoints' answers
    facts      plain values: answers and findings

From the top down; each file imports only files below it.
"""

from esp.core.health.facts import EndpointHealth, Finding, Health, Kind, ShardHealth, ShardKeys, Stray
from esp.core.health.probe import examine
from esp.core.health.verdicts import State, Verdict, verdict_of

__all__ = [
    "EndpointHealth",
    "Finding",
    "Health",
    "Kind",
    "ShardHealth",
    "ShardKeys",
    "State",
    "Stray",
    "Verdict",
    "examine",
    "verdict_of",
]
