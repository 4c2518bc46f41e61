"""Finds, reads and checks the config file. A fault is reported with file and line.

esp reads two formats: its own, and the list of shards of the original Go proxy. Both become a `Config`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from esp.core.config.addresses import address, is_wildcard
from esp.core.config.control import Control, control_at
from esp.core.config.fields import shown, unknown_field
from esp.core.config.hot import HotConfig, hot_of
from esp.core.config.listen import Listen, again, listen_at
from esp.core.config.listen_tls import ListenTls, listen_tls_at, needs_certificate
from esp.core.config.log import LogConfig, log_of
from esp.core.config.ranges import RangeFields
from esp.core.config.shards import Endpoint, ShardConfig, read_shards
from esp.core.config.traces import TracesConfig, traces_of
from esp.core.config.workers import workers_of
from esp.core.config.yaml_lines import LineError, Place, Value, read
from esp.core.keys import KeyRange
from esp.core.kubernetes import COMPACT_KEY, assumed_roots
from esp.core.log.text import in_one_line
from esp.core.namespace import Namespace
from esp.core.shard_map import ShardMap
from esp.core.wire.limits import Limits, out_of_bounds

__all__ = [
    "AcrossShards",
    "Compaction",
    "Config",
    "ConfigError",
    "Endpoint",
    "Listen",
    "LogConfig",
    "ShardConfig",
    "check_no_loop",
    "find",
    "listen_of",
    "load",
    "parse",
    "text_of",
]

MAX_FILE_BYTES = 1_048_576
MAX_DRAIN_SECONDS = 86_400
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")  # noqa: S104 - to connect to these is to connect here
LOOKED_AT = (Path("esp.yaml"), Path(".esp/esp.yaml"), Path("/etc/esp/esp.yaml"))

DEFAULT_LISTEN = "http://127.0.0.1:2379"
DELETES: tuple[Literal["serve", "refuse"], ...] = ("serve", "refuse")
DEFRAGMENT: tuple[Literal["refuse", "sequential"], ...] = ("refuse", "sequential")
LEASES: tuple[Literal["tolerant", "strict"], ...] = ("tolerant", "strict")
RANGE_READS: tuple[Literal["default", "snapshot"], ...] = ("default", "snapshot")
TXN_READS: tuple[Literal["snapshot", "each"], ...] = ("snapshot", "each")

_ORIGIN = re.compile(r"\*|[A-Za-z][A-Za-z0-9+.-]*://[!-.0-~]+")
_HOST = re.compile(r"(?![^:]*:[0-9]+$)[!-.0-~]+")

_LIMITS: dict[str, Any] = {limit.name: limit.default for limit in fields(Limits)}

Word = TypeVar("Word", bound=str)


class ConfigError(Exception):
    """A fault in a config. The text is one line: file, line, fault, cure. File and line may be None.

    Attributes:
        others: further faults of the same file, as far as they could be found beside this one.
    """

    others: tuple[ConfigError, ...] = ()

    def __init__(self, path: Path | None, line: int | None, text: str) -> None:
        # The text quotes the file, so it may have a line break or be very long.
        text = in_one_line(text)
        text = text if len(text) <= 500 else text[:200] + " ... " + text[-200:]
        super().__init__(path, line, text)
        self.path = path
        self.line = line
        self.text = text

    def __str__(self) -> str:
        where = "" if self.path is None else f"{self.path}: " if self.line is None else f"{self.path}:{self.line}: "
        return where + self.text


@dataclass(frozen=True, slots=True)
class AcrossShards:
    """The requests over several shards that esp refuses although it could serve them: Range, DeleteRange, Watch, reads.

    Attributes:
        refused: requests whose keys in one of these ranges belong to several shards are refused.
        protects_kubernetes: requests inside a resource of a kube-apiserver that is at work here are refused as well.
    """

    refused: tuple[KeyRange, ...] = ()
    protects_kubernetes: bool = True


@dataclass(frozen=True, slots=True)
class Compaction:
    """The meaning of a plain revision in a Compact over several shards.

    Attributes:
        key: the revision counts in the shard that owns this key; with None, plain revisions are refused.
        takes_any: any revision is accepted; else only the value of the key, where kube-apiserver's compactor leaves it.
    """

    key: bytes | None = COMPACT_KEY
    takes_any: bool = False


_ACROSS_SHARDS = {
    "auto": AcrossShards(),
    "serve": AcrossShards(protects_kubernetes=False),
    "refuse": AcrossShards((KeyRange(b"", None),)),
}


@dataclass(frozen=True, slots=True)
class Config:
    """A config that has passed every check. `shards` and `shard_map.names` are in the order of the file.

    All keys are those of the shards, with the prefix of the namespace.
    """

    path: Path | None
    listen: tuple[Listen, ...]
    advertise: tuple[str, ...]
    cors: tuple[str, ...]
    host_whitelist: tuple[str, ...]
    shards: tuple[ShardConfig, ...]
    shard_map: ShardMap
    across_shards: AcrossShards
    compaction: Compaction
    deletes_across_shards: Literal["serve", "refuse"]
    defragment: Literal["refuse", "sequential"]
    kubernetes: tuple[bytes, ...]  # the prefixes of kube-apiservers' keys that the file names
    leases: Literal["tolerant", "strict"]
    range_reads: Literal["default", "snapshot"]
    txn_reads: Literal["snapshot", "each"]
    drain_seconds: float
    limits: Limits
    namespace: Namespace | None = None
    tls: ListenTls | None = None
    control: Control = "auto"
    watch_config: bool = False
    log: LogConfig = field(default_factory=LogConfig)
    traces: TracesConfig | None = None
    workers: int = 1
    metrics_for_clients: bool = True
    metrics_listen: tuple[Listen, ...] = ()
    ui: bool = True
    hot_prefixes: HotConfig | None = None

    @property
    def all_listen(self) -> tuple[Listen, ...]:
        """The addresses for clients, and those for pages only."""
        return self.listen + self.metrics_listen

    @property
    def apiserver_roots(self) -> tuple[bytes, ...]:
        """The directories in which the keys of a kube-apiserver are expected."""
        return assumed_roots(self.kubernetes, self.namespace.prefix if self.namespace else b"")

    @property
    def compact_key(self) -> bytes:
        """The key by which kube-apiservers agree which of them compacts."""
        return self.namespace.key(COMPACT_KEY) if self.namespace else COMPACT_KEY

    def shard(self, name: str) -> ShardConfig:
        """The shard of this name; the map must have the name."""
        return next(shard for shard in self.shards if shard.name == name)


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
    try:
        value, lines = read(text)
    except LineError as error:
        raise ConfigError(path, error.line, error.text) from None
    reader = _FileReader(lines)
    config = reader.tried(None, reader.read, value, path)
    if not reader.faults:
        assert config is not None
        return config
    first, *others = (ConfigError(path, fault.line, fault.text) for fault in reader.faults)
    first.others = tuple(others)
    raise first


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


def check_no_loop(config: Config) -> None:
    """Refuses a shard's endpoint at which esp itself listens: each call would come back to esp for ever.

    Raises:
        ConfigError: there is such an endpoint.
    """
    for shard in config.shards:
        for endpoint in shard.endpoints:
            for listen in config.all_listen:
                if listen.path is None and endpoint.port == listen.port and _is_same(listen.host, endpoint.host):
                    raise ConfigError(
                        config.path,
                        endpoint.line,
                        f'shard "{shard.name}": endpoint {endpoint} is where esp itself listens ({listen}); '
                        "name an etcd there, or listen elsewhere",
                    )


def check_certificates(config: Config) -> None:
    """Refuses a listen address of TLS in a config that has no certificate.

    Raises:
        ConfigError: there is such an address.
    """
    of_tls = next((listen for listen in config.all_listen if listen.tls), None)
    if of_tls is not None and config.tls is None:
        raise ConfigError(config.path, None, needs_certificate(of_tls))


def _is_same(listen: str, host: str) -> bool:
    """Whether a server that listens on `listen` answers at `host`, as far as the names show."""
    return host == listen or (host in _THIS_MACHINE and listen in (*_THIS_MACHINE, "0.0.0.0", "::"))  # noqa: S104


class FileShape(msgspec.Struct, forbid_unknown_fields=True):
    """All fields of a file."""

    listen: list[Any] | None = None
    tls: dict[str, Any] | None = None
    advertise: list[Any] = []
    namespace: Any = None
    cors: list[Any] = msgspec.field(default_factory=lambda: ["*"])
    host_whitelist: list[Any] = msgspec.field(default_factory=lambda: ["*"])
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
    """Turns the values of one file into a Config. A fault in one field does not keep the others from being read."""

    def read(self, value: Value, path: Path | None) -> Config | None:
        """The config; None if there are faults, which `faults` has.

        Raises:
            LineError: there are too many faults.
        """
        file = self.shaped({} if value is None else value, FileShape, (), "the file")
        folder = path and path.parent
        tried = self.tried
        listen, pages = self._urls(file, folder)
        given = None if file.listen is None and not pages else [*listen, *pages]
        tls = None
        if not self.is_spoiled(("listen",)) and not self.is_spoiled(("metrics_listen",)):
            tls = tried(None, listen_tls_at, file.tls, given, self, folder)
        advertise = self._advertise(file.advertise)
        read = tried(None, read_shards, file.shards, file.whole, self, file.auth, folder, file.shard_tls)
        across_shards = tried(AcrossShards(), self._across_shards, file.across_shards)
        namespace = tried(None, self._namespace, file.namespace)
        one_of, words = self._one_of, self._words
        values: dict[str, Any] = {
            "cors": words("cors", file.cors, _ORIGIN, 'an origin such as http://example.com, or "*" for any'),
            "host_whitelist": words("host_whitelist", file.host_whitelist, _HOST, 'a name without port, or "*"'),
            "compaction": tried(None, self._compaction, file.compaction, namespace),
            "deletes_across_shards": one_of("deletes_across_shards", file.deletes_across_shards, *DELETES),
            "defragment": one_of("defragment", file.defragment, *DEFRAGMENT),
            "leases": one_of("leases", file.leases, *LEASES),
            "range_reads": one_of("range_reads", file.range_reads, *RANGE_READS),
            "txn_reads": one_of("txn_reads", file.txn_reads, *TXN_READS),
            "drain_seconds": tried(0.0, self._drain, file.drain_seconds),
            "limits": tried(None, self._limits, file.limits),
            "control": tried(None, control_at, file.control, self, folder),
            "log": tried(None, log_of, file.log, self),
            "traces": tried(None, traces_of, file.traces, self),
            "hot_prefixes": tried(None, hot_of, file.hot_prefixes, self),
            "workers": tried(1, self._workers, file.workers),
        }
        if self.faults or read is None:
            return None
        shards, shard_map = read
        return Config(
            path=path,
            listen=tuple(listen),
            tls=tls,
            advertise=tuple(advertise),
            shards=shards,
            shard_map=shard_map,
            across_shards=across_shards,
            kubernetes=tuple(self.kubernetes),
            namespace=namespace,
            watch_config=file.watch_config,
            metrics_for_clients=file.metrics_for_clients,
            metrics_listen=tuple(one._replace(only_pages=True) for one in pages),
            ui=file.ui,
            **values,
        )

    def _urls(self, file: FileShape, folder: Path | None) -> tuple[list[Listen], list[Listen]]:
        """The addresses for clients, and those for pages only."""
        urls = [DEFAULT_LISTEN] if file.listen is None else file.listen
        listen = self.each(urls, ("listen",), partial(listen_at, folder=folder))
        if not listen:
            self.note_at(("listen",), f'"listen" is empty; write listen: [{DEFAULT_LISTEN}]')
        pages = self.each(file.metrics_listen, ("metrics_listen",), partial(listen_at, folder=folder))
        if self.is_spoiled(("listen",)) or self.is_spoiled(("metrics_listen",)):
            return listen, pages  # without the wrong ones, positions are not those of the file
        for number in range(1, len(listen)):
            if (twice := again(listen[: number + 1])) is not None:
                self.note_at(("listen", number), f"listen URL {twice} is listed twice; remove one")
        for number in range(len(pages)):
            if (twice := again([*listen, *pages[: number + 1]])) is not None:
                self.note_at(("metrics_listen", number), f"listen URL {twice} is listed twice; remove one")
        return listen, pages

    def _advertise(self, urls: list[Any]) -> list[str]:
        advertise = self.each(urls, ("advertise",), _advertised)
        for number, url in enumerate(advertise):
            if not self.is_spoiled(("advertise",)) and url in advertise[:number]:
                self.note_at(("advertise", number), f"advertise URL {url} is listed twice; remove one")
        return advertise

    def _namespace(self, value: Any) -> Namespace | None:
        if value is None:
            return None
        prefix = self.key_at(value, ("namespace",), "", "namespace")
        if not prefix:
            self.fail(("namespace",), '"namespace" is empty; write a prefix, such as team-a/, or leave it out')
        return Namespace.of(prefix)

    def _words(self, field: str, values: list[Any], form: re.Pattern[str], cure: str) -> tuple[str, ...]:
        for number, value in enumerate(values):
            if not isinstance(value, str) or not form.fullmatch(value):
                self.note_at((field, number), f'"{field}" has {shown(value)}; write {cure}')
        return tuple(values)

    def _across_shards(self, value: str | dict[str, Any]) -> AcrossShards:
        if isinstance(value, str) and value in _ACROSS_SHARDS:
            return _ACROSS_SHARDS[value]
        ranges = value.get("refuse") if isinstance(value, dict) and len(value) == 1 else None
        if not isinstance(ranges, list) or not ranges:
            told = f'"{value}"' if isinstance(value, str) else "a mapping of another form"
            cure = "write auto, serve, refuse or {refuse: [PREFIX, ...]}"
            self.fail(("across_shards",), f'"across_shards" is {told}; {cure}')
        place: Place = ("across_shards", "refuse")
        subject = '"across_shards"'
        return AcrossShards(tuple(self.range_or_prefix_at(one, (*place, n), subject) for n, one in enumerate(ranges)))

    def _compaction(self, value: str | dict[str, Any], namespace: Namespace | None) -> Compaction:
        if value == "refuse":
            return Compaction(None)
        if isinstance(value, dict) and list(value) == ["revisions_of"]:
            place: Place = ("compaction", "revisions_of")
            return Compaction(self.key_at(value["revisions_of"], place, '"compaction"'), takes_any=True)
        if value != "kubernetes":
            told = f'"{value}"' if isinstance(value, str) else "a mapping of another form"
            self.fail(("compaction",), f'"compaction" is {told}; write kubernetes, refuse or {{revisions_of: KEY}}')
        return Compaction(namespace.key(COMPACT_KEY) if namespace else COMPACT_KEY)

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

    def _limits(self, values: dict[str, Any]) -> Limits:
        known = {name: value for name, value in values.items() if self.tried(False, self._is_limit, name, value)}
        while True:
            limits = replace(Limits(), **known)
            if (wrong := out_of_bounds(limits)) is None:
                return limits
            name, bound = wrong
            self.note_at(("limits", name), f'limits: "{name}" is {getattr(limits, name)}; it must be {bound}')
            if known.pop(name, None) is None:  # a default that another limit does not go with
                return Limits()

    def _is_limit(self, name: str, value: Any) -> bool:
        """True; raises LineError for a name or a value that is none."""
        place: Place = ("limits", name)
        if name not in _LIMITS:
            self.fail(place, f"limits: {unknown_field(name, _LIMITS)}")
        whole = isinstance(_LIMITS[name], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            kind = "whole number" if whole else "number"
            self.fail(place, f'limits: "{name}" must be a {kind}, not {shown(value)}{_in_digits(value, whole)}')
        return True


def _in_digits(value: object, whole: bool) -> str:
    """The cure for a number that YAML takes for text or for a fraction, such as 1e9; "" for other values."""
    try:
        number = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        return ""
    if not 0 < number < 1e15 or (whole and not number.is_integer()):
        return ""
    return f"; write {int(number) if number.is_integer() else number}"


def _advertised(url: object) -> str:
    host, _ = address(url, "advertise URL", needs_scheme=True)
    if is_wildcard(host):
        raise ValueError(
            f'advertise URL "{url}" is where a server listens, and no client can connect to it; '
            "write the name or an address of this machine, as clients know it"
        )
    return str(url).removesuffix("/")
