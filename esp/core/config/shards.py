"""The `shards` of a config file: names, endpoints and ranges, in esp's format or the original Go proxy's."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esp.core.config.addresses import address
from esp.core.config.all_ranges import AllRanges, WrittenRange
from esp.core.config.fields import key_bytes
from esp.core.config.ranges import RangeFields
from esp.core.config.shape import Shape
from esp.core.config.yaml_lines import Place
from esp.core.keys import KeyRange
from esp.core.shard_map import ShardMap
from esp.core.wording import shard_quoted

if TYPE_CHECKING:
    from esp.core.config.shard_tls import ShardTls
    from esp.core.config.user import User
    from esp.core.tls_paths import Files

_OWN = ("endpoints", "ranges", "auth", "tls")
_ORIGINAL = ("address", "start", "end", "startBytes", "endBytes")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One member of a shard. `host` is a name or an address without brackets; as text it is a URL.

    `tls` says whether it is to be reached by TLS. `line` is the endpoint's line in the config file; endpoints that
    differ only in this are equal.
    """

    host: str
    port: int
    tls: bool = False
    line: int | None = dataclasses.field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """One shard. `ranges` are the ranges that it owns, in key order, after narrower ranges of others were cut out.

    `user` is esp's own there, None where esp has none. `tls` is None if the endpoints are plain. `written` are the
    ranges as the file has them; shards that differ only in this are equal.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    ranges: tuple[KeyRange, ...]
    user: User | None = None
    tls: ShardTls | None = None
    written: tuple[WrittenRange, ...] = dataclasses.field(default=(), compare=False, repr=False)


class ShardShape(Shape):
    """The fields of a shard."""

    name: str | None = None
    endpoints: list[Any] = []
    ranges: list[Any] = []
    auth: dict[str, Any] | None = None
    tls: dict[str, Any] | None = None


class OriginalShardShape(Shape):
    """The fields of a shard in the original's format."""

    name: str | None = None
    address: Any = ""
    start: Any = None
    end: Any = None
    startBytes: Any = None  # noqa: N815 - the original's names
    endBytes: Any = None  # noqa: N815


def _user(value: dict[str, Any], place: Place, fields: RangeFields, folder: Path | None) -> User | None:
    from esp.core.config.user import user_at  # few files have one

    return fields.tried(None, user_at, value, place, fields, folder)


class ShardsReader:
    """Reads the shards in order. A fault in one does not keep the others from being read.

    Args:
        fields: the fields of the file.
        folder: the folder of the file.
        needs_ranges: whether each shard needs ranges.

    Attributes:
        endpoints: of each shard, those that are known.
        whole: the ranges that no boundary may divide.
    """

    def __init__(self, fields: RangeFields, folder: Path | None, *, needs_ranges: bool) -> None:
        self._needs_ranges = needs_ranges
        self.fields = fields
        self.users: dict[str, User] = {}
        self.tls: dict[str, ShardTls] = {}
        self._folder = folder
        self._checked: set[Files] = set()
        self.lines = fields.lines
        self.fail = fields.fail
        self.shaped = fields.shaped
        self.endpoints: dict[str, tuple[Endpoint, ...]] = {}
        self.whole: tuple[KeyRange, ...] = ()
        self._ranges = AllRanges(fields)
        self._places: dict[str, int] = {}
        self._owner_of: dict[tuple[str, int], str] = {}

    def read(
        self,
        entries: list[Any],
        whole: list[Any],
        auth: dict[str, Any] | None = None,
        tls: dict[str, Any] | None = None,
    ) -> tuple[tuple[ShardConfig, ...], ShardMap] | None:
        """The shards in the order of the file, and the map that they make; None if there are faults, which are noted.

        Args:
            entries: the value of `shards`.
            whole: the value of `whole`: ranges that no boundary may divide.
            auth: the value of `auth`, for the shards without one of their own.
            tls: the value of `shard_tls`, for the shards without a `tls` of their own.

        Raises:
            LineError: there are no shards, or shards of two formats; or too many faults.
        """
        user = None if auth is None else _user(auth, ("auth",), self.fields, self._folder)
        self._read(entries)
        secured = self._secured(tls)
        places: dict[str, Place] = {name: ("shards", index) for name, index in self._places.items()}
        shard_map = self._ranges.shard_map(places, needs_ranges=self._needs_ranges)
        self.whole = self._ranges.check_whole(whole, shard_map)
        if shard_map is None or self.fields.is_spoiled(("shards",)):
            return None
        shards = tuple(
            ShardConfig(
                name,
                endpoints,
                tuple(shard_map.ranges_of(name)),
                self.users.get(name, user),
                secured.get(name),
                self._ranges.written(name),
            )
            for name, endpoints in self.endpoints.items()
        )
        return shards, shard_map

    def _read(self, entries: list[Any]) -> None:
        if not entries:
            example = 'shards: [{endpoints: [http://127.0.0.1:12379], ranges: [{start: "", end: ""}]}]'
            self.fail(("shards",), f"no shards; write {example}")
        self._ranges.is_original = self._is_original(entries)
        for index, entry in enumerate(entries):
            name = self.fields.tried(f"?{index}", self._name, index, entry)
            self._places[name] = index
            self._ranges.unread.add(name)
            if self._ranges.is_original:
                last = index == len(entries) - 1
                self.fields.tried(None, self._original_shard, name, index, entry, last=last)
            else:
                self.fields.tried(None, self._shard, name, index, entry)

    def _is_original(self, entries: list[Any]) -> bool:
        own = original = None
        for index, entry in enumerate(entries):
            for field in entry if isinstance(entry, dict) else ():
                if field in _OWN:
                    own = own or field
                elif field in _ORIGINAL:
                    original = original or field
                if own and original:
                    self.fail(
                        ("shards", index, field),
                        f'"{own}" and "{original}" are of two formats; '
                        "give every shard endpoints and ranges, or every shard address, start and end",
                    )
        return original is not None

    def _name(self, index: int, entry: Any) -> str:
        place: Place = ("shards", index)
        name = entry.get("name") if isinstance(entry, dict) else None
        if name is None:
            name = f"shard-{index}"
        elif not isinstance(name, str):
            self.fail((*place, "name"), f"shard {index + 1}: {ShardShape.fault_of('name', name)}")
        elif not NAME.fullmatch(name):
            self.fail(
                (*place, "name"),
                f'shard name "{name}": use at most 63 letters, digits, ".", "_" and "-", the first a letter or a digit',
            )
        if name in self._places:
            first = self.lines.of(("shards", self._place(name)))
            self.fail((*place, "name"), f'two shards are named "{name}" (the first on line {first}); rename one')
        return str(name)

    def _place(self, name: str) -> int:
        """The place of a shard in the file."""
        return self._places[name]

    def _shard(self, name: str, index: int, entry: Any) -> None:
        place: Place = ("shards", index)
        subject = _subject(name, index, entry)
        shape = self.shaped(entry, ShardShape, place, subject)
        tried = self.fields.tried
        tried(None, self._read_endpoints, name, shape.endpoints, (*place, "endpoints"), subject)
        if shape.auth is not None:
            user = _user(shape.auth, (*place, "auth"), self.fields, self._folder)
            if user is not None:
                self.users[name] = user
        if shape.tls is not None:
            tried(None, self._read_tls, name, shape.tls, (*place, "tls"), subject)
        if not shape.ranges and self._needs_ranges:
            text = f'{subject} has no ranges; write ranges: [{{start: "", end: ""}}] for all keys'
            self.fields.note_at((*place, "ranges"), text)
        for position, value in enumerate(shape.ranges):
            here = (*place, "ranges", position)
            found = tried(None, self.fields.range_at, value, here, subject)
            if found is not None:
                self._ranges.add(name, found, here)
        if not self.fields.is_spoiled((*place, "ranges")):
            self._ranges.unread.discard(name)

    def _original_shard(self, name: str, index: int, entry: Any, *, last: bool) -> None:
        place: Place = ("shards", index)
        subject = _subject(name, index, entry)
        shape = self.shaped(entry, OriginalShardShape, place, subject)
        addresses = [shape.address] if shape.address else []
        tried = self.fields.tried
        tried(None, self._read_endpoints, name, addresses, (*place, "address"), subject)
        # The first start and the last end are ignored in that format, whatever they are.
        start: bytes | None = b""
        end: bytes | None = None
        if index > 0:
            cure = 'only the first shard may have no "start"; write the end of the one before'
            start = tried(None, self._boundary, "start", shape.start, shape.startBytes, place, subject, cure)
        if not last:
            cure = 'only the last shard may have no "end"; write the start of the next'
            end = tried(None, self._boundary, "end", shape.end, shape.endBytes, place, subject, cure)
        if start is not None and (last or end is not None):
            self._ranges.add(name, KeyRange(start, end), place)
            self._ranges.unread.discard(name)

    def _boundary(self, field: str, text: Any, data: Any, place: Place, subject: str, cure: str) -> bytes:
        """The key in `start` or `end`; if that is empty, the key in `startBytes` or `endBytes`.

        Raises:
            LineError: there is none; or it is empty, for which `cure` is told.
        """
        boundary = b"" if text is None else self.fields.key_at(text, (*place, field), subject)
        if not boundary:
            try:
                boundary = key_bytes(data, f"{field}Bytes")
            except ValueError as error:
                self.fail((*place, f"{field}Bytes"), f"{subject}: {error}")
        if not boundary:
            self.fail((*place, field), f"{subject}: {cure}")
        return boundary

    def _read_endpoints(self, name: str, values: list[Any], place: Place, subject: str) -> None:
        if not values and self._ranges.is_original:
            self.fail(place, f"{subject} has no address; write address: 127.0.0.1:12379")
        if not values:
            self.fail(place, f"{subject} has no endpoints; write endpoints: [http://127.0.0.1:12379]")
        endpoints = self.fields.each_at(values, place, endpoint_at, subject)
        for position, endpoint in endpoints.items():
            first = next(iter(endpoints.values()))
            if other := self._owner_of.get((endpoint.host, endpoint.port)):
                text = f"{subject}: endpoint {endpoint} is listed in {other} already; remove it from one"
                self.fields.note_at((*place, position), text)
            self._owner_of.setdefault((endpoint.host, endpoint.port), subject)
            if endpoint.tls is not first.tls:
                text = f"{subject}: endpoints {first} and {endpoint} differ: all of a shard are https://, or none"
                self.fields.note_at((*place, position), text)
        if endpoints:
            self.endpoints[name] = tuple(
                dataclasses.replace(endpoint, line=self.lines.of((*place, position)))
                for position, endpoint in endpoints.items()
            )

    def _read_tls(self, name: str, value: dict[str, Any], place: Place, subject: str) -> None:
        first = next(iter(self.endpoints.get(name, ())), None)
        if first is not None and not first.tls:
            secured = dataclasses.replace(first, tls=True)
            self.fail(place, f'{subject} has "tls", but endpoint {first} is plain; write {secured}, or leave out "tls"')
        from esp.core.config.shard_tls import shard_tls_at

        self.tls[name] = shard_tls_at(value, place, self.fields, self._folder, self._checked)

    def _secured(self, for_all: dict[str, Any] | None) -> dict[str, ShardTls]:
        """The TLS of the shards that use TLS, by name; `for_all` is the value of `shard_tls`.

        Raises:
            LineError: there is a fault in `for_all`, or no shard uses TLS.
        """
        names = [name for name, endpoints in self.endpoints.items() if endpoints[0].tls]
        if not names and for_all is None:
            return {}
        from esp.core.config.shard_tls import ShardTls, shard_tls_at

        default = ShardTls()
        if for_all is not None:
            fields = self.fields
            default = fields.tried(default, shard_tls_at, for_all, ("shard_tls",), fields, self._folder, self._checked)
            if not names and len(self.endpoints) == len(self._places):
                text = '"shard_tls" is given, but all endpoints are plain; write https:// before those of TLS'
                self.fields.note_at(("shard_tls",), text)
        return {name: self.tls.get(name, default) for name in names}


def _subject(name: str, index: int, entry: Any) -> str:
    """The shard in messages; `name` is not its own if there is a fault in that."""
    own = entry.get("name") if name.startswith("?") else name
    return shard_quoted(own) if isinstance(own, str) else f"shard {index + 1}"


def endpoint_at(url: object, what: str = "endpoint") -> Endpoint:
    """The endpoint of a URL, or of host:port; `what` names it in the message.

    Raises:
        ValueError: `url` is none; the message is a sentence with the reason and the cure.
    """
    return Endpoint(*address(url, what), tls=str(url).startswith("https://"))
