import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange, format_key, format_range, prefix_end

# Few different bytes, so that equal, neighbouring and prefixed keys come up often.
keys = st.lists(st.sampled_from([0x00, 0x01, 0x61, 0x62, 0xFE, 0xFF]), max_size=4).map(bytes)
ranges = st.builds(KeyRange, keys, st.none() | keys)


def holds(key_range: KeyRange, key: bytes) -> bool:
    return key >= key_range.start and (key_range.end is None or key < key_range.end)


@pytest.mark.parametrize(
    ("request_pair", "expected"),
    [
        ((b"a", b""), KeyRange(b"a", b"a\0")),
        ((b"a", b"\0"), KeyRange(b"a", None)),
        ((b"\0", b"\0"), KeyRange(b"\0", None)),
        ((b"a", b"m"), KeyRange(b"a", b"m")),
        ((b"a", b"\0\0"), KeyRange(b"a", b"\0\0")),
        ((b"m", b"a"), KeyRange(b"m", b"a")),
    ],
)
def test_a_request_is_read_as_etcd_reads_it(request_pair: tuple[bytes, bytes], expected: KeyRange) -> None:
    assert KeyRange.of_request(*request_pair) == expected


@pytest.mark.parametrize(
    ("key_range", "expected"),
    [
        (KeyRange(b"a", b"a\0"), (b"a", b"")),
        (KeyRange(b"a", None), (b"a", b"\0")),
        (KeyRange(b"", None), (b"\0", b"\0")),
        (KeyRange(b"", b"m"), (b"\0", b"m")),
        (KeyRange(b"a", b"m"), (b"a", b"m")),
        (KeyRange(b"m", b"a"), (b"m", b"a")),
        (KeyRange(b"m", b"m"), (b"m", b"m")),
    ],
)
def test_a_range_is_written_so_that_etcd_accepts_it(key_range: KeyRange, expected: tuple[bytes, bytes]) -> None:
    assert key_range.to_request() == expected


@given(keys.filter(bool), keys)
def test_a_request_read_and_written_again_means_the_same(key: bytes, range_end: bytes) -> None:
    key_range = KeyRange.of_request(key, range_end)
    assert KeyRange.of_request(*key_range.to_request()) == key_range


@given(ranges.filter(lambda r: not r.is_empty() and r != KeyRange(b"", b"\0")), keys.filter(bool))
def test_a_written_range_holds_the_same_keys_save_the_empty_one(key_range: KeyRange, key: bytes) -> None:
    assert holds(KeyRange.of_request(*key_range.to_request()), key) == holds(key_range, key)


@given(ranges, keys)
def test_an_empty_range_holds_no_key(key_range: KeyRange, key: bytes) -> None:
    if key_range.is_empty():
        assert not holds(key_range, key)
    else:
        assert holds(key_range, key_range.start)


@given(ranges, ranges, keys)
def test_an_intersection_holds_what_both_hold(one: KeyRange, other: KeyRange, key: bytes) -> None:
    both = one.intersect(other)
    assert both == other.intersect(one)
    assert both is None or not both.is_empty()
    assert (both is not None and holds(both, key)) == (holds(one, key) and holds(other, key))


@given(keys, keys)
def test_a_prefix_range_holds_exactly_the_keys_with_the_prefix(prefix: bytes, key: bytes) -> None:
    assert holds(KeyRange(prefix, prefix_end(prefix)), key) == key.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"a\xff\x01", b"a\xff\x02"), (b"\xff\xff", None), (b"", None)]
)
def test_the_end_of_a_prefix(prefix: bytes, end: bytes | None) -> None:
    assert prefix_end(prefix) == end


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"/registry/pods/a b", "/registry/pods/a b"),
        ("schlüssel/鍵".encode(), "schlüssel/鍵"),
        (b"a\x00\n", r"a\x00\x0a"),
        (b"\xff\xc3", r"\xff\xc3"),
        (b"\\x00", r"\\x00"),
        ("\u202e\u00a0".encode(), r"\xe2\x80\xae\xc2\xa0"),
        (b"", ""),
    ],
)
def test_a_key_for_people(key: bytes, text: str) -> None:
    assert format_key(key) == text


@given(st.binary(max_size=12) | st.text(max_size=6).map(str.encode))
def test_a_key_for_people_is_printable_and_can_be_read_back(key: bytes) -> None:
    text = format_key(key)
    assert text.isprintable()
    assert b"\\".join(_unescaped(part.encode()) for part in text.split("\\\\")) == key


def _unescaped(text: bytes) -> bytes:
    first, *rest = text.split(b"\\x")
    return first + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)


def test_a_range_for_people() -> None:
    assert format_range(KeyRange(b"a", b"m\0")) == r'["a", "m\x00")'
    assert format_range(KeyRange(b"", None)) == '["", end)'


@given(ranges, ranges, keys)
def test_the_parts_without_a_range_hold_all_keys_but_those_of_the_range(
    one: KeyRange, other: KeyRange, key: bytes
) -> None:
    parts = one.without(other)
    assert sum(holds(part, key) for part in parts) == (holds(one, key) and not holds(other, key))
    if one.intersect(other) is None:
        assert parts == [one]
    else:
        assert not any(part.is_empty() for part in parts)
