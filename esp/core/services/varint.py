"""Numbers in the messages that esp writes by hand, in a form that all decoders read alike.

protobuf writes nearly all numbers. All others are written here, in the shortest form or, where the length has to be
known first, padded to at most MOST_BYTES. protobuf allows ten bytes, but decoders read a tenth byte differently: it
holds one bit of the 64, which protobuf-java takes for set whenever the byte is there. So only negative numbers, which
need ten bytes, have ten. Of tags and lengths, which are 32 bits, no decoder has to read more than five bytes: they are
always in the shortest form.
"""

from __future__ import annotations

from typing import Final

MOST_BYTES: Final = 9
"""Of a number that is not negative; enough for 63 bits."""

_MASK: Final = 2**64 - 1
_SHORT: Final = [bytes((number,)) for number in range(0x80)]
_PADDING: Final = [b"", *(b"\x80" * more + b"\0" for more in range(MOST_BYTES - 1))]
"""By its length."""


def varint(number: int, size: int = 1) -> bytes:
    """An int64 in `size` bytes, at most MOST_BYTES, or in as many more as it takes."""
    if size == 1 and 0 <= number < len(_SHORT):
        return _SHORT[number]
    assert size <= MOST_BYTES, "decoders differ in what they read in a tenth byte"
    value = number & _MASK
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    missing = size - len(written) - 1
    if missing > 0:
        written.append(value | 0x80)
        return bytes(written) + _PADDING[missing]
    written.append(value)
    return bytes(written)
