"""The URLs under which clients reach this proxy: from the listeners, and the faults of those in the config."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from esp.core.config import is_wildcard
from esp.core.shard import Lookups

SECONDS: Final = 3.0
"""Seconds that the look-up of a host may take, and a connection to the host."""


def urls_of(bound: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """The URLs of the addresses on which esp listens, without wildcards.

    A loopback address counts only if there is no other address: a client on another machine would reach itself there.
    """
    reached = [(host, port) for host, port in bound if not is_wildcard(host)]
    if any(not _is_loopback(host) for host, _ in bound):
        reached = [(host, port) for host, port in reached if not _is_loopback(host)]
    return tuple(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host, port in reached)


async def faults(urls: Sequence[str], bound: Sequence[tuple[str, int]]) -> list[str]:
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


async def _fault(url: str, lookups: Lookups, bound: Sequence[tuple[str, int]]) -> str:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 0
    subject = f"advertise URL {url}"
    try:
        addresses = await lookups.addresses(host, SECONDS)
    except OSError as error:
        return f"{subject}: {error}"
    if all(map(_is_loopback, addresses)) and not all(_is_loopback(bound_host) for bound_host, _ in bound):
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
