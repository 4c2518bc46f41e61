"""The listening sockets: bound to the addresses of the config before the first client is accepted.

Whoever has bound sockets can hand them to a `Proxy`, or to another process; so accepting is apart (`wire.listener`).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from esp.core.config import Listen

BACKLOG: Final = 1024
"""The most clients that wait in the kernel while nobody accepts; who accepts chooses anew."""


class Bound(NamedTuple):
    """A bound socket, and the address of the config for which it was bound. Nobody accepts on it yet."""

    sock: socket.socket
    listen: Listen

    @property
    def address(self) -> Listen:
        """The address that was bound: the port is never 0, and the host is an address."""
        if self.listen.path is not None:
            return self.listen
        host, port, *_ = self.sock.getsockname()
        return self.listen._replace(host=host, port=port)


def bind(addresses: Sequence[Listen]) -> list[Bound]:
    """Binds sockets to the addresses: one for each address of a host name.

    Raises:
        OSError: an address cannot be bound; `strerror` is a sentence with the cure, and no socket is left open.
    """
    bound: list[Bound] = []
    for address in addresses:
        try:
            if _taken_by(address, addresses) is not None:
                raise OSError(errno.EADDRINUSE, "")
            if address.path is not None:
                _remove_stale(address.path)
            bound.extend(Bound(_bound(*resolved), address) for resolved in resolved_of(address))
        except OSError as error:
            close(bound)
            raise cannot_listen(address, addresses, error) from None
    return bound


def listen(bound: Sequence[Bound], addresses: Sequence[Listen]) -> None:
    """Lets clients connect, and wait until somebody accepts them.

    Raises:
        OSError: as `bind` does: another process has bound the same address, and was first to listen.
    """
    for sock, address in bound:
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            close(bound)
            raise cannot_listen(address, addresses, error) from None


def close(bound: Iterable[Bound]) -> None:
    """Closes the sockets."""
    for sock, _ in bound:
        sock.close()


def check(addresses: Sequence[Listen]) -> None:
    """Binds every address and frees it again: an address in use is an error before anything else has started.

    Raises:
        OSError: as `bind` does.
    """
    bound = bind(addresses)
    close(bound)
    for _, listen in bound:
        if listen.path is not None:
            listen.path.unlink(missing_ok=True)


def _bound(family: int, kind: int, protocol: int, _: str, address: Any) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        # Connections of an earlier run in TIME_WAIT are no hindrance.
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Removes the socket that a process has left which has ended.

    Raises:
        OSError: there is another file, or a process listens there.
    """
    if not path.is_socket():
        if os.path.lexists(path):
            raise OSError(errno.EEXIST, "there is a file that is no socket; remove it or name another path")
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a process that accepts nobody is one, too
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, "") from None
        else:
            raise OSError(errno.EADDRINUSE, "")


def resolved_of(address: Listen) -> list[Any]:
    """The sockets' addresses, as of `getaddrinfo`.

    Raises:
        OSError: the host's name is not known.
    """
    if address.path is not None:
        return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", str(address.path))]
    return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)


def _taken_by(address: Listen, addresses: Sequence[Listen]) -> Listen | None:
    """The earlier address that is the same socket as `address` under another name; None if there is none."""
    for other in addresses[: addresses.index(address)]:
        if other.is_same(address):
            return other
        if other.port == address.port != 0:
            for family, _, _, _, (host, *_) in resolved_of(address):
                for of_other, _, _, _, (its_host, *_) in resolved_of(other):
                    every = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104
                    if family == of_other and (host == its_host or every in (host, its_host)):
                        return other
    return None


def cannot_listen(address: Listen, addresses: Sequence[Listen], error: OSError) -> OSError:
    """The error for an address, one of `addresses`, on which nobody can listen: a sentence with the cure."""
    if error.errno == errno.EADDRINUSE and (other := _taken_by(address, addresses)) is not None:
        reason = f"it is the address of {other}, which is listed too; remove one"
    else:
        reason = _reason(error, is_path=address.path is not None)
    return OSError(error.errno, f"cannot listen on {address}: {reason}")


def _reason(error: OSError, *, is_path: bool) -> str:
    text = (error.strerror or str(error)).lower()
    if is_path:
        in_use = "another process listens there; stop it or name another path"
        return in_use if error.errno == errno.EADDRINUSE else text
    if isinstance(error, socket.gaierror):
        return "the host name is not known; use an address of this machine"
    if error.errno == errno.EADDRINUSE:
        return "the port is in use; stop what listens there or name another with --listen"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    if error.errno == errno.EACCES:
        return f"permission denied; {_unprivileged_ports()}"
    return text


def _unprivileged_ports() -> str:
    """The ports that need no privilege, as a sentence; on Linux the administrator sets them."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return "a port below 1024 takes root, others do not"
    return f"use a port from {first} (net.ipv4.ip_unprivileged_port_start) on, or give esp CAP_NET_BIND_SERVICE"
