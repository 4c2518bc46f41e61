"""Reads of several shards for one call of a client: each shard's parts at one revision of that shard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from functools import partial
from typing import Final, TypeVar

from google.protobuf.message import Message

from esp.core import errors
from esp.core.background import all_of
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.handlers import CoroutineCall
from esp.core.services.kv.rows import RANGE_FORM, TXN_FORM, Answer, Form, RowReader, Rows
from esp.core.services.metadata import call_head, load_bearing
from esp.core.shard import AtOnce, Shard, are_ready, outcome
from esp.core.shard_map import Segment
from esp.core.wire.call import BrokenCall, Reader, messages
from esp.core.wire.request_encoder import Forward, traced
from esp.core.wire.status import DEADLINE_EXCEEDED, RpcError

RANGE: Final = b"/etcdserverpb.KV/Range"
TXN: Final = b"/etcdserverpb.KV/Txn"

Response = TypeVar("Response", bound=Message)
Read = TypeVar("Read", bound=Sized)


def segments_of(routing: Routing, key_range: KeyRange) -> list[Segment]:
    """The parts of a range by shard. An empty range is one part: the owner of its start checks permissions."""
    return routing.layout.segments(key_range)


class Parts:
    """The answer of one shard.

    Attributes:
        header: the header of the first answer. Parts without a revision of their own are read at its revision.
        responses: one for each part.
        held: bytes of memory of the client's call that the responses take.
    """

    __slots__ = ("header", "held", "responses")

    def __init__(self, header: rpc_pb2.ResponseHeader, responses: Sequence[Rows], held: int = 0) -> None:
        self.header = header
        self.responses = responses
        self.held = held


async def read_all(
    call: CoroutineCall, routing: Routing, parts: Mapping[str, Sequence[rpc_pb2.RangeRequest]]
) -> dict[str, Parts]:
    """The answers of all shards, by name, to their parts; all are asked at once.

    Raises:
        RpcError: a shard's, as it came.
    """
    repeatable = not call.stream.retried
    try:
        answers = await _read_at_once(call, routing, parts)
    except BrokenCall as broken:
        status = outcome(unprocessed=broken.unprocessed, reads=True, repeatable=repeatable)
        if status is not None:
            raise status.error() from None
        answers, repeatable = None, False
    if answers is None:
        answers = await all_of(
            [call.timed(_read(call, routing, shard, asked, repeatable)) for shard, asked in parts.items()]
        )
    for shard, answer in zip(parts, answers, strict=True):
        routing.shards[shard].saw(answer.header.revision)
    return dict(zip(parts, answers, strict=True))


async def _read_at_once(
    call: CoroutineCall, routing: Routing, parts: Mapping[str, Sequence[rpc_pb2.RangeRequest]]
) -> list[Parts] | None:
    """The answers of all shards, if one call to each, sent now, brings them, as nearly always.

    None if a shard has no connection, or has to be asked several times.

    Raises:
        BrokenCall: a call broke.
        RpcError: a shard's, as it came.
    """
    stream = call.stream
    timeout = stream.remaining()
    if timeout is not None and timeout <= 0:
        raise DEADLINE_EXCEEDED.error()
    shards = [routing.shards[name] for name in parts]
    if not are_ready(shards) or any(
        len(some) > shard.max_txn_ops for shard, some in zip(shards, parts.values(), strict=True)
    ):
        return None
    at_once: AtOnce[Answer] = AtOnce(stream, timeout)
    try:
        with at_once:
            for shard, some in zip(shards, parts.values(), strict=True):
                path, request, form = (RANGE, some[0], RANGE_FORM) if len(some) == 1 else (TXN, _reads(some), TXN_FORM)
                call.enter(shard.name)
                ended = partial(call.leave, shard.name)
                reader = _row_reader(call, routing, shard.name, form)
                at_once.send(shard, _head(call, path), request.SerializeToString(), reader, ended)
            async with asyncio.timeout(timeout):
                answers = await at_once.answers()
    except TimeoutError:
        raise DEADLINE_EXCEEDED.error() from None
    except RpcError as error:
        if error.status == errors.TOO_MANY_OPS:
            return None
        raise
    finally:
        for name in parts:
            call.leave(name)
    return [
        _checked(routing.shards[name], Parts(answer.header, answer.responses, answer.held), some)
        for answer, (name, some) in zip(answers, parts.items(), strict=True)
    ]


def _checked(shard: Shard, parts: Parts, asked: Sequence[rpc_pb2.RangeRequest]) -> Parts:
    if len(parts.responses) != len(asked):
        raise shard.blamed("is not to what it was asked")
    if not parts.header.ByteSize():
        raise shard.blamed("has no header")
    return parts


def _reads(parts: Iterable[rpc_pb2.RangeRequest]) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=part) for part in parts])


async def _read(
    call: CoroutineCall, routing: Routing, shard: str, parts: Sequence[rpc_pb2.RangeRequest], repeatable: bool
) -> Parts:
    if len(parts) == 1:
        answer = await ask_rows(
            call, routing, shard, RANGE, parts[0], RANGE_FORM, idempotent=True, repeatable=repeatable
        )
        return Parts(answer.header, answer.responses, answer.held)
    # One transaction is one moment. Parts for which it has no room follow, at the revision of the first.
    responses: list[Rows] = []
    held = 0
    header: rpc_pb2.ResponseHeader | None = None
    while len(responses) < len(parts):
        rest = [_at(part, header.revision) for part in parts[len(responses) :]] if header else parts
        together, count = await _ask_for_some(call, routing, shard, rest, _reads, repeatable)
        if len(together.responses) != count:
            raise routing.shards[shard].blamed("is not to what it was asked")
        responses += together.responses
        held += together.held
        header = header or together.header
    assert header is not None, "there are parts"
    return Parts(header, responses, held)


def _at(part: rpc_pb2.RangeRequest, revision: int) -> rpc_pb2.RangeRequest:
    """The part unchanged if it has a revision of its own; else the part at `revision`."""
    if part.revision > 0:
        return part
    asked = rpc_pb2.RangeRequest()
    asked.CopyFrom(part)
    asked.revision = revision
    return asked


async def show_all(
    call: CoroutineCall, routing: Routing, parts: Mapping[str, Sequence[rpc_pb2.RangeRequest]]
) -> dict[str, rpc_pb2.ResponseHeader]:
    """Asks every shard, by name, whether the client may read these parts, without reading them.

    The result is each shard's header, with its present revision.

    Raises:
        RpcError: a shard's, as it came.
    """
    answers = await all_of([call.timed(_show(call, routing, shard, asked)) for shard, asked in parts.items()])
    return dict(zip(parts, answers, strict=True))


async def _show(
    call: CoroutineCall, routing: Routing, shard: str, parts: Sequence[rpc_pb2.RangeRequest]
) -> rpc_pb2.ResponseHeader:
    shown = 0
    while True:
        answer, count = await _ask_for_some(
            call,
            routing,
            shard,
            parts[shown:],
            lambda some: rpc_pb2.TxnRequest(failure=[rpc_pb2.RequestOp(request_range=part) for part in some]),
        )
        shown += count
        if shown == len(parts):
            return answer.header


async def check_ops(call: CoroutineCall, routing: Routing, keys_of: Mapping[str, KeyRange], count: int) -> None:
    """Checks that shards, by name, allow `count` operations in a transaction on some keys of theirs.

    Asks only shards of which that is not known. A shard that has never refused is assumed to allow etcd's default.

    Raises:
        RpcError: a shard's, as it came: the shard allows fewer operations.
    """
    unknown = [shard for shard in keys_of if count > routing.shards[shard].allowed_ops]
    if unknown:
        await all_of([call.timed(_check_ops(call, routing, shard, keys_of[shard], count)) for shard in unknown])


async def _check_ops(call: CoroutineCall, routing: Routing, shard: str, keys: KeyRange, count: int) -> None:
    key, range_end = keys.to_request()
    # etcd counts the branch that does not run as well, and then only checks its permissions.
    operation = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, range_end=range_end))
    message = rpc_pb2.TxnRequest(failure=[operation]).SerializeToString() * count
    await _read_from(call, routing, shard, TXN, message, messages, idempotent=True)
    routing.shards[shard].allowed_ops = max(routing.shards[shard].allowed_ops, count)


async def _ask_for_some(
    call: CoroutineCall,
    routing: Routing,
    shard: str,
    parts: Sequence[rpc_pb2.RangeRequest],
    request: Callable[[Sequence[rpc_pb2.RangeRequest]], rpc_pb2.TxnRequest],
    repeatable: bool = True,
) -> tuple[Answer, int]:
    """The answer to one transaction of the first parts, as many as the shard allows; and their number.

    Raises:
        RpcError: the shard's, as it came.
    """
    asked_of = routing.shards[shard]
    while True:
        some = parts[: asked_of.max_txn_ops]
        try:
            answer = await ask_rows(
                call, routing, shard, TXN, request(some), TXN_FORM, idempotent=True, repeatable=repeatable
            )
            return answer, len(some)
        except RpcError as error:
            if error.status != errors.TOO_MANY_OPS or len(some) == 1:
                raise
            asked_of.max_txn_ops = asked_of.allowed_ops = min(asked_of.max_txn_ops, len(some) // 2)


async def ask_part(
    call: CoroutineCall,
    routing: Routing,
    shard: str,
    path: bytes,
    request: Message | bytes,
    answer: type[Response],
    *,
    idempotent: bool,
) -> Response:
    """One shard's answer to its part. The call has the client's metadata and the rest of the client's deadline.

    Raises:
        RpcError: the shard's, as it came.
    """
    body = await _read_from(call, routing, shard, path, request, messages, idempotent=idempotent)
    return routing.shards[shard].parsed(answer, body)


async def ask_rows(
    call: CoroutineCall,
    routing: Routing,
    shard: str,
    path: bytes,
    request: Message,
    form: Form,
    *,
    idempotent: bool,
    repeatable: bool = True,
) -> Answer:
    """As `ask_part`, for an answer of rows that may be large; its memory is held for the client's call.

    Raises:
        RpcError: the shard's, as it came.
    """
    reader = partial(_row_reader, call, routing, shard, form)
    answer = await _read_from(call, routing, shard, path, request, reader, idempotent=idempotent, repeatable=repeatable)
    if not answer.header.ByteSize():
        raise routing.shards[shard].blamed("has no header")
    return answer


def _row_reader(call: CoroutineCall, routing: Routing, shard: str, form: Form) -> RowReader:
    told = None if call.entry is None else partial(call.entry.weigh, shard)
    return RowReader(form, partial(routing.shards[shard].blamed, f"is no {form.name}"), told)


def _head(call: CoroutineCall, path: bytes) -> Forward:
    stream = call.stream
    if path == stream.head.path:
        return stream.forward
    forward = call_head(path, load_bearing(stream.head))
    return traced(forward, stream.trace) if stream.trace else forward


async def _read_from(
    call: CoroutineCall,
    routing: Routing,
    shard: str,
    path: bytes,
    request: Message | bytes,
    reader: Callable[[], Reader[Read]],
    *,
    idempotent: bool,
    repeatable: bool = True,
) -> Read:
    stream = call.stream
    forward = _head(call, path)
    body = request if isinstance(request, bytes) else request.SerializeToString()
    call.enter(shard)
    try:
        answer = await routing.shards[shard].read_unary(
            forward,
            body,
            reader,
            idempotent=idempotent,
            repeatable=repeatable,
            timeout=stream.remaining(),
            down=stream,
        )
        if isinstance(answer, bytes):
            call.weigh(shard, len(answer))
        else:
            call.heard(shard)  # the reader has told the size as soon as it was known
        return answer
    finally:
        call.leave(shard)
