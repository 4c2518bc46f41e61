"""The header blocks of the benchmark's load generator, read back by an independent decoder."""

import random

import pytest
from hpack import Decoder

from bench.grpc_go import Encoder, Field, unary_fields

PATH, AUTHORITY = b"/etcdserverpb.KV/Put", b"127.0.0.1:2379"


def requests(count: int) -> list[list[Field]]:
    timeouts = random.Random(1)
    return [unary_fields(PATH, AUTHORITY, b"%du" % timeouts.randrange(4_990_000, 5_000_000)) for _ in range(count)]


@pytest.mark.parametrize("table_size", [0, 54, 300, 4096, 65536])
def test_a_decoder_with_the_announced_table_reads_what_was_encoded(table_size: int) -> None:
    encoder, decoder = Encoder(), Decoder()
    encoder.announced(table_size)
    for fields in requests(400):
        assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields


def test_a_table_that_shrinks_between_two_requests_shrinks_for_the_decoder_too() -> None:
    encoder, decoder = Encoder(), Decoder()
    for number, fields in enumerate(requests(400)):
        if number in (100, 200, 300):
            encoder.announced(600 - number)
        assert list(decoder.decode(encoder.encode(fields), raw=True)) == fields
    assert decoder.header_table_size == 300


def test_a_server_without_a_table_gets_no_insertions() -> None:
    encoder, decoder = Encoder(), Decoder()
    encoder.announced(0)
    for fields in requests(3):
        decoder.decode(encoder.encode(fields))
    assert not decoder.header_table.dynamic_entries


def test_with_a_table_a_new_timeout_is_all_that_is_spelled_out_from_the_second_request_on() -> None:
    encoder = Encoder()
    first, *later = [encoder.encode(fields) for fields in requests(20)]
    assert len(first) > 90
    assert all(len(block) <= 20 for block in later[:5])
