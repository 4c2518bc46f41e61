"""The lines of an export: one JSON object each. The format is in docs/export.md.

The first line is the header, the last line the trailer; between them are keys, in order, and leases, each before the
first key that has it. A key or value that is UTF-8 is written as text, any other as base64, in a field of another name;
so the bytes come back exactly.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

FORMAT: Final = 1
"""The number of the format. A change that an earlier esp would read wrongly gets another number."""
MOST_LINE: Final = 64 << 20
"""Bytes of the longest line; an etcd takes requests of 1.5 MiB unless it is told otherwise."""


class ExportError(Exception):
    """An export or import cannot be done, or cannot go on; the text is for people, and says the cure."""


class ShardAt(msgspec.Struct, frozen=True):
    """A shard, and the revision at which its keys are exported; `cluster_id` is hexadecimal."""

    name: str
    cluster_id: str
    revision: int


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line.

    Attributes:
        esp_export: the number of the format.
        esp: the version of esp.
        time: when the moment was found, in UTC.
        moment: `snapshot` if the revisions are of one moment, `each` if each shard has a moment of its own.
        seconds: the seconds within which the revisions of `each` were read.
        map: the fingerprint of the shard map.
        shards: the shards that own keys of the range.
        start, start64: the first key of the range, as clients see it, in one of the two forms.
        end, end64: the end of the range; none if there is no upper bound.
        namespace, namespace64: the prefix of the proxy's namespace; the keys here are without it.
    """

    esp_export: int
    esp: str
    time: str
    moment: str
    seconds: float
    map: str
    shards: list[ShardAt]
    start: str | None = None
    start64: bytes | None = None
    end: str | None = None
    end64: bytes | None = None
    namespace: str | None = None
    namespace64: bytes | None = None


class Row(NamedTuple):
    """A key with its value; `lease` is 0 for none."""

    key: bytes
    value: bytes
    lease: int


class Grant(NamedTuple):
    """A lease: the granted TTL in seconds. None for a lease that had ended when it was looked at."""

    lease: int
    ttl: int | None


class Trailer(msgspec.Struct, frozen=True, kw_only=True):
    """The last line: how many keys and leases there are, and the SHA-256 of all lines before, in hexadecimal."""

    end: bool = True
    keys: int
    leases: int
    sha256: str


class _Key(msgspec.Struct, omit_defaults=True):
    """A line of a key, as it is written. `lease` is hexadecimal, as etcdctl shows it."""

    key: str | None = None
    key64: bytes | None = None
    value: str | None = None
    value64: bytes | None = None
    create: int = 0
    mod: int = 0
    version: int = 0
    lease: str | None = None


class _Lease(msgspec.Struct, omit_defaults=True):
    """A line of a lease, as it is written; without seconds if it had ended."""

    grant: str
    ttl: int | None = None
    left: int | None = None


class _Any(msgspec.Struct):
    """Any line after the first, as it is read."""

    key: str | None = None
    key64: bytes | None = None
    value: str | None = None
    value64: bytes | None = None
    lease: str | None = None
    grant: str | None = None
    ttl: int | None = None
    end: bool = False
    keys: int = 0
    leases: int = 0
    sha256: str = ""


_ENCODER: Final = msgspec.json.Encoder()
_HEADER: Final = msgspec.json.Decoder(Header)
_LINE: Final = msgspec.json.Decoder(_Any)


def header_line(header: Header) -> bytes:
    """The first line."""
    return _ENCODER.encode(header) + b"\n"


def key_line(key: bytes, value: bytes, create: int, mod: int, version: int, lease: int) -> bytes:
    """The line of a key."""
    line = _Key(create=create, mod=mod, version=version, lease=hex_of(lease) if lease else None)
    try:
        line.key = key.decode()
    except UnicodeDecodeError:
        line.key64 = key
    try:
        line.value = value.decode()
    except UnicodeDecodeError:
        line.value64 = value
    return _ENCODER.encode(line) + b"\n"


def lease_line(lease: int, ttl: int | None, left: int | None) -> bytes:
    """The line of a lease: seconds granted and left, None for a lease that has ended."""
    return _ENCODER.encode(_Lease(hex_of(lease), ttl, left)) + b"\n"


def trailer_line(trailer: Trailer) -> bytes:
    """The last line."""
    return _ENCODER.encode(trailer) + b"\n"


def read_header(line: bytes) -> Header:
    """The header in a file's first line.

    Raises:
        ExportError: the line is no header, or one of a later format.
    """
    try:
        header = _HEADER.decode(line)
    except msgspec.MsgspecError:
        raise ExportError("this is no export of esp: the first line is no header") from None
    if header.esp_export != FORMAT:
        raise ExportError(
            f"the export has format {header.esp_export}, written by esp {header.esp}, and this esp reads format "
            f"{FORMAT}; use a newer esp"
        )
    return header


def read_line(line: bytes) -> Row | Grant | Trailer:
    """A key, a lease or the trailer, from any line but the first.

    Raises:
        ExportError: the line is none of them.
    """
    try:
        read = _LINE.decode(line)
        if read.grant is not None:
            return Grant(lease_of(read.grant), read.ttl)
        if read.end:
            return Trailer(keys=read.keys, leases=read.leases, sha256=read.sha256)
        key = bytes_of(read.key, read.key64)
        value = bytes_of(read.value, read.value64)
        lease = 0 if read.lease is None else lease_of(read.lease)
    except (ValueError, UnicodeEncodeError) as error:  # of msgspec as well
        raise ExportError(f"is no line of an export: {error}") from None
    if not key or value is None:
        raise ExportError("is no line of an export: it is no key with a value, no lease and no end")
    return Row(key, value, lease)


def text_or_bytes(data: bytes) -> tuple[str | None, bytes | None]:
    """The two fields in which bytes are written: the text if they are UTF-8, else the bytes, for base64."""
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return None, data


def bytes_of(text: str | None, data: bytes | None) -> bytes | None:
    """The bytes that are written in one of two fields; None if they are in neither."""
    return data if text is None else text.encode()


def hex_of(lease: int) -> str:
    """The id of a lease as etcdctl shows it."""
    return f"{lease & (1 << 64) - 1:016x}"


def lease_of(text: str) -> int:
    """The id of a lease from its hexadecimal form.

    Raises:
        ValueError: the text is none.
    """
    lease = int(text, 16)
    if not 0 < lease < 1 << 64:
        raise ValueError(f"{text} is the id of no lease")
    return lease - (1 << 64) if lease >> 63 else lease
