"""Random programs for an etcd: steps as plain values, printed as they are written, and the strategies that make them.

A program names a revision or a lease by the answer in which it came, because the numbers differ between one etcd and
esp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

from esp.core.pb import rpc_pb2

KEYS = (b"a", b"b", b"b\0", b"c", b"k", b"k1", b"k\xff", b"m", b"z", b"\xff")
EDGES = (*KEYS, b"\0", b"k\0", b"i", b"r", b"k2", b"zz", b"\xff\xff")
VALUES = (b"", b"1", b"2", b"3", b"a long value " * 20)
HUGE = 2**63 - 1
NO_TOKEN_OF_OURS = 2**52 + 2**20
"""A number in the form of a token, from the first days of 2025, that no esp here has minted."""


@dataclass(frozen=True)
class Rev:
    """A revision: the `back`th last in an answer, plus `plus`; without `back` the number `plus`."""

    back: int | None = None
    plus: int = 0


LATEST = Rev()


@dataclass(frozen=True)
class LeaseRef:
    """The `back`th last granted lease; for None, a lease that was never granted."""

    back: int | None


@dataclass(frozen=True)
class Put:
    key: bytes
    value: bytes = b""
    lease: LeaseRef | None = None
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


@dataclass(frozen=True)
class Range:
    key: bytes
    end: bytes = b""
    rev: Rev = LATEST
    limit: int = 0
    order: int = 0
    target: int = 0
    keys_only: bool = False
    count_only: bool = False
    serializable: bool = False
    min_mod: Rev = LATEST
    max_mod: Rev = LATEST
    min_create: Rev = LATEST
    max_create: Rev = LATEST
    read: str = ""
    stream: bool = False


@dataclass(frozen=True)
class Delete:
    key: bytes
    end: bytes = b""
    prev_kv: bool = False


@dataclass(frozen=True)
class Compare:
    key: bytes
    end: bytes = b""
    target: int = 0
    result: int = 0
    number: int = 0
    rev: Rev = LATEST
    value: bytes = b""
    lease: LeaseRef | None = None


@dataclass(frozen=True)
class Txn:
    compare: tuple[Compare, ...] = ()
    success: tuple[Put | Range | Delete | Txn, ...] = ()
    failure: tuple[Put | Range | Delete | Txn, ...] = ()
    read: str = ""


class Many(tuple[Any, ...]):
    """The same few operations repeated, with a short printed form."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Many(({', '.join(map(repr, self[:3]))}, ...) up to {len(self)})"


@dataclass(frozen=True)
class Pages:
    """A list in pages, at the revision of the first page, with writes and compactions between the pages."""

    key: bytes
    end: bytes
    limit: int
    between: tuple[Put | Delete | Compact, ...] = ()
    stream: bool = False


@dataclass(frozen=True)
class Grant:
    ttl: int = 600
    chosen: bool = True
    again: LeaseRef | None = None


@dataclass(frozen=True)
class Revoke:
    lease: LeaseRef


@dataclass(frozen=True)
class TimeToLive:
    lease: LeaseRef
    keys: bool = False


@dataclass(frozen=True)
class KeepAlive:
    lease: LeaseRef


@dataclass(frozen=True)
class Leases:
    pass


@dataclass(frozen=True)
class Compact:
    rev: Rev
    physical: bool = False


@dataclass(frozen=True)
class Watch:
    key: bytes
    end: bytes = b""
    start: Rev = LATEST
    filters: tuple[int, ...] = ()
    prev_kv: bool = False
    fragment: bool = False
    watch_id: int = 0


@dataclass(frozen=True)
class Cancel:
    """A cancel of the `back`th last watcher, if there is one; for None, of an id that was never given."""

    back: int | None


@dataclass(frozen=True)
class Resume:
    """A watch from behind the last message, or the last progress, of the `back`th last watcher, with its options."""

    back: int


@dataclass(frozen=True)
class Progress:
    """A request for the progress of all watchers; only for etcds that answer it in order."""


Step = (
    Put
    | Range
    | Delete
    | Txn
    | Pages
    | Grant
    | Revoke
    | TimeToLive
    | KeepAlive
    | Leases
    | Compact
    | Watch
    | Cancel
    | Resume
    | Progress
)
EVERYTHING: dict[str, Any] = {"key": b"\0", "end": b"\0"}

_keys = st.sampled_from(KEYS)
_edges = st.sampled_from(EDGES)
_ends = st.one_of(st.just(b""), st.just(b"\0"), _edges, _edges)
_flag = st.sampled_from([False, False, True])
_seen = st.builds(Rev, st.integers(0, 6), st.sampled_from([0, 0, 0, 0, 1, 1, -1]))
_odd = st.sampled_from([Rev(None, 1), Rev(None, 3), Rev(None, HUGE), Rev(None, NO_TOKEN_OF_OURS)])
_revs = st.one_of(*[st.just(LATEST)] * 4, *[_seen] * 5, _odd, st.just(Rev(None, -1)))
_mostly_off = st.one_of(*[st.just(LATEST)] * 7, _seen, _odd)
_lease = st.builds(LeaseRef, st.one_of(st.integers(0, 2), st.integers(0, 2), st.none()))
_maybe_lease = st.one_of(st.none(), st.none(), _lease)

puts = st.builds(
    Put,
    _keys,
    st.sampled_from(VALUES),
    _maybe_lease,
    _flag,
    ignore_value=st.sampled_from([*[False] * 6, True]),
    ignore_lease=st.sampled_from([*[False] * 6, True]),
)
_limits = st.sampled_from([0, 0, 0, 1, 2, 3, 5, -1, HUGE])
_plain_ranges = st.builds(Range, _edges, _ends, _revs, _limits, keys_only=_flag, count_only=_flag, serializable=_flag)
_sorted_ranges = st.builds(
    Range,
    _edges,
    _ends,
    _revs,
    _limits,
    st.sampled_from(rpc_pb2.RangeRequest.SortOrder.values()),
    st.sampled_from(rpc_pb2.RangeRequest.SortTarget.values()),
    _flag,
    _flag,
    min_mod=_mostly_off,
    max_mod=_mostly_off,
    min_create=_mostly_off,
    max_create=_mostly_off,
)
_reads = st.sampled_from(["", "", "snapshot", "each", "default"])
_ranges_in_txn = st.one_of(_plain_ranges, _sorted_ranges)
ranges = st.builds(
    lambda one, read, stream: Range(**{**one.__dict__, "read": read, "stream": stream}),
    _ranges_in_txn,
    _reads,
    _flag,
)
deletes = st.builds(Delete, _edges, _ends, _flag)


@st.composite
def _compares(draw: st.DrawFn, key: st.SearchStrategy[bytes], end: st.SearchStrategy[bytes]) -> Compare:
    return Compare(
        draw(key),
        draw(end),
        draw(st.sampled_from(rpc_pb2.Compare.CompareTarget.values())),
        draw(st.sampled_from(rpc_pb2.Compare.CompareResult.values())),
        draw(st.integers(0, 3)),
        draw(st.one_of(_revs, _seen)),
        draw(st.sampled_from(VALUES)),
        draw(_maybe_lease),
    )


def _txns(key: st.SearchStrategy[bytes], end: st.SearchStrategy[bytes], depth: int) -> st.SearchStrategy[Txn]:
    """Transactions over these keys, with nested transactions down to `depth`."""

    def elsewhere(one: Any, key: bytes, end: bytes) -> Any:
        changes = {"key": key} if isinstance(one, Put) else {"key": key, "end": end}
        return type(one)(**{**one.__dict__, **changes})

    operations = st.builds(elsewhere, st.one_of(puts, puts, _ranges_in_txn, deletes), key, end)
    if depth:
        operations = st.one_of(operations, operations, operations, _txns(key, end, depth - 1))
    several = st.lists(operations, max_size=3).map(tuple)
    return st.builds(Txn, st.lists(_compares(key, end), max_size=2).map(tuple), several, several)


def _many(operation: st.SearchStrategy[Any]) -> st.SearchStrategy[Txn]:
    """Transactions with as many operations as etcd allows, or a few more."""
    several = st.tuples(st.lists(operation, min_size=1, max_size=3), st.sampled_from([1, 60, 100, 127, 129, 200]))
    return st.builds(Txn, success=several.map(lambda of: Many((of[0] * of[1])[: of[1]])))


_empty_ranges = st.builds(Range, _keys, st.sampled_from([b"\0\0", *KEYS[:4]]), _revs, _limits).filter(
    lambda one: b"\0" != one.end <= one.key
)
_nothing = st.recursive(
    st.just(Txn()),
    lambda inner: st.builds(
        Txn, success=st.lists(inner, max_size=2).map(tuple), failure=st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=4,
)

# Most transactions of a random choice of keys span shards and are refused; so most are about one key, or neighbours.
txns = st.one_of(
    _keys.flatmap(lambda key: _txns(st.just(key), st.sampled_from([b"", b"", key + b"\0", b"a"]), 2)),
    _keys.flatmap(lambda key: _txns(st.just(key), st.sampled_from([b"", key + b"\0"]), 1)),
    st.sampled_from(range(len(KEYS) - 1)).flatmap(
        lambda at: _txns(st.sampled_from(KEYS[at : at + 2]), st.just(b""), 1)
    ),
    _txns(_edges, _ends, 1),
    st.builds(Txn, success=st.lists(_ranges_in_txn, max_size=3).map(tuple), read=_reads),
    st.builds(
        Txn,
        success=st.lists(_ranges_in_txn, max_size=1).map(tuple),
        failure=st.lists(_ranges_in_txn, max_size=2).map(tuple),
        read=_reads,
    ),
    st.builds(
        lambda txn, nested: replace(txn, success=(*txn.success, nested)) if nested else txn,
        st.builds(
            Txn,
            st.lists(_compares(_keys, st.just(b"\0\0")), max_size=1).map(tuple),
            st.lists(_empty_ranges, max_size=2).map(tuple),
            st.lists(_empty_ranges, max_size=2).map(tuple),
        ),
        st.one_of(st.none(), st.none(), st.just(Txn())),
    ),
    _nothing,
    _many(_ranges_in_txn),
    _keys.flatmap(lambda key: _many(st.builds(Range, st.just(key)))),
)
pages = st.builds(
    Pages,
    st.sampled_from([b"\0", b"b"]),
    st.sampled_from([b"\0", b"z"]),
    st.integers(1, 4),
    st.lists(st.one_of(puts, deletes, st.builds(Compact, _seen)), max_size=3).map(tuple),
    _flag,
)
watches = st.builds(
    Watch,
    st.one_of(_edges, st.just(b"")),
    _ends,
    st.one_of(st.just(LATEST), st.just(LATEST), _seen, _odd),
    st.sampled_from([(), (), (0,), (1,), (0, 1)]),
    _flag,
    _flag,
    st.sampled_from([0, 0, 0, 5, 7]),
)
leases = st.one_of(
    st.builds(
        Grant, st.sampled_from([600, 900, 9_000_000_001]), st.booleans(), st.one_of(st.none(), st.none(), _lease)
    ),
    st.builds(Grant),
    st.builds(Revoke, _lease),
    st.builds(TimeToLive, _lease, st.booleans()),
    st.builds(KeepAlive, _lease),
    st.just(Leases()),
)
cancels = st.builds(Cancel, st.one_of(st.integers(0, 2), st.integers(0, 2), st.none()))
resumes = st.builds(Resume, st.integers(0, 2))
compactions = st.builds(Compact, st.one_of(_seen, _seen, _seen, _odd), _flag)
# A token of all shards, for what follows to begin at.
lists = st.builds(Range, st.just(b"\0"), st.just(b"\0"), limit=st.integers(0, 2))
_weights: list[tuple[st.SearchStrategy[Step], int]] = [
    (puts, 6),
    (lists, 3),
    (ranges, 8),
    (deletes, 2),
    (txns, 6),
    (pages, 1),
    (leases, 3),
    (compactions, 1),
    (watches, 3),
    (cancels, 1),
    (resumes, 1),
    (st.just(Progress()), 1),
]
# Not one_of: it would flatten these strategies, and so mostly choose from those with many kinds.
steps: st.SearchStrategy[Step] = st.sampled_from([kind for kind, weight in _weights for _ in range(weight)]).flatmap(
    lambda kind: kind
)
programs = st.lists(steps, min_size=10, max_size=30)
