"""Places that many clients share; no single address can have the last of them.

Behind a TCP load balancer all clients have one address. So an address may take nearly all places. Only the last part of
the places, above `common_share`, is kept for addresses that hold little.
"""

from __future__ import annotations

from typing import Final

LITTLE: Final = 64
"""An address holds little if it holds less than this part of all places: a 64th."""


def address_of(peer: str) -> str:
    """The address in `host:port`."""
    return peer.rpartition(":")[0] or peer


class Shares:
    """Places, or bytes, and how many of them each address has.

    Args:
        limit: the number of places.
        common: the part of the places that any address may take, between 0 and 1.

    Attributes:
        used: the places that are taken.
    """

    __slots__ = ("_common", "_held", "_little", "limit", "used")

    def __init__(self, limit: int, common: float) -> None:
        self.used = 0
        self._held: dict[str, int] = {}
        self.resize(limit, common)

    def resize(self, limit: int, common: float) -> None:
        """Makes more places, or fewer; whoever has one keeps it."""
        self.limit = limit
        self._common = limit - int(limit * (1 - common))
        self._little = max(1, limit // LITTLE)

    @property
    def is_scarce(self) -> bool:
        """Whether only addresses that hold little get more places."""
        return self.used >= self._common

    def holds_little(self, address: str) -> bool:
        """Whether an address would get places even while they are scarce."""
        return self._held.get(address, 0) <= self._little

    def take(self, address: str, size: int = 1) -> bool:
        """Takes places; False, without taking any, if there are none for that address."""
        used = self.used + size
        held = self._held.get(address, 0) + size
        if used > self.limit or (used > self._common and held > self._little):
            return False
        self.used = used
        self._held[address] = held
        return True

    def give(self, address: str, size: int = 1) -> None:
        """Gives places back."""
        self.used -= size
        left = self._held.get(address, 0) - size
        if left > 0:
            self._held[address] = left
        else:
            self._held.pop(address, None)
