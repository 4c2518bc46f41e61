"""Runs of TLS records, whatever pieces their bytes come in."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from esp.core.wire.tls_records import RUN_BYTES, RUN_RECORDS, RecordRuns

MOST_BODY = 16_384 + 256


def record(size: int) -> bytes:
    return b"\x17\x03\x03" + size.to_bytes(2, "big") + b"x" * size


SIZES = st.one_of(st.integers(0, 40), st.integers(0, MOST_BODY))


@given(st.lists(SIZES, min_size=1, max_size=100), st.lists(st.integers(1, 70_000), max_size=20))
@example([1] * 100, [])
@example([0] * 100, [1] * 20)
@example([MOST_BODY] * 4, [3, 3, 16_000])
def test_a_run_has_few_records_and_ends_with_a_record_or_with_the_bytes(sizes: list[int], cuts: list[int]) -> None:
    data = b"".join(map(record, sizes))
    ends, position = {0}, 0
    for size in sizes:
        position += 5 + size
        ends.add(position)
    runs, before = RecordRuns(), 0  # before: the bytes of earlier pieces
    while before < len(data):
        cut = before + (cuts.pop(0) if cuts else len(data))
        piece = data[before:cut]
        start = 0
        while start < len(piece):
            end = runs.end_of_run(piece, start)
            assert end > start
            assert before + end in ends or end == len(piece)
            assert sum(before + start < each < before + end for each in ends) < RUN_RECORDS
            assert runs.records <= RUN_RECORDS
            assert end - start < RUN_BYTES + 5 + MOST_BODY
            start = end
        before += len(piece)
    assert runs.is_one(record(3))  # all records are whole


def test_one_record_is_told_from_less_and_more() -> None:
    runs = RecordRuns()
    assert runs.is_one(record(0))
    assert runs.is_one(record(300))
    for other in (b"", b"\x17\x03\x03\x00", record(3)[:-1], record(3) + b"x", record(3) + record(3)):
        assert not runs.is_one(other)
    for begun in (record(3)[:2], record(3)[:6]):
        runs = RecordRuns()
        assert runs.end_of_run(begun, 0) == len(begun)
        assert not runs.is_one(record(3))
