r"""Keys of esp's own on the shards: those that begin with a zero byte, where the shards hold the map.

Clients see and change none of them. A range that holds other keys as well stands for those: it begins at `\x01` for the
shards. A request for keys of esp's own only is refused.
"""

from __future__ import annotations

from typing import Final

from esp.core import errors
from esp.core.keys import OPEN_END
from esp.core.varint import varint

LEASES: Final = 0x6573_7070_726F_7800
"""The lease of the proxy with the number 0; that of number N is N above. No etcd makes such an id by itself in this
century: the middle bits of its ids are a time in milliseconds."""
MOST_LEASES: Final = 64
LEASE_BYTES: Final = varint(LEASES)[1:-1]
"""What every message has in it that names one of these leases; the bytes around differ by number and by form."""
_RARE: Final = LEASE_BYTES[:1]
"""One of them that no text has: a single byte is found ten times as fast."""
FIRST: Final = b"\x01"
"""The first key that is not esp's own."""


def is_own(key: bytes) -> bool:
    """Whether a key is esp's own."""
    return key[:1] == b"\0"


def is_own_lease(lease_id: int) -> bool:
    """Whether a lease is esp's own: that of a proxy."""
    return LEASES <= lease_id < LEASES + MOST_LEASES


def may_name_lease(message: bytes) -> bool:
    """Whether a message has the bytes of one of these leases in it, as the number of a lease or otherwise."""
    return _RARE in message and LEASE_BYTES in message


def clipped(key: bytes, range_end: bytes) -> bytes:
    """The `key` of a request for the keys that are not esp's own, by those of the client's request.

    Raises:
        RpcError: it is for keys of esp's own only.
    """
    if key[:1] != b"\0":
        return key
    if range_end == OPEN_END or range_end > FIRST:
        return FIRST
    raise errors.OWN_KEYS.error()
