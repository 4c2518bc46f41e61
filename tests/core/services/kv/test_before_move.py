"""Numbers that may be of before their keys came to their shard: which are refused, and that the look finds each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.former import Came, Former
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.kv.before_move import BeforeMove
from esp.core.services.kv.txn_look import Look, look
from esp.core.shard_map import ShardMap
from esp.core.tokens import MARK, Position, Vector
from tests.core.services.kv.test_txn import Op, Range, Txn, steps_taken
from tests.examples import tries

Compare = rpc_pb2.Compare
MAP = ShardMap.build([("one", KeyRange(b"", b"m")), ("two", KeyRange(b"m", None))], ["one", "two"])
FORMER = Former().after([Came(KeyRange(b"x", b"z"), "two", 100, 60, 2)])
EQUAL, GREATER, LESS, NOT_EQUAL = range(4)
VERSION, CREATE, MOD, VALUE, LEASE = range(5)
BEFORE, LATER = MARK + 4, MARK + 8


class Known:
    """The tokens of a proxy: one of before the opening, one of later."""

    def is_token(self, number: int) -> bool:
        return number >= MARK

    def position(self, number: int) -> Position | None:
        revision = {BEFORE: 80, LATER: 100}.get(number)
        return None if revision is None else Position(Vector(("one", "two"), (5, revision)), 0)


class Seen:
    seen = 150


def before(former: Former = FORMER) -> BeforeMove:
    shards: Any = {"one": Seen(), "two": Seen()}
    tokens: Any = Known()
    return BeforeMove(former, shards, tokens)


def keys(key: bytes, end: bytes = b"") -> KeyRange:
    return KeyRange.of_request(key, end)


@pytest.mark.parametrize("target", [CREATE, MOD])
def test_revisions_of_before_are_compared_for_equality_only(target: int) -> None:
    def refused(result: int, number: int, key: bytes = b"y") -> bool:
        return before().refuse_compare(keys(key), "two", target, result, number) is not None

    for result in (GREATER, LESS):
        found = {number: refused(result, number) for number in (-3, 0, 1, 2, 60, 61, 99, 100, 10**9)}
        assert found == {
            -3: False,
            0: False,
            1: False,
            2: True,
            60: True,
            61: False,
            99: False,
            100: False,
            10**9: False,
        }
        assert not refused(result, 2, b"n"), "it has not moved"
    for result in (EQUAL, NOT_EQUAL):
        assert not any(refused(result, number) for number in (0, 2, 60, 61, 100))


def test_versions_are_compared_only_to_see_whether_a_key_is_there() -> None:
    def refused(result: int, number: int, key: bytes = b"y") -> bool:
        return before().refuse_compare(keys(key), "two", VERSION, result, number) is not None

    assert not any(refused(result, 0) for result in range(4))
    assert [refused(result, 1) for result in range(4)] == [True, True, False, True]
    assert all(refused(result, 7) for result in range(4))
    assert not any(refused(result, 7, b"n") for result in range(4))
    for target in (VALUE, LEASE):
        assert before().refuse_compare(keys(b"y"), "two", target, GREATER, 7) is None


def test_a_token_of_before_is_no_number_of_now() -> None:
    def refused(number: int, result: int) -> bool:
        return before().refuse_compare(keys(b"y"), "two", MOD, result, number) is not None

    assert [refused(BEFORE, result) for result in range(4)] == [True] * 4
    assert [refused(LATER, result) for result in range(4)] == [False] * 4
    assert not refused(MARK + 12, GREATER), "whoever translates it says that it is unknown"
    assert before().refuse_order(keys(b"y"), "two", BEFORE) is not None
    assert before().refuse_order(keys(b"n"), "two", BEFORE) is None
    assert before().refuse_filters(Range(key=b"y", max_create_revision=BEFORE), "two") is not None


def test_a_filter_by_revisions_of_before_is_refused_with_the_cure() -> None:
    refusal = before().refuse_filters(Range(key=b"x" * 99, range_end=b"z", max_create_revision=60), "two")
    assert refusal is not None
    assert refusal.message == (
        f'esp: the key "{"x" * 64}..." has come from another shard, and revisions up to 60 are of before: none can be '
        "ordered with those of now; read the keys anew, and go by their present revisions"
    )
    for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        assert before().refuse_filters(Range(key=b"y", **{name: 2}), "two") is not None
        assert before().refuse_filters(Range(key=b"y", **{name: 61}), "two") is None
        assert before().refuse_filters(Range(key=b"y", **{name: 1}), "two") is None
        assert before().refuse_filters(Range(key=b"n", range_end=b"o", **{name: 2}), "two") is None
        assert before().refuse_filters(Range(key=b"n", range_end=b"xx", **{name: 2}), "two") is not None


NUMBERS = st.sampled_from([0, 1, 2, 60, 61, 100, -5, BEFORE, LATER])
KEYS = st.sampled_from([b"n", b"y", b"x"])
ENDS = st.sampled_from([b"", b"z"])
COMPARES = st.one_of(
    *(
        st.builds(
            lambda key, end, result, number, field=field, target=target: Compare(
                key=key, range_end=end, target=target, result=result, **{field: number}
            ),
            KEYS,
            ENDS,
            st.integers(0, 3),
            NUMBERS,
        )
        for target, field in (
            (VERSION, "version"),
            (CREATE, "create_revision"),
            (MOD, "mod_revision"),
            (MOD, "version"),  # the field of another target means 0
            (LEASE, "lease"),
        )
    )
)
RANGES = st.builds(
    lambda key, end, filters: Op(request_range=Range(key=key, range_end=end, **filters)),
    KEYS,
    ENDS,
    st.dictionaries(
        st.sampled_from(["min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"]), NUMBERS
    ),
)


@settings(max_examples=tries(300))
@given(st.lists(COMPARES, max_size=3), st.lists(RANGES, max_size=3), st.booleans())
def test_the_look_refuses_what_a_parsed_request_would_be_refused_for(
    compares: list[Compare], ranges: list[Op], is_nested: bool
) -> None:
    request = Txn(compare=compares, success=ranges)
    numbers = {VERSION: "version", CREATE: "create_revision", MOD: "mod_revision"}
    refusals = [
        before().refuse_compare(
            keys(one.key, one.range_end), "two", one.target, one.result, getattr(one, numbers.get(one.target, "lease"))
        )
        for one in compares
    ]
    refusals += [before().refuse_filters(one.request_range, "two") for one in ranges]
    body = (Txn(failure=[Op(request_txn=request)]) if is_nested else request).SerializeToString()
    found: Look = steps_taken(look(b"\0\0\0\0\0" + body, 5, MAP, before()))[0]
    assert (found.refusal is None) == (not any(refusals)), found.refusal
    assert steps_taken(look(b"\0\0\0\0\0" + body, 5, MAP, before(Former())))[0].refusal is None
