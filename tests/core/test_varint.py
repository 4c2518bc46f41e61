"""The form of bytes that esp writes without protobuf: docs/design.md, "Bytes written by hand"."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

import esp
from esp.core.pb import rpc_pb2
from esp.core.varint import MOST_BYTES, varint
from tests.core.services.written import COUNTS, merged, written


def read(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, as the 64 bits it stands for, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def check_form(data: bytes, message: Descriptor) -> None:
    """Fails for a form that decoders may read differently."""
    at = 0
    said: dict[str, set[str]] = {}
    while at < len(data):
        tag, after = read(data, at)
        assert data[at:after] == varint(tag), "a tag that is longer than need be"
        field: FieldDescriptor = message.fields_by_number[tag >> 3]
        at = after
        number, after = read(data, at)
        if tag & 7 == 0:
            is_negative = number >> 63
            assert after - at <= MOST_BYTES or (is_negative and data[at:after] == varint(number))
            at = after
            continue
        assert tag & 7 == 2
        assert data[at:after] == varint(number), "a length that is longer than need be"
        value, at = data[after : after + number], after + number
        assert len(value) == number
        if field.message_type is not None:
            check_form(value, field.message_type)
            if not field.is_repeated:
                # Whether a decoder merges or replaces what comes again must make no difference.
                names = {one.name for one, _ in field.message_type._concrete_class.FromString(value).ListFields()}
                assert said.setdefault(field.name, names) <= names
                said[field.name] = names


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, MOST_BYTES))
def test_a_number_is_what_protobuf_reads_in_as_many_bytes_as_wanted(number: int, size: int) -> None:
    written = varint(number, size)
    assert rpc_pb2.RangeResponse.FromString(b"\x20" + written).count == number
    assert len(written) == max(size, len(varint(number)))
    shortest = rpc_pb2.RangeResponse(count=number).SerializeToString()[1:]
    assert not number or varint(number) == shortest


def test_a_tenth_byte_is_only_for_numbers_that_need_it() -> None:
    with pytest.raises(AssertionError):
        varint(1, 10)
    assert len(varint(2**63 - 1)) == MOST_BYTES
    assert len(varint(-1)) == MOST_BYTES + 1


def test_all_that_is_written_by_hand_has_the_form_that_all_decoders_read_alike() -> None:
    for message, data in written():
        check_form(data, message.DESCRIPTOR)


NOT_RUN = {
    "esp.core.gateway.shapes": "the tags that fields.py writes are made once, when a message is first met",
    "esp.core.services.lease.keepalive": "the bytes of a keepalive's answer are one field behind an echo: see "
    "keepalive_answers, which makes the same by protobuf",
    "esp.core.services.kv.read_txn": "it makes its table of lengths when it is loaded; what it joins is in the table",
    "esp.core.own_keys": "it looks for these bytes in what clients send; nothing is written",
    "esp.core.services.watch.exchange": "a shard's answer is compared with what is expected; nothing is sent",
}
"""Modules that use `varint` and are not run for the table, and why."""


def users_of_varint() -> set[str]:
    folder = Path(esp.__file__).parent
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_import = isinstance(node, ast.ImportFrom) and node.module == "esp.core.varint"
            if is_import and any(name.name == "varint" for name in node.names):
                found.add(".".join(("esp", *path.relative_to(folder).with_suffix("").parts)))
    return found


def test_each_module_that_writes_numbers_by_hand_is_run_for_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    run = set()

    def noted(name: str) -> Callable[..., bytes]:
        def write(number: int, size: int = 1) -> bytes:
            run.add(name)
            return varint(number, size)

        return write

    users = users_of_varint()
    for name in users:
        monkeypatch.setattr(importlib.import_module(name), "varint", noted(name))
    written()
    assert users - run == NOT_RUN.keys(), "add what it writes to written.py"


@pytest.mark.parametrize("count", COUNTS)
def test_a_merged_count_is_what_was_counted(count: int) -> None:
    assert rpc_pb2.RangeResponse.FromString(merged(count)).count == count


@pytest.mark.parametrize(
    "data",
    [
        b"\x20\x81\x80\x80\x80\x80\x80\x80\x80\x80\x00",
        b"\xa0\x00\x01",
        b"\x0a\x82\x00\x18\x01",
        b"\x0a\x02\x18\x01\x0a\x02\x20\x01",
    ],
    ids=["ten bytes", "tag", "length", "headers that say different things"],
)
def test_the_check_finds_what_it_is_for(data: bytes) -> None:
    assert rpc_pb2.RangeResponse.FromString(data).ByteSize()
    with pytest.raises(AssertionError):
        check_form(data, rpc_pb2.RangeResponse.DESCRIPTOR)
