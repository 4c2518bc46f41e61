"""A header block in pieces, up to its bounds."""

from __future__ import annotations

import pytest

from esp.core.wire.frames import ConnectionFault, ErrorCode
from esp.core.wire.header_block import BlockBounds, HeaderBlock


def begun(size: int = 10, continuations: int = 2, first: bytes = b"abc") -> HeaderBlock:
    return HeaderBlock(BlockBounds(size, continuations), 7, first, 100.0, end=True)


def test_the_pieces_are_joined() -> None:
    block = begun()
    block.add(b"de")
    block.add(b"f")
    assert bytes(block) == b"abcdef"
    assert len(block) == 6
    assert (block.stream_id, block.end, block.since) == (7, True, 100.0)


def test_the_bound_on_bytes_is_reached() -> None:
    block = begun(size=10)
    block.add(b"1234567")
    assert len(block) == 10
    with pytest.raises(ConnectionFault, match="header block too large") as caught:
        block.add(b"8")
    assert (caught.value.code, caught.value.limit) == (ErrorCode.ENHANCE_YOUR_CALM, "max_header_block_bytes")
    assert len(block) == 10, "nothing above the bound is kept"


def test_a_block_in_one_frame_has_the_same_bound() -> None:
    BlockBounds(10, 0).check_size(10)
    with pytest.raises(ConnectionFault, match="header block too large"):
        BlockBounds(10, 0).check_size(11)


def test_the_bound_on_continuations_is_reached_even_by_empty_ones() -> None:
    block = begun(continuations=2)
    block.add(b"")
    block.add(b"")
    with pytest.raises(ConnectionFault, match="too many CONTINUATION frames") as caught:
        block.add(b"")
    assert (caught.value.code, caught.value.limit) == (ErrorCode.ENHANCE_YOUR_CALM, "max_continuations")
