"""`esp route`: the shard that owns a key, or the parts of a range and their shards. Asks no shard."""

from __future__ import annotations

import base64
import binascii
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from esp.commands.in_force import in_force
from esp.commands.output import (
    USAGE,
    CommandError,
    Format,
    json_key,
    manner,
    write,
    write_data,
    write_json,
    write_prose,
    write_table,
)
from esp.core import config as config_file
from esp.core.config import Config
from esp.core.keys import OPEN_END, KeyRange, format_key, prefix_end
from esp.core.shard_map import Segment
from esp.core.wording import counted, shard_quoted

STDIN = "-"
"""The argument that stands for keys, or a transaction, on stdin."""


class KeyEncoding(StrEnum):
    """The encoding of a key on the command line."""

    TEXT = "text"
    HEX = "hex"
    BASE64 = "base64"

    @classmethod
    def given(cls, *, hex_: bool, base64: bool) -> KeyEncoding:
        """The encoding that the options --hex and --base64 name."""
        return cls.HEX if hex_ else cls.BASE64 if base64 else cls.TEXT


_FORMS: Final = {
    KeyEncoding.HEX: "write two digits (0-9, a-f) for each byte",
    KeyEncoding.BASE64: "write groups of four letters (A-Z, a-z, 0-9, +, /), the last filled up with =",
}


class Span(NamedTuple):
    """The keys that one argument, or one range, stands for.

    Attributes:
        asked: `key` and `range_end` of the client's request.
        keys: the keys of the shards, with the prefix of the namespace.
        segments: the parts by shard.
    """

    asked: tuple[bytes, bytes]
    keys: KeyRange
    segments: list[Segment]


def run(
    keys: list[str],
    *,
    prefix: bool = False,
    from_key: bool = False,
    range_end: str | None = None,
    each: bool = False,
    explain: bool = False,
    encoding: KeyEncoding = KeyEncoding.TEXT,
    output: Format = Format.TABLE,
    config: Path | None = None,
) -> None:
    """Print the shards that own the keys.

    Two keys are the ends of a range, unless `each` says that every key stands for itself. "-" stands for keys on stdin,
    one a line.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: the arguments make no sense together; or a key is empty, or not in the given encoding.
    """
    from_stdin = keys == [STDIN]
    many = each or from_stdin
    if STDIN in keys and not from_stdin:
        raise CommandError('"-" stands for keys on stdin and goes alone; for the key "-" write --hex 2d', USAGE)
    if len(keys) == 2 and not many:
        if range_end is not None or prefix or from_key:
            other = "--range-end" if range_end is not None else "--prefix" if prefix else "--from-key"
            cure = "; for keys of their own add --each" if range_end is None else ""
            raise CommandError(f"two keys are the ends of a range; give one key with {other}{cure}", USAGE)
        keys, range_end = keys[:1], keys[1]
    if len(keys) > 2 and not many:
        raise CommandError(
            f"{counted(len(keys), 'key')}: a range has two ends; for keys of their own add --each", USAGE
        )
    if many and (range_end is not None or explain):
        other = "--explain" if explain else "--range-end"
        raise CommandError(f"{other} is for one key or range; give one", USAGE)
    loaded = load(config)
    if many:
        texts: Iterable[str | bytes] = _lines() if from_stdin else keys
        requests: Iterable[tuple[bytes, bytes]] = (
            _request(text, prefix=prefix, from_key=from_key, encoding=encoding) for text in texts
        )
        if not from_stdin:
            requests = list(requests)  # so that a wrong one is found before anything is written
        _write_many((span_of(loaded, request) for request in requests), loaded, output)
        return
    span = span_of(loaded, _request(keys[0], prefix=prefix, from_key=from_key, range_end=range_end, encoding=encoding))
    explained = None
    if explain:
        from esp.commands import route_explain  # loads the services

        explained = route_explain.explained(span, loaded)
    if output is Format.JSON:
        about = {} if explained is None else {"explain": route_explain.as_json(explained)}
        write_json(_as_json(span, loaded) | about)
        return
    _write_text(span, loaded)
    if explained is not None:
        route_explain.write_text(explained, loaded)


def load(config: Path | None) -> Config:
    """The config.

    Raises:
        ConfigError: there is no config, or the config is wrong.
    """
    loaded = in_force(config_file.load(config_file.find(config, os.environ)))
    if manner.verbose:
        from esp.commands.noted import note_config  # loads logging, which scripts do without

        note_config(loaded)
    return loaded


def span_of(loaded: Config, asked: tuple[bytes, bytes]) -> Span:
    """The shards of what a client asks for."""
    namespace = loaded.namespace
    real = asked if namespace is None else (namespace.key(asked[0]), namespace.range_end(asked[1]))
    keys = KeyRange.of_request(*real)
    # esp sends an empty range whole to the owner of its start.
    return Span(asked, keys, loaded.shard_map.split(keys) or [Segment(loaded.shard_map.owner(keys.start), keys)])


def _lines() -> Iterator[bytes]:
    """The keys on stdin.

    Raises:
        CommandError: stdin cannot be read, or has a line without a key.
    """
    if sys.stdin is None:
        raise CommandError("standard input is closed; give keys as arguments", USAGE)
    try:
        for number, line in enumerate(sys.stdin.buffer, start=1):
            key = line.removesuffix(b"\n")
            if not key:
                raise CommandError(f"line {number} of standard input is empty, and no key is; take it out", USAGE)
            yield key
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"standard input cannot be read: {reason}; give keys as arguments", USAGE) from None


def range_of(key: str, *, prefix: bool, from_key: bool, range_end: str | None, encoding: KeyEncoding) -> KeyRange:
    """The keys that the options of a command name.

    An empty KEY with an END stands for the first key, and an empty END for the end of all keys, as in a config.

    Raises:
        CommandError: a key is not in the given encoding.
    """
    if range_end is not None and not (key and range_end):
        return KeyRange(key_of(key, "KEY", encoding), key_of(range_end, "--range-end", encoding) or None)
    pair = _request(key, prefix=prefix, from_key=from_key, range_end=range_end, encoding=encoding)
    return KeyRange.of_request(*pair)


def _request(
    key: str | bytes,
    *,
    prefix: bool,
    from_key: bool,
    range_end: str | None = None,
    encoding: KeyEncoding,
) -> tuple[bytes, bytes]:
    """The `key` and `range_end` that etcdctl would send.

    Raises:
        CommandError: a key is empty, or not in the given encoding.
    """
    start = key_of(key, "KEY", encoding)
    if not start:
        if prefix or from_key:
            return b"\0", OPEN_END
        raise CommandError("etcdserver: key is not provided; for all keys add --from-key", USAGE)
    if prefix:
        return start, prefix_end(start) or OPEN_END
    if from_key:
        return start, OPEN_END
    return start, b"" if range_end is None else key_of(range_end, "END", encoding)


def key_of(text: str | bytes, name: str, encoding: KeyEncoding) -> bytes:
    """The key that a text of the command line stands for; `name` is that of the option or argument.

    Raises:
        CommandError: it is not in the given encoding.
    """
    data = text if isinstance(text, bytes) else os.fsencode(text)
    try:
        match encoding:
            case KeyEncoding.TEXT:
                return data
            case KeyEncoding.HEX:
                return binascii.unhexlify(data)
            case KeyEncoding.BASE64:
                return base64.b64decode(data, validate=True)
    except ValueError:
        shown = data.decode("utf-8", "backslashreplace")
        raise CommandError(f'{name} is "{shown}", which is not {encoding}; {_FORMS[encoding]}', USAGE) from None


def _write_many(spans: Iterator[Span], loaded: Config, output: Format) -> None:
    """Writes each key as it comes, so that any number may come."""
    counts: Counter[str] = Counter()
    total = 0
    width = max(5, *(len(shard.name) for shard in loaded.shards))
    for total, span in enumerate(spans, start=1):
        if output is Format.JSON:
            import json

            write_data(json.dumps(_as_json(span, loaded)))
            continue
        if total == 1:
            write(f"{'SHARD':{width}}  KEYS")
        for shard, part in span.segments:
            start, end = part.to_request()
            counts[shard] += 1
            write(f"{shard:{width}}  {quoted(start)}{f'  {end_cell(end)}' if end else ''}")
    if output is Format.TABLE and total:
        write("")
        write(", ".join(f"{count:,} in {shard}" for shard, count in counts.items()) + ".")
        if len(counts) == 1:
            write_prose(f"A Txn over all of them is possible: {shard_quoted(next(iter(counts)))} owns them.")
        else:
            write("A Txn over all of them can only read: several shards own them.")


def _write_text(span: Span, loaded: Config) -> None:
    rows = []
    for shard, part in span.segments:
        start, end = part.to_request()
        here = loaded.shard(shard)
        rows.append([shard, quoted(start), end_cell(end), ",".join(map(str, here.endpoints))])
    write_table(["SHARD", "KEY", "RANGE_END", "ENDPOINTS"], rows)
    write("")
    if loaded.namespace is not None:
        prefix = quoted(loaded.namespace.prefix)
        write_prose(f"These are the keys in the shards, with the prefix of the namespace: {prefix}.")
    if span.keys.is_empty():
        write_prose(f'The range holds no key: its end is not above its start. Shard "{rows[0][0]}" answers it.')
    what = "range" if span.asked[1] else "key"
    boundary = loaded.shard_map.first_boundary(span.keys)
    if boundary is None:
        write_prose(f"A Txn over this {what} is possible: {shard_quoted(rows[0][0])} owns all of it.")
    else:
        write_prose(f"A Txn over this {what} can only read: another shard begins at {quoted(boundary)}.")


def _as_json(span: Span, loaded: Config) -> dict[str, Any]:
    """The JSON form, as docs/json.md has it."""
    boundary = loaded.shard_map.first_boundary(span.keys)
    shards = []
    for shard, part in span.segments:
        start, end = part.to_request()
        here = loaded.shard(shard)
        shards.append(
            {
                "name": shard,
                "key": json_key(start),
                "range_end": json_key(end),
                "endpoints": [str(endpoint) for endpoint in here.endpoints],
            }
        )
    return {
        "key": json_key(span.asked[0]),
        "range_end": json_key(span.asked[1]),
        "namespace": None if loaded.namespace is None else json_key(loaded.namespace.prefix),
        "empty": span.keys.is_empty(),
        "shards": shards,
        "txn": {"possible": boundary is None, "boundary": None if boundary is None else json_key(boundary)},
    }


def end_cell(end: bytes) -> str:
    """A `range_end` for people."""
    if not end:
        return "(one key)"
    return quoted(end) + (" (open end)" if end == OPEN_END else "")


def quoted(key: bytes) -> str:
    """A key for people."""
    return f'"{format_key(key)}"'
