"""The URLs under which clients reach this proxy: what the listeners say, and what is wrong with the advertised ones."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from esp.core.config import is_wildcard
from esp.core.shard import Lookups

SECONDS: Final = 3.0
"""How long the look-up of a host, and a connection to it, may take."""


def urls_of(bound: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """The URLs of the addresses that are listened on, without wildcards.

    An address of this machine alone counts only where there is no other: a client elsewhere would find itself there.
    """
    reached = [(host, port) for host, port in bound if not is_wildcard(host)]
    if any(not _is_loopback(host) for host, _ in bound):
        reached = [(host, port) for host, port in reached if not _is_loopback(host)]
    return tuple(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host, port in reached)


async def faults(urls: Sequence[str], bound: Sequence[tuple[str, int]]) -> list[str]:
    """What is wrong with what a proxy advertises, each with its cure.

    Args:
        urls: what it advertises.
        bound: the addresses on which it listens.
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
    """Why none of the addresses takes a connection; "" when one does."""
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
