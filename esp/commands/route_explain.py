"""`esp route --explain`: which line of the config gives keys to a shard, and what esp does with each call for them."""

from __future__ import annotations

from typing import Any, NamedTuple

from esp.commands.output import json_key, write, write_prose, write_table
from esp.commands.route import Span
from esp.core.config import Config
from esp.core.keys import KeyRange, format_range
from esp.core.pb import rpc_pb2
from esp.core.services.kv import delete_refused, planned
from esp.core.undivided import Undivided
from esp.core.wire.status import RpcError
from esp.core.wording import shard_called


class Source(NamedTuple):
    """A range as the config has it."""

    shard: str
    line: int
    range: KeyRange


class Owned(NamedTuple):
    """Why a shard owns a part of the keys: the narrowest range around it, and the wider ones that lose."""

    part: KeyRange
    source: Source
    wider: list[Source]


class Fate(NamedTuple):
    """What esp does with one kind of call.

    Attributes:
        call: the call, by the names of etcd's RPCs.
        shards: those that are asked, in the order of their keys; none for a refusal.
        how: for people.
        refused: the error's text; None if the call is served.
    """

    call: str
    shards: list[str]
    how: str
    refused: str | None = None


class Explained(NamedTuple):
    """All of the explanation."""

    owned: list[Owned]
    fates: list[Fate]


def explained(span: Span, loaded: Config) -> Explained:
    """Why these shards, and what they are sent."""
    return Explained([_owned(segment.range, segment.shard, loaded) for segment in span.segments], _fates(span, loaded))


def _owned(part: KeyRange, shard: str, loaded: Config) -> Owned:
    around = [
        Source(here.name, written.line, written.range)
        for here in loaded.shards
        for written in here.written
        if _holds(written.range, part)
    ]
    # They lie inside each other, the widest first.
    around.sort(key=lambda source: (source.range.end is None, source.range.end or b""), reverse=True)
    around.sort(key=lambda source: source.range.start)
    source = around.pop()
    assert source.shard == shard, "the narrowest range around a part is its owner's"
    return Owned(part, source, around[::-1])


def _holds(written: KeyRange, part: KeyRange) -> bool:
    return written.start <= part.start and (written.end is None or (part.end is not None and part.end <= written.end))


def _fates(span: Span, loaded: Config) -> list[Fate]:
    names = list(dict.fromkeys(segment.shard for segment in span.segments))
    fates = []
    is_range = bool(span.asked[1])
    if len(names) == 1:
        calls = "Range, RangeStream, DeleteRange, Watch" if is_range else "Range, Put, DeleteRange, Watch"
        fates.append(Fate(calls, names, "passed on whole"))
    else:
        moment = "all at one moment" if loaded.range_reads == "snapshot" else "each at its own moment"
        asked = len(span.segments)
        fates.append(_unless_refused(span, loaded, "Range", f"{_parts(asked)}, {moment} (range_reads)"))
        fates.append(_unless_refused(span, loaded, "Watch", f"{_parts(asked)}, as one watch"))
        fates.append(_unless_refused(span, loaded, "DeleteRange", "one shard after another, not atomic"))
    get, delete = rpc_pb2.TxnRequest(), rpc_pb2.TxnRequest()
    get.success.add().request_range.key, get.success[0].request_range.range_end = span.asked
    delete.success.add().request_delete_range.key, delete.success[0].request_delete_range.range_end = span.asked
    moment = "all at one moment" if loaded.txn_reads == "snapshot" else "each at its own moment"
    fates.append(_of_txn("Txn that only reads", get, names, f"read in parts, {moment} (txn_reads)", loaded))
    fates.append(_of_txn("Txn that writes", delete, names, "", loaded))
    return fates


def _parts(count: int) -> str:
    return f"in {count} parts"


def _unless_refused(span: Span, loaded: Config, call: str, how: str) -> Fate:
    """The fate of a call over several shards, by `across_shards` and `deletes_across_shards`."""
    refused = _undivided(loaded).refuse(f"a {call}", span.keys)
    names = list(dict.fromkeys(segment.shard for segment in span.segments))
    if refused is not None:
        return Fate(call, [], "refused (across_shards)", refused.message)
    if call == "DeleteRange" and loaded.deletes_across_shards == "refuse":
        boundary = loaded.shard_map.first_boundary(span.keys) or b""
        return Fate(call, [], "refused (deletes_across_shards)", delete_refused(names, boundary).message)
    return Fate(call, names, how)


def _undivided(loaded: Config) -> Undivided:
    return Undivided(loaded.shard_map, loaded.across_shards.refused)


def _of_txn(call: str, request: rpc_pb2.TxnRequest, names: list[str], how: str, loaded: Config) -> Fate:
    try:
        plan = planned(request, loaded.shard_map, loaded.across_shards.refused, loaded.namespace)
    except RpcError as error:
        return Fate(call, [], "refused", error.status.message)
    return Fate(call, names, "passed on whole" if plan.owner is not None else how)


def as_json(told: Explained) -> dict[str, Any]:
    """The JSON form, as docs/json.md has it."""
    return {
        "ranges": [
            {
                "start": json_key(one.part.start),
                "end": None if one.part.end is None else json_key(one.part.end),
                **_source_json(one.source),
                "wider": [_source_json(source) for source in one.wider],
            }
            for one in told.owned
        ],
        "calls": [
            {"call": fate.call, "shards": fate.shards, "how": fate.how, "refused": fate.refused} for fate in told.fates
        ],
    }


def _source_json(source: Source) -> dict[str, Any]:
    end = source.range.end
    written = {"start": json_key(source.range.start), "end": None if end is None else json_key(end)}
    return {"shard": source.shard, "line": source.line, "written": written}


def write_text(told: Explained, loaded: Config) -> None:
    """Writes the explanation for people."""
    file = "" if loaded.path is None else f"{loaded.path}:"
    write("\nWhy these shards:")
    for one in told.owned:
        write(f"  {file}{one.source.line}: {shard_called(one.source.shard)} has {format_range(one.source.range)}")
        for source in one.wider:
            write(
                f"      narrower than {format_range(source.range)} of {shard_called(source.shard)} (line {source.line})"
            )
    write("\nWhat is sent to whom:")
    rows = [[fate.call, ", ".join(fate.shards) or "-", fate.how] for fate in told.fates]
    write_table(["CALL", "SHARDS", "HOW"], rows, ragged=True)
    for text in dict.fromkeys(fate.refused for fate in told.fates if fate.refused):
        write("")
        write_prose(text)
    if loaded.across_shards.protects_kubernetes and len(told.owned) > 1:
        write("")
        write_prose(
            "In a resource of a kube-apiserver that uses this proxy esp refuses all these (across_shards: auto)."
        )
