from __future__ import annotations

import msgspec

from esp.core.fleet import Registered, answering_for, values
from esp.core.fleet.values import AT_ANCHOR, DRAWN, ELSEWHERE, Fleet, Grant
from esp.core.move.raising import RAISE_KEY
from esp.core.own_keys import LEASES, MOST_LEASES, is_own_lease, may_name_lease
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.shared_map import COPIES_KEY, GUARD_KEY, HELD_KEYS, MAP_KEY, NEXT_KEY
from esp.core.shared_map.value import MAP_KEYS, NEWS_KEYS
from esp.core.tokens import INSTANCES


def record(number: int, *, peers: str = "", heir_of: tuple[int, ...] = (), leaves: bool = False) -> Registered:
    here = (peers or f"http://127.0.0.1:{number}",)
    return Registered(number=number, urls=here, peers=here, version="1", epoch=1, heir_of=heir_of, leaves=leaves)


def pair(key: bytes, value: bytes, revision: int = 1) -> kv_pb2.KeyValue:
    return kv_pb2.KeyValue(key=key, value=value, mod_revision=revision)


def test_each_number_is_of_one_kind() -> None:
    assert [*AT_ANCHOR, *ELSEWHERE, *DRAWN] == list(range(INSTANCES))
    assert all(is_own_lease(LEASES + number) for number in range(INSTANCES))
    assert all(may_name_lease(rpc_pb2.PutRequest(lease=LEASES + n).SerializeToString()) for n in range(MOST_LEASES))
    assert not is_own_lease(LEASES - 1)
    assert not is_own_lease(LEASES + MOST_LEASES)


def test_keys_of_proxies_are_esps_own_and_none_of_the_map() -> None:
    for key in (b"\0esp/numbers/00", b"\0esp/proxies/63", values.SECRET):
        assert values.KEYS.start <= key < (values.KEYS.end or b"")
        assert HELD_KEYS.start <= key < (HELD_KEYS.end or b"")
        assert key > (MAP_KEYS.end or b"")
    for key in (COPIES_KEY, RAISE_KEY):  # each copy of a move writes one of them: no proxy is to wake up
        assert HELD_KEYS.start <= key < (HELD_KEYS.end or b"")
        for watched in (values.KEYS, NEWS_KEYS):
            assert not watched.start <= key < (watched.end or b"")
    for key in (GUARD_KEY, MAP_KEY, NEXT_KEY):
        assert NEWS_KEYS.start <= key < (NEWS_KEYS.end or b"")
    most = 2 * INSTANCES + 1
    assert most < values.MOST_KEYS


def test_what_cannot_be_read_counts_as_not_there() -> None:
    good = record(7)
    grant = msgspec.json.encode(Grant("me", 9))
    found = values.read(
        [
            pair(b"\0esp/proxies/07", good.encode()),
            pair(b"\0esp/proxies/08", good.encode()),  # another number
            pair(b"\0esp/proxies/09", b"{"),
            pair(b"\0esp/proxies/10", b"x" * (values.MOST_BYTES + 1)),
            pair(b"\0esp/numbers/07", grant, 5),
            pair(b"\0esp/numbers/xx", grant),
            pair(values.SECRET, b"s"),
        ]
    )
    assert found == Fleet({7: good}, {7: (Grant("me", 9), 5)}, b"s")
    assert "secret" not in repr(found)


def test_a_process_gets_its_own_number_again_and_else_one_that_is_unused_for_longest() -> None:
    found = Fleet(
        {2: record(2)},
        {0: (Grant("a", 50), 1), 1: (Grant("me", 90), 1), 3: (Grant("", 10), 1), 4: (Grant("b", 200), 1)},
    )
    assert values.candidates(found, "me", range(6), 100) == [1, 5, 3, 0, 4]


def test_a_claim_compares_all_that_was_seen() -> None:
    found = Fleet({}, {3: (Grant("", 10), 17)})
    claim = values.claim(b"1-a", found, record(3), Grant("me", 99))
    assert [(one.key, one.mod_revision or one.create_revision) for one in claim.compare[1:]] == [
        (b"\0esp/numbers/03", 17),
        (b"\0esp/proxies/03", 0),
    ]
    assert claim.success[1].request_put.lease == LEASES + 3
    unused = values.claim(b"1-a", Fleet(), record(4), Grant("me", 99))
    assert [one.target for one in unused.compare[1:]] == [unused.compare[1].CREATE] * 2
    renewal = values.renewal(b"1-a", 17, record(3), Grant("me", 99))
    for request in (renewal, values.release(17, 3, 50)):
        assert [(one.key, one.mod_revision) for one in request.compare[-1:]] == [(b"\0esp/numbers/03", 17)]
    for request in (claim, renewal, values.first_secret(b"1-a", b"s")):
        assert (request.compare[0].key, request.compare[0].value) == (b"\0esp/guard", b"1-a")


def test_who_may_know_a_token() -> None:
    proxies = {1: record(1), 2: record(2, heir_of=(1, 9)), 3: record(3, peers="http://127.0.0.1:2")}
    assert [one.number for one in answering_for(proxies, 1)] == [1, 2]
    assert [one.number for one in answering_for(proxies, 9)] == [2]
    assert [one.number for one in answering_for(proxies, 3)] == [3]
    assert answering_for(proxies, 4) == []
