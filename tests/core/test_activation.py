"""Sockets that a service manager passes: which are taken, and how they meet the addresses of the config."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from esp.core import sockets
from esp.core.activation import bind_rest
from esp.core.config import Listen


def listening(host: str = "127.0.0.1", *, dual: bool = False) -> tuple[socket.socket, int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, 0), family=family, dualstack_ipv6=dual)
    return sock, sock.getsockname()[1]


def run(code: str, environ: dict[str, str], *descriptors: int) -> str:
    """What this code prints in a process that has the descriptors from 3 on, and these variables."""
    prepare = (
        "import os, sys, fcntl\n"
        "os.environ.update(LISTEN_PID=os.environ.get('LISTEN_PID', str(os.getpid())))\n"
        f"copies = [fcntl.fcntl(number, fcntl.F_DUPFD, 50) for number in {list(descriptors)}]\n"
        "for at, copy in enumerate(copies, 3): os.dup2(copy, at)\n"
        "from esp.core import activation\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prepare + code],
        env={**os.environ, **environ},
        pass_fds=descriptors,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


PRINT = (
    "try: found = activation.passed(os.environ)\n"
    "except OSError as error: print(error.strerror)\n"
    "else: print(*(f'{sock.fileno()} {sock.getsockname()[1]} {sock.get_inheritable()}' for sock in found))\n"
    "print(sorted(name for name in os.environ if name.startswith('LISTEN_')))"
)


def test_passed_sockets_are_taken_and_the_variables_with_them() -> None:
    (first, port), (second, other) = listening(), listening()
    with first, second:
        told = run(PRINT, {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}, first.fileno(), second.fileno())
    assert told.splitlines() == [f"3 {port} False 4 {other} False", "[]"]


@pytest.mark.parametrize("environ", [{"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x"}, {}])
def test_sockets_for_another_process_are_left(environ: dict[str, str]) -> None:
    with listening()[0] as sock:
        assert run(PRINT, environ, sock.fileno()).splitlines() == ["", "[]"]


def test_a_connection_is_refused_by_its_name(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, listening()[0] as good:
        told = run(PRINT, {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "esp:odd"}, good.fileno(), one.fileno())
    assert told.splitlines()[0] == (
        'socket "odd" of the service manager (descriptor 4): does not accept clients; '
        "write ListenStream and Accept=no in the socket unit"
    )


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file:
        told = run(PRINT, {"LISTEN_FDS": "1"}, file.fileno())
    assert "socket of the service manager (descriptor 3): Socket operation on non-socket; write ListenStream" in told


def test_a_socket_gets_its_address_and_the_other_addresses_are_bound() -> None:
    sock, port = listening()
    other = Listen("127.0.0.1", 0)
    bound = bind_rest([sock], [other, Listen("localhost", port)])
    try:
        assert bound[0] == (sock, Listen("localhost", port))
        assert [one.listen for one in bound[1:]] == [other]
    finally:
        sockets.close(bound)


def test_without_sockets_all_addresses_are_bound() -> None:
    bound = bind_rest([], [Listen("127.0.0.1", 0)])
    sockets.close(bound)
    assert len(bound) == 1


def test_a_socket_at_no_address_is_an_error_with_the_cure() -> None:
    sock, port = listening()
    with pytest.raises(OSError, match="passes a socket") as caught:
        bind_rest([sock], [Listen("127.0.0.1", 1), Listen("::1", port)])
    assert caught.value.strerror == (
        f"the service manager passes a socket at http://127.0.0.1:{port}, "
        f"but esp listens on http://127.0.0.1:1, http://[::1]:{port}; "
        f'write listen: ["http://127.0.0.1:{port}"], or that address as ListenStream in the socket unit'
    )
    assert sock.fileno() == -1


def test_sockets_are_closed_if_another_address_cannot_be_bound() -> None:
    sock, port = listening()
    with listening()[0] as taken, pytest.raises(OSError, match="the port is in use"):
        bind_rest([sock], [Listen("127.0.0.1", port), Listen("127.0.0.1", taken.getsockname()[1])])
    assert sock.fileno() == -1


def test_a_socket_for_both_families_serves_the_wildcards_of_both() -> None:
    """As `ListenStream=2379` makes it."""
    sock, port = listening("::", dual=True)
    bound = bind_rest([sock], [Listen("::", port), Listen("0.0.0.0", port)])
    sockets.close(bound)
    assert bound == [(sock, Listen("::", port))]


def test_a_socket_for_both_families_is_not_taken_for_ipv4_alone() -> None:
    sock, port = listening("::", dual=True)
    with pytest.raises(OSError, match=r'write listen: \["http://\[::\]'):
        bind_rest([sock], [Listen("0.0.0.0", port)])


def test_a_unix_socket_is_named_by_its_path(tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "esp.sock"))
    sock.listen()
    with pytest.raises(OSError, match=f"unix:{tmp_path}/esp.sock"):
        bind_rest([sock], [Listen("127.0.0.1", 1)])


def test_a_unix_socket_that_is_passed_is_known_by_its_path(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "esp.sock"))
        sock.listen()
        listen = Listen("", 0, path=tmp_path / "esp.sock")
        assert bind_rest([sock], [listen]) == [(sock, listen)]
        with pytest.raises(OSError, match=f"passes a socket at {listen}, but esp listens on unix:{tmp_path}/other;"):
            bind_rest([sock], [Listen("", 0, path=tmp_path / "other")])
