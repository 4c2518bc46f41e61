"""Numbers in the messages that esp writes by hand, in a form that all decoders read alike.

Nearly all of them is written by protobuf. What is not goes through here, in the shortest form or, where its length has
to be known first, padded to at most MOST_BYTES. protobuf allows ten bytes, but decoders differ in what they make of a
tenth: it holds one bit of the 64, and protobuf-java takes it for set whenever the byte is there. So ten bytes are only
for numbers that need them, the negative ones. Of tags and lengths, which are 32 bits, no decoder has to read more than
five bytes: they are always in the shortest form.
"""

from __future__ import annotations

from typing import Final

MOST_BYTES: Final = 9
"""Of a number that is not negative; enough for 63 bits."""

_MASK: Final = 2**64 - 1
_SHORT: Final = [bytes((number,)) for number in range(0x80)]


def varint(number: int, size: int = 1) -> bytes:
    """An int64 in `size` bytes, at most MOST_BYTES, or in as many more as it takes."""
    if size == 1 and 0 <= number < len(_SHORT):
        return _SHORT[number]
    assert size <= MOST_BYTES, "decoders differ in what they read in a tenth byte"
    value = number & _MASK
    written = bytearray()
    while value > 0x7F or len(written) + 1 < size:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
