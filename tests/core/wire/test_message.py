"""gRPC's message prefixes, time-outs and status texts."""

from __future__ import annotations

import gzip
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.wire.message import (
    MAX_GZIP_MEMBERS,
    MessageReader,
    cut_status_text,
    decode_status_text,
    encode_status_text,
    format_timeout,
    inflate,
    parse_timeout,
    prefix,
)
from esp.core.wire.status import Code, RpcError


def inflated(packed: bytes, most: int) -> bytes:
    """A gzip message, all steps taken."""
    steps = inflate(packed, b"gzip", most)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return b"".join(end.value)


messages = st.lists(st.binary(max_size=50), max_size=8)


@given(messages, st.lists(st.integers(0, 500), max_size=8))
def test_messages_come_out_whole_wherever_the_stream_is_cut(contents: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(prefix(content) for content in contents)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    reader = MessageReader(50)
    found = [m for i in range(len(places) - 1) for m in reader.feed(stream[places[i] : places[i + 1]])]
    assert found == contents
    assert reader.wanted == reader.held == 0


@given(st.binary(min_size=1, max_size=50))
def test_how_much_a_message_lacks_is_known_from_its_prefix_on(content: bytes) -> None:
    reader = MessageReader(50)
    whole = prefix(content)
    for index in range(len(whole) - 1):
        assert reader.feed(whole[index : index + 1]) == []
        assert reader.wanted == (4 - index if index < 4 else len(whole) - index - 1)
        assert reader.held == index + 1
    assert reader.feed(whole[-1:]) == [content]
    assert reader.wanted == 0


def test_compressed_and_plain_messages_may_follow_each_other() -> None:
    reader = MessageReader(1000, b"gzip")
    packed = gzip.compress(b"second")
    stream = prefix(b"first") + b"\1" + struct.pack(">I", len(packed)) + packed + prefix(b"third")
    assert reader.feed(stream) == [b"first", b"second", b"third"]


def test_a_gzip_message_may_have_a_few_members() -> None:
    parts = [bytes([number]) for number in range(MAX_GZIP_MEMBERS)]
    assert inflated(b"".join(map(gzip.compress, parts)), 1000) == b"".join(parts)


@pytest.mark.parametrize("content", [b"", b"x"])
def test_a_gzip_message_of_many_members_is_refused_after_a_few(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    member = gzip.compress(content)
    inflater = zlib.decompressobj
    members = 0

    def counted(wbits: int) -> object:
        nonlocal members
        members += 1
        return inflater(wbits=wbits)

    monkeypatch.setattr(zlib, "decompressobj", counted)
    with pytest.raises(RpcError) as caught:
        inflated(member * (2**21 // len(member)), 2**21)
    assert caught.value.status.code == Code.INTERNAL
    assert members == MAX_GZIP_MEMBERS


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
def test_a_message_too_large_is_told_so_whatever_its_flag(encoding: bytes) -> None:
    for flag in (b"\0", b"\1", b"\2"):
        with pytest.raises(RpcError) as caught:
            MessageReader(10, encoding).feed(flag + struct.pack(">I", 11))
        assert caught.value.status.code == Code.RESOURCE_EXHAUSTED
        assert caught.value.status.message == "grpc: received message larger than max (11 vs. 10)"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1S", 1),
        (b"2M", 120),
        (b"1H", 3600),
        (b"1500m", 1.5),
        (b"20u", 20e-6),
        (b"5n", 5e-9),
        (b"0S", 0),
        (b"00000001S", 1),
        (b"99999999H", 99999999 * 3600.0),
    ],
)
def test_a_timeout_is_a_number_and_a_unit(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", [b"", b"S", b"1", b"123456789S", b"1s", b"-1S", b"+1S", b"1.0S", b" 1S", b"1S ", b"1_0S", b"\xb2S", b"1SS"]
)
def test_anything_else_is_no_timeout(value: bytes) -> None:
    assert parse_timeout(value) is None


@given(st.floats(0, 1e12))
def test_what_is_sent_on_is_never_more_than_what_is_left_and_close_to_it(seconds: float) -> None:
    value = format_timeout(seconds)
    parsed = parse_timeout(value)
    assert parsed is not None
    assert parsed <= seconds * (1 + 1e-12)
    if seconds < 99_999_999:
        assert seconds - parsed <= max(1e-6, seconds * 1e-4)


@given(st.text())
def test_any_status_text_survives(text: str) -> None:
    value = encode_status_text(text, 10**6)
    assert decode_status_text(value) == text.encode("utf-8", "replace").decode()
    assert all(0x20 <= byte < 0x7F for byte in value)


@given(st.text(min_size=20), st.integers(3, 60))
def test_a_text_that_is_cut_is_not_cut_inside_an_escape(text: str, size: int) -> None:
    whole = encode_status_text(text, 10**6)
    value = encode_status_text(text, size)
    assert value == cut_status_text(whole, size)
    assert len(value) <= size
    rest = whole[len(value) :]
    blanks = len(rest) - len(rest.lstrip(b" "))  # none is left at the end
    assert len(value) + blanks > size - 3 or value == whole
    assert whole.startswith(value)
    assert b"%" not in value[-2:] or value[-3:-2] == b"%"


def test_a_text_that_nobody_encoded_is_read_as_far_as_it_goes() -> None:
    assert decode_status_text(b"100% of %zz and %41") == "100% of %zz and A"
    assert decode_status_text(b"%ff") == "�"
