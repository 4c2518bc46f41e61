"""`esp route`: the shard that owns a key, or the parts of a range and their shards. Asks no shard."""

from __future__ import annotations

import base64
import binascii
import os
from enum import StrEnum
from pathlib import Path

from esp.commands.output import USAGE, CommandError, Format, json_key, write, write_json, write_table
from esp.core import config as config_file
from esp.core.config import Config
from esp.core.keys import OPEN_END, KeyRange, format_key, prefix_end
from esp.core.shard_map import Segment


class KeyEncoding(StrEnum):
    """The encoding of a key on the command line."""

    TEXT = "text"
    HEX = "hex"
    BASE64 = "base64"


def run(
    key: str,
    *,
    prefix: bool = False,
    from_key: bool = False,
    range_end: str | None = None,
    encoding: KeyEncoding = KeyEncoding.TEXT,
    output: Format = Format.TABLE,
    config: Path | None = None,
) -> None:
    """Print the shards that own the key or the range.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: a key is empty, or not in the given encoding.
    """
    pair = _request(key, prefix=prefix, from_key=from_key, range_end=range_end, encoding=encoding)
    loaded = config_file.load(config_file.find(config, os.environ))
    namespace = loaded.namespace
    real = pair if namespace is None else (namespace.key(pair[0]), namespace.range_end(pair[1]))
    key_range = KeyRange.of_request(*real)
    segments = loaded.shard_map.split(key_range)
    if not segments:
        # esp sends an empty range whole to the owner of its start.
        segments = [Segment(loaded.shard_map.owner(key_range.start), key_range)]
    if output is Format.JSON:
        _write_json(pair, key_range, segments, loaded)
    else:
        _write_text(pair, key_range, segments, loaded)


def range_of(key: str, *, prefix: bool, from_key: bool, range_end: str | None, encoding: KeyEncoding) -> KeyRange:
    """The keys that the options of a command name; an empty KEY with an END stands for the first key.

    Raises:
        CommandError: a key is not in the given encoding.
    """
    if not key and range_end is not None:
        return KeyRange(b"", _decode(range_end, "--range-end", encoding) or None)
    pair = _request(key, prefix=prefix, from_key=from_key, range_end=range_end, encoding=encoding)
    return KeyRange.of_request(*pair)


def _request(
    key: str, *, prefix: bool, from_key: bool, range_end: str | None, encoding: KeyEncoding
) -> tuple[bytes, bytes]:
    """The `key` and `range_end` that etcdctl would send.

    Raises:
        CommandError: a key is empty, or not in the given encoding.
    """
    start = _decode(key, "KEY", encoding)
    if not start:
        if prefix or from_key:
            return b"\0", OPEN_END
        raise CommandError("etcdserver: key is not provided; for all keys add --from-key", USAGE)
    if prefix:
        return start, prefix_end(start) or OPEN_END
    if from_key:
        return start, OPEN_END
    return start, b"" if range_end is None else _decode(range_end, "--range-end", encoding)


def _decode(text: str, name: str, encoding: KeyEncoding) -> bytes:
    try:
        match encoding:
            case KeyEncoding.TEXT:
                return os.fsencode(text)
            case KeyEncoding.HEX:
                return binascii.unhexlify(text)
            case KeyEncoding.BASE64:
                return base64.b64decode(text, validate=True)
    except ValueError:
        raise CommandError(f'{name} is "{text}", which is not {encoding}', USAGE) from None


def _write_text(pair: tuple[bytes, bytes], key_range: KeyRange, segments: list[Segment], loaded: Config) -> None:
    rows = []
    for shard, part in segments:
        start, end = part.to_request()
        here = loaded.shard(shard)
        rows.append([shard, _quoted(start), _end_cell(end), ",".join(map(str, here.endpoints))])
    write_table(["SHARD", "KEY", "RANGE_END", "ENDPOINTS"], rows)
    write("")
    if loaded.namespace is not None:
        prefix = _quoted(loaded.namespace.prefix)
        write(f"These are the keys in the shards, with the prefix of the namespace: {prefix}.")
    if key_range.is_empty():
        write(f'The range holds no key: its end is not above its start. Shard "{rows[0][0]}" answers it.')
    what = "range" if pair[1] else "key"
    boundary = loaded.shard_map.first_boundary(key_range)
    if boundary is None:
        write(f'A Txn over this {what} is possible: shard "{rows[0][0]}" owns all of it.')
    else:
        write(f"A Txn over this {what} can only read: another shard begins at {_quoted(boundary)}.")


def _write_json(pair: tuple[bytes, bytes], key_range: KeyRange, segments: list[Segment], loaded: Config) -> None:
    """The JSON form.

    `key` and `range_end` are the fields of the client's request, and `namespace` is the prefix that esp puts before
    them, or null; all other keys have it. `shards` has one entry for each request that esp
    sends to a shard, in key order, with the `key` and `range_end` of that request; a shard may have several entries.
    `empty` is true if the range holds no key; the one listed shard then answers. `txn.possible` is true if esp serves
    any Txn over the range; else `txn.boundary` is the first key in the range at which another shard begins. A key is
    {"text", "base64"}, without `text` if the key is not UTF-8.
    """
    boundary = loaded.shard_map.first_boundary(key_range)
    shards = []
    for shard, part in segments:
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
    write_json(
        {
            "key": json_key(pair[0]),
            "range_end": json_key(pair[1]),
            "namespace": None if loaded.namespace is None else json_key(loaded.namespace.prefix),
            "empty": key_range.is_empty(),
            "shards": shards,
            "txn": {"possible": boundary is None, "boundary": None if boundary is None else json_key(boundary)},
        }
    )


def _end_cell(end: bytes) -> str:
    if not end:
        return "(one key)"
    return _quoted(end) + (" (open end)" if end == OPEN_END else "")


def _quoted(key: bytes) -> str:
    return f'"{format_key(key)}"'
