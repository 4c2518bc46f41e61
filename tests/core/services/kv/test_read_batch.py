"""Joined reads, and their outcome for any answer of the shard; a scripted shard does what no etcd does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest

from esp.core import errors
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.entry import LARGE, PLACES
from esp.core.services.gate import Gate
from esp.core.services.kv import read_txn
from esp.core.services.kv.read_batch import READS_ALONE, PassReads
from esp.core.shard import Shard
from esp.core.wire import frames
from esp.core.wire.client_stream import STREAM_WINDOW
from esp.core.wire.frames import ErrorCode
from esp.core.wire.limits import Limits
from esp.core.wire.message import parse_timeout
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import OVERLOADED, ServerStream
from esp.core.wire.status import Code, Status
from tests.core.front import PUT, RANGE, Front
from tests.core.scripted_etcd import VERSION, HeardCall, ScriptedConnection, ScriptedEtcd
from tests.core.wire.conversation import HEAD, call, data, goaway, headers, message, rst, settings, trailers, window

TXN = b"/etcdserverpb.KV/Txn"
OK = (0, "")
HEADER = rpc_pb2.ResponseHeader(cluster_id=7, member_id=8, revision=300, raft_term=2)
Field = tuple[bytes, bytes]
Says = Callable[[ScriptedConnection, HeardCall], None]


def found(key: bytes, size: int = 3) -> rpc_pb2.RangeResponse:
    pair = kv_pb2.KeyValue(key=key, value=b"v" * size, create_revision=5, mod_revision=9, version=2)
    return rpc_pb2.RangeResponse(kvs=[pair], count=1)


def alone(key: bytes, size: int = 3) -> bytes:
    """etcd's answer to a Range of that key."""
    answer = found(key, size)
    answer.header.CopyFrom(HEADER)
    return answer.SerializeToString()


def together(*keys: bytes, size: int = 3) -> bytes:
    """etcd's answer to the transaction that reads those keys."""
    response = rpc_pb2.TxnResponse(header=HEADER, succeeded=True)
    for key in keys:
        inner = response.responses.add().response_range
        inner.CopyFrom(found(key, size))
        inner.header.revision = HEADER.revision
    return response.SerializeToString()


def keys_of(heard: HeardCall) -> list[bytes]:
    """What a transaction reads; it must do nothing else."""
    assert heard.path == TXN
    request = rpc_pb2.TxnRequest.FromString(bytes(heard.body[5:]))
    keys = [operation.request_range.key for operation in request.success]
    bare = [rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key)) for key in keys]
    assert request == rpc_pb2.TxnRequest(success=bare)
    return keys


def key_of(heard: HeardCall) -> bytes:
    """What a Range that went alone reads; it came as the client wrote it."""
    assert heard.path == RANGE
    request = rpc_pb2.RangeRequest.FromString(bytes(heard.body[5:]))
    assert request == rpc_pb2.RangeRequest(key=request.key)
    return request.key


class Reader(Front):
    """A client in front of a shard whose reads are joined."""

    def __init__(self, *etcds: ScriptedEtcd, limits: Limits | None = None) -> None:
        super().__init__(*(etcd.endpoint for etcd in etcds), limits=limits)
        handler = PassReads(self.shard, Gate(self.client.context, self.shard.background))
        self.handler = handler
        self.batches = handler.batches
        self.client.connection.weight = 0  # it has had small answers, and reads without a place
        self._handlers[RANGE] = handler

    def reads(self, *keys: bytes) -> list[int]:
        """Asks for each key, all in one piece of bytes: the streams."""
        return self.reads_with(*((key, ()) for key in keys))

    def reads_with(self, *reads: tuple[bytes, tuple[Field, ...]]) -> list[int]:
        streams, said = [], []
        for key, extra in reads:
            stream, self._next = self._next, self._next + 2
            request = rpc_pb2.RangeRequest(key=key).SerializeToString()
            said += [headers(stream, call(RANGE, *extra)), data(stream, message(request), end=True)]
            streams.append(stream)
        self.says(*said)
        return streams

    async def hears_each(self, streams: list[int], *keys: bytes, size: int = 3) -> None:
        """Each call ends well, with its own key's answer, byte by byte."""
        for stream, key in zip(streams, keys, strict=True):
            assert await self.outcome(stream) == OK
            assert bytes(self.answers[stream].body) == message(alone(key, size))


async def serve_alone(connection: ScriptedConnection, *keys: bytes, size: int = 3) -> None:
    """Hears a Range of each key, in this order, and answers it."""
    for key in keys:
        heard = await connection.hears()
        assert key_of(heard) == key
        connection.answers(heard, alone(key, size))


@asynccontextmanager
async def reading(
    limits: Limits | None = None, version: str = "3.5.7"
) -> AsyncIterator[tuple[ScriptedConnection, Reader]]:
    """A shard that has told its version, and a client in front of it."""
    async with ScriptedEtcd() as etcd:
        etcd.version = version
        async with Reader(etcd, limits=limits) as front:
            connection = await etcd.accepts()
            await front.until(lambda: front.shard.version_in_use == version)
            yield connection, front


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 60))

    return run


async def go_alone_for_a_while(connection: ScriptedConnection, front: Reader, metadata: tuple[Field, ...] = ()) -> None:
    """Reads with these metadata do, and then are joined again."""
    keys = [b"k"] * READS_ALONE
    streams = front.reads_with(*((key, metadata) for key in keys))
    await serve_alone(connection, *keys)
    await front.hears_each(streams, *keys)
    await go_together(connection, front, metadata)


async def go_together(connection: ScriptedConnection, front: Reader, metadata: tuple[Field, ...] = ()) -> None:
    streams = front.reads_with((b"a", metadata), (b"b", metadata))
    heard = await connection.hears()
    assert keys_of(heard) == [b"a", b"b"]
    connection.answers(heard, together(b"a", b"b"))
    await front.hears_each(streams, b"a", b"b")


class TestTogether:
    @in_a_loop
    async def test_what_comes_at_once_leaves_as_one_transaction(self) -> None:
        async with reading() as (connection, front):
            streams = front.reads(b"a", b"b", b"a")
            heard = await connection.hears()
            assert keys_of(heard) == [b"a", b"b", b"a"]
            connection.answers(heard, together(b"a", b"b", b"a"))
            await front.hears_each(streams, b"a", b"b", b"a")
            assert connection.calls == []
            assert (front.shard.joined_transactions, front.shard.joined_reads) == (1, 3)

    @in_a_loop
    async def test_what_comes_alone_goes_as_it_came(self) -> None:
        async with reading() as (connection, front):
            for key in (b"a", b"b"):
                streams = front.reads(key)
                await serve_alone(connection, key)
                await front.hears_each(streams, key)

    @in_a_loop
    async def test_any_other_read_goes_as_it_came(self) -> None:
        others = [
            rpc_pb2.RangeRequest(key=b"a", range_end=b"b"),
            rpc_pb2.RangeRequest(key=b"a", serializable=True),
            rpc_pb2.RangeRequest(key=b"a", revision=3),
            rpc_pb2.RangeRequest(key=b"k" * 128),
            rpc_pb2.RangeRequest(),
        ]
        async with reading() as (connection, front):
            said, streams = [], []
            for request in others:
                stream, front._next = front._next, front._next + 2
                body = message(request.SerializeToString())
                said += [headers(stream, call(RANGE)), data(stream, body, end=True)]
                streams.append(stream)
            front.says(*said)
            for request, stream in zip(others, streams, strict=True):
                heard = await connection.hears()
                assert (heard.path, bytes(heard.body)) == (RANGE, message(request.SerializeToString()))
                connection.answers(heard)
                assert await front.outcome(stream) == OK

    @in_a_loop
    async def test_only_calls_with_the_same_metadata_share_one(self) -> None:
        alice, bob = ((b"token", b"alice"),), ((b"token", b"bob"),)
        async with reading() as (connection, front):
            reads = [(b"a", alice), (b"b", bob), (b"c", alice), (b"d", bob), (b"e", ())]
            streams = front.reads_with(*reads)
            for token, keys in ((b"alice", [b"a", b"c"]), (b"bob", [b"b", b"d"])):
                heard = await connection.hears()
                assert (keys_of(heard), heard.fields[b"token"]) == (keys, token)
                connection.answers(heard, together(*keys))
            await serve_alone(connection, b"e")
            await front.hears_each(streams, b"a", b"b", b"c", b"d", b"e")

    @in_a_loop
    async def test_calls_that_differ_only_in_their_trace_share_one(self) -> None:
        traces = [b"00-%032x-%016x-01" % (number, number) for number in (1, 2, 3)]
        async with reading() as (connection, front):
            streams = front.reads_with(*((b"%d" % n, ((b"traceparent", trace),)) for n, trace in enumerate(traces)))
            heard = await connection.hears()
            assert keys_of(heard) == [b"0", b"1", b"2"]
            assert b"traceparent" not in heard.fields, "it is of none of the three"
            connection.answers(heard, together(b"0", b"1", b"2"))
            await front.hears_each(streams, b"0", b"1", b"2")
            for path, ask in ((RANGE, front.range), (PUT, front.put)):
                stream = ask(b"", (b"token", b"alice"), (b"traceparent", traces[0]))
                heard = await connection.hears()
                assert (heard.path, heard.fields[b"traceparent"], heard.fields[b"token"]) == (path, traces[0], b"alice")
                connection.answers(heard)
                assert await front.outcome(stream) == OK

    @in_a_loop
    async def test_no_more_than_max_batched_reads_share_one(self) -> None:
        async with reading(Limits(max_batched_reads=3)) as (connection, front):
            keys = [b"%d" % number for number in range(7)]
            streams = front.reads(*keys)
            for part in (keys[:3], keys[3:6]):
                heard = await connection.hears()
                assert keys_of(heard) == part
                connection.answers(heard, together(*part))
            await serve_alone(connection, keys[6])
            await front.hears_each(streams, *keys)
            assert front.client.limits_reached["max_batched_reads"] == 1

    @in_a_loop
    async def test_with_one_at_most_each_goes_alone(self) -> None:
        async with reading(Limits(max_batched_reads=1)) as (connection, front):
            streams = front.reads(b"a", b"b")
            await serve_alone(connection, b"a", b"b")
            await front.hears_each(streams, b"a", b"b")

    @in_a_loop
    async def test_they_leave_in_one_write_with_what_else_came(self) -> None:
        async with reading() as (connection, front):
            upstream = front.shard._unary.connection
            assert upstream is not None
            write, writes = upstream.on_flush, []
            assert write is not None
            upstream.on_flush = writes.append
            first, put, second = range(front._next, front._next + 6, 2)
            front._next += 6
            said = []
            for stream, path, content in ((first, RANGE, b"a"), (put, PUT, b""), (second, RANGE, b"b")):
                request = rpc_pb2.RangeRequest(key=content).SerializeToString()
                said += [headers(stream, call(path)), data(stream, message(request), end=True)]
            front.says(*said)
            [written] = writes
            upstream.on_flush = write
            write(written)
            heard = {one.path: one for one in (await connection.hears(), await connection.hears())}
            assert keys_of(heard[TXN]) == [b"a", b"b"]
            connection.answers(heard[TXN], together(b"a", b"b"))
            connection.answers(heard[PUT])
            await front.hears_each([first, second], b"a", b"b")
            assert await front.outcome(put) == OK

    @in_a_loop
    async def test_what_fits_no_stream_waits_as_ever(self) -> None:
        async with reading() as (connection, front):
            connection.says(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 1}))
            await front.until(lambda: front.shard._unary.connection.peer_max_streams == 1)
            (first,) = front.reads(b"a")
            heard = await connection.hears()
            streams = front.reads(b"b", b"c")
            connection.answers(heard, alone(b"a"))
            await serve_alone(connection, b"b", b"c")
            await front.hears_each([first, *streams], b"a", b"b", b"c")


class TestDeadlines:
    @pytest.mark.parametrize(
        ("timeouts", "told"),
        [((b"1S", b"9S", b"5S"), range(8, 10)), ((b"1S", b"", b"5S"), None), ((b"", b"", b""), None)],
        ids=["the longest", "one has none", "none has one"],
    )
    @in_a_loop
    async def test_the_shard_has_until_the_last(self, timeouts: tuple[bytes, ...], told: range | None) -> None:
        async with reading() as (connection, front):
            extra = [((b"grpc-timeout", timeout),) if timeout else () for timeout in timeouts]
            streams = front.reads_with(*zip((b"a", b"b", b"c"), extra, strict=True))
            heard = await connection.hears()
            assert keys_of(heard) == [b"a", b"b", b"c"]
            timeout = heard.fields.get(b"grpc-timeout")
            if told is None:
                assert timeout is None
            else:
                assert timeout is not None
                seconds = parse_timeout(timeout)
                assert seconds is not None
                assert int(seconds) in told
            connection.answers(heard, together(b"a", b"b", b"c"))
            await front.hears_each(streams, b"a", b"b", b"c")

    @in_a_loop
    async def test_who_has_an_earlier_one_is_sent_away_in_time_and_the_others_are_answered(self) -> None:
        async with reading() as (connection, front):
            hurried, patient = front.reads_with((b"a", ((b"grpc-timeout", b"10m"),)), (b"b", ()))
            heard = await connection.hears()
            assert (await front.outcome(hurried))[0] == Code.DEADLINE_EXCEEDED
            connection.answers(heard, together(b"a", b"b"))
            await front.hears_each([patient], b"b")

    @in_a_loop
    async def test_who_is_sent_again_has_what_is_left(self) -> None:
        async with reading() as (connection, front):
            streams = front.reads_with((b"a", ((b"grpc-timeout", b"90S"),)), (b"b", ()))
            _content(b"")(connection, await connection.hears())
            heard = await connection.hears()
            left = parse_timeout(heard.fields[b"grpc-timeout"])
            assert left is not None
            assert 0 < left < 90
            connection.answers(heard, alone(b"a"))
            other = await connection.hears()
            assert b"grpc-timeout" not in other.fields
            connection.answers(other, alone(b"b"))
            await front.hears_each(streams, b"a", b"b")

    @in_a_loop
    async def test_who_has_nothing_left_is_not_sent_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with reading() as (connection, front):
            monkeypatch.setattr(ServerConnection, "tick", lambda connection, now: None)  # too late to send it away
            hurried, patient = front.reads_with((b"a", ((b"grpc-timeout", b"1u"),)), (b"b", ()))
            _content(b"")(connection, await connection.hears())
            await serve_alone(connection, b"b")
            assert (await front.outcome(hurried))[0] == Code.DEADLINE_EXCEEDED
            await front.hears_each([patient], b"b")


class TestClientsThatGo:
    @in_a_loop
    async def test_the_others_are_answered(self) -> None:
        async with reading() as (connection, front):
            first, second, third = front.reads(b"a", b"b", b"c")
            heard = await connection.hears()
            front.cancels(second)
            connection.answers(heard, together(b"a", b"b", b"c"))
            await front.hears_each([first, third], b"a", b"c")

    @in_a_loop
    async def test_when_all_have_gone_the_shard_is_told(self) -> None:
        async with reading() as (connection, front):
            first, second = front.reads(b"a", b"b")
            heard = await connection.hears()
            front.cancels(second)
            front.cancels(first)
            reset = await connection.hears_frame(frames.RST_STREAM, heard.stream)
            assert int.from_bytes(reset.payload, "big") == ErrorCode.CANCEL

    @in_a_loop
    async def test_who_goes_at_once_is_not_asked_for(self) -> None:
        async with reading() as (connection, front):
            first, second, third = front._next, front._next + 2, front._next + 4
            front._next += 6
            said = []
            for stream, key in ((first, b"a"), (second, b"b"), (third, b"c")):
                request = rpc_pb2.RangeRequest(key=key).SerializeToString()
                said += [headers(stream, call(RANGE)), data(stream, message(request), end=True)]
            front.says(*said, rst(second))
            heard = await connection.hears()
            assert keys_of(heard) == [b"a", b"c"]
            connection.answers(heard, together(b"a", b"c"))
            await front.hears_each([first, third], b"a", b"c")


def _status(status: Status) -> Says:
    def says(connection: ScriptedConnection, heard: HeardCall) -> None:
        connection.says(headers(heard.stream, HEAD + trailers(status), end=True))

    return says


def _status_behind_a_head(connection: ScriptedConnection, heard: HeardCall) -> None:
    connection.says(headers(heard.stream, HEAD), headers(heard.stream, trailers(errors.PERMISSION_DENIED), end=True))


def _content(content: bytes) -> Says:
    return lambda connection, heard: connection.answers(heard, content)


def _rst(code: ErrorCode) -> Says:
    return lambda connection, heard: connection.says(rst(heard.stream, code))


def _no_grpc(connection: ScriptedConnection, heard: HeardCall) -> None:
    connection.says(headers(heard.stream, [(b":status", b"404"), (b"content-type", b"text/html")]))


def _ends_within_the_data(connection: ScriptedConnection, heard: HeardCall) -> None:
    connection.says(headers(heard.stream, HEAD), data(heard.stream, message(together(b"a", b"b")), end=True))


def _ends_without_data(connection: ScriptedConnection, heard: HeardCall) -> None:
    connection.says(headers(heard.stream, HEAD), headers(heard.stream, trailers(), end=True))


def _breaks_off(connection: ScriptedConnection, heard: HeardCall) -> None:
    said = message(together(b"a", b"b"))
    connection.says(headers(heard.stream, HEAD), data(heard.stream, said[:20]), rst(heard.stream))


def _begins_with_half_a_prefix(connection: ScriptedConnection, heard: HeardCall) -> None:
    said = message(together(b"a", b"b"))
    connection.says(headers(heard.stream, HEAD), data(heard.stream, said[:3]), data(heard.stream, said[3:]))


def _sends_two(connection: ScriptedConnection, heard: HeardCall) -> None:
    said = data(heard.stream, message(together(b"a", b"b")))
    connection.says(headers(heard.stream, HEAD), said, said)


def _sends_more_than_it_announces(connection: ScriptedConnection, heard: HeardCall) -> None:
    said = message(together(b"a", b"b"))
    connection.says(headers(heard.stream, HEAD), data(heard.stream, said), data(heard.stream, b"x"))


def _announces_too_much(connection: ScriptedConnection, heard: HeardCall) -> None:
    said = message(bytes(STREAM_WINDOW))
    connection.says(headers(heard.stream, HEAD), data(heard.stream, said[:16384]))


class TestNoOneFailsForANeighbour:
    @pytest.mark.parametrize(
        "says",
        [
            _status(errors.PERMISSION_DENIED),
            _status(errors.TOO_MANY_OPS),
            _status(Status(Code.CANCELLED, "context canceled")),
            _status_behind_a_head,
            _content(together(b"a")),
            _content(b"no protobuf"),
            _content(b""),
            _rst(ErrorCode.INTERNAL_ERROR),
            _rst(ErrorCode.REFUSED_STREAM),
            _no_grpc,
            _ends_within_the_data,
            _ends_without_data,
            _breaks_off,
            _begins_with_half_a_prefix,
            _sends_two,
            _sends_more_than_it_announces,
            _announces_too_much,
        ],
    )
    @in_a_loop
    async def test_whatever_comes_instead_each_is_sent_again_alone(self, says: Says) -> None:
        async with reading() as (connection, front):
            first, second, third = front.reads(b"a", b"b", b"c")
            heard = await connection.hears()
            front.cancels(third)
            says(connection, heard)
            await serve_alone(connection, b"a")
            other = await connection.hears()
            assert key_of(other) == b"b"
            connection.says(headers(other.stream, HEAD + trailers(errors.PERMISSION_DENIED), end=True))
            await front.hears_each([first], b"a")
            refusal = (errors.PERMISSION_DENIED.code, errors.PERMISSION_DENIED.message)
            assert await front.outcome(second) == refusal
            assert connection.calls == []

    @pytest.mark.parametrize("status", [errors.NO_LEADER, errors.REQUEST_TIMED_OUT])
    @in_a_loop
    async def test_what_ails_the_shard_is_told_to_all(self, status: Status) -> None:
        async with reading() as (connection, front):
            streams = front.reads(b"a", b"b")
            heard = await connection.hears()
            connection.says(headers(heard.stream, HEAD + trailers(status), end=True))
            for stream in streams:
                assert await front.outcome(stream) == (status.code, status.message)
            assert connection.calls == []

    @pytest.mark.parametrize("how", ["hangs up", "goes away"])
    @in_a_loop
    async def test_a_connection_that_is_lost_is_replaced(self, how: str) -> None:
        async with ScriptedEtcd() as etcd, Reader(etcd, limits=Limits(max_waiting_seconds=20)) as front:
            connection = await etcd.accepts()
            await front.until(lambda: front.shard.version_in_use)
            streams = front.reads(b"a", b"b")
            heard = await connection.hears()
            if how == "goes away":
                connection.says(goaway(heard.stream - 2, ErrorCode.NO_ERROR))
            connection.hangs_up()
            await serve_alone(await etcd.accepts(), b"a", b"b")
            await front.hears_each(streams, b"a", b"b")

    @in_a_loop
    async def test_a_member_without_a_leader_is_left_for_the_next(self) -> None:
        async with ScriptedEtcd() as etcd, ScriptedEtcd() as other, Reader(etcd, other) as front:
            connection = await etcd.accepts()
            await front.until(lambda: front.shard.version_in_use)
            streams = front.reads(b"a", b"b")
            _status(errors.NO_LEADER)(connection, await connection.hears())
            for stream in streams:
                assert await front.outcome(stream) == (errors.NO_LEADER.code, errors.NO_LEADER.message)
            connection = await other.accepts()
            await front.until(lambda: front.shard.version_in_use)
            await go_together(connection, front)

    @in_a_loop
    async def test_a_read_goes_to_the_shard_twice_at_most(self) -> None:
        async with reading() as (connection, front):
            streams = front.reads(b"a", b"b")
            _rst(ErrorCode.INTERNAL_ERROR)(connection, await connection.hears())
            for _ in streams:
                heard = await connection.hears()
                assert heard.path == RANGE
                connection.says(rst(heard.stream, ErrorCode.INTERNAL_ERROR))
            for stream in streams:
                assert await front.outcome(stream) == (errors.REQUEST_TIMED_OUT.code, errors.REQUEST_TIMED_OUT.message)
            assert connection.calls == []


class TestWhenItDoesNotDo:
    @in_a_loop
    async def test_an_answer_of_unusual_form_lets_the_next_ones_go_alone(self) -> None:
        async with reading() as (connection, front):
            streams = front.reads(b"a", b"b")
            _content(b"no protobuf")(connection, await connection.hears())
            await serve_alone(connection, b"a", b"b")
            await front.hears_each(streams, b"a", b"b")
            await go_alone_for_a_while(connection, front)

    @in_a_loop
    async def test_a_refusal_lets_the_next_ones_with_the_same_metadata_go_alone(self) -> None:
        alice, bob = ((b"token", b"alice"),), ((b"token", b"bob"),)
        async with reading() as (connection, front):
            streams = front.reads_with((b"a", alice), (b"b", alice))
            _status(errors.PERMISSION_DENIED)(connection, await connection.hears())
            await serve_alone(connection, b"a", b"b")
            await front.hears_each(streams, b"a", b"b")
            await go_together(connection, front, bob)
            await go_alone_for_a_while(connection, front, alice)

    @in_a_loop
    async def test_a_shard_with_a_lower_max_txn_ops_is_sent_fewer_at_once(self) -> None:
        async with reading() as (connection, front):
            keys = [b"%d" % number for number in range(64)]
            for refused in (64, 32):
                streams = front.reads(*keys[:refused])
                heard = await connection.hears()
                assert keys_of(heard) == keys[:refused]
                _status(errors.TOO_MANY_OPS)(connection, heard)
                await serve_alone(connection, *keys[:refused])
                await front.hears_each(streams, *keys[:refused])
            streams = front.reads(*keys)
            for start in range(0, 64, 16):
                heard = await connection.hears()
                assert keys_of(heard) == keys[start : start + 16]
                connection.answers(heard, together(*keys[start : start + 16]))
            await front.hears_each(streams, *keys)

    @in_a_loop
    async def test_one_that_takes_none_is_sent_none(self) -> None:
        async with reading(Limits(max_batched_reads=2)) as (connection, front):
            streams = front.reads(b"a", b"b")
            _status(errors.TOO_MANY_OPS)(connection, await connection.hears())
            await serve_alone(connection, b"a", b"b")
            await front.hears_each(streams, b"a", b"b")
            for _ in range(2):
                streams = front.reads(*[b"k"] * READS_ALONE)
                await serve_alone(connection, *[b"k"] * READS_ALONE)
                await front.hears_each(streams, *[b"k"] * READS_ALONE)


class TestSizes:
    @in_a_loop
    async def test_an_answer_in_several_frames_is_put_together(self) -> None:
        async with reading() as (connection, front):
            streams = front.reads(b"a", b"b", b"c")
            heard = await connection.hears()
            said = message(together(b"a", b"b", b"c", size=20_000))  # each is more than a frame may hold
            connection.says(headers(heard.stream, HEAD))
            for at in range(0, len(said), 10_000):
                connection.says(data(heard.stream, said[at : at + 10_000]))
            await front.until(lambda: front.client.context.buffers.used)  # counted while it is not whole
            connection.says(headers(heard.stream, trailers(), end=True))
            await front.hears_each(streams, b"a", b"b", b"c", size=20_000)

    @in_a_loop
    async def test_an_answer_that_is_mostly_padding_comes_whole(self) -> None:
        """Padding counts in the window, which is not given back while the answer is collected."""
        async with reading() as (connection, front):
            streams = front.reads(b"a", b"b")
            heard = await connection.hears()
            said = message(together(b"a", b"b", size=60_000))
            connection.says(headers(heard.stream, HEAD))
            left = STREAM_WINDOW
            for at in range(0, len(said), 100):
                while left < 400:
                    update = await connection.hears_frame(frames.WINDOW_UPDATE, heard.stream)
                    left += int.from_bytes(update.payload, "big")
                connection.says(data(heard.stream, said[at : at + 100], pad=255))
                left -= 356
            connection.says(headers(heard.stream, trailers(), end=True))
            await front.hears_each(streams, b"a", b"b", size=60_000)

    @in_a_loop
    async def test_an_answer_there_is_no_memory_for_is_not_put_together(self) -> None:
        async with reading(Limits(max_buffered_bytes=20_000)) as (connection, front):
            streams = front.reads(b"a", b"b")
            heard = await connection.hears()
            said = message(together(b"a", b"b", size=15_000))
            connection.says(headers(heard.stream, HEAD), data(heard.stream, said[:16_000]))
            connection.says(data(heard.stream, said[16_000:]))
            await serve_alone(connection, b"a", b"b", size=15_000)
            await front.hears_each(streams, b"a", b"b", size=15_000)

    @in_a_loop
    async def test_a_client_without_window_gets_its_answer_when_it_has(self) -> None:
        async with reading() as (connection, front):
            front.says(settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 10}))
            streams = front.reads(b"a", b"b")
            connection.answers(await connection.hears(), together(b"a", b"b"))
            await front.until(lambda: len(front.listen(streams[1]).body) == 10)
            assert not front.listen(streams[0]).over
            front.says(*(window(stream, 1000) for stream in streams))
            await front.hears_each(streams, b"a", b"b")

    @in_a_loop
    async def test_a_client_whose_answer_finds_no_memory_fails_alone(self) -> None:
        async with reading(Limits(max_buffered_bytes=1000)) as (connection, front):
            front.says(settings({frames.SETTINGS_INITIAL_WINDOW_SIZE: 1}))
            streams = front.reads(b"a", b"b", b"c")
            front.says(window(streams[0], 2000), window(streams[2], 2000))
            connection.answers(await connection.hears(), together(b"a", b"b", b"c", size=1500))
            await front.hears_each([streams[0], streams[2]], b"a", b"c", size=1500)
            assert (await front.answer(streams[1])).fields[b"grpc-message"] == OVERLOADED.message.encode()

    @in_a_loop
    async def test_as_many_share_one_as_their_answers_fit_together(self) -> None:
        async with reading() as (connection, front):
            streams = front.reads(b"a", b"b")
            connection.answers(await connection.hears(), together(b"a", b"b", size=8_000))
            await front.hears_each(streams, b"a", b"b", size=8_000)
            keys = [b"%d" % number for number in range(10)]
            streams = front.reads(*keys)
            heard = await connection.hears()
            assert keys_of(heard) == keys[:8]
            connection.answers(heard, together(*keys[:8]))
            heard = await connection.hears()
            assert keys_of(heard) == keys[8:]
            connection.answers(heard, together(*keys[8:]))
            await front.hears_each(streams, *keys)
            # Those were small again.
            streams = front.reads(*keys)
            heard = await connection.hears()
            assert keys_of(heard) == keys
            connection.answers(heard, together(*keys))
            await front.hears_each(streams, *keys)

    @in_a_loop
    async def test_large_ones_go_alone_for_a_while(self) -> None:
        async with reading() as (connection, front):
            streams = front.reads(b"a", b"b")
            _announces_too_much(connection, await connection.hears())
            await serve_alone(connection, b"a", b"b")
            await front.hears_each(streams, b"a", b"b")
            front.client.connection.weight = 0  # its answers have been small for a while
            await go_alone_for_a_while(connection, front)

    @in_a_loop
    async def test_those_that_turn_out_to_be_large_are_read_again_one_at_a_time(self) -> None:
        async with reading() as (connection, front):
            keys = [b"%d" % number for number in range(20)]
            streams = front.reads(*keys)
            said = message(bytes(20_000_000))
            heard = await connection.hears()
            connection.says(headers(heard.stream, HEAD), data(heard.stream, said[:16384]))
            for key in keys:
                heard = await connection.hears()
                assert key_of(heard) == key
                connection.says(headers(heard.stream, HEAD), data(heard.stream, message(bytes(1_000_000))[:16384]))
                await front.until(lambda: front.handler.gate.busy["s0", LARGE] == PLACES)
                assert connection.calls == [], "no other is at work there"
                front.cancels(streams[keys.index(key)])


class TestVersions:
    @in_a_loop
    async def test_one_that_does_not_tell_its_version_is_asked_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("esp.core.shard.connected.LONGEST_PAUSE", 0.01)
        async with ScriptedEtcd() as etcd:
            etcd.version = None
            async with Reader(etcd, limits=Limits(connect_timeout=0.3)) as front:
                connection = await etcd.accepts()
                await front.until(lambda: connection.statuses > 1)
                etcd.version = "3.6.0"
                await front.until(lambda: front.shard.version_in_use == "3.6.0")
                await go_together(connection, front)

    @pytest.mark.parametrize(
        ("version", "joined"),
        [("3.4.43", False), ("3.5.6", False), ("3.5.7", True), ("3.6.0-rc.1", True), ("3.10.1", True), ("odd", False)],
    )
    @in_a_loop
    async def test_an_etcd_that_does_not_bear_it_is_asked_one_by_one(self, version: str, joined: bool) -> None:
        async with reading(version=version) as (connection, front):
            streams = front.reads(b"a", b"b")
            if joined:
                connection.answers(await connection.hears(), together(b"a", b"b"))
            else:
                await serve_alone(connection, b"a", b"b")
            await front.hears_each(streams, b"a", b"b")

    @in_a_loop
    async def test_so_is_one_that_took_over_and_has_not_told_its_version(self) -> None:
        async with ScriptedEtcd() as etcd, Reader(etcd, limits=Limits(max_waiting_seconds=20)) as front:
            connection = await etcd.accepts()
            await front.until(lambda: front.shard.version_in_use)
            etcd.version = None
            connection.hangs_up()
            other = await etcd.accepts()
            await front.until(lambda: front.shard.is_ready)
            assert (front.shard.version, front.shard.version_in_use) == (VERSION, "")
            streams = front.reads(b"a", b"b")
            await serve_alone(other, b"a", b"b")
            await front.hears_each(streams, b"a", b"b")


@in_a_loop
async def test_a_bug_fails_the_calls_it_meets_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(messages: object) -> bytes:
        raise ZeroDivisionError

    async with reading() as (connection, front):
        with monkeypatch.context() as patch:
            patch.setattr(read_txn, "join", broken)
            for stream in front.reads(b"a", b"b"):
                assert await front.outcome(stream) == (Code.INTERNAL, "esp: internal error")
        assert "ZeroDivisionError" in caplog.text
        streams = front.reads(b"a", b"b")
        connection.answers(await connection.hears(), together(b"a", b"b"))
        await front.hears_each(streams, b"a", b"b")


@pytest.mark.parametrize("method", ["send_answer", "send_again"])
@in_a_loop
async def test_a_bug_that_one_call_shows_fails_that_call_only(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with reading() as (connection, front):
        streams = front.reads(b"a", b"b", b"c")
        heard = await connection.hears()
        owner: Any = ServerStream if method == "send_answer" else Shard
        real = getattr(owner, method)

        def broken(self: Any, *arguments: Any) -> Any:
            stream = self if owner is ServerStream else arguments[0]
            if stream.id == streams[1]:
                raise ZeroDivisionError
            return real(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, method, broken)
            if owner is ServerStream:
                connection.answers(heard, together(b"a", b"b", b"c"))
            else:
                connection.says(rst(heard.stream, ErrorCode.INTERNAL_ERROR))
                await serve_alone(connection, b"a", b"c")
            assert await front.outcome(streams[1]) == (Code.INTERNAL, "esp: internal error")
            await front.hears_each([streams[0], streams[2]], b"a", b"c")
        assert caplog.text.count("Traceback") == 1
