"""Programs on this machine: started with a log file, measured through the kernel, ended by their own pid."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
_SETPRIV = shutil.which("setpriv")


class BenchError(Exception):
    """The benchmark cannot go on, or a measurement cannot be believed; the text says why."""


def free_port() -> int:
    """A port nobody listens on, below the range Linux gives to outgoing connections."""
    for _ in range(1000):
        port = random.randrange(20000, 32768)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise BenchError("no free port")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU time used so far, in seconds: all threads, those that have ended included."""

    total: float
    user: float
    system: float

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(self.total - earlier.total, self.user - earlier.user, self.system - earlier.system)


class Process:
    """One running program and whatever children it makes."""

    def __init__(self, name: str, command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> None:
        """Starts it. Where the kernel can be asked to (Linux), it ends when the benchmark does, however that ends."""
        self.name = name
        self.log = log
        tied = [_SETPRIV, "--pdeathsig", "KILL", "--"] if _SETPRIV else []
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [*tied, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The pid of the program itself."""
        return self._process.pid

    def pids(self) -> list[int]:
        """The program and its descendants."""
        found = [self.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def cpu(self) -> Cpu:
        """What the program and its live descendants have used. `total` is exact; `user` and `system` in 10 ms steps."""
        total = user = system = 0.0
        for pid in self.pids():
            # clock_getcpuclockid(3): what utime + stime of /proc/PID/stat say in ticks, in nanoseconds.
            total += time.clock_gettime((~pid << 3) | 2)
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user += int(fields[11]) / os.sysconf("SC_CLK_TCK")
            system += int(fields[12]) / os.sysconf("SC_CLK_TCK")
        return Cpu(total, user, system)

    def memory_mb(self, field: str = "VmHWM") -> float:
        """VmHWM (the peak) or VmRSS (now) of the program and its descendants, in MB of 10^6 bytes."""
        total = 0
        for pid in self.pids():
            status = Path(f"/proc/{pid}/status").read_text()
            total += next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":"))
        return total * 1024 / 1e6

    @property
    def is_running(self) -> bool:
        """Whether the program has not ended; it may be stopped."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the program with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def require_running(self) -> None:
        """Raises BenchError with the end of the log if the program has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"{self.name} ended with {self._process.returncode}: {self.last_words()}")

    def wait_listening(self, address: str, timeout: float = 20.0) -> None:
        """Returns once `address` (host:port, https:// before it or not) accepts connections."""
        host, _, port = address.removeprefix("https://").rpartition(":")
        deadline = time.monotonic() + timeout
        while True:
            self.require_running()
            try:
                socket.create_connection((host, int(port)), 1.0).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise BenchError(f"{self.name} does not listen on {address}: {self.last_words()}") from None
                time.sleep(0.05)
            else:
                return

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " / ".join(line.strip() for line in lines[-3:])[-500:] or "(it logged nothing)"

    def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, and SIGKILL if it is still there after `grace` seconds."""
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
