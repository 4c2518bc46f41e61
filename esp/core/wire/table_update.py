"""The header table that esp does not use, and the word about this that some peers wait for (RFC 7541, section 4.2)."""

from __future__ import annotations

from esp.core.wire.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADER_SIZE,
    HEADERS,
    frame,
    header_block,
    unpack_header,
)

SIZE_0 = b"\x20"
"""A table size update to 0, the first byte of a header block."""


def with_table_update(data: bytes) -> bytes | None:
    """`data`, whole frames, with a table size update to 0 in the first header block; None without a header block.

    esp keeps no table, but a peer that takes back the table that it granted at first waits for this update.
    """
    position = 0
    while position < len(data):
        word, flags, stream_id = unpack_header(data, position)
        start = position + HEADER_SIZE
        end = start + (word >> 8)
        if word & 0xFF == HEADERS:
            block = header_block(stream_id, SIZE_0 + data[start:end], end_stream=bool(flags & END_STREAM))
            if not flags & END_HEADERS:
                block = frame(HEADERS, flags, stream_id, SIZE_0 + data[start : end - 1])
                block += frame(CONTINUATION, 0, stream_id, data[end - 1 : end])
            return data[:position] + block + data[end:]
        position = end
    return None
