"""Composite tokens: their form, the part that each shard gets, and invalid ones."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.auth_tokens import (
    FIELDS,
    INVALID,
    MAX_PARTS,
    MEMO_BYTES,
    MEMO_ENTRIES,
    NoToken,
    OwnParts,
    TokenCheck,
    join,
    split,
)
from esp.core.wire import frames
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.divided import COMPOSITE, DividedBlock
from esp.core.wire.hpack import decode, encode
from esp.core.wire.limits import Limits
from tests.core.wire.conversation import message
from tests.core.wire.conversation import split as frames_in
from tests.core.wire.upstream import Call, Caller

SIMPLE = "fQzQpLvHnCaXxGkY.17"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJyZXZpc2lvbiI6MX0.c2lnbmF0dXJl-_"
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
TOKENS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=1)
MAPS = st.dictionaries(NAMES, TOKENS, min_size=1)


def checked(body: bytes) -> bytes:
    """A token with this body, and a checksum that fits."""
    return COMPOSITE + b"%08x:" % crc32(body) + body


@given(MAPS)
def test_every_shards_token_comes_out_as_it_went_in(tokens: dict[str, str]) -> None:
    joined = join(tokens)
    assert joined.isascii()
    assert joined.isprintable()
    assert " " not in joined
    assert split(joined.encode()) == {name: token.encode() for name, token in tokens.items()}


@given(MAPS, st.randoms())
def test_all_proxies_make_the_same_of_the_same_tokens(tokens: dict[str, str], random: object) -> None:
    shuffled = dict(sorted(tokens.items(), reverse=True))
    assert join(shuffled) == join(tokens)


@given(MAPS, st.data())
def test_half_a_token_is_none(tokens: dict[str, str], data: st.DataObject) -> None:
    joined = join(tokens).encode()
    cut = data.draw(st.integers(0, len(joined) - 1))
    assert split(joined[:cut]) is None


@given(MAPS, st.data())
def test_a_token_with_another_byte_is_none(tokens: dict[str, str], data: st.DataObject) -> None:
    joined = bytearray(join(tokens).encode())
    place = data.draw(st.integers(0, len(joined) - 1))
    joined[place] ^= data.draw(st.integers(1, 255))
    assert split(bytes(joined)) is None


@given(st.binary())
def test_any_bytes_are_taken_apart_or_refused(body: bytes) -> None:
    for token in (body, COMPOSITE + body, checked(body)):
        parts = split(token)
        assert parts is None or join({name: part.decode() for name, part in parts.items()}).encode() == token


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"a",
        b"a=",
        b"=x",
        b"a=x,",
        b"a=x,a=y",
        b"b=x,a=y",
        b"a=x\r\ny: z",
        b"a=\xc3\xa4",
        b"\xc3\xa4=x",
        b"a=x y",
        b"a=x,,b=y",
        b",".join(b"%05d=x" % number for number in range(MAX_PARTS + 1)),
    ],
)
def test_what_has_a_right_checksum_and_a_wrong_form_is_none(body: bytes) -> None:
    assert split(checked(body)) is None
    assert TokenCheck(["a"]).checked([(b"token", checked(body))]) == [(b"token", INVALID)]


@pytest.mark.parametrize("token", ["", " ", "a b", "a\nb", "ä", "a\0", "a,b"])
def test_a_shards_token_that_is_no_etcds_is_told_with_its_shard(token: str) -> None:
    with pytest.raises(NoToken) as caught:
        join({"a": SIMPLE, "b": token})
    assert caught.value.shard == "b"


@pytest.mark.parametrize("name", sorted(FIELDS))
@pytest.mark.parametrize("bearer", [b"", b"Bearer "])
def test_a_shard_gets_its_own_part_only(name: bytes, bearer: bytes) -> None:
    token = join({"a": SIMPLE, "b": JWT}).encode()
    block = encode([(b"x", b"1"), (name, bearer + token), (b"y", b"2")])
    for shard, part in (("a", bearer + SIMPLE.encode()), ("b", bearer + JWT.encode()), ("later", INVALID)):
        assert decode(OwnParts(shard).of(block)) == [(b"x", b"1"), (name, part), (b"y", b"2")]


def test_metadata_without_such_a_token_are_no_divided_block() -> None:
    for fields in ([], [(b"token", SIMPLE.encode())], [(b"authorization", b"Bearer " + JWT.encode())]):
        assert type(encode(fields)) is bytes
    assert type(encode([(b"token", join({"a": SIMPLE}).encode())])) is DividedBlock


def test_every_call_on_a_connection_carries_the_own_part() -> None:
    caller = Caller()
    parts = OwnParts("b")
    caller.connection.own_part = parts.of
    token = join({"a": SIMPLE, "b": JWT}).encode()
    forward = b"/etcdserverpb.KV/Range", encode([(b"token", token)])
    for body in (message(b""), None, bytes(100_000)):
        caller.connection.call(Call(caller.connection), forward, b"", body, end=False)
    caller.context.flush()
    heads = [decode(frame.payload) for frame in frames_in(caller.said()) if frame.kind == frames.HEADERS]
    assert [value for head in heads for name, value in head if name == b"token"] == [JWT.encode()] * 3
    assert parts.memo.made == 1


def test_what_is_made_of_metadata_is_kept_within_bounds() -> None:
    parts = OwnParts("a")
    for number in range(MEMO_ENTRIES + 1):
        parts.of(encode([(b"token", join({"a": f"t{number}"}).encode())]))
    assert (len(parts.memo), parts.memo.made) == (1, MEMO_ENTRIES + 1)
    large = "x" * (MEMO_BYTES // 8)
    for number in range(8):
        parts.of(encode([(b"token", join({"a": f"{large}{number}"}).encode())]))
        assert len(parts.memo) <= 4
    parts.of(encode([(b"token", join({"a": "x" * MEMO_BYTES}).encode())]))
    assert len(parts.memo) == 0


@pytest.mark.parametrize(
    "value",
    [
        SIMPLE.encode(),
        JWT.encode(),
        b"Bearer " + JWT.encode(),
        b"Basic YWxhZGRpbjpvcGVuc2VzYW1l",
        b"",
        join({"a": SIMPLE}).encode(),
        join({"b": SIMPLE, "c": SIMPLE}).encode(),
        join({"a": SIMPLE, "b": SIMPLE}).encode()[:-1],
        b"bearer " + join({"a": SIMPLE, "b": SIMPLE}).encode(),
    ],
)
@pytest.mark.parametrize("name", sorted(FIELDS))
def test_what_is_no_token_of_these_shards_no_shard_takes(name: bytes, value: bytes) -> None:
    check = TokenCheck(["a", "b"])
    assert check.checked([(b"x", value), (name, value)]) == [(b"x", value), (name, INVALID)]


@pytest.mark.parametrize("tokens", [{"a": SIMPLE, "b": JWT}, {"a": SIMPLE, "b": JWT, "left": SIMPLE}])
def test_a_token_with_a_part_for_each_shard_goes_on(tokens: dict[str, str]) -> None:
    fields = [(b"authorization", b"Bearer " + join(tokens).encode()), (b"token", join(tokens).encode())]
    assert TokenCheck(["a", "b"]).checked(fields) == fields


def test_neither_kind_of_etcds_tokens_looks_like_the_invalid_one() -> None:
    assert b"." not in INVALID


def test_a_connection_without_shard_sends_metadata_as_they_are() -> None:
    block = encode([(b"token", join({"a": SIMPLE}).encode())])
    assert ClientConnection(WireContext(Limits()), "etcd").own_part(block) == block
