"""The look through a transaction's bytes, compared with protobuf's reading of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.kv.before_move import BeforeMove
from esp.core.services.kv.peek import txn_key
from esp.core.services.kv.txn_look import MOST_FIELDS, Look, look
from esp.core.services.pace import LOOKED_AT_ONCE
from esp.core.shard_map import ShardMap
from esp.core.tokens import MARK, is_token
from esp.core.varint import varint
from tests.core.services.kv.test_txn import (
    COMPARES,
    FLAWED,
    WRITES,
    Op,
    Range,
    Txn,
    bushy,
    chained,
    deep,
    delete,
    get,
    nested,
    put,
    steps_taken,
    transactions,
)
from tests.examples import tries

Compare = rpc_pb2.Compare

MAP = ShardMap.build([("one", KeyRange(b"", b"b\0")), ("two", KeyRange(b"b\0", None))], ["one", "two"])
TOKENS = st.sampled_from([0, 3, -1, MARK, MARK + 7, (MARK << 1) - 1, 1 << 62])
READS = st.builds(get, st.sampled_from([b"a", b"b", b"c"]), revision=TOKENS, min_mod_revision=TOKENS)
MARKED = st.lists(
    st.one_of(
        st.builds(Compare, key=st.just(b"a"), mod_revision=TOKENS),
        st.builds(Compare, key=st.just(b"a"), create_revision=TOKENS, range_end=st.sampled_from([b"", b"b"])),
        st.builds(Compare, key=st.just(b"c"), value=st.binary(max_size=3), result=st.just(3)),
    ),
    max_size=2,
)


def looked(message: bytes, shard_map: ShardMap = MAP) -> Look:
    found: Look = steps_taken(look(b"\0\0\0\0\0" + message, 5, shard_map))[0]
    return found


def found_in(request: Txn) -> Look:
    return looked(request.SerializeToString())


def flat(request: Txn) -> list[Compare | Op]:
    parts: list[Compare | Op] = list(request.compare)
    for operation in chain(request.success, request.failure):
        parts.append(operation)
        if operation.HasField("request_txn"):
            parts += flat(operation.request_txn)
    return parts


def touched(request: Txn) -> list[KeyRange]:
    keys = []
    for part in flat(request):
        named = part if isinstance(part, Compare) else getattr(part, part.WhichOneof("request") or "", None)
        if named is not None and not isinstance(named, Txn):
            keys.append(KeyRange.of_request(named.key, getattr(named, "range_end", b"")))
    return [one for one in keys if not one.is_empty()] or keys[:1]


def tokens_in(request: Txn) -> list[tuple[int, bool]]:
    """Each with whether something is read at it."""
    numbers = []
    for part in flat(request):
        if isinstance(part, Compare):
            if part.WhichOneof("target_union") in ("mod_revision", "create_revision"):
                numbers.append((part.mod_revision or part.create_revision, False))
        elif part.HasField("request_range"):
            asked = part.request_range
            filters = (asked.min_mod_revision, asked.max_mod_revision)
            filters += (asked.min_create_revision, asked.max_create_revision)
            numbers += [(asked.revision, True), *((number, False) for number in filters)]
    return [(number, reads) for number, reads in numbers if is_token(number)]


def number_at(message: bytes, place: int) -> int:
    return sum((byte & 0x7F) << 7 * index for index, byte in enumerate(message[place : place + 8]))


def check(found: Look, request: Txn, message: bytes) -> None:
    """The look has found what protobuf has."""
    keys = touched(request)
    owners = {MAP.sole_owner(one) for one in keys}
    spans = None in owners or len(owners) > 1
    assert found.owner == (owners.pop() if len(owners) == 1 else None)
    assert (found.first is None) == (not keys)
    assert found.first is None or found.first in keys
    assert (found.other is not None) == spans
    assert found.other is None or found.other in keys
    assert found.parts == len(flat(request))
    operations = [*request.success, *request.failure]
    reads = not request.compare and all(one.HasField("request_range") for one in operations)
    assert found.only_reads == reads
    written = b"\0\0\0\0\0" + message
    tokens = [(number_at(written, noted >> 1), bool(noted & 1)) for noted in found.tokens]
    assert sorted(tokens) == sorted(tokens_in(request))


ANY = st.one_of(
    transactions(st.one_of(WRITES, FLAWED), COMPARES),
    transactions(st.one_of(READS, st.builds(get, st.just(b"a"))), MARKED),
)


@settings(max_examples=tries(400), deadline=None)
@given(ANY)
def test_what_protobuf_writes_is_read_as_protobuf_reads_it(request: Txn) -> None:
    message = request.SerializeToString()
    found = looked(message)
    assert not found.is_odd
    check(found, request, message)


def unknown_in(part: Compare | Op | Txn) -> bool:
    inside = getattr(part, part.WhichOneof("request") or "", None) if isinstance(part, Op) else None
    return bool(len(UnknownFieldSet(part)) or (inside is not None and len(UnknownFieldSet(inside))))


@settings(max_examples=tries(600), deadline=None)
@given(ANY, st.data())
def test_what_is_not_odd_is_read_alike_by_all(request: Txn, data: st.DataObject) -> None:
    message = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(message)))
        until = min(len(message), at + data.draw(st.integers(0, 4)))
        message[at:until] = data.draw(st.one_of(st.binary(max_size=3), st.just(bytes(message[at:until]) * 2)))
    found = looked(bytes(message))
    if not found.is_odd:
        again = Txn.FromString(bytes(message))
        assert not [part for part in (again, *flat(again)) if unknown_in(part)]
        check(found, again, bytes(message))
    elif not found.is_lost:
        try:
            again = Txn.FromString(bytes(message))
        except Exception:
            return
        rewritten = again.SerializeToString()
        second = looked(rewritten)
        if not second.is_lost:
            check_rewritten(second, again, rewritten)
        assert found.parts >= len(flat(again)), "no more is parsed than was counted"


def check_rewritten(found: Look, request: Txn, message: bytes) -> None:
    if not found.is_odd:  # no field is unknown
        check(found, request, message)
    keys = touched(request)
    assert found.owner == (MAP.sole_owner(keys[0]) if len({MAP.sole_owner(one) for one in keys}) == 1 else None)


RANGE_A = Range(key=b"a").SerializeToString()


def field(tag: bytes, body: bytes) -> bytes:
    return tag + bytes((len(body),)) + body


ODD: dict[str, bytes] = {
    "a key twice": field(b"\x12", field(b"\x0a", RANGE_A + field(b"\x0a", b"c"))),
    "two operations in one": field(b"\x12", field(b"\x0a", RANGE_A) * 2),
    "two kinds of operations in one": field(b"\x12", field(b"\x0a", RANGE_A) + field(b"\x12", RANGE_A)),
    "an end that is there but empty": field(b"\x12", field(b"\x0a", RANGE_A + b"\x12\0")),
    "a length with a byte too many": field(b"\x12", field(b"\x0a", b"\x0a\x81\0a")),
    "two of what a compare compares with": field(b"\x0a", b"\x1a\1a" + b"\x20\1" + b"\x28\1"),
    "an unknown field": field(b"\x12", field(b"\x0a", RANGE_A + b"\x78\1")),
    "an unknown field of the transaction": field(b"\x12", field(b"\x0a", RANGE_A)) + b"\x20\1",
    "an unknown operation": field(b"\x12", field(b"\x2a", RANGE_A)),
    "an unknown group": field(b"\x12", field(b"\x0a", RANGE_A) + b"\x2b\x08\1\x2c"),
    "a number where bytes should be": field(b"\x12", field(b"\x0a", b"\x08\1")),
}


@pytest.mark.parametrize("message", ODD.values(), ids=ODD.keys())
def test_what_parsers_may_read_differently_is_odd(message: bytes) -> None:
    found = looked(message)
    assert found.is_odd
    assert not found.is_lost


def deep_message(levels: int) -> bytes:
    message = b""
    for _ in range(levels):
        inside = b"\x22" + varint(len(message)) + message
        message = b"\x12" + varint(len(inside)) + inside
    return message


LOST: dict[str, bytes] = {
    "cut off": field(b"\x12", field(b"\x0a", RANGE_A))[:-1],
    "cut off in a length": field(b"\x12", field(b"\x0a", RANGE_A)) + b"\x12",
    "longer than what is around it": b"\x12\3" + field(b"\x0a", RANGE_A),
    "a tag with a byte too many": field(b"\x92\0", field(b"\x0a", RANGE_A)),
    "a tag without end": b"\xff" * 20,
    "a group without end": field(b"\x12", b"\x2b\x08\1"),
    "more fields than there are": b"\x12\x85\1\x0a\x82\1" + b"\x38\1" * (MOST_FIELDS + 1),
    "too deep": deep_message(60),
}


@pytest.mark.parametrize("message", LOST.values(), ids=LOST.keys())
def test_what_cannot_be_made_out_says_how_much_it_may_be_at_most(message: bytes) -> None:
    found = looked(message)
    assert found.is_lost
    assert found.is_odd
    assert found.parts >= len(message) // 2


@pytest.mark.parametrize(
    "asked",
    [get(b"a", sort_order=3), get(b"a", sort_target=5), get(b"a", sort_target=-1, sort_order=Range.ASCEND)],
    ids=str,
)
@pytest.mark.parametrize("place", ["success", "failure", "nested"])
def test_unknown_sort_options_are_seen(asked: Op, place: str) -> None:
    request = Txn(failure=[nested([asked])]) if place == "nested" else Txn(**{place: [asked]})
    assert not found_in(request).knows_sorts
    assert found_in(Txn(success=[get(b"a", sort_order=2, sort_target=4)])).knows_sorts


def test_the_first_is_that_of_the_first_compare() -> None:
    request = Txn(
        compare=[Compare(key=b"b", range_end=b"b\0"), Compare(key=b"a")], success=[put(b"c"), get(b"z", b"h")]
    )
    found = found_in(request)
    assert found.first == KeyRange(b"b", b"b\0")
    assert found.other == KeyRange(b"c", b"c\0")
    assert found_in(Txn(failure=[get(b"z", b"h"), get(b"y", b"x")])).first == KeyRange(b"z", b"h")
    assert found_in(Txn(failure=[get(b"z", b"h"), nested([get(b"a")])])).owner == "one"


def test_the_deepest_nesting_that_the_wire_carries_is_walked() -> None:
    assert found_in(deep(49)).parts == 97
    assert not found_in(deep(49)).is_odd


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Txn(), True),
        (Txn(compare=[Compare(key=b"a")]), False),
        (Txn(success=[get(b"a")], failure=[get(b"b", b"c")]), True),
        (Txn(success=[get(b"a")], failure=[put(b"b")]), False),
        (Txn(success=[nested([get(b"a")])]), False),
        (Txn(success=[Op()]), False),
    ],
)
def test_read_only_is_what_etcd_takes_for_it(request_: Txn, expected: bool) -> None:
    assert found_in(request_).only_reads is expected


LARGE: dict[str, Callable[[], Txn]] = {
    "in a row": lambda: Txn(success=[put(b"%d" % number) for number in range(9_000)]),
    "empty": lambda: Txn(success=[Op()] * 60_000),
    "of nothing": lambda: Txn(success=[get(b"")] * 60_000),
    "compares": lambda: Txn(compare=[Compare(key=b"%d" % number) for number in range(9_000)]),
    "deep": lambda: chained(40, [put(b"%d" % number) for number in range(9_000)]),
    "bushy": lambda: Txn(success=bushy(6)),
    "deletes": lambda: chained(40, [delete(b"%05d" % number, b"%05d\0" % number) for number in range(0, 18_000, 2)]),
    "with tokens": lambda: Txn(success=[get(b"a", revision=MARK)] * 9_000),
}


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE.keys())
def test_no_more_than_a_few_are_looked_at_in_one_step(large: Callable[[], Txn]) -> None:
    request = large()
    found, steps = steps_taken(look(request.SerializeToString(), 0, MAP))
    assert found.parts == len(flat(request))
    assert steps >= found.parts // LOOKED_AT_ONCE
    assert len(found.tokens) * found.tokens.itemsize <= len(request.SerializeToString())


def test_nothing_is_looked_at_behind_more_than_a_shard_allows() -> None:
    asked: list[tuple[str | None, int]] = []

    def refuses(shard: str | None, count: int) -> bool:
        asked.append((shard, count))
        return count >= 250

    large = Txn(success=[get(b"a%d" % number) for number in range(60_000)]).SerializeToString()
    found, steps = steps_taken(look(large, 0, MAP, None, refuses))
    assert found.is_refused
    assert steps < 2 * 300 // LOOKED_AT_ONCE, "an operation and what is in it are two"
    assert {shard for shard, _ in asked} == {MAP.owner(b"a")}
    assert [count >= 250 for _, count in asked] == [False] * (len(asked) - 1) + [True]
    inside = Txn(success=[Op(request_txn=Txn(success=[get(b"a")] * 10_000))] * 2).SerializeToString()
    found, _ = steps_taken(look(inside, 0, MAP, None, refuses))
    assert (found.is_refused, found.longest) == (False, 2), "nested operations do not count as the outer ones do"
    nothing = Txn(success=[Op()] * 1000).SerializeToString()
    asked.clear()
    assert steps_taken(look(nothing, 0, MAP, None, refuses))[0].is_refused
    assert {shard for shard, _ in asked} == {None}


def test_it_asks_about_each_range_at_a_plain_revision_in_one_shard_whether_it_is_stale() -> None:
    asked = []

    class Before(BeforeMove):
        def __init__(self) -> None:
            pass

        def __bool__(self) -> bool:
            return True

        def is_stale(self, keys: KeyRange, owner: str, revision: int) -> bool:
            asked.append((keys, owner, revision))
            return revision == 7

    def stale(*reads: Op) -> bool:
        body = Txn(success=reads).SerializeToString()
        found: Look = steps_taken(look(b"\0\0\0\0\0" + body, 5, MAP, Before()))[0]
        return found.is_stale

    assert not stale(get(b"a"), get(b"c", revision=8), get(b"a", revision=MARK + 7), get(b"a", b"z", revision=7))
    assert asked == [(KeyRange(b"c", b"c\0"), "two", 8)]
    assert stale(get(b"a", revision=7), get(b"c", revision=8))
    assert not looked(Txn(success=[get(b"a", revision=7)]).SerializeToString()).is_stale


KEYS = st.sampled_from([b"a", b"a", b"a", b"c", b"", b"k" * 127, b"k" * 128])
SINGLE = st.builds(
    lambda compares, success, failure: Txn(compare=compares, success=success, failure=failure),
    st.lists(
        st.builds(Compare, key=KEYS, result=st.sampled_from([0, 3]), target=st.just(2), mod_revision=TOKENS), max_size=2
    ),
    st.lists(
        st.one_of(
            st.builds(put, KEYS, value=st.binary(max_size=3) | st.sampled_from([bytes(200), bytes(3000)])),
            st.builds(delete, KEYS),
            st.builds(get, KEYS, range_end=st.sampled_from([b"", b"", b"b"]), revision=TOKENS),
        ),
        max_size=2,
    ),
    st.lists(st.builds(get, KEYS), max_size=2),
)


@settings(max_examples=tries(300), deadline=None)
@given(
    st.one_of(SINGLE, transactions(WRITES, COMPARES), st.builds(lambda r: Txn(success=r), st.lists(READS, max_size=2))),
    st.data(),
)
def test_a_key_that_is_found_at_once_is_the_one_that_a_look_finds(request: Txn, draw: st.DataObject) -> None:
    said = bytearray(request.SerializeToString())
    if said and draw.draw(st.booleans()):
        said[draw.draw(st.integers(0, len(said) - 1))] = draw.draw(st.integers(0, 255))
    key = txn_key(b"\0\0\0\0\0" + said)
    if key is None:
        return
    found = looked(bytes(said))
    assert found.first == KeyRange.of_request(key, b"")
    assert found.other is None
    assert not found.is_odd
    assert not found.is_lost
    assert not found.tokens
    assert found.knows_sorts


def usual(value: bytes, revision: int = 7, key: bytes = b"/registry/pods/x") -> Txn:
    """As kube-apiserver updates a key."""
    compare = Compare(key=key, target=Compare.MOD, mod_revision=revision)
    return Txn(compare=[compare], success=[put(key, value=value)], failure=[get(key)])


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(usual(b"v"), id="update"),
        pytest.param(usual(bytes(200)), id="a longer value"),
        pytest.param(usual(bytes(5000)), id="a long value"),
        pytest.param(usual(b"v", 0), id="create"),
        pytest.param(usual(b"v", 1 << 40), id="a high revision"),
        pytest.param(usual(b"v", 1 << 51), id="a revision of eight bytes"),
        pytest.param(Txn(success=[put(b"/registry/pods/x", value=b"v", lease=1 << 40)]), id="with a lease"),
        pytest.param(
            Txn(compare=[Compare(key=b"/registry/pods/x", target=Compare.MOD, mod_revision=7)],
                success=[delete(b"/registry/pods/x")], failure=[get(b"/registry/pods/x")]),
            id="delete",
        ),
    ],
)  # fmt: skip
def test_the_transactions_of_a_kube_apiserver_are_recognised_at_once(request_: Txn) -> None:
    assert txn_key(b"\0\0\0\0\0" + request_.SerializeToString()) == b"/registry/pods/x"


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(Txn(), id="nothing"),
        pytest.param(Txn(success=[put(b"a", value=b"v"), put(b"c", value=b"v")]), id="two keys"),
        pytest.param(Txn(success=[get(b"a", range_end=b"b")]), id="a range"),
        pytest.param(usual(b"v", MARK + 7), id="a token"),
        pytest.param(Txn(success=[nested([put(b"a", value=b"v")])]), id="nested"),
        pytest.param(Txn(success=[Op()]), id="an empty operation"),
        pytest.param(Txn(success=5 * [get(b"a")]), id="many"),
    ],
)
def test_others_are_not(request_: Txn) -> None:
    assert txn_key(b"\0\0\0\0\0" + request_.SerializeToString()) is None
