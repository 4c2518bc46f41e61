"""`esp route --txn`: whether a transaction can run, on which shards, and what stands in its way. Asks no shard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from esp.commands.output import (
    FAILED,
    USAGE,
    CommandError,
    Format,
    json_key,
    write,
    write_json,
    write_prose,
    write_table,
)
from esp.commands.route import STDIN, Span, load, span_of
from esp.commands.txn_text import MAX_BYTES, Part, TxnTextError, WrittenTxn, read
from esp.core.config import Config
from esp.core.services.kv import planned
from esp.core.wire.status import CODE_NAMES, RpcError, Status
from esp.core.wording import shards_called


class _Verdict(NamedTuple):
    """How the transaction is served.

    Attributes:
        shards: those that take part, in the order of the config.
        how: `whole`, `snapshot`, `each`, `nothing` or `refused`.
        error: the answer that a client gets; None if the transaction can run.
    """

    shards: list[str]
    how: str
    error: Status | None = None


def run(file: str, output: Format, config: Path | None) -> None:
    """Prints what esp does with the transaction in the file, or on stdin for "-".

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: the text is no transaction; or it cannot run, which has been printed.
    """
    loaded = load(config)
    name = "standard input" if file == STDIN else file
    try:
        written = read(_text(file))
    except TxnTextError as error:
        raise CommandError(f"{name}:{error.line}: {error}", USAGE) from None
    spans = [span_of(loaded, (part.key, part.range_end)) for part in written.parts]
    verdict = _verdict(written, spans, loaded)
    if output is Format.JSON:
        _write_json(written.parts, spans, verdict, loaded)
    else:
        _write_text(written.parts, spans, verdict)
    if verdict.error is not None:
        raise CommandError("the transaction cannot run", FAILED)


def _text(file: str) -> str:
    """The text of a transaction; bytes that are not UTF-8 become surrogates.

    Raises:
        CommandError: the text cannot be read, or is too large.
    """
    name = "standard input" if file == STDIN else file
    try:
        if file == STDIN:
            if sys.stdin is None:
                raise CommandError("standard input is closed; name a file", USAGE)
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(file, "rb") as opened:
                data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"{name} cannot be read: {reason}; name a file with a transaction", USAGE) from None
    if len(data) > MAX_BYTES:
        raise CommandError(f"{name} is larger than {MAX_BYTES:,} bytes, and no etcd takes such a transaction", USAGE)
    return data.decode("utf-8", "surrogateescape")


def _verdict(written: WrittenTxn, spans: list[Span], loaded: Config) -> _Verdict:
    touched = {segment.shard for span in spans for segment in span.segments}
    names = [shard.name for shard in loaded.shards if shard.name in touched]
    try:
        plan = planned(written.request, loaded.shard_map, loaded.across_shards.refused, loaded.namespace)
    except RpcError as error:
        return _Verdict(names, "refused", error.status)
    if plan.owner is not None:
        return _Verdict([plan.owner], "whole")
    if plan.reads is None:
        return _Verdict([shard.name for shard in loaded.shards], "nothing")
    return _Verdict(names, loaded.txn_reads)


_HOW = {
    "whole": "The Txn can run: {shard} gets it whole.",
    "snapshot": "The Txn can run: it only reads, all shards at one moment (txn_reads: snapshot). Shards: {shards}.",
    "each": "The Txn can run: it only reads, each shard at its own moment (txn_reads: each). Shards: {shards}.",
    "nothing": "The Txn can run: it names no keys, so all shards only tell their revisions.",
}


def _write_text(parts: list[Part], spans: list[Span], verdict: _Verdict) -> None:
    rows = [
        [
            str(part.line),
            part.section,
            _shown(part.text),
            ", ".join(_owners(span)),
        ]
        for part, span in zip(parts, spans, strict=True)
    ]
    if rows:
        several = {number for number, row in enumerate(rows) if row[3] != rows[0][3]} if verdict.error else set()
        write_table(["LINE", "PART", "REQUEST", "SHARDS"], rows, marked=several)
        write("")
    if verdict.error is None:
        write_prose(_HOW[verdict.how].format(shards=", ".join(verdict.shards), shard=shards_called(verdict.shards)))
    else:
        code = CODE_NAMES[verdict.error.code]
        write(f"The Txn cannot run; its client gets {code}:")
        write_prose(verdict.error.message)


def _owners(span: Span) -> list[str]:
    """The shards of these keys, each once."""
    return list(dict.fromkeys(segment.shard for segment in span.segments))


def _shown(text: str) -> str:
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _write_json(parts: list[Part], spans: list[Span], verdict: _Verdict, loaded: Config) -> None:
    error: dict[str, Any] | None = None
    if verdict.error is not None:
        error = {"code": CODE_NAMES[verdict.error.code], "message": verdict.error.message}
    write_json(
        {
            "possible": verdict.error is None,
            "how": verdict.how,
            "error": error,
            "shards": [
                {"name": name, "endpoints": [str(endpoint) for endpoint in loaded.shard(name).endpoints]}
                for name in verdict.shards
            ],
            "parts": [
                {
                    "part": part.section,
                    "line": part.line,
                    "text": part.text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
                    "key": json_key(part.key),
                    "range_end": json_key(part.range_end),
                    "shards": _owners(span),
                }
                for part, span in zip(parts, spans, strict=True)
            ],
        }
    )
