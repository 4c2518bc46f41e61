"""Heads of requests as a server's decoder reads them, with the server's table as esp expects it."""

from __future__ import annotations

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from esp.core.wire.frames import BLOCK_FRONTS, SHORT_BLOCK
from esp.core.wire.hpack import COMPOSITE, MEMO_ENTRIES, encode
from esp.core.wire.request_encoder import BLOCKS, ENTRY_BYTES, TABLE_BYTES, RequestEncoder
from tests.examples import tries

AUTHORITY = b"etcd:2379"
OWN = [(b":authority", AUTHORITY), (b"content-type", b"application/grpc"), (b"te", b"trailers")]
HUGE = b"/" + b"x" * ENTRY_BYTES


class Server:
    """A decoder, and the encoder whose blocks it gets."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.encoder = RequestEncoder(AUTHORITY)

    def limit(self, size: int) -> None:
        self.encoder.limit(size)
        self.decoder.max_allowed_table_size = size

    def gets(self, path: bytes) -> tuple[bytes, bool]:
        """The block that says `path`, which was understood, and whether it changed the table as it claims."""
        known = self.encoder.known.get(path)
        kept = self.encoder.blocks.get((path, b""))
        assert kept is None or kept == (BLOCK_FRONTS[len(kept[1])], known), "a block whose indexes have moved"
        self.encoder.remember((path, b""))
        block, changes = (known, False) if known is not None else self.encoder.front(path)
        before = self.table
        fields = [(bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True)]
        assert fields == [(b":method", b"POST"), (b":scheme", b"http"), OWN[0], (b":path", path), *OWN[1:]]
        assert changes or self.table == before
        if block[0] != 0x20:
            assert self.table[len(self.table) - len(before) :] == before, "an entry was evicted"
        return block, changes

    @property
    def table(self) -> list[tuple[bytes, bytes]]:
        return [(bytes(name), bytes(value)) for name, value in self.decoder.header_table.dynamic_entries]


def test_a_head_is_said_in_full_once() -> None:
    server = Server()
    assert [server.gets(b"/a/A")[1] for _ in range(3)] == [True, False, False]
    assert len(server.gets(b"/a/A")[0]) == 6
    assert server.encoder.known.keys() == {b"/a/A"}
    block, changes = server.gets(b"/b/B")
    assert (len(block), changes) == (2 + 1 + 6 + 2, True)
    assert server.encoder.known == {}, "the indexes have moved"
    assert [len(server.gets(path)[0]) for path in (b"/a/A", b"/b/B")] == [6, 6]
    assert len(server.table) == 5


def test_a_server_without_a_table_gets_literals() -> None:
    server = Server()
    server.limit(0)
    first, changes = server.gets(b"/a/A")
    assert changes
    assert server.gets(b"/a/A") == (first[1:], False)
    assert first[:1] == b"\x20"
    assert server.table == []


def test_a_table_that_is_full_keeps_what_it_has() -> None:
    server = Server()
    for number in range(2 * MEMO_ENTRIES):
        server.gets(b"/path/%d" % number)
    table = server.table
    assert TABLE_BYTES - 50 < sum(len(name) + len(value) + 32 for name, value in table) <= TABLE_BYTES
    assert len(server.gets(b"/path/0")[0]) == 10, "indexes of two bytes"
    assert server.gets(b"/path/x")[1] is False
    assert server.table == table
    assert len(server.encoder.known) <= MEMO_ENTRIES


def test_a_path_that_is_too_long_is_not_put_into_the_table() -> None:
    server = Server()
    server.gets(b"/a/A")
    assert server.gets(HUGE)[1] is False
    assert len(server.table) == 4


def test_paths_that_are_in_the_static_table() -> None:
    server = Server()
    server.gets(b"/")
    server.gets(b"/index.html")
    assert len(server.table) == 3


@pytest.mark.parametrize("size", [0, 31, 32, 80, 200, 4095])
def test_a_size_that_is_granted_again_is_no_change(size: int) -> None:
    server = Server()
    server.limit(size)
    server.gets(b"/a/A")
    table = server.table
    server.limit(size)
    assert server.gets(b"/a/A")[1] is False
    assert server.table == table


STEPS = st.one_of(
    st.tuples(st.just("limit"), st.one_of(st.integers(0, 300), st.sampled_from([0, 1000, 4095, 4096, 4097, 65536]))),
    st.tuples(st.just("path"), st.integers(0, 80)),
    st.tuples(st.just("huge"), st.just(0)),
)


@examples(max_examples=tries(300), deadline=None)
@given(st.lists(STEPS, max_size=200))
def test_every_block_is_understood_whatever_the_server_grants(steps: list[tuple[str, int]]) -> None:
    server = Server()
    for what, number in steps:
        if what == "limit":
            server.limit(number)
        else:
            server.gets(HUGE if what == "huge" else b"/a.long.Service/Path%d" % number)
            assert server.decoder.header_table_size <= server.decoder.max_allowed_table_size
    assert {name for name, _ in server.table} <= {b":authority", b":path", b"content-type", b"te"}


def test_only_blocks_that_are_the_same_for_all_servers_are_kept_and_few() -> None:
    server = Server()
    for _ in range(2):
        server.gets(b"/a/A")
    for metadata in (encode([(b"token", COMPOSITE + b"x")]), bytes(SHORT_BLOCK)):
        server.encoder.remember((b"/a/A", metadata))
    server.encoder.remember((b"/not/known", b""))
    assert not server.encoder.blocks
    for number in range(3 * BLOCKS):
        server.encoder.remember((b"/a/A", b"%d" % number))
        assert 0 < len(server.encoder.blocks) <= BLOCKS
    block = server.encoder.known[b"/a/A"] + b"%d" % number
    assert server.encoder.blocks[b"/a/A", b"%d" % number] == (BLOCK_FRONTS[len(block)], block)
