"""Key ranges, as etcd writes them in requests and as people read them.

etcd compares keys bytewise. A request names its keys with the pair `key` and `range_end`. An empty `range_end` means
the one key `key`. The single byte 0 means all keys from `key` on. Any other `range_end` means the keys from `key` up
to `range_end`, without `range_end` itself.
"""

from __future__ import annotations

from typing import NamedTuple

OPEN_END = b"\0"
"""The `range_end` that etcd reads as "no upper bound"."""


class KeyRange(NamedTuple):
    """The keys with start <= key < end, bytewise; `end` None means no upper bound.

    A range whose end is not above its start holds no key. An empty range is an ordinary value, because etcd answers a
    request for it too: without keys, but after all checks and with a header.
    """

    start: bytes
    end: bytes | None

    @classmethod
    def of_request(cls, key: bytes, range_end: bytes) -> KeyRange:
        """The keys that a request's `key` and `range_end` stand for.

        The caller decides on an empty `key`: KV refuses it, Watch reads it as the byte 0.
        """
        if not range_end:
            return cls(key, key + b"\0")
        if range_end == OPEN_END:
            return cls(key, None)
        return cls(key, range_end)

    def to_request(self) -> tuple[bytes, bytes]:
        """The pair (key, range_end) that stands for these keys in a request.

        etcd refuses an empty key. So a range from the very first key on is written with the byte 0 as its start; no key
        lies between the two. A range of one key is written without a range_end.
        """
        start = self.start
        if self.end is None:
            return start or b"\0", OPEN_END
        if self.end == start + b"\0":
            return start, b""
        if start or not self.end:
            return start, self.end
        return b"\0", self.end

    def is_empty(self) -> bool:
        """Whether no key is in the range: its end lies at or before its start."""
        return self.end is not None and self.end <= self.start

    def intersect(self, other: KeyRange) -> KeyRange | None:
        """The keys in both ranges; None when there are none."""
        start = max(self.start, other.start)
        if self.end is None:
            end = other.end
        elif other.end is None:
            end = self.end
        else:
            end = min(self.end, other.end)
        if end is not None and end <= start:
            return None
        return KeyRange(start, end)

    def without(self, other: KeyRange) -> list[KeyRange]:
        """The parts of this range outside of another one, in key order; itself if the two have no key in common."""
        hole = self.intersect(other)
        if hole is None:
            return [self]
        parts = [KeyRange(self.start, hole.start)]
        if hole.end is not None:
            parts.append(KeyRange(hole.end, self.end))
        return [part for part in parts if not part.is_empty()]


def prefix_end(prefix: bytes) -> bytes | None:
    """The first key after all keys that start with `prefix`.

    None when there is no such key: every byte of the prefix is 0xff, or the prefix is empty.
    """
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return None
    return stem[:-1] + bytes((stem[-1] + 1,))


def format_key(key: bytes) -> str:
    r"""The key for people: printable UTF-8 characters as they are, a backslash doubled, other bytes as \xNN.

    Two different keys never look the same. The text has no quotes around it.
    """
    text = key.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_format_character(character) for character in text)


def _format_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def format_range(key_range: KeyRange) -> str:
    """The range for people, half-open: `["a", "m")`; an unquoted `end` means that there is no upper bound."""
    end = "end" if key_range.end is None else f'"{format_key(key_range.end)}"'
    return f'["{format_key(key_range.start)}", {end})'
