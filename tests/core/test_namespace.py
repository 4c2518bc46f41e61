"""Clients' keys and ranges as keys of the shards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.namespace import Namespace

KEYS = st.binary(min_size=1, max_size=4) | st.sampled_from([b"\0", b"\xff", b"\xff\xff"])
PREFIXES = st.binary(min_size=1, max_size=3) | st.sampled_from([b"\xff", b"a\xff", b"\0", b"\xff\0"])


@given(PREFIXES, KEYS, KEYS | st.just(b""), KEYS)
def test_a_range_holds_a_key_if_the_range_in_the_shards_holds_the_key_there(
    prefix: bytes, key: bytes, range_end: bytes, other: bytes
) -> None:
    namespace = Namespace.of(prefix)
    asked = KeyRange.of_request(key, range_end)
    there = KeyRange.of_request(namespace.key(key), namespace.range_end(range_end))
    assert holds(asked, other) == holds(there, namespace.key(other))
    assert namespace.stripped(namespace.key(other)) == other


@given(PREFIXES, KEYS, KEYS | st.just(b""), st.binary(max_size=6))
def test_no_range_holds_a_key_of_others(prefix: bytes, key: bytes, range_end: bytes, theirs: bytes) -> None:
    namespace = Namespace.of(prefix)
    there = KeyRange.of_request(namespace.key(key), namespace.range_end(range_end))
    if namespace.stripped(theirs) is None:
        assert not holds(there, theirs)
        assert not holds(namespace.keys, theirs)
    else:
        assert holds(namespace.keys, theirs)


def holds(keys: KeyRange, key: bytes) -> bool:
    return keys.start <= key and (keys.end is None or key < keys.end)


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a/", b"a0"), (b"a\xff", b"b"), (b"\xff", b"\0"), (b"\xff\xff", b"\0")]
)
def test_an_open_range_ends_behind_the_prefix(prefix: bytes, end: bytes) -> None:
    assert Namespace.of(prefix).range_end(b"\0") == end
    assert Namespace.of(prefix).range_end(b"") == b""


def test_an_empty_key_stays_empty() -> None:
    assert Namespace.of(b"a/").key(b"") == b""
