r"""The namespace of a proxy: the prefix of its clients' keys in the shards, which the clients do not see.

As in etcd's grpc-proxy, the end of an open range becomes the end of the prefix. etcd's own code counts the last byte of
the prefix up with a carry: with the prefix `a\xff` an open range ends behind the key `b`, which has not this prefix.
The key that is the prefix itself is in no namespace: clients would see an empty key.
"""

from __future__ import annotations

from dataclasses import dataclass

from esp.core.keys import OPEN_END, KeyRange, prefix_end


@dataclass(frozen=True, slots=True)
class Namespace:
    """A prefix, and what clients' keys and ranges are with it.

    Attributes:
        prefix: the prefix, not empty.
        end: the `range_end` of a range that is open to clients.
    """

    prefix: bytes
    end: bytes

    @classmethod
    def of(cls, prefix: bytes) -> Namespace:
        """The namespace of a prefix."""
        return cls(prefix, prefix_end(prefix) or OPEN_END)

    @property
    def keys(self) -> KeyRange:
        """All keys of the namespace."""
        return KeyRange.of_request(self.prefix + b"\0", self.end)

    def key(self, key: bytes) -> bytes:
        """A client's key as a key of the shards; an empty key stays empty, because etcd refuses it."""
        return self.prefix + key if key else key

    def range_end(self, range_end: bytes) -> bytes:
        """A client's `range_end` as the shards get it."""
        if range_end == OPEN_END:
            return self.end
        return self.prefix + range_end if range_end else range_end

    def stripped(self, key: bytes) -> bytes | None:
        """A key of the shards as clients see it; None for a key outside of the namespace."""
        return key[len(self.prefix) :] if len(key) > len(self.prefix) and key.startswith(self.prefix) else None
