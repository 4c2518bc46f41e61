"""Looks up the addresses of host names, so that a silent name server holds up nothing else.

With a silent name server a lookup takes ten seconds and more, and nothing can cut it short. The event loop's own
threads are few, serve all names, and must end before the process ends. So each name has a thread of its own here, one
at most. Neither another name nor the end of the process waits for that thread.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from functools import partial

from esp.core.background import in_a_thread

Answer = list[str] | OSError


class UnknownNameError(OSError):
    """The name servers say that there is no such name; the text says the cure."""


class Lookups:
    """Lookups of a shard's host names: at most one thread for each name, even if the name server never answers.

    If an answer comes after its caller has given up, the next caller gets it.
    """

    def __init__(self) -> None:
        self.asked: dict[str, asyncio.Future[Answer]] = {}

    async def addresses(self, host: str, seconds: float) -> list[str]:
        """The addresses of `host` in the system's order. `host` may be an address itself.

        Raises:
            OSError: there is no address, or none within `seconds`; the text says the cure. UnknownNameError if the
                name servers say that there is none.
        """
        if is_address(host):
            return [host]
        asked = self.asked.get(host)
        if asked is None:
            asked = self.asked[host] = in_a_thread(f"lookup of {host}", partial(_look_up, host))
        await asyncio.wait((asked,), timeout=seconds)
        if not asked.done():
            text = f'no name server has told the address of "{host}" within {seconds:g} s; look at /etc/resolv.conf'
            raise OSError(f"{text}, or use an address")
        if self.asked.get(host) is asked:
            del self.asked[host]
        answer = asked.result()
        if isinstance(answer, OSError):
            raise answer
        return answer


def _look_up(host: str) -> Answer:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return _fault(host, error)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _fault(host: str, error: OSError | UnicodeError) -> OSError:
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        text = f'the host name "{host}" cannot be looked up: {(error.strerror or str(error)).lower()}'
        return OSError(f"{text}; look at /etc/resolv.conf, or use an address")
    return UnknownNameError(f'the host name "{host}" is not known; correct it or use an address')


def is_address(host: str) -> bool:
    """Whether a host is an address, which nobody has to look up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
