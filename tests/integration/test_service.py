"""`esp serve` as a service: what it tells a service manager, and sockets that it is passed."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd, tied_to_this_process
from tests.harness import PATIENCE, Esps, Etcds, freeze, wait_until, write_config

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]

# Runs the command line that follows with these variables.
WITH = "import os, sys; os.environ.update(word.split('=', 1) for word in {!r}); os.execv(sys.argv[1], sys.argv[1:])"
# Passes a listening socket, as a service manager does it, to the command line that follows.
PASSING = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="clients")
os.execv(sys.argv[2], sys.argv[2:])
"""


def with_variables(*words: str) -> list[str]:
    return [sys.executable, "-c", WITH.format(words)]


class Manager:
    """Hears what a service tells its manager."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE)
        self.variables = [f"NOTIFY_SOCKET={path}"]

    def hear(self, *, but: str = "") -> str:
        """The next message that is not `but`."""
        while (message := self.socket.recv(4096).decode()) == but:
            pass
        return message

    def wait_for(self, wanted: str) -> None:
        while self.hear() != wanted:
            pass


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    with manager.socket:
        yield manager


def test_the_manager_hears_of_the_start_of_dead_shards_of_life_and_of_the_end(
    start_etcd: Etcds, start_esp: Esps, manager: Manager, tmp_path: Path
) -> None:
    shards = start_etcd.several(2)
    config = write_config(tmp_path / "esp.yaml", shards, ["m"], "drain_seconds: 7")
    esp = start_esp.launch("-c", config, under=with_variables(*manager.variables, "WATCHDOG_USEC=2000000"))
    assert manager.hear() == "READY=1\nSTATUS=serves 2 shards"
    wait_until(esp.is_ready)  # the line may come after the message
    assert manager.hear() == "WATCHDOG=1"
    shards[1].kill()
    assert manager.hear(but="WATCHDOG=1") == "STATUS=serves 2 shards; 1 not reachable: s1"
    shards[1].start()
    assert manager.hear(but="WATCHDOG=1") == "STATUS=serves 2 shards"
    manager.wait_for("WATCHDOG=1")
    assert esp.stop() == 0
    assert manager.hear(but="WATCHDOG=1") == "STOPPING=1\nEXTEND_TIMEOUT_USEC=37000000\nSTATUS=draining"


def test_a_loop_that_stands_still_does_not_speak_and_the_watchdogs_signal_shows_where_it_stands(
    shards: list[LocalEtcd], start_esp: Esps, manager: Manager, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "esp.yaml", shards[:1], [])
    variables = with_variables(*manager.variables, "WATCHDOG_USEC=1000000")
    esp = start_esp.launch("-c", config, under=variables)
    assert manager.hear().startswith("READY=1")
    manager.wait_for("WATCHDOG=1")
    freeze(esp.process)
    manager.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.wait_for("nothing more comes")
    esp.process.send_signal(signal.SIGABRT)
    esp.process.send_signal(signal.SIGCONT)
    assert esp.wait() == -signal.SIGABRT
    assert "in _run_loop" in esp.log()


class Activated:
    """`esp serve` with a socket that it is passed. Use as `with Activated(...):`, which ends with SIGTERM."""

    def __init__(self, sock: socket.socket, config: Path, folder: Path) -> None:
        self.log = folder / f"{config.stem}.log"
        command = [
            sys.executable,
            "-c",
            PASSING,
            str(sock.fileno()),
            sys.executable,
            "-m",
            "esp",
            "serve",
            "-c",
            config,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                tied_to_this_process([*map(str, command)]), pass_fds=[sock.fileno()], stdout=log, stderr=log
            )

    def __enter__(self) -> Activated:
        wait_until(lambda: "ready on" in self.log.read_text())
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0


def test_a_passed_socket_is_served_and_clients_wait_in_it_while_esp_restarts(
    shards: list[LocalEtcd], tmp_path: Path, etcdctl: Etcdctl
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        host, port = sock.getsockname()
        config = write_config(tmp_path / "first.yaml", shards[:1], [], f"listen: [http://{host}:{port}]")
        with Activated(sock, config, tmp_path):
            assert etcdctl(f"{host}:{port}", "put", "a", "1").stdout == "OK\n"
        with socket.create_connection((host, port), PATIENCE) as early:
            early.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            again = config.rename(tmp_path / "second.yaml")
            with Activated(sock, again, tmp_path):
                assert early.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_a_passed_socket_that_the_config_does_not_name_is_told_in_one_line(
    shards: list[LocalEtcd], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        config = write_config(tmp_path / "esp.yaml", shards[:1], [], "listen: ['http://127.0.0.1:1']")
        esp = Activated(sock, config, tmp_path)
        assert esp.process.wait(PATIENCE) == 1
        [line] = esp.log.read_text().splitlines()
        assert f'write listen: ["http://127.0.0.1:{sock.getsockname()[1]}"]' in line
