"""Faults and load: clients of all kinds work through several proxies while everything around them breaks.

    __main__          the command: builds the rig, runs load and faults, judges, reports
    faults            what breaks, and how it heals
    rig               shards of several members, and proxies
    etcdctl           the tool, against members of a shard
    load              the clients at work, and what they answer for
    registers         clients that read and write single keys, and remember what they saw
    replicas          clients that keep a copy of all keys by list and watch
    sessions          clients with leases
    accounts          clients with a name and a password
    client            the etcd API through whichever proxy answers
    linearizability   decides whether a history of one key has an order
    member            an etcd of a shard; the certificate of all servers
    wal               who has ended a lease, as the logs of a shard's members have it
    network           network namespaces, links that can be cut, slowed, or made bad
    relay             a bad line between two network devices
    line              one direction of it: which packets are late, which are lost
    report            the result as text

From the top down; each file imports only files below it.
"""
