"""The first bytes of a client: whether there is something to answer in them."""

from __future__ import annotations

from typing import Final

from esp.core.wire.frames import HEADER_SIZE, HEADERS, PREFACE

MOST_FRAMES: Final = 8
"""A request that comes behind more frames is not looked for: clients send one to three before their first."""


def asks(first: bytes) -> bool:
    """Whether `first`, all that a client has sent, has a whole head of a request, of HTTP/2 or of HTTP/1.1."""
    if not first.startswith(PREFACE):
        return b"\r\n\r\n" in first and not first.startswith(PREFACE[:3])
    position, size = len(PREFACE), len(first)
    for _ in range(MOST_FRAMES):
        if position + HEADER_SIZE > size:
            return False
        kind = first[position + 3]
        position += HEADER_SIZE + int.from_bytes(first[position : position + 3], "big")
        if kind == HEADERS:
            return position <= size
    return False
