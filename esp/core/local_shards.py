"""The shards of `esp serve --local`: one etcd for each, their config file, and the text that says how to use them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import string
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Final
from urllib.parse import urlsplit

from esp.core import config
from esp.core.background import all_of
from esp.core.certificate import certificates_in
from esp.core.keys import format_range
from esp.core.local import HOST, LocalEtcd, LocalEtcdError
from esp.core.shard_map import ShardMap
from esp.core.tls_paths import Files
from esp.core.wording import shard_called

CONFIG_NAME = "esp.yaml"
TLS_FOLDER: Final = "tls"
RENEW_SECONDS: Final = 30 * 86_400
"""How long before their end throw-away certificates are made anew, at a start."""
_LABELS: Final = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_LETTERS = string.ascii_lowercase


class LocalShards:
    """N single-node etcds with a config file beside their data, which a later run with the same N reuses."""

    def __init__(self, data_dir: Path, etcds: Sequence[LocalEtcd], starts: Sequence[str], *, tls: bool = False) -> None:
        """Usually called by `open`. `starts[i]` is the first key of `etcds[i]` in a new config."""
        self.data_dir = data_dir
        self.tls = tls
        self.etcds = tuple(etcds)
        self.starts = tuple(starts)

    @classmethod
    def open(cls, data_dir: Path, count: int, *, tls: bool = False, flags: Sequence[str] = ()) -> LocalShards:
        """The shards that live in `data_dir`, or new ones; nothing is started yet.

        Nothing is written, but certificates of shards that live there, if these end soon. With `tls`, new shards speak
        TLS; those that live there speak TLS if they did before.

        Raises:
            LocalEtcdError: `count` is not 1 to 26, the folder holds another number of shards or a config that
                is not of local etcds, or no etcd was found; or certificates are wanted and cannot be made.
            ConfigError: the folder's config cannot be read.
        """
        if not 1 <= count <= len(_LETTERS):
            raise LocalEtcdError(f"--local takes a number of shards from 1 to {len(_LETTERS)}, not {count}")
        path = data_dir / CONFIG_NAME
        folder = data_dir / TLS_FOLDER
        if path.exists():
            if folder.is_dir():
                _make_certificates(folder)
            ports, secured = _ports_in(path)
            if tls and not secured:
                raise LocalEtcdError(
                    f"the shards in {data_dir} are without TLS: leave out --tls, or use another --data-dir"
                )
            tls = secured
            if len(ports) != count:
                raise LocalEtcdError(
                    f"{path} is of {len(ports)} shards, not {count}: use --local {len(ports)} or another "
                    f"--data-dir, or remove {data_dir} and the keys in it"
                )
        else:
            if tls:
                _authority()  # before anything is written
            ports = {f"shard-{number}": None for number in range(1, count + 1)}
            if any(folder.is_dir() for folder in data_dir.glob("shard-*")):
                raise LocalEtcdError(
                    f"{data_dir} holds the data of shards but no {CONFIG_NAME} to say where each key lives: "
                    f"put it back, use another --data-dir, or remove {data_dir} and the keys in it"
                )
        files = Files(folder / "server.crt", folder / "server.key", folder / "ca.crt") if tls else None
        etcds = [LocalEtcd(name, data_dir / name, client_port=ports[name], flags=flags, tls=files) for name in ports]
        return cls(data_dir, etcds, default_starts(count), tls=tls)

    def write_config(self, path: Path, listen: Sequence[str], default: str = "http://127.0.0.1:2379") -> None:
        """Writes esp's config for these etcds, where esp listens at `listen`, or at `default` if that is empty.

        If the file exists, esp uses it as it is, but for where it listens: the other commands find the proxy by it.
        """
        if path.exists():
            if listen:
                _listen_in(path, listen)
            return
        listen = listen or [default]
        tls = ""
        if self.tls:
            _make_certificates(self.data_dir / TLS_FOLDER, [host for url in listen if (host := urlsplit(url).hostname)])
            tls = (
                f"shard_tls: {{ca: {TLS_FOLDER}/ca.crt, cert: {TLS_FOLDER}/client.crt, key: {TLS_FOLDER}/client.key}}\n"
            )
            if any(url.startswith(("https:", "unixs:")) for url in listen):
                tls += f"tls: {{cert: {TLS_FOLDER}/server.crt, key: {TLS_FOLDER}/server.key}}\n"
        ends = (*self.starts[1:], "")
        shards = "".join(
            f"  - name: {etcd.name}\n"
            f"    endpoints: [{etcd.endpoint}]\n"
            f"    ranges: [{{start: {json.dumps(start)}, end: {json.dumps(end)}}}]\n"
            for etcd, start, end in zip(self.etcds, self.starts, ends, strict=True)
        )
        text = (
            f"# Made by `esp serve --local {len(self.etcds)}`; its next run here uses it.\n"
            "# Each shard's data is in the folder of its name beside this file.\n"
            "# The other commands find the file as ./.esp/esp.yaml, or with -c.\n"
            '# A shard owns the keys from start up to, not including, end; "" is open.\n'
            "# Moving a boundary here does not move the keys that are already stored.\n"
            f"{_listen_line(listen)}\n"
            f"{tls}"
            f"shards:\n{shards}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)

    async def start(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - passed on to wait_ready
        """Starts every etcd and returns when all serve. If an etcd fails, all are stopped.

        Raises:
            LocalEtcdError: see `LocalEtcd.start` and `LocalEtcd.wait_ready`.
        """
        try:
            for etcd in self.etcds:
                etcd.start()
            await all_of([etcd.wait_ready(timeout) for etcd in self.etcds])
        except BaseException:
            for etcd in self.etcds:
                etcd.kill()
            raise

    async def stop(self) -> None:
        """Stops every etcd, all at the same time, because each may take a while."""
        await all_of([etcd.stop() for etcd in self.etcds])

    def summary(self, shard_map: ShardMap, listen: Sequence[str], config_path: Path) -> list[str]:
        """The text that `esp serve --local` prints when ready: processes, keys of each shard, commands to try."""
        name_width = max(len(etcd.name) for etcd in self.etcds)
        lines = [f"{len(self.etcds)} etcds ({self.etcds[0].binary}), their data in {self.data_dir}:"]
        for etcd in self.etcds:
            ranges = ", ".join(format_range(owned) for owned in shard_map.ranges_of(etcd.name))
            lines.append(f"  {etcd.name:{name_width}}  {etcd.endpoint}  keys {ranges}")
        lines += [
            f"as one etcd on {', '.join(listen)} (config: {config_path}). Try, in another terminal:",
            *(f"  {command}" for command in _next_commands(listen, config_path)),
            *self._certificates(),
            "Ctrl-C stops all of it; the keys stay.",
        ]
        return lines

    def _certificates(self) -> list[str]:
        if not self.tls:
            return []
        folder = self.data_dir / TLS_FOLDER
        pair = f"{folder / 'client.crt'} and .key"
        return [f"Throw-away certificates are in {folder}; the etcds themselves want a client's too: {pair}."]


def _make_certificates(folder: Path, names: Sequence[str] = ()) -> None:
    """Makes certificates for `names` and this machine, unless there are some that do not end soon.

    Raises:
        LocalEtcdError: the package that makes them is missing.
    """
    if _are_good(folder):
        return
    own = socket.gethostname()
    every = ["localhost", "127.0.0.1", "::1", *([own] if _LABELS.fullmatch(own) else []), *names]
    _authority().make_all(folder, list(dict.fromkeys(every)))


def _are_good(folder: Path) -> bool:
    try:
        ends = [
            certificate.not_after
            for name in ("ca", "server", "client")
            for certificate in certificates_in((folder / f"{name}.crt").read_bytes())
        ]
    except (OSError, ValueError):
        return False
    keys = all((folder / f"{name}.key").is_file() for name in ("server", "client"))
    return keys and len(ends) == 3 and min(ends) > time.time() + RENEW_SECONDS


def _authority() -> ModuleType:
    try:
        from esp.core import local_tls
    except ImportError:
        raise LocalEtcdError(
            "--tls makes certificates with the package cryptography, which is missing: `pip install cryptography`, "
            "or `pip install '.[local]'` in a checkout of esp"
        ) from None
    return local_tls


def default_starts(count: int) -> list[str]:
    """The first key of each of `count` shards: the alphabet in equal parts.

    For three: "" and "i" and "r", so that a, j and z are on different shards.
    """
    return ["", *(_LETTERS[len(_LETTERS) * number // count] for number in range(1, count))]


def _ports_in(path: Path) -> tuple[dict[str, int | None], bool]:
    """Name and client port of each shard of a config that `write_config` wrote and people may have edited; and TLS.

    Whether they speak TLS is the second value: all do, or none.
    """
    ports: dict[str, int | None] = {}
    secured = set()
    for shard in config.load(path).shards:
        endpoint, *others = shard.endpoints
        secured.add(endpoint.tls)
        if others or endpoint.host != HOST or len(secured) > 1:
            scheme = "https" if True in secured else "http"
            raise LocalEtcdError(
                f"{path}: {shard_called(shard.name)} is not one etcd at {scheme}://{HOST}:PORT, so --local cannot "
                f"start it: use `esp serve -c {path}`, or another --data-dir"
            )
        ports[shard.name] = endpoint.port
    return ports, True in secured


def _as_typed(program: str) -> str:
    """The way to call `program` from this folder: its name if it is on PATH, else its path beside this Python."""
    if shutil.which(program):
        return program
    path = Path(sys.executable).parent / program
    if not path.exists():
        return program
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _next_commands(listen: Sequence[str], config_path: Path) -> list[str]:
    etcdctl, esp = _as_typed("etcdctl"), _as_typed("esp")
    # Options are left out if they say etcdctl's default endpoint, or the place where esp looks by itself.
    if not any(url == f"http://{HOST}:2379" for url in listen):
        etcdctl += f" --endpoints {listen[0]}"
    if listen[0].startswith("https:"):
        etcdctl += f" --cacert {config_path.parent / TLS_FOLDER / 'ca.crt'}"
    option = "" if config_path.absolute() == Path.cwd() / ".esp" / CONFIG_NAME else f" -c {config_path}"
    puts = [f"{etcdctl} put {pair}" for pair in ("a 1", "j 2", "z 3")]
    if etcdctl == "etcdctl":  # with options one line for all would be wider than a terminal
        puts = ["; ".join(puts)]
    return [*puts, f'{etcdctl} get "" --from-key', f"{esp} route j{option}", f"{esp} check{option}"]


def _listen_line(listen: Sequence[str]) -> str:
    return f"listen: [{', '.join(listen)}]"


def _listen_in(path: Path, listen: Sequence[str]) -> None:
    """Writes into the file where esp listens now, if the line is as esp has written it."""
    text = path.read_text()
    changed = re.sub(r"(?m)^listen: \[[^\]\n]*\]$", lambda _: _listen_line(listen), text, count=1)
    if changed != text:
        with suppress(OSError):  # a file that cannot be written is used all the same
            _replace(path, changed)


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(text)
    unfinished.replace(path)
