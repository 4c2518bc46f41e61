"""Random programs against one etcd and against esp: every answer is the same, except for a list of differences.

tests/differential/ has the parts: the list (differences.py), the programs, how revisions are translated (mapping.py),
how both sides are run and compared, and how many programs, and which (explore.py). With one shard every byte is the
same.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from esp.core.local import LocalEtcd
from tests.differential import programs as p
from tests.differential.clusters import Clusters, clusters
from tests.differential.differences import Difference
from tests.differential.explore import PROGRAMS, explore, start
from tests.differential.mapping import Layout
from tests.differential.run import Run
from tests.harness import Esps, Etcds, peer

LAYOUTS = {
    "between the keys": Layout([b"i", b"r"], [0, 1, 2]),
    "at keys": Layout([b"b\0", b"k"], [0, 1, 2]),
    "around one key": Layout([b"k", b"k\0"], [0, 1, 2]),
    "at the end": Layout([b"\xff", b"\xff\xff"], [2, 0, 1]),
    "islands": Layout([b"b\0", b"k1", b"z"], [0, 1, 0, 2]),
}


@pytest.fixture(scope="module")
def plain(four_etcds: list[LocalEtcd], module_esps: Esps) -> Iterator[Clusters]:
    layout = LAYOUTS["between the keys"]
    with clusters(four_etcds[0], four_etcds[1:], start(module_esps, four_etcds[1:], layout), layout) as both:
        yield both


def explored(both: Clusters, count: int) -> None:
    """Runs so many programs; tells how often what differed."""
    noted = explore(both, count)
    for difference, times in noted.most_common():
        sys.stdout.write(f"{times:6} {difference.name}\n")


@pytest.mark.timeout(0 if PROGRAMS else 300)
@pytest.mark.parametrize("name", LAYOUTS)
def test_esp_over_three_shards_is_one_etcd_but_for_what_is_listed(
    four_etcds: list[LocalEtcd], module_esps: Esps, name: str
) -> None:
    layout = LAYOUTS[name]
    with clusters(four_etcds[0], four_etcds[1:], start(module_esps, four_etcds[1:], layout), layout) as both:
        explored(both, 20)


@pytest.mark.timeout(0 if PROGRAMS else 300)
@pytest.mark.parametrize("name", ["at keys", "islands"])
def test_so_it_is_over_shards_of_the_newest_etcd(module_etcds: Etcds, module_esps: Esps, name: str) -> None:
    etcds = module_etcds.several(4, binary=peer("etcd"))
    layout = LAYOUTS[name]
    with clusters(etcds[0], etcds[1:], start(module_esps, etcds[1:], layout), layout, streams=True) as both:
        explored(both, 15)


A, K, Z = b"a", b"k", b"z"
"""A key of each shard of the layout "between the keys"."""
LIST = p.Range(**p.EVERYTHING)
FIRST, ALL_LESS_Z = p.Rev(0), {"key": A, "end": Z[:1]}
MANY = [p.Put(b"%c%d" % (b"akz"[number % 3], number), b"%d" % (number % 5)) for number in range(60)]
COMPARED = p.Compare(A, target=2, rev=p.Rev(0))

EXAMPLES: dict[Difference, list[p.Step]] = {
    Difference.HEADER_IDS: [LIST],
    Difference.TOKEN: [LIST, p.Put(A), LIST],
    # The revision of the first put, and one more, which is that of the second put in the shard, and the third of all.
    Difference.OWN_COUNT: [p.Put(A, b"1"), p.Put(Z), p.Put(A, b"2"), p.Range(A, rev=p.Rev(2, 1))],
    Difference.LEASE_HEADER: [p.Grant()],
    Difference.RAW_RANGE: [p.Put(A), p.Range(**p.EVERYTHING, rev=FIRST)],
    Difference.FILTER: [p.Put(A), p.Range(**p.EVERYTHING, min_mod=FIRST)],
    Difference.SORT_BY_REVISION: [p.Range(**p.EVERYTHING, order=1, target=3)],
    Difference.TIES: [*MANY, p.Range(**p.EVERYTHING, order=2, target=4, limit=7)],
    Difference.BEHIND_TOKEN: [LIST, p.Put(A), p.Range(A, rev=p.Rev(1, 1))],
    Difference.UNCOVERED: [p.Range(A, b"m"), p.Range(Z, rev=FIRST)],
    Difference.UNKNOWN_TOKEN: [LIST, p.Range(A, rev=p.Rev(None, p.NO_TOKEN_OF_OURS))],
    Difference.TOKEN_COMPARED: [p.Put(A), p.Put(Z), LIST, p.Range(A, b"b", min_mod=p.Rev(2))],
    Difference.COMPACTED_ELSEWHERE: [
        p.Put(A),
        p.Range(**p.EVERYTHING, count_only=True),
        p.Put(Z),
        p.Range(**p.EVERYTHING, count_only=True),
        p.Compact(FIRST),
        p.Range(A, rev=p.Rev(2)),
    ],
    Difference.TXN: [p.Txn(success=(p.Put(A), p.Put(Z)))],
    Difference.COMPACT_RAW: [p.Put(A), p.Compact(FIRST)],
    Difference.COMPACT_PART: [p.Range(A, b"m"), p.Compact(FIRST)],
    Difference.DELETE_IN_PARTS: [p.Put(A), p.Put(Z), p.Watch(**p.EVERYTHING), p.Delete(**p.EVERYTHING)],
    Difference.WATCH_HEADER: [p.Watch(**p.EVERYTHING)],
    Difference.WATCH_RAW: [p.Put(A), p.Watch(**p.EVERYTHING, start=FIRST)],
    Difference.LEASE_CLOCK: [p.Grant(), p.TimeToLive(p.LeaseRef(0))],
    # One etcd tells twenty keys in any order: in that of esp once in 2 * 10 ** 18 times.
    Difference.LEASE_ORDER: [
        p.Grant(),
        *(p.Put(b"%c%d" % (b"akz"[number % 3], number), lease=p.LeaseRef(0)) for number in range(20)),
        p.TimeToLive(p.LeaseRef(0), keys=True),
    ],
    Difference.LEASE_ID: [p.Grant(chosen=False)],
}
"""For each listed difference a program in which it must occur; those that are missing have a test of their own."""


@pytest.mark.parametrize("difference", EXAMPLES, ids=lambda difference: difference.name)
def test_what_is_listed_does_occur(plain: Clusters, difference: Difference) -> None:
    noted: Counter[Difference] = Counter()
    Run(plain, noted).all_of(EXAMPLES[difference])
    assert noted[difference]


@pytest.mark.parametrize(
    "txn",
    [
        p.Txn(failure=(LIST,)),
        p.Txn(failure=(p.Range(A), p.Range(Z))),
        p.Txn(success=(p.Range(K),), failure=(LIST,)),
        p.Txn(success=(p.Range(K, K),)),
        p.Txn(success=(p.Range(Z, A), p.Range(A, A))),
        p.Txn(success=(p.Txn(failure=(p.Range(Z, A),)),)),
        p.Txn(),
        p.Txn(success=(p.Txn(),)),
    ],
    ids=str,
)
def test_transactions_that_once_went_wrong(plain: Clusters, txn: p.Txn) -> None:
    """What random programs come upon too seldom."""
    Run(plain, Counter()).all_of([p.Put(A), p.Put(K), p.Put(K), p.Put(Z), txn])


WATCHED = {"prev_kv": True, **p.EVERYTHING}


@pytest.mark.parametrize(
    "start",
    [p.Rev(None, 1), p.Rev(3), p.Rev(3, 1), p.Rev(5), p.Rev(5, 1), p.Rev(5, -1)],
    ids=["beginning", "token", "token + 1", "older token", "older token + 1", "older token - 1"],
)
def test_the_token_of_created_is_the_position_before_the_first_event(plain: Clusters, start: p.Rev) -> None:
    """Random programs seldom read at it."""
    token = p.Range(**p.EVERYTHING, count_only=True)
    first, behind = p.Rev(0), p.Rev(0, 1)
    writes = [p.Put(A, b"1"), p.Put(K), p.Put(Z, b"1")]
    earlier = [*writes, token, p.Put(A, b"2"), token, *writes]
    for after in (
        [p.Range(**p.EVERYTHING, rev=first)],
        [p.Range(A, b"b", rev=first)],
        [p.Range(A, b"m", rev=first)],
        [p.Txn(success=(p.Range(A, Z, rev=first),))],
        [p.Watch(**WATCHED, start=first), p.Delete(Z)],
        [p.Watch(**WATCHED, start=behind), p.Delete(Z)],
        [p.Compact(first), p.Range(**p.EVERYTHING, rev=first)],
    ):
        Run(plain, Counter()).all_of([*earlier, p.Watch(**WATCHED, start=start), *after])


@pytest.mark.parametrize("start", [p.LATEST, p.Rev(3)], ids=["now", "token"])
@pytest.mark.parametrize("end", [b"\0", b"b"], ids=["three shards", "one shard"])
def test_a_watch_from_behind_the_last_message_of_another_misses_and_repeats_nothing(
    plain: Clusters, start: p.Rev, end: bytes
) -> None:
    writes = [p.Put(A, b"1"), p.Put(K), p.Put(A), p.Put(Z, b"1"), p.Put(Z)]
    token = p.Range(**p.EVERYTHING, count_only=True)
    before = [p.Put(A), p.Put(K), p.Put(Z), token, *writes[:3]]
    program = [*before, p.Watch(A, end, start=start, prev_kv=True), *writes, p.Resume(0), *writes]
    Run(plain, Counter()).all_of([*program, p.Resume(0), p.Delete(**p.EVERYTHING), p.Resume(1), *writes])


@pytest.fixture(scope="module")
def newest(module_etcds: Etcds, module_esps: Esps) -> Iterator[Clusters]:
    etcds = module_etcds.several(4, binary=peer("etcd"))
    layout = LAYOUTS["between the keys"]
    with clusters(etcds[0], etcds[1:], start(module_esps, etcds[1:], layout), layout, streams=True) as both:
        yield both


@pytest.mark.parametrize("ends", [[b"\0"], [b"b"], [b"b", b"c"], [b"\0", b"b", b"z"]], ids=repr)
def test_progress_is_the_present_position_and_a_watch_goes_on_from_there(newest: Clusters, ends: list[bytes]) -> None:
    writes = [p.Put(A, b"1"), p.Put(Z), p.Put(K), p.Put(Z)]
    watches = [p.Watch(A, end) for end in ends]
    program = [*watches, p.Put(Z), p.Progress(), p.Resume(0), *writes, p.Progress(), p.Delete(**p.EVERYTHING)]
    Run(newest, Counter()).all_of([*writes, *program, p.Resume(1), p.Range(A, b"c", rev=p.Rev(0)), *writes])


def test_the_list_is_whole() -> None:
    assert set(Difference) == {*EXAMPLES, Difference.WATCH_ORDER}


def test_a_watcher_from_the_beginning_hears_each_shard_in_order(module_etcds: Etcds, start_esp: Esps) -> None:
    """What only etcds that were never compacted can show: and that shards are not put in one order."""
    etcds = module_etcds.several(4)
    layout = LAYOUTS["between the keys"]
    program = [
        p.Put(A),
        p.Put(Z),
        p.Put(K),
        p.Put(A, b"1"),
        p.Txn(success=(p.Put(K, b"2"), p.Put(b"m", b"2"), p.Delete(b"l"))),
        p.Delete(**p.EVERYTHING),
        p.Put(Z),
        p.Watch(**p.EVERYTHING, start=p.Rev(None, 1), prev_kv=True),
        p.Watch(A, Z, start=p.Rev(None, 1), filters=(0,)),
        p.Put(A),
        p.Put(K),
        p.Delete(K),
    ]
    noted: Counter[Difference] = Counter()
    with clusters(etcds[0], etcds[1:], start(start_esp, etcds[1:], layout), layout) as both:
        Run(both, noted, wiped=False).all_of(program)
    assert noted[Difference.WATCH_ORDER]


@pytest.mark.parametrize(
    "program",
    [
        [p.Put(b"c")],
        [p.Put(b"c", b"1"), p.Range(b"b", b"d", rev=FIRST)],
        [p.Range(b"b\0", b"c")],
        [p.Txn(success=(p.Put(b"b"), p.Put(b"c")))],
    ],
    ids=["header", "revision", "token", "refusal"],
)
def test_the_comparison_finds_a_proxy_that_is_wrong(
    four_etcds: list[LocalEtcd], module_esps: Esps, program: list[p.Step]
) -> None:
    """One that has its boundaries elsewhere."""
    esp = start(module_esps, four_etcds[1:], LAYOUTS["at keys"])
    with clusters(four_etcds[0], four_etcds[1:], esp, LAYOUTS["around one key"]) as both, pytest.raises(AssertionError):
        Run(both, Counter()).all_of(program)


@pytest.mark.timeout(0 if PROGRAMS else 300)
def test_with_one_shard_every_byte_is_the_same(twins: tuple[LocalEtcd, LocalEtcd], start_esp: Esps) -> None:
    alone, shard = twins
    with clusters(alone, [shard], start(start_esp, [shard], Layout([], [0])), Layout([], [0])) as both:
        Run(both, Counter(), wiped=False).all_of([p.Put(A), LIST, p.Watch(**p.EVERYTHING, start=p.Rev(None, 1))])
        explored(both, 20)
