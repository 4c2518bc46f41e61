"""Proxies that know each other: they register on the shards that hold the map, and ask each other for tokens.

    registration   the registration of this process, and its number
    peer           another proxy, asked
    sealed         messages that show that who sends them knows the secret
    values         what the shards hold about proxies

From the top down; each file imports only files below it.
"""

from esp.core.fleet.peer import PATH, Peer, PeerError
from esp.core.fleet.registration import Registration, registered
from esp.core.fleet.sealed import UnsealedError, answer, asked
from esp.core.fleet.values import KEYS, Registered, answering_for

__all__ = [
    "KEYS",
    "PATH",
    "Peer",
    "PeerError",
    "Registered",
    "Registration",
    "UnsealedError",
    "answer",
    "answering_for",
    "asked",
    "registered",
]
