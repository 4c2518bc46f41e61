"""A Python that has imported esp, and forks for each esp that tests start: the imports are four fifths of a start.

The forked process runs `python -m esp ARGUMENTS` from there on: esp/__main__.py, in a session of its own, with the
folder, the environment and the output that it is given. Tests of the start itself run the command line instead.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ENDED = struct.Struct("=ii")
"""Process id, and return code as `Popen` has it."""
_SET_PDEATHSIG = 1
_IMPORTED = (
    *("esp.cli.serve", "esp.commands.serve", "esp.commands.logged", "esp.core.proxy"),
    *("uvloop", "concurrent.futures.thread", "encodings.idna"),
)
"""What an esp has imported when it serves."""


class Forked:
    """A process that `Prefork` began; as far as tests use `Popen`."""

    def __init__(self, prefork: Prefork, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._prefork = prefork

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._prefork.ended(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("esp", timeout or 0)
            time.sleep(0.005)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Prefork:
    """Begins esps. It ends with this process, and all that it began with it."""

    def __init__(self) -> None:
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ends, ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._codes: dict[int, int] = {}
        with control, ends:
            descriptors = control.fileno(), ends.fileno()
            command = [sys.executable, "-c", "import tests.prefork as p; p.fork_for_each()", *map(str, descriptors)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                cwd=Path(__file__).parent.parent,
                start_new_session=True,
            )

    def start(self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], output: int) -> Forked:
        """`esp ARGUMENTS`, whose stdout and stderr are this descriptor."""
        asked = json.dumps([list(arguments), str(cwd), dict(env)]).encode("utf-8", "surrogateescape")
        with self._lock:
            socket.send_fds(self._control, [asked], [output])
            return Forked(self, int(self._control.recv(100)))

    def ended(self, pid: int) -> int | None:
        """The return code of a process that has ended."""
        with self._lock:
            while True:
                try:
                    told, code = _ENDED.unpack(self._ends.recv(_ENDED.size, socket.MSG_DONTWAIT))
                except BlockingIOError:
                    return self._codes.pop(pid, None)
                self._codes[told] = code


def fork_for_each() -> None:
    """The other process: forks for each message until the tests' process has gone."""
    for name in _IMPORTED:
        importlib.import_module(name)
    control, ends = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    prctl = ctypes.CDLL(None).prctl

    def reap(*_: Any) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ends.send(_ENDED.pack(pid, os.waitstatus_to_exitcode(status)))

    signal.signal(signal.SIGCHLD, reap)
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
        if not asked:
            return
        pid = os.fork()
        if pid == 0:
            break
        os.close(descriptors[0])
        control.send(b"%d" % pid)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    prctl(_SET_PDEATHSIG, signal.SIGKILL)
    control.close()
    ends.close()
    os.setsid()
    os.dup2(descriptors[0], 1)
    os.dup2(descriptors[0], 2)
    os.close(descriptors[0])
    # Anew, since they differ by what they write to: a terminal, a pipe or a file.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    arguments, cwd, environment = json.loads(asked)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv[1:] = ["-m", "esp", *arguments]
    sys.argv[1:] = arguments
    sys.path[0] = cwd  # as with -m
    runpy.run_module("esp", run_name="__main__", alter_sys=True)
