"""Huffman codes of header fields (RFC 7541, section 5.2), decoded by zlib where possible.

HPACK's Huffman code is canonical, like the codes of deflate, but deflate allows codes of at most 15 bits. HPACK's codes
above 15 bits all begin with 15 ones. They stand for rare characters that hardly any header holds. In the block of
deflate that is made here, 15 ones are the end of the block. So a string without rare characters, with its bits in
deflate's order, is a block of deflate behind the right preamble. The padding of the string is ones, and becomes a part
of that end.

A string with a rare character is decoded byte by byte, at a twentieth of the speed.
"""

from __future__ import annotations

import zlib
from typing import Final

from hpack import HPACKDecodingError
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

_EOS: Final = 256
_LONGEST: Final = 15  # bits of a code in deflate
_LENGTHS: Final = [length if length <= _LONGEST else 0 for length in REQUEST_CODES_LENGTH[:_EOS]]
_LENGTH_OF: Final = bytes(_LENGTHS)
_MIRRORED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_END: Final = b"\xff\xff"  # at least 15 ones, at any offset in a byte


def _preamble() -> bytes:
    """The bytes with which deflate announces a block with this code (RFC 1951, section 3.2.7); whole bytes."""
    bits = "0100000000" * 3  # empty blocks, so that the next block ends with a whole byte
    bits += (
        "101" + "00000" + "00000" + "1111"
    )  # last block, its own codes: 257 of symbols, 1 of distances, 19 of lengths
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15):
        bits += "001" if symbol < 16 else "000"  # the lengths 0 to 15 have codes of 4 bits, which count up
    for length in [*_LENGTHS, _LONGEST, 0]:  # with that of the block's end; no distances
        bits += f"{length:04b}"
    return bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))


_INFLATER: Final = zlib.decompressobj(wbits=-15)
_INFLATER.decompress(_preamble())


def decode(coded: bytes) -> bytes:
    """The text of a Huffman-coded string.

    Raises:
        HPACKDecodingError: `coded` is no such string.
    """
    inflater = _INFLATER.copy()
    text = inflater.decompress(coded.translate(_MIRRORED) + _END)
    if inflater.eof:
        # The end of the block took 15 bits of these bytes, so there are eight possible numbers of bits for the text.
        # The sum of the lengths of the text's codes decides, modulo 255. (Modulo 255 a number is the sum of its bytes,
        # so `from_bytes` adds up the lengths.)
        least = 8 * (len(coded) + len(_END) - len(inflater.unused_data)) - 7 - _LONGEST
        taken = least + (int.from_bytes(text.translate(_LENGTH_OF), "big") - least) % 255
        padding = 8 * len(coded) - taken
        if 0 <= padding < 8 and (not padding or ~coded[-1] & (1 << padding) - 1 == 0):
            return text
    return _decode_rare(coded)


def _tree() -> list[list[int]]:
    """Nodes of two branches each: another node, or a symbol as ~symbol."""
    nodes = [[0, 0]]
    for symbol, (code, length) in enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)):
        at = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[at][bit]:
                nodes[at][bit] = len(nodes)
                nodes.append([0, 0])
            at = nodes[at][bit]
        nodes[at][code & 1] = ~symbol
    return nodes


class _Steps(dict[int, list[tuple[bytes, int]]]):
    """For each node of the tree, and each byte there: the symbols that the byte completes, and the node after it.

    A node's row is made when it is first needed. There are 256 nodes at most.
    """

    nodes: Final = _tree()

    def __missing__(self, node: int) -> list[tuple[bytes, int]]:
        if node < 0:
            raise HPACKDecodingError("Invalid Huffman String")
        row = self[node] = [self._step(node, byte) for byte in range(256)]
        return row

    def _step(self, node: int, byte: int) -> tuple[bytes, int]:
        symbols = bytearray()
        for shift in range(7, -1, -1):
            node = self.nodes[node][byte >> shift & 1]
            if node < 0:
                if ~node == _EOS:
                    return b"", -1
                symbols.append(~node)
                node = 0
        return bytes(symbols), node


_STEPS: Final = _Steps()


def _ends() -> frozenset[int]:
    """The nodes in which a string may end: behind a symbol, and seven ones of padding at most."""
    ends = [0]
    for _ in range(7):
        ends.append(_STEPS.nodes[ends[-1]][1])
    return frozenset(ends)


_ENDS: Final = _ends()


def _decode_rare(coded: bytes) -> bytes:
    node = 0
    text = []
    for byte in coded:
        symbols, node = _STEPS[node][byte]
        text.append(symbols)
    if node not in _ENDS:
        raise HPACKDecodingError("Invalid Huffman String")
    return b"".join(text)
