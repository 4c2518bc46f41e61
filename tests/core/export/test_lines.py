"""The lines of an export: every key and value comes back exactly, and nothing else is taken for a line."""

from __future__ import annotations

import base64
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.export import ExportError
from esp.core.export.lines import (
    Grant,
    Header,
    Row,
    ShardAt,
    Trailer,
    header_line,
    key_line,
    lease_line,
    read_header,
    read_line,
    trailer_line,
)
from esp.core.export.started import read_started

ids = st.integers(-(2**63), 2**63 - 1).filter(bool)
HEADER = Header(1, "0.1.0", "2026-11-30T12:00:00.000+00:00", "snapshot", 0.0, "abc", [ShardAt("a", "1f", 7)], start="")


def written(*lines: bytes) -> bytes:
    return header_line(HEADER) + b"".join(lines)


def trailer(lines: bytes, keys: int, leases: int) -> bytes:
    import hashlib

    return trailer_line(Trailer(keys=keys, leases=leases, sha256=hashlib.sha256(lines).hexdigest()))


@given(key=st.binary(min_size=1) | st.text(min_size=1).map(str.encode), value=st.binary(), lease=ids | st.just(0))
def test_a_key_comes_back_exactly(key: bytes, value: bytes, lease: int) -> None:
    line = key_line(key, value, 3, 4, 2, lease)
    assert line.count(b"\n") == 1
    assert read_line(line) == Row(key, value, lease)


def test_text_is_written_as_text_and_other_bytes_as_base64() -> None:
    assert json.loads(key_line("ü".encode(), b"\xff\0", 3, 4, 2, 255)) == {
        "key": "ü",
        "value64": base64.b64encode(b"\xff\0").decode(),
        "create": 3,
        "mod": 4,
        "version": 2,
        "lease": "00000000000000ff",
    }
    assert json.loads(key_line(b"\xed\xa0\x80", b"", 3, 4, 2, 0))["key64"] == "7aCA"  # a surrogate is no UTF-8


@given(lease=ids, ttl=st.integers(1, 2**62) | st.none())
def test_a_lease_comes_back(lease: int, ttl: int | None) -> None:
    assert read_line(lease_line(lease, ttl, ttl)) == Grant(lease, ttl)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"key":""}',
        b'{"key":"a"}',
        b'{"value":"a"}',
        b'{"key":"","value":"a"}',
        b'{"key64":"*","value":"a"}',
        b'{"key":"\\ud800","value":"a"}',
        b'{"key":"a","value":"a","lease":"x"}',
        b'{"key":"a","value":"a","lease":"0"}',
        b'{"grant":"1ffffffffffffffff","ttl":1}',
        b'{"grant":7,"ttl":1}',
        b'{"key":"\xff","value":"a"}',
    ],
)
def test_anything_else_is_no_line(line: bytes) -> None:
    with pytest.raises(ExportError, match="is no line of an export"):
        read_line(line)


def test_the_header_comes_back() -> None:
    assert read_header(header_line(HEADER)) == HEADER


@pytest.mark.parametrize("line", [b"", b"hello", b'{"key":"a","value":"b"}', b'{"esp_export":"1"}'])
def test_another_file_has_no_header(line: bytes) -> None:
    with pytest.raises(ExportError, match="no export of esp"):
        read_header(line)


def test_a_later_format_is_refused() -> None:
    with pytest.raises(ExportError, match=r"format 2, written by esp 0.1.0, .* use a newer esp"):
        read_header(header_line(HEADER).replace(b'"esp_export":1', b'"esp_export":2'))


LINES = written(key_line(b"a", b"1", 1, 1, 1, 0), lease_line(7, 60, 30), key_line(b"b", b"2", 2, 2, 1, 7))
WHOLE = LINES + trailer(LINES, 2, 1)


def test_the_first_part_of_an_export_is_read_up_to_its_last_whole_line() -> None:
    ends = [place + 1 for place, byte in enumerate(WHOLE) if byte == 10]
    for cut in range(ends[0], len(WHOLE)):
        found = read_started(io.BytesIO(WHOLE[:cut]), lambda _: None)
        assert found.size == max(end for end in ends if end <= cut)
        assert found.trailer is None
        assert found.last == {ends[0]: None, ends[1]: b"a", ends[2]: b"a", ends[3]: b"b"}[found.size]
        assert found.leases == ({7: 60} if found.size >= ends[2] else {})
    complete = read_started(io.BytesIO(WHOLE), lambda _: None)
    assert complete.trailer is not None
    assert complete.keys == 2


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no whole line"),
        (WHOLE[:20], "no whole line"),
        (WHOLE + b"x\n", "line 6 comes after the end"),
        (WHOLE.replace(b'"value":"1"', b'"value":"9"'), "checksum"),
        (LINES.replace(b'"value":"1"', b'"value":"'), "line 2 is no line"),
        (LINES + trailer(LINES, 3, 1), "has 2 keys and 1 lease, and the end says 3 and 1"),
    ],
)
def test_a_damaged_export_is_not_gone_on_with(data: bytes, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        read_started(io.BytesIO(data), lambda _: None)


def test_a_broken_last_line_is_cut_off() -> None:
    """A crash of the machine may leave zeros where a line was not on the disk yet."""
    assert read_started(io.BytesIO(LINES + b"\0\0\0\n"), lambda _: None).size == len(LINES)
