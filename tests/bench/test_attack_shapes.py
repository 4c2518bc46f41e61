"""The bytes that the attackers of `bench/attacks` send are as their names say: whole frames, and different heads."""

from __future__ import annotations

from itertools import islice

import pytest
from hpack import Decoder

from bench.attack_shapes import ATTACKS, grpc_head, literal, page_head
from bench.attack_trials import TRIALS
from esp.core.wire.frames import HEADER_SIZE, HEADERS, PREFACE, unpack_header

OTHER = {
    "tls-hello",
    "idle-sockets",
    "half-headers",
    "tls-handshakes",
    "tls-half-handshake",
    "tls-garbage",
    "tls-key-updates",
}
HTTP2 = [name for name in ATTACKS if not name.startswith(("h1", "json")) and name not in OTHER]


def said(name: str, chunks: int = 3) -> bytes:
    return b"".join(chunk[0] for chunk in islice(ATTACKS[name].shape(), chunks) if chunk is not None)


def split(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each frame."""
    found = []
    position = 0
    while position < len(data):
        word, flags, stream = unpack_header(data, position)
        end = position + HEADER_SIZE + (word >> 8)
        assert end <= len(data), "a frame that is not whole"
        found.append((word & 0xFF, flags, stream, data[position + HEADER_SIZE : end]))
        position = end
    return found


@pytest.mark.parametrize("name", HTTP2)
def test_an_attack_consists_of_whole_frames(name: str) -> None:
    data = said(name)
    assert data.startswith(PREFACE)
    assert len(split(data[len(PREFACE) :])) >= 2


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_has_a_rate_and_counts_what_it_sends(name: str) -> None:
    attack = ATTACKS[name]
    assert attack.rate > 0
    assert sum(chunk[1] for chunk in islice(attack.shape(), 5) if chunk is not None) > 0


@pytest.mark.parametrize("name", ["indexed-metadata", "header-bomb", "huffman-404", "page-fields", "changing-fields"])
def test_heads_differ_where_a_server_would_remember_them(name: str) -> None:
    blocks = [payload for kind, _, _, payload in split(said(name)[len(PREFACE) :]) if kind == HEADERS]
    assert len(set(blocks)) == len(blocks) > 1


def test_heads_are_hpack() -> None:
    fields = Decoder().decode(grpc_head(b"/a/b", (b"x" * 200, b"y" * 300)), raw=True)
    assert (bytes(fields[-1][0]), bytes(fields[-1][1])) == (b"x" * 200, b"y" * 300)
    assert bytes(Decoder().decode(page_head(b"/health", literal(b"a", b"")), raw=True)[2][1]) == b"/health"


def test_no_name_is_used_twice() -> None:
    assert not set(ATTACKS) & set(TRIALS)
