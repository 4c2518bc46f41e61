"""Finds, reads and checks the config file. A fault is reported with file and line.

esp reads two formats: its own, and the list of shards of the original Go proxy. Both become a `Config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from esp.core.config.across import AcrossShards, across_shards_of, compaction_of
from esp.core.config.addresses import address, is_wildcard
from esp.core.config.control import control_at
from esp.core.config.fault import ConfigError
from esp.core.config.fields import shown
from esp.core.config.limits import limits_of
from esp.core.config.listen import Listen, again, listen_at
from esp.core.config.log import log_of
from esp.core.config.loops import loops
from esp.core.config.ranges import RangeFields
from esp.core.config.shape import Shape
from esp.core.config.shards import Endpoint, ShardsReader
from esp.core.config.values import Config
from esp.core.config.workers import workers_of
from esp.core.config.yaml_lines import LineError, Lines, Place, Value, read
from esp.core.namespace import Namespace

MAX_FILE_BYTES = 1_048_576
MAX_DRAIN_SECONDS = 86_400
LOOKED_AT = (Path("esp.yaml"), Path(".esp/esp.yaml"), Path("/etc/esp/esp.yaml"))

DEFAULT_LISTEN = "http://127.0.0.1:2379"
DELETES: tuple[Literal["serve", "refuse"], ...] = ("serve", "refuse")
DEFRAGMENT: tuple[Literal["refuse", "sequential"], ...] = ("refuse", "sequential")
LEASES: tuple[Literal["tolerant", "strict"], ...] = ("tolerant", "strict")
RANGE_READS: tuple[Literal["default", "snapshot"], ...] = ("default", "snapshot")
TXN_READS: tuple[Literal["snapshot", "each"], ...] = ("snapshot", "each")

_ORIGIN = re.compile(r"\*|[A-Za-z][A-Za-z0-9+.-]*://[!-.0-~]+")
_HOST = re.compile(r"(?![^:]*:[0-9]+$)[!-.0-~]+")

Word = TypeVar("Word", bound=str)


def find(explicit: Path | None, env: Mapping[str, str]) -> Path:
    """The config file to use: `explicit` (from -c), else ESP_CONFIG, else the first file of `LOOKED_AT`.

    Raises:
        ConfigError: no file was found.

    """
    if explicit is not None:
        return explicit
    if named := env.get("ESP_CONFIG"):
        return Path(named)
    for path in LOOKED_AT:
        if path.is_file():
            return path
    places = ", ".join(str(path) for path in LOOKED_AT)
    raise ConfigError(
        None,
        None,
        f"no config file: looked at {places}; name one with -c or ESP_CONFIG, or try esp serve --local 3",
    )


def load(path: Path) -> Config:
    """Reads and checks the file.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong.
    """
    return parse(text_of(path), path)


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: the file cannot be read, or is no text, or too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, None, f"cannot be read: {(error.strerror or str(error)).lower()}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(path, None, "is larger than 1 MiB; a config is a few kilobytes, is this the right file?")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            path, line, "is not UTF-8; save it as UTF-8, and write other bytes as hex: or !!binary"
        ) from None


def parse(text: str, path: Path | None) -> Config:
    """Checks a config's text; `path` is only for messages and for `Config.path`.

    Raises:
        ConfigError: something in it is wrong.
    """
    config, _, faults = _read(text, path)
    if not faults:
        assert config is not None
        return config
    first, *others = faults
    first.others = tuple(others)
    raise first


def faults_of(text: str, path: Path | None) -> tuple[Config | None, list[ConfigError]]:
    """The config, None if the text is none, and all its faults by line, those with which esp could not serve too."""
    config, reader, faults = _read(text, path)
    if reader is not None:
        faults += loops(reader.endpoints, list(reader.listens.values()), path)
    return config, sorted(faults, key=lambda fault: fault.line or 0)


def _read(text: str, path: Path | None) -> tuple[Config | None, _FileReader | None, list[ConfigError]]:
    """The config, what could be read, and the faults in the order in which they were found."""
    try:
        value, lines = read(text)
    except LineError as error:
        return None, None, [ConfigError(path, error.line, error.text)]
    reader = _FileReader(lines)
    config = reader.tried(None, reader.read, value, path)
    return config, reader, [ConfigError(path, fault.line, fault.text) for fault in reader.faults]


def listen_of(urls: Iterable[str]) -> tuple[Listen, ...]:
    """The addresses to listen on, from URLs such as `http://127.0.0.1:2379`.

    Raises:
        ConfigError: a text is no such URL, or names the same address as an earlier one.
    """
    addresses: list[Listen] = []
    for url in urls:
        try:
            addresses.append(listen_at(url))
        except ValueError as error:
            raise ConfigError(None, None, str(error)) from None
        if (twice := again(addresses)) is not None:
            raise ConfigError(None, None, f"{twice} is given twice; leave one out")
    return tuple(addresses)


class FileShape(Shape):
    """All fields of a file."""

    listen: list[Any] | None = None
    tls: dict[str, Any] | None = None
    advertise: list[Any] = []
    namespace: Any = None
    cors: list[Any] = ["*"]
    host_whitelist: list[Any] = ["*"]
    map: str = "file"
    shards: list[Any] = []
    auth: dict[str, Any] | None = None
    shard_tls: dict[str, Any] | None = None
    whole: list[Any] = []
    across_shards: str | dict[str, Any] = "auto"
    compaction: str | dict[str, Any] = "kubernetes"
    deletes_across_shards: str = "serve"
    defragment: str = "refuse"
    leases: str = "tolerant"
    range_reads: str = "default"
    txn_reads: str = "snapshot"
    drain_seconds: Any = 10.0
    workers: Any = 1
    limits: dict[str, Any] = {}
    control: Any = "auto"
    watch_config: bool = False
    log: dict[str, Any] = {}
    traces: dict[str, Any] | None = None
    metrics_for_clients: bool = True
    metrics_listen: list[Any] = []
    ui: bool = True
    hot_prefixes: Any = False


class _FileReader(RangeFields):
    """Turns the values of one file into a Config. A fault in one field does not keep the others from being read.

    Attributes:
        listens: the listen URLs that could be read, those for pages too.
        endpoints: of each shard, those that could be read.
    """

    def __init__(self, lines: Lines) -> None:
        super().__init__(lines)
        self.listens: dict[Place, Listen] = {}
        self.endpoints: Mapping[str, Sequence[Endpoint]] = {}

    def read(self, value: Value, path: Path | None) -> Config | None:
        """The config; None if there are faults, which `faults` has.

        Raises:
            LineError: there are too many faults.
        """
        file = self.shaped({} if value is None else value, FileShape, (), "the file")
        folder = path and path.parent
        tried = self.tried
        listen, pages = self._urls(file, folder)
        tls = None
        if file.tls is not None or any(one.tls for one in self.listens.values()):
            from esp.core.config.listen_tls import listen_tls_at

            tls = tried(None, listen_tls_at, file.tls, self._of_tls(file), self, folder)
        advertise = self._advertise(file.advertise)
        shards = ShardsReader(self, folder, needs_ranges=file.map != "shards")
        self.endpoints = shards.endpoints
        read = tried(None, shards.read, file.shards, file.whole, file.auth, file.shard_tls)
        across_shards = tried(AcrossShards(), across_shards_of, file.across_shards, self)
        namespace = tried(None, self._namespace, file.namespace)
        if namespace is not None and file.map == "shards" and namespace.prefix.startswith(b"\0"):
            text = '"namespace" begins with a zero byte, as esp\'s own keys do where the shards hold the map'
            self.note_at(("namespace",), f"{text}; write another prefix")
        one_of, words = self._one_of, self._words
        tried(None, self._map, file.map)
        values: dict[str, Any] = {
            "cors": words("cors", file.cors, _ORIGIN, 'an origin such as http://example.com, or "*" for any'),
            "host_whitelist": words("host_whitelist", file.host_whitelist, _HOST, 'a name without port, or "*"'),
            "compaction": tried(None, compaction_of, file.compaction, namespace, self),
            "deletes_across_shards": one_of("deletes_across_shards", file.deletes_across_shards, *DELETES),
            "defragment": one_of("defragment", file.defragment, *DEFRAGMENT),
            "leases": one_of("leases", file.leases, *LEASES),
            "range_reads": one_of("range_reads", file.range_reads, *RANGE_READS),
            "txn_reads": one_of("txn_reads", file.txn_reads, *TXN_READS),
            "drain_seconds": tried(0.0, self._drain, file.drain_seconds),
            "limits": tried(None, limits_of, file.limits, self),
            "control": tried(None, control_at, file.control, self, folder),
            "log": tried(None, log_of, file.log, self),
            "workers": tried(1, self._workers, file.workers),
        }
        # What few files have is loaded only for them.
        if file.traces is not None:
            from esp.core.config.traces import traces_of

            values["traces"] = tried(None, traces_of, file.traces, self)
        if file.hot_prefixes is not False:
            from esp.core.config.hot import hot_of

            values["hot_prefixes"] = tried(None, hot_of, file.hot_prefixes, self)
        if self.faults or read is None:
            return None
        of_shards, shard_map = read
        return Config(
            path=path,
            listen=tuple(listen),
            tls=tls,
            advertise=tuple(advertise),
            shards=of_shards,
            shard_map=shard_map,
            whole=shards.whole,
            map="shards" if file.map == "shards" else "file",
            across_shards=across_shards,
            kubernetes=tuple(self.kubernetes),
            namespace=namespace,
            watch_config=file.watch_config,
            metrics_for_clients=file.metrics_for_clients,
            metrics_listen=tuple(pages),
            ui=file.ui,
            **values,
        )

    def _urls(self, file: FileShape, folder: Path | None) -> tuple[list[Listen], list[Listen]]:
        """The addresses for clients, and those for pages only."""
        urls = [DEFAULT_LISTEN] if file.listen is None else file.listen
        if not urls:
            self.note_at(("listen",), f'"listen" is empty; write listen: [{DEFAULT_LISTEN}]')
        listen = self.each_at(urls, ("listen",), partial(listen_at, folder=folder))
        pages = self.each_at(file.metrics_listen, ("metrics_listen",), partial(listen_at, folder=folder))
        of_pages = {position: one._replace(only_pages=True) for position, one in pages.items()}
        for field, found in (("listen", listen), ("metrics_listen", of_pages)):
            for position, one in found.items():
                if again([*self.listens.values(), one]) is not None:
                    self.note_at((field, position), f"listen URL {one} is listed twice; remove one")
                self.listens[field, position] = one
        return list(listen.values()), list(of_pages.values())

    def _of_tls(self, file: FileShape) -> dict[Place, Listen] | None:
        """The listen URLs with TLS; None if the file does not tell whether there are any."""
        found = {place: one for place, one in self.listens.items() if one.tls}
        is_open = file.listen is None and not file.metrics_listen
        is_open |= self.is_spoiled(("listen",)) or self.is_spoiled(("metrics_listen",))
        return None if is_open and not found else found

    def _advertise(self, urls: list[Any]) -> list[str]:
        advertise = self.each_at(urls, ("advertise",), _advertised)
        for number, url in advertise.items():
            if any(url == earlier for position, earlier in advertise.items() if position < number):
                self.note_at(("advertise", number), f"advertise URL {url} is listed twice; remove one")
        return list(advertise.values())

    def _namespace(self, value: Any) -> Namespace | None:
        if value is None:
            return None
        prefix = self.key_at(value, ("namespace",), "", "namespace")
        if not prefix:
            self.fail(("namespace",), '"namespace" is empty; write a prefix, such as team-a/, or leave it out')
        return Namespace.of(prefix)

    def _map(self, value: str) -> None:
        if value not in ("file", "shards"):
            self.fail(("map",), f'"map" is "{value}"; write file or shards')

    def _words(self, field: str, values: list[Any], form: re.Pattern[str], cure: str) -> tuple[str, ...]:
        for number, value in enumerate(values):
            if not isinstance(value, str) or not form.fullmatch(value):
                self.note_at((field, number), f'"{field}" has {shown(value)}; write {cure}')
        return tuple(values)

    def _one_of(self, field: str, value: str, *words: Word) -> Word:
        for word in words:
            if value == word:
                return word
        self.note_at((field,), f'"{field}" is "{value}"; write {" or ".join(words)}')
        return words[0]

    def _workers(self, value: Any) -> int:
        try:
            return workers_of(value)
        except ValueError as error:
            self.fail(("workers",), str(error))

    def _drain(self, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= MAX_DRAIN_SECONDS:
            shown = "" if value is None else f'"{value}"'
            self.fail(
                ("drain_seconds",),
                f'"drain_seconds" is {shown or "empty"}; write a number of seconds from 0 to {MAX_DRAIN_SECONDS}',
            )
        return float(value)


def _advertised(url: object) -> str:
    host, _ = address(url, "advertise URL", needs_scheme=True)
    if is_wildcard(host):
        raise ValueError(
            f'advertise URL "{url}" is where a server listens, and no client can connect to it; '
            "write the name or an address of this machine, as clients know it"
        )
    return str(url).removesuffix("/")
