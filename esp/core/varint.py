"""Numbers in the messages that esp writes by hand, in a form that all decoders read alike.

protobuf writes nearly all numbers; `varint` writes all others. They have the shortest form, or are padded to at most
MOST_BYTES if the length has to be known first. protobuf allows ten bytes, but decoders read a tenth byte differently.
The tenth byte holds one bit of the 64; protobuf-java takes this bit as set whenever the byte is there. So only negative
numbers have ten bytes, because they need them. Tags and lengths have 32 bits, and a decoder need not read more than
five bytes for them. So they always have the shortest form.
"""

from __future__ import annotations

from typing import Final

MOST_BYTES: Final = 9
"""The most bytes of a number that is not negative: enough for 63 bits."""

_MASK: Final = 2**64 - 1
_SHORT: Final = [bytes((number,)) for number in range(0x80)]
_PADDING: Final = [b"", *(b"\x80" * more + b"\0" for more in range(MOST_BYTES - 1))]
"""The bytes that lengthen a number, by their count."""


def varint(number: int, size: int = 1) -> bytes:
    """An int64 in `size` bytes, which is at most MOST_BYTES; in more bytes if it needs more."""
    if size == 1 and 0 <= number < 0x4000:
        return _SHORT[number] if number < 0x80 else bytes((number & 0x7F | 0x80, number >> 7))
    if size == 1 and 0 <= number < 0x200000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
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


def size_at(data: bytes, position: int) -> tuple[int, int]:
    """The length at `position`, and the position behind it.

    Raises:
        IndexError: the length is cut off, or has more than 32 bits.
    """
    size = data[position]
    position += 1
    if size > 0x7F:
        size &= 0x7F
        for shift in (7, 14, 21, 28):
            byte = data[position]
            position += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                return size, position
        raise IndexError
    return size, position
