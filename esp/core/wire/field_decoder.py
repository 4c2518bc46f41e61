"""Header fields out of a header block (RFC 7541, section 6), with the peer's table.

The decoder of the `hpack` library is not used: for each field it copies the rest of the block several times, and a
block of many small fields and a large one took 15 ms.
"""

from __future__ import annotations

from typing import Final

from hpack import HPACKDecodingError, InvalidTableSizeError, OversizedHeaderListError

from esp.core.wire import huffman
from esp.core.wire.header_table import FIELD_OVERHEAD, LARGEST, Field, HeaderTable

__all__ = ["FIELD_OVERHEAD", "FieldDecoder"]

_SHIFTS: Final = (0, 7, 14, 21, 28)


class FieldDecoder:
    """One peer's table, and the fields that its blocks stand for.

    Attributes:
        table: the peer's; of 4,096 bytes at most.
    """

    __slots__ = ("_max_list_bytes", "table")

    def __init__(self, max_list_bytes: int) -> None:
        self._max_list_bytes = max_list_bytes
        self.table = HeaderTable()

    def decode(self, block: bytes) -> list[Field]:
        """The fields of `block`, the table updated.

        Raises:
            HPACKError: `block` is no header block; OversizedHeaderListError if its fields take more than
                `max_list_bytes`. The table is unusable from then on.
        """
        table = self.table
        fields: list[Field] = []
        size = position = 0
        end = len(block)
        while position < end:
            first = block[position]
            if first & 0x80:
                index, position = _integer(block, position, 0x7F)
                field = table.get_by_index(index)
            elif first & 0xE0 == 0x20:
                if fields:
                    raise HPACKDecodingError("a table size update behind a field")
                wanted, position = _integer(block, position, 0x1F)
                if wanted > LARGEST:
                    raise InvalidTableSizeError("a table larger than granted")
                table.resize(wanted)
                continue
            else:
                enters = first & 0x40
                if first == enters or first == 0x10:  # no index; spelled out, as below: an attacker may send many
                    position += 1
                    length = block[position] if position < end else 0x80
                    if length < 0x7F and (start := position + 1) + length <= end:
                        position = start + length
                        name = block[start:position]
                    else:
                        name, position = _string(block, position)
                else:
                    index, position = _integer(block, position, 0x3F if enters else 0x0F)
                    name = table.get_by_index(index)[0]
                length = block[position] if position < end else 0x80
                if length < 0x7F and (start := position + 1) + length <= end:
                    position = start + length
                    field = name, block[start:position]
                else:
                    value, position = _string(block, position)
                    field = name, value
                if enters:
                    table.add(field)
            fields.append(field)
            size += len(field[0]) + len(field[1]) + FIELD_OVERHEAD
            if size > self._max_list_bytes:
                raise OversizedHeaderListError("too large")
        return fields


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """The integer at `position`, whose first byte has it in the bits of `mask`, and the position behind the integer."""
    if position >= len(block):
        raise HPACKDecodingError("cut short")
    number = block[position] & mask
    position += 1
    if number < mask:
        return number, position
    for shift, byte in zip(_SHIFTS, block[position : position + len(_SHIFTS)], strict=False):
        number += (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return number, position
    raise HPACKDecodingError("an integer cut short, or of too many bytes")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """The string at `position`, and the position behind the string."""
    length, start = _integer(block, position, 0x7F)
    end = start + length
    if end > len(block):
        raise HPACKDecodingError("a string cut short")
    text = block[start:end]
    return (huffman.decode(text) if block[position] & 0x80 else text), end
