"""What the kernel tells of bytes that have not arrived: whether a silent server is frozen or cut off."""

from __future__ import annotations

import contextlib
import socket

from esp.core.wire.transport import unacknowledged
from tests.harness import wait_until


def test_bytes_count_until_the_other_machine_has_taken_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as ours:
        theirs, _ = listener.accept()
        with theirs:
            ours.sendall(b"a question")
            wait_until(lambda: unacknowledged(ours) == 0)  # a process that does not read makes no difference
            ours.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    ours.send(bytes(65_536))  # until their window is full: from then on as with a cut cable
            assert unacknowledged(ours) > 0
            theirs.setblocking(False)

            def all_has_come() -> bool:
                with contextlib.suppress(BlockingIOError):
                    while theirs.recv(1 << 20):
                        pass
                return unacknowledged(ours) == 0

            wait_until(all_has_come)


def test_without_a_socket_nothing_is_known() -> None:
    assert unacknowledged(None) == 0
    closed = socket.socket()
    closed.close()
    assert unacknowledged(closed) == 0
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        assert unacknowledged(one) >= 0, "a unix socket has no machine at the other end"
