"""The list of all differences between the answers of esp over several shards and those of one etcd.

The run checks each difference where it occurs: it predicts esp's answer, field by field, and the answer must be exactly
that. The run notes each occurrence, and a fixed program for each difference shows that it does occur
(test_differential.py). The reasons: docs/design.md, "Over several shards"; the texts: docs/errors.md.
"""

from __future__ import annotations

from enum import Enum


class Difference(Enum):
    """A difference, and its reason."""

    HEADER_IDS = (
        "cluster_id, member_id and raft_term of a header are the shard's that answered, or esp's own for several",
        "choice 1 and 3: an answer of one shard is untouched; one of several has one stable identity",
    )
    OWN_COUNT = (
        "a revision is the count of the shard that owns the key: it moves with writes to that shard only",
        "choice 1; so n + 1 is the shard's next write, and a revision of another shard means another moment or none",
    )
    TOKEN = (
        "header.revision of an answer of several shards is a token; that of a read at one is the token again",
        "choice 3: it stands for the revision of each shard at that moment",
    )
    LEASE_HEADER = (
        "header.revision of a Lease answer is the lowest of the shards' revisions",
        "choice 7: a lease is on every shard; its header is about no keys, and the lowest never hides a change",
    )
    RAW_RANGE = (
        "a Range over several shards at a revision that is no token is refused",
        "choice 2 and 3: it would be another moment on each shard",
    )
    FILTER = (
        "a Range over several shards that filters by revision is refused, unless it only counts",
        "choice 2: revisions of different shards cannot be compared",
    )
    SORT_BY_REVISION = (
        "a Range over several shards that sorts by create or mod revision is refused, unless it only counts",
        "choice 2: revisions of different shards cannot be compared",
    )
    TIES = (
        "rows of the same version or value come in another order, and another of them may be cut off by the limit",
        "etcd promises none: its sort is not stable",
    )
    BEHIND_TOKEN = (
        "a Range at token + 1 or token - 1 is compacted; a Compact at token + 1 is in the future",
        "choice 3: behind and before a position is another revision on each shard, which together are no moment",
    )
    UNCOVERED = (
        "a token of some shards, given to another shard, is compacted there",
        "choice 3: it says nothing about that shard",
    )
    UNKNOWN_TOKEN = (
        "a number in the form of a token that this esp has not minted is compacted; "
        "of a Txn, also in the branch that does not run",
        "choice 3: its history cannot be had here, and every client then lists again",
    )
    TOKEN_COMPARED = (
        "a token in a compare or a filter is each shard's revision at that position: the last write in that shard "
        "equals it, though a later one elsewhere came before the position",
        "choice 3: exact where clients use it (greater than a token, less than token + 1), one write off otherwise",
    )
    COMPACTED_ELSEWHERE = (
        "a position before the compacted one can be read in shards that were not written in between",
        "choice 6: each shard is compacted at its own revision",
    )
    TXN = (
        "a transaction over several shards is refused, unless it only reads and compares nothing",
        "choice 5, after etcd's own checks",
    )
    COMPACT_RAW = (
        "a Compact at a revision that is no token is refused",
        "choice 6: the same number is another moment on each shard",
    )
    COMPACT_PART = (
        "a Compact at a token of some shards is refused",
        "choice 6: it would leave out the others",
    )
    DELETE_IN_PARTS = (
        "a DeleteRange over several shards is a revision of each, and so several messages to a watcher",
        "choice 4: it is done shard by shard",
    )
    WATCH_ORDER = (
        "a watcher over several shards hears each shard's revisions in order, but not those of all in one order; "
        "a Txn stays one message",
        "choice 3: shards are watched side by side",
    )
    WATCH_HEADER = (
        "header.revision and compact_revision of a watcher over several shards are tokens for its position; "
        "that of created is for the position before the first event",
        "choice 3: no revision of one shard says where it is in the others",
    )
    WATCH_RAW = (
        "a watcher over several shards from a revision that means something else on each is created and then "
        "canceled as compacted",
        "choice 3: a client that comes back lists again instead of missing events",
    )
    LEASE_CLOCK = (
        "what is left of a lease's time is the lowest of all shards at the moment of the answer",
        "choice 7; two clusters never tell the same time",
    )
    LEASE_ORDER = (
        "the keys of a lease and the list of leases come in another order",
        "etcd promises none for keys; leases come in the order in which each shard would end them",
    )
    LEASE_ID = (
        "an id that the server chooses for a lease is another one",
        "it is drawn at random",
    )

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        self.why = why
