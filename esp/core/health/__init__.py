"""The health of the shards, for `esp check`.

    probe      asks every endpoint of every shard for its status and alarms
    accounts   asks every shard for its users and roles, and compares them
    findings   plain values: the endpoints' answers, and the problems in them

From the top down; each file imports only files below it.
"""

from esp.core.health.findings import EndpointHealth, Finding, Health, Kind, ShardHealth
from esp.core.health.probe import examine

__all__ = ["EndpointHealth", "Finding", "Health", "Kind", "ShardHealth", "examine"]
