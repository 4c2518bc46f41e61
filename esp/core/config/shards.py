"""The `shards` of a config file: names, endpoints and ranges, in esp's format or the original Go proxy's.

In esp's own format a range may lie inside another range; then the narrower range wins. The original format has no such
rule, so an overlap there is a mistake.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from esp.core.config.addresses import address
from esp.core.config.fields import key_bytes
from esp.core.config.ranges import RangeFields
from esp.core.config.shape import Shape
from esp.core.config.yaml_lines import LineError, Place
from esp.core.keys import KeyRange, format_key, format_range
from esp.core.shard_map import ShardMap, ShardMapError, carve
from esp.core.wording import shard_quoted, shards_called

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


class WrittenRange(NamedTuple):
    """A range as the file has it, before narrower ranges were cut out, and its line."""

    range: KeyRange
    line: int


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


def read_shards(
    entries: list[Any],
    whole: list[Any],
    fields: RangeFields,
    auth: dict[str, Any] | None = None,
    folder: Path | None = None,
    tls: dict[str, Any] | None = None,
    *,
    needs_ranges: bool = True,
) -> tuple[tuple[ShardConfig, ...], ShardMap]:
    """The shards in the order of the file, and the map that they make.

    Args:
        entries: the value of `shards`.
        whole: the value of `whole`: ranges that no boundary may divide.
        fields: the fields of the file.
        auth: The value of `auth`, for the shards without one of their own.
        folder: The folder of the file.
        tls: The value of `shard_tls`, for the shards without a `tls` of their own.
        needs_ranges: Whether each shard needs ranges. If none has any, the map gives all keys to the first shard, and
            means nothing.

    Raises:
        LineError: there is a fault in a shard; or a key has no owner, or two; or a boundary divides a range of `whole`.
    """
    reader = _ShardsReader(fields, folder, needs_ranges=needs_ranges)
    user = None if auth is None else _user(auth, ("auth",), fields, folder)
    reader.read(entries)
    secured = reader.secured(tls)
    if fields.is_spoiled(("shards",)):
        raise fields.faults[-1]  # noted already; without all ranges there is no map
    shard_map = reader.shard_map()
    reader.check_whole(whole, shard_map)
    shards = tuple(
        ShardConfig(
            name,
            endpoints,
            tuple(shard_map.ranges_of(name)),
            reader.users.get(name, user),
            secured.get(name),
            reader.written(name),
        )
        for name, endpoints in reader.endpoints.items()
    )
    return shards, shard_map


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


class _Source(NamedTuple):
    """A range as the file has it."""

    shard: str
    range: KeyRange
    place: Place


class _ShardsReader:
    """Reads the shards in order. A fault in one does not keep the others from being read."""

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
        self._sources: list[_Source] = []
        self._places: dict[str, int] = {}
        self._owner_of: dict[tuple[str, int], str] = {}
        self._original = False

    def read(self, entries: list[Any]) -> None:
        if not entries:
            example = 'shards: [{endpoints: [http://127.0.0.1:12379], ranges: [{start: "", end: ""}]}]'
            self.fail(("shards",), f"no shards; write {example}")
        self._original = self._is_original(entries)
        for index, entry in enumerate(entries):
            name = self.fields.tried(f"?{index}", self._name, index, entry)
            self._places[name] = index
            if self._original:
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
        if shape.tls is not None and name in self.endpoints:
            tried(None, self._read_tls, name, shape.tls, (*place, "tls"), subject)
        if not shape.ranges and self._needs_ranges:
            text = f'{subject} has no ranges; write ranges: [{{start: "", end: ""}}] for all keys'
            self.fields.note_at((*place, "ranges"), text)
        for position, value in enumerate(shape.ranges):
            here = (*place, "ranges", position)
            found = tried(None, self.fields.range_at, value, here, subject)
            if found is not None:
                self._sources.append(_Source(name, found, here))

    def _original_shard(self, name: str, index: int, entry: Any, *, last: bool) -> None:
        place: Place = ("shards", index)
        subject = _subject(name, index, entry)
        shape = self.shaped(entry, OriginalShardShape, place, subject)
        addresses = [shape.address] if shape.address else []
        self._read_endpoints(name, addresses, (*place, "address"), subject)
        # The first start and the last end are ignored in that format, whatever they are.
        start = b""
        if index > 0:
            start = self._boundary("start", shape.start, shape.startBytes, place, subject)
            if not start:
                self.fail(
                    (*place, "start"),
                    f'{subject}: only the first shard may have no "start"; write the end of the one before',
                )
        end = None
        if not last:
            end = self._boundary("end", shape.end, shape.endBytes, place, subject)
            if not end:
                self.fail(
                    (*place, "end"),
                    f'{subject}: only the last shard may have no "end"; write the start of the next',
                )
        self._sources.append(_Source(name, KeyRange(start, end), place))

    def _boundary(self, field: str, text: Any, data: Any, place: Place, subject: str) -> bytes:
        """The key in `start` or `end`; if that is empty, the key in `startBytes` or `endBytes`."""
        boundary = b"" if text is None else self.fields.key_at(text, (*place, field), subject)
        if boundary:
            return boundary
        field += "Bytes"
        try:
            return key_bytes(data, field)
        except ValueError as error:
            self.fail((*place, field), f"{subject}: {error}")

    def _read_endpoints(self, name: str, values: list[Any], place: Place, subject: str) -> None:
        if not values and self._original:
            self.fail(place, f"{subject} has no address; write address: 127.0.0.1:12379")
        if not values:
            self.fail(place, f"{subject} has no endpoints; write endpoints: [http://127.0.0.1:12379]")
        endpoints = self.fields.each(values, place, endpoint_at, subject)
        if self.fields.is_spoiled(place):
            raise self.fields.faults[-1]  # noted already
        for position, endpoint in enumerate(endpoints):
            if other := self._owner_of.get((endpoint.host, endpoint.port)):
                self.fail(
                    (*place, position),
                    f"{subject}: endpoint {endpoint} is listed in {other} already; remove it from one",
                )
            self._owner_of[endpoint.host, endpoint.port] = subject
            if endpoint.tls is not endpoints[0].tls:
                self.fail(
                    (*place, position),
                    f"{subject}: endpoints {endpoints[0]} and {endpoint} differ: all of a shard are https://, or none",
                )
        lines = [self.lines.of((*place, position)) for position in range(len(endpoints))]
        self.endpoints[name] = tuple(map(_with_line, endpoints, lines))

    def _read_tls(self, name: str, value: dict[str, Any], place: Place, subject: str) -> None:
        first = self.endpoints[name][0]
        if not first.tls:
            secured = dataclasses.replace(first, tls=True)
            self.fail(place, f'{subject} has "tls", but endpoint {first} is plain; write {secured}, or leave out "tls"')
        from esp.core.config.shard_tls import shard_tls_at

        self.tls[name] = shard_tls_at(value, place, self.fields, self._folder, self._checked)

    def secured(self, for_all: dict[str, Any] | None) -> dict[str, ShardTls]:
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
            if not names and not self.fields.is_spoiled(("shards",)):
                text = '"shard_tls" is given, but all endpoints are plain; write https:// before those of TLS'
                self.fields.note_at(("shard_tls",), text)
        return {name: self.tls.get(name, default) for name in names}

    def shard_map(self) -> ShardMap:
        """The map made of all ranges."""
        if not self._sources and not self._needs_ranges:
            return ShardMap(tuple(self.endpoints), 0, [b""], [next(iter(self.endpoints))])
        ranges = [(source.shard, source.range) for source in self._sources]
        positions = list(range(len(ranges)))  # in self._sources, of each of `ranges`
        try:
            if not self._original:
                parts = carve(ranges)
                positions = [position for position, _ in parts]
                ranges = [(self._sources[position].shard, part) for position, part in parts]
                if self._needs_ranges:
                    self._check_all_own({shard for shard, _ in ranges})
            return ShardMap.build(ranges, list(self.endpoints))
        except ShardMapError as error:
            blamed = {position: self._sources[positions[position]] for position in error.ranges}
            line = self.lines.of(next(iter(blamed.values())).place)

            def label(position: int) -> str:
                source = blamed[position]
                text = f"{format_range(source.range)} of {shard_quoted(source.shard)}"
                there = self.lines.of(source.place)
                return text if there == line else f"{text} (line {there})"

            raise LineError(line, error.explain(label)) from None

    def written(self, name: str) -> tuple[WrittenRange, ...]:
        """The ranges of a shard as the file has them."""
        return tuple(
            WrittenRange(source.range, self.lines.of(source.place)) for source in self._sources if source.shard == name
        )

    def check_whole(self, values: list[Any], shard_map: ShardMap) -> None:
        """Checks that no boundary lies inside a range of `whole`.

        Raises:
            LineError: a boundary lies inside, or a value is no range.
        """
        for position, value in enumerate(values):
            place: Place = ("whole", position)
            kept = self.fields.tried(None, self.fields.range_or_prefix_at, value, place, '"whole"')
            if kept is None:
                continue
            boundary = shard_map.first_boundary(kept)
            if boundary is not None:
                names = shards_called(dict.fromkeys(part.shard for part in shard_map.split(kept)), word="the shards")
                source = self._source_at(boundary)
                self.fields.note_at(
                    place,
                    f'{format_range(kept)} must be whole, but is cut at "{format_key(boundary)}" '
                    f"(line {self.lines.of(source.place)}) between {names}; "
                    "move that boundary out of it, or give the range itself to one shard",
                )

    def _source_at(self, boundary: bytes) -> _Source:
        """The range of the file that begins at a boundary of the map; else the range that ends there."""
        starting = [source for source in self._sources if source.range.start == boundary]
        return (starting or [source for source in self._sources if source.range.end == boundary])[0]

    def _check_all_own(self, owners: set[str]) -> None:
        for name in self.endpoints:
            if name not in owners:
                self.fail(
                    ("shards", self._place(name)),
                    f"{shard_quoted(name)} owns no key, narrower ranges take all of its own; widen it or remove it",
                )


def _subject(name: str, index: int, entry: Any) -> str:
    """The shard in messages; `name` is not its own if there is a fault in that."""
    own = entry.get("name") if name.startswith("?") else name
    return shard_quoted(own) if isinstance(own, str) else f"shard {index + 1}"


def endpoint_at(url: object) -> Endpoint:
    """The endpoint of a URL, or of host:port.

    Raises:
        ValueError: `url` is none; the message is a sentence with the reason and the cure.
    """
    return Endpoint(*address(url, "endpoint"), tls=str(url).startswith("https://"))


def _with_line(endpoint: Endpoint, line: int) -> Endpoint:
    return dataclasses.replace(endpoint, line=line)
