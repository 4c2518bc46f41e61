r"""Keys of esp's own on the shards: those that begin with a zero byte, where the shards hold the map.

Clients see and change none of them. A range that holds other keys as well stands for those: it begins at `\x01` for the
shards. A request for keys of esp's own only is refused.
"""

from __future__ import annotations

from typing import Final

from esp.core import errors
from esp.core.keys import OPEN_END

FIRST: Final = b"\x01"
"""The first key that is not esp's own."""


def is_own(key: bytes) -> bool:
    """Whether a key is esp's own."""
    return key[:1] == b"\0"


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
