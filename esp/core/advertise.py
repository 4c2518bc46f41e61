"""The URLs under which clients reach this proxy: from the listeners, and the faults of those in the config."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from esp.core.config import Listen, is_wildcard
from esp.core.shard import Lookups

SECONDS: Final = 3.0
"""Seconds that the look-up of a host may take, and a connection to the host."""


def urls_of(bound: Iterable[Listen]) -> tuple[str, ...]:
    """The URLs of the addresses on which esp listens, without wildcards.

    A loopback address counts only if there is no other address: a client on another machine would reach itself there.
    Unix sockets count only if there is nothing else.
    """
    bound = list(bound)
    of_tcp = [one for one in bound if one.path is None]
    reached = [one for one in of_tcp if not is_wildcard(one.host)]
    if any(not _is_loopback(one.host) for one in of_tcp):
        reached = [one for one in reached if not _is_loopback(one.host)]
    return tuple(map(str, reached if of_tcp else bound))


async def faults(urls: Sequence[str], bound: Sequence[Listen]) -> list[str]:
    """The faults of the advertised URLs, as sentences with the cure.

    Args:
        urls: the advertised URLs.
        bound: the addresses on which the proxy listens.
    """
    if not urls:
        return [
            'nothing is advertised, since "listen" names a wildcard address: MemberList is refused, and with it '
            "clients that take their endpoints from there; write advertise: [http://HOST:PORT]"
        ]
    lookups = Lookups()
    found = [await _fault(url, lookups, bound) for url in urls]
    return [fault for fault in found if fault]


async def _fault(url: str, lookups: Lookups, bound: Sequence[Listen]) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return ""  # a socket on which esp itself listens
    host, port = parts.hostname or "", parts.port or 0
    subject = f"advertise URL {url}"
    try:
        addresses = await lookups.addresses(host, SECONDS)
    except OSError as error:
        return f"{subject}: {error}"
    if all(map(_is_loopback, addresses)) and not all(_is_loopback(one.host) for one in bound):
        return f"{subject} leads clients on other machines to themselves; write a name or address that they know"
    reason = await _unreachable(addresses, port)
    return f"{subject} cannot be reached from here: {reason}; correct it, or the way to it" if reason else ""


async def _unreachable(addresses: Sequence[str], port: int) -> str:
    """The reason why no address takes a connection; "" when an address does."""
    reason = ""
    for address in addresses:
        try:
            async with asyncio.timeout(SECONDS):
                _, writer = await asyncio.open_connection(address, port)
        except TimeoutError:
            reason = f"no answer within {SECONDS:g} s"
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
        else:
            writer.close()
            return ""
    return reason


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
