"""Listening sockets that the service manager passes to esp: sd_listen_fds(3), the socket activation of systemd.

The manager keeps its copies open. So while esp restarts, clients wait in the kernel, and none is refused.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import MutableMapping, Sequence
from typing import Final

from esp.core.config import Listen, url_of
from esp.core.sockets import Bound, bind, resolved_of

FIRST: Final = 3
"""The first descriptor that is passed; the others follow."""
MOST: Final = 1024
"""The most sockets that may be passed."""


def passed(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that the environment tells of; none if it tells of none, or speaks to another process.

    The variables are taken out of `environ`, and children inherit no descriptor: these sockets are esp's alone.

    Raises:
        OSError: a descriptor is no socket that listens; `strerror` is a sentence with the cure.
    """
    told, process = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if process != str(os.getpid()) or not told.isdecimal():
        return []
    found: list[socket.socket] = []
    for number in range(FIRST, FIRST + min(int(told), MOST)):
        try:
            os.set_inheritable(number, False)
            found.append(_listening(number))
        except OSError as error:
            _close(found)
            name = f' "{names[number - FIRST]}"' if names[number - FIRST :] and names[number - FIRST] else ""
            text = f"socket{name} of the service manager (descriptor {number}): {error.strerror}"
            raise OSError(error.errno, f"{text}; write ListenStream and Accept=no in the socket unit") from None
    return found


def _listening(number: int) -> socket.socket:
    sock = socket.socket(fileno=number)
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise OSError(errno.EINVAL, "does not accept clients")
    sock.setblocking(False)
    return sock


def bind_rest(sockets: Sequence[socket.socket], addresses: Sequence[Listen]) -> list[Bound]:
    """The sockets with their addresses of the config, and sockets newly bound to the addresses that have none.

    Raises:
        OSError: a socket is at no address of the config, or an address cannot be bound; `strerror` is a sentence with
            the cure, and no socket is left open.
    """
    bound: list[Bound] = []
    try:
        for sock in sockets:
            for address in addresses:
                if _is_at(sock, address):
                    bound.append(Bound(sock, address))
                    break
            else:
                raise OSError(errno.EINVAL, _not_in_config(sock, addresses))
        return bound + bind([one for one in addresses if not any(_serves(sock, one) for sock in sockets)])
    except OSError:
        _close(sockets)
        raise


def _is_at(sock: socket.socket, address: Listen) -> bool:
    if sock.family == socket.AF_UNIX:
        return address.path is not None and os.path.abspath(address.path) == sock.getsockname()
    return any((sock.family, sock.getsockname()[:2]) == (family, at[:2]) for family, at in _resolved(address))


def _serves(sock: socket.socket, address: Listen) -> bool:
    """Whether clients of the address reach this socket: on many systems one socket at [::] takes IPv4 as well."""
    if _is_at(sock, address):
        return True
    if sock.family != socket.AF_INET6 or sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return False
    host, port, *_ = sock.getsockname()
    return host == "::" and any(family == socket.AF_INET and at[1] == port for family, at in _resolved(address))


def _resolved(address: Listen) -> list[tuple[int, tuple[object, ...]]]:
    if address.path is not None:
        return []
    try:
        found = resolved_of(address)
    except socket.gaierror:
        return []  # binding says so
    return [(family, at) for family, _, _, _, at in found]


def _not_in_config(sock: socket.socket, addresses: Sequence[Listen]) -> str:
    at = sock.getsockname()
    url = f"unix:{at}" if sock.family == socket.AF_UNIX else url_of(at[0], at[1])
    listens = ", ".join(map(str, addresses))
    return (
        f"the service manager passes a socket at {url}, but esp listens on {listens}; "
        f'write listen: ["{url}"], or that address as ListenStream in the socket unit'
    )


def _close(sockets: Sequence[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
