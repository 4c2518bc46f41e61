"""Watches over shards that have compacted their history.

etcd's contract: a client that resumes at the `compact_revision` in the answer starts at the first try, and misses only
compacted events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.tokens import MARK
from tests.harness import EVERYTHING, EspProcess, Esps, Etcds, connect, frozen
from tests.integration.test_watch_tokens import is_compacted
from tests.stubs.rpc_pb2_grpc import KVStub
from tests.watching import Watch, relaying, revision_of, watching

Put = rpc_pb2.PutRequest
Range = rpc_pb2.RangeRequest
PREFIXES = ("a", "j", "s")


@pytest.fixture
def three(start_durable_etcd: Etcds) -> list[LocalEtcd]:
    return start_durable_etcd.several(3)


@pytest.fixture
def through(three: list[LocalEtcd], start_esp: Esps) -> Iterator[tuple[EspProcess, KVStub]]:
    esp = start_esp(three, ["i", "r"])
    with connect(esp) as channel:
        yield esp, KVStub(channel)


def write(kv: KVStub, value: str, count: int = 4) -> None:
    for number in range(count):
        for prefix in PREFIXES:
            kv.Put(Put(key=f"{prefix}{number}".encode(), value=value.encode()))


def compact(shard: LocalEtcd, revision: int) -> None:
    with connect(shard) as channel:
        KVStub(channel).Compact(rpc_pb2.CompactionRequest(revision=revision))


def put_directly(shard: LocalEtcd, key: bytes) -> int:
    with connect(shard) as channel:
        return KVStub(channel).Put(Put(key=key)).header.revision


def told(watch: Watch) -> list[tuple[bytes, bytes]]:
    return [(event.kv.key, event.kv.value) for event in watch.events()]


def resumed(esp: EspProcess, start: int, wanted: int) -> Sequence[tuple[bytes, bytes]]:
    """What comes from there, at the first try; so many events and no more."""
    with watching(esp, **EVERYTHING, start_revision=start) as watch:
        watch.wait_for(lambda watch: len(watch.events()) >= wanted or is_compacted(watch))
        time.sleep(0.3)
        assert not is_compacted(watch)
        return told(watch)


COMPACTED = [(0,), (2,), (0, 1), (1, 2), (0, 1, 2)]
STARTS = ["beginning", "token", "behind", "plain"]


@pytest.mark.parametrize(
    ("compacted", "start", "plus"),
    [
        (compacted, start, (row + column) % 2)  # every pair of two of them: all forty would take a minute
        for row, compacted in enumerate(COMPACTED)
        for column, start in enumerate(STARTS)
    ],
)
def test_a_client_gets_going_at_the_first_try_and_misses_only_what_is_compacted(
    three: list[LocalEtcd], through: tuple[EspProcess, KVStub], compacted: tuple[int, ...], start: str, plus: int
) -> None:
    esp, kv = through
    write(kv, "old")
    token = kv.Range(Range(**EVERYTHING)).header.revision
    last = [revision_of(shard) for shard in three]
    write(kv, "new")
    for shard in compacted:
        compact(three[shard], last[shard] + 2)
    begin = {"beginning": 1, "token": token, "behind": token + 1, "plain": last[0] - 1}[start]
    with watching(esp, **EVERYTHING, start_revision=begin) as watch:
        watch.wait_for(is_compacted)
        again = watch.messages[-1].compact_revision
        assert watch.messages[-1].cancel_reason == ""
        assert again >= MARK
        seen = told(watch)
    if start == "plain":  # nobody knows where it is: all that was is behind it
        write(kv, "later", 1)
        assert sorted(resumed(esp, again + plus, 3)) == [(f"{prefix}0".encode(), b"later") for prefix in PREFIXES]
        return
    expected = []
    for shard, prefix in enumerate(PREFIXES):
        every = [(f"{prefix}{number}".encode(), value) for value in (b"old", b"new") for number in range(4)]
        begun = {"beginning": 0, "token": 3, "behind": 4}[start]
        # A compacted shard has its history from the revision of the compaction on. One revision on each shard would be
        # too many to skip for a client that resumes behind what it was told: it gets that one, too.
        expected += every[5:] if shard in compacted else every[begun:]
    missing = list(expected)
    for event in seen:
        missing.remove(event)
    assert sorted(resumed(esp, again + plus, len(missing))) == sorted(missing)


def test_one_that_was_quiet_goes_on_where_its_shard_has_history(three: list[LocalEtcd], start_esp: Esps) -> None:
    """Its part in the second shard is behind a compaction there, which nobody cancels, since it has caught up."""
    with relaying(three[0]) as relay, connect(three[0]) as direct:
        esp = start_esp([[relay], *three[1:]], ["i", "r"])  # type: ignore[list-item]
        with ExitStack() as stack:
            quiet = stack.enter_context(watching(esp, key=b"a", range_end=b"s"))
            relay.cut(stay=True)
            for _ in range(5):
                revision = KVStub(direct).Put(Put(key=b"a", value=b"missed")).header.revision
                other = put_directly(three[1], b"r-not-watched")
            compact(three[0], revision)
            compact(three[1], other)
            relay.mend()
            quiet.wait_for(is_compacted)
            again = quiet.messages[-1].compact_revision
            back = stack.enter_context(watching(esp, key=b"a", range_end=b"s", start_revision=again))
            put_directly(three[1], b"j")
            back.wait_for(lambda watch: len(watch.events()) == 2 or is_compacted(watch))
            assert sorted(told(back)) == [(b"a", b"missed"), (b"j", b"")]


def test_a_shard_that_is_away_is_waited_for_while_the_others_go_on(three: list[LocalEtcd], start_esp: Esps) -> None:
    with relaying(three[0]) as first, relaying(three[2]) as last:
        esp = start_esp([[first], three[1], [last]], ["i", "r"])  # type: ignore[list-item]
        with watching(esp, **EVERYTHING) as watch:
            last.cut(stay=True)
            first.cut(stay=True)
            for _ in range(5):
                revision, other = put_directly(three[0], b"a"), put_directly(three[2], b"s")
            compact(three[0], revision)
            compact(three[2], other)
            first.mend()
            time.sleep(1.5)
            put_directly(three[1], b"j")
            watch.wait_for_events(1)
            assert not is_compacted(watch), "nobody knows what the last shard has"
            last.mend()
            watch.wait_for(is_compacted)
            again = watch.messages[-1].compact_revision
        assert sorted(resumed(esp, again, 2)) == [(b"a", b""), (b"s", b"")]


def test_shards_that_compact_all_the_time_keep_no_client_from_getting_going(
    three: list[LocalEtcd], through: tuple[EspProcess, KVStub]
) -> None:
    """Each compaction sends it away once, no more."""
    esp, kv = through
    write(kv, "old")
    start = 1
    for number in range(20):
        write(kv, str(number), 2)
        for shard in three:
            compact(shard, revision_of(shard) - number % 2)
        with watching(esp, **EVERYTHING, start_revision=start) as watch:
            watch.wait_for(is_compacted)
            again = watch.messages[-1].compact_revision
        with watching(esp, **EVERYTHING, start_revision=again) as watch:
            watch.wait_for(lambda watch: is_compacted(watch) or len(watch.events()) >= 3)
            assert not is_compacted(watch)
            start = watch.messages[0].header.revision + 1


def test_a_watcher_that_is_canceled_meanwhile_is_gone(three: list[LocalEtcd], start_esp: Esps) -> None:
    with relaying(three[0]) as first:
        esp = start_esp([[first], *three[1:]], ["i", "r"])  # type: ignore[list-item]
        with watching(esp, **EVERYTHING) as watch:
            first.cut(stay=True)
            for _ in range(3):
                revision = put_directly(three[0], b"a")
            compact(three[0], revision)
            with frozen(three[2]):
                first.mend()
                time.sleep(1)
                watch.requests.cancel(0)
                watch.wait_for(lambda watch: bool(watch.messages) and watch.messages[-1].canceled)
                assert not is_compacted(watch)
            watch.requests.create(key=b"j")
            watch.wait_for(lambda watch: watch.messages[-1].created)
            put_directly(three[1], b"j")
            watch.wait_for_events(1)
            assert watch.ended is None
