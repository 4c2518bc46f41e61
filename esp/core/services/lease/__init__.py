"""etcd's Lease service: a lease lives on every shard, under one id.

    service            the RPCs, each sent to all shards
    keepalive          LeaseKeepAlive: an answer made of all shards' answers
    keepalive_call     one client's call: its keepalives, in their order
    doubt              a shard that has lost a lease is asked once more
    keepalive_lane     the keepalives of many clients, on one stream to a shard
    retry              writes that a shard refused for a lease that it missed, sent once more
    repair             grants and revokes leases on a shard that missed the call
    table              all that this proxy has seen of each lease, and what follows when shards disagree

From the top down; each file imports only files below it.
"""

from esp.core.services.lease.keepalive import PATH as KEEPALIVE_PATH
from esp.core.services.lease.retry import LeaseRetry
from esp.core.services.lease.service import LEASES_PATHS, Grant, Leases

__all__ = ["KEEPALIVE_PATH", "LEASES_PATHS", "Grant", "LeaseRetry", "Leases"]
