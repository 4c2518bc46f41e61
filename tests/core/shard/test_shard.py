"""One shard's client: fail-over, waiting calls, calls that are sent again, and errors for clients."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from esp.core import errors
from esp.core.background import Background
from esp.core.config import Endpoint
from esp.core.local import LocalEtcd, free_port
from esp.core.pb import rpc_pb2
from esp.core.shard import Connectivity, connected
from esp.core.shard.cluster import DEFAULT_TXN_OPS, HIGHEST_REVISION
from esp.core.shard.pulse import LONGEST_STEP
from esp.core.shard.shard import SHARD_TRAILER, Shard
from esp.core.tokens import MARK
from esp.core.wire import frames
from esp.core.wire.client import LAST_STREAM_ID, ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.frames import ErrorCode, settings
from esp.core.wire.limits import Limits
from esp.core.wire.message import parse_timeout
from esp.core.wire.status import Code, RpcError, Status
from tests.core.front import LOCK, PUT, RANGE, WATCH, Front
from tests.core.scripted_etcd import STATUS, VERSION, ScriptedEtcd
from tests.core.wire.conversation import HEAD, data, goaway, headers, message, rst, trailers
from tests.harness import Etcds, freeze, wait_until

OK = (0, "")
QUICK = Limits(
    connect_timeout=0.3, keepalive_time=0.3, keepalive_timeout=0.3, health_interval=0.15, health_timeout=0.15
)
WATCHFUL = Limits(connect_timeout=0.3, health_interval=0.1, health_timeout=1.1 * LONGEST_STEP)
"""Of this no single slow step of the machine decides that a server is silent: a step counts as LONGEST_STEP at most."""
PATIENT = Limits(max_waiting_seconds=20)


def told(status: Status) -> tuple[int, str]:
    return (status.code, status.message)


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
loop = "asyncio"


@pytest.fixture(autouse=True, params=list(LOOPS))
def _loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.loop", request.param)


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test in an event loop of its own, and finds what it left behind."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(asyncio.wait_for(test(*arguments, **named), 60))
        gc.collect()

    return run


def endpoint(etcd: LocalEtcd) -> Endpoint:
    host, _, port = etcd.address.rpartition(":")
    return Endpoint(host, int(port))


def dead() -> Endpoint:
    """Where nothing listens."""
    return Endpoint("127.0.0.1", free_port())


def stop(etcd: LocalEtcd) -> None:
    """Returns when the process stands still."""
    assert etcd.process
    freeze(etcd.process)
    wait_until(lambda: Path(f"/proc/{etcd.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


def go_on(etcd: LocalEtcd) -> None:
    assert etcd.process
    etcd.process.send_signal(signal.SIGCONT)


class TestCalls:
    @in_a_loop
    async def test_unary_calls_and_streams_go_over_connections_of_their_own(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            first = await etcd.accepts()
            put = front.put(b"a")
            call = await first.hears()
            assert (call.path, bytes(call.body)) == (PUT, message(b"a"))
            first.answers(call, b"done")
            assert await front.outcome(put) == OK
            assert bytes(front.answers[put].body) == message(b"done")

            watch = front.watch()
            second = await etcd.accepts()
            call = await second.hears_head()
            assert call.path == WATCH
            second.says(headers(call.stream, HEAD), data(call.stream, message(b"created")))
            await front.until(lambda: bytes(front.listen(watch).body) == message(b"created"))
            second.says(headers(call.stream, trailers(), end=True))
            assert await front.outcome(watch) == OK
            assert len(etcd.connections) == 2

    @in_a_loop
    async def test_the_version_is_learned_from_the_member_in_use(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            await front.until(lambda: front.shard.version)
            assert front.shard.version == VERSION

    @in_a_loop
    async def test_a_member_at_a_revision_that_may_be_taken_for_a_token_gets_no_calls(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert 2 * HIGHEST_REVISION == MARK
        async with ScriptedEtcd() as etcd:
            etcd.revision = HIGHEST_REVISION
            async with Front(etcd.endpoint, waits=False) as front:
                await front.until(lambda: front.shard.implausible)
                await front.until(lambda: len(etcd.connections) > 2)
                assert not front.shard.is_ready
                assert str(HIGHEST_REVISION) in front.shard.troubles[etcd.endpoint]
                etcd.revision = HIGHEST_REVISION - 1
                await front.until(lambda: front.shard.is_ready)
                assert (front.shard.implausible, front.shard.version) == ("", VERSION)
                assert etcd.connections[-1].statuses == 1, "once is enough"
        assert "cannot tell revisions from its own tokens" in caplog.text

    @in_a_loop
    async def test_a_member_at_a_token_is_an_esp(self) -> None:
        """Something between has passed the question on as a client's."""
        async with ScriptedEtcd() as etcd:
            etcd.revision = MARK
            async with Front(etcd.endpoint, waits=False) as front:
                await front.until(lambda: front.shard.barred)
                assert front.shard.implausible == ""
                assert "it is an esp" in front.shard.troubles[etcd.endpoint]

    @in_a_loop
    async def test_a_member_that_has_nothing_behind_it_gets_no_calls(self) -> None:
        async with ScriptedEtcd() as etcd:
            etcd.version, etcd.untold = None, errors.NO_CONNECTION
            async with Front(etcd.endpoint, waits=False) as front:
                await front.until(lambda: len(etcd.connections) > 2)
                assert not front.shard.is_ready
                told = "it does not tell its status: there is no connection available"
                assert front.shard.troubles[etcd.endpoint] == told
                etcd.version = VERSION
                await front.until(lambda: front.shard.is_ready)

    @in_a_loop
    async def test_one_that_gets_there_while_it_is_served_is_found_when_it_is_connected_to_again(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            first = await etcd.accepts()
            await front.until(lambda: front.shard.version)
            etcd.revision = HIGHEST_REVISION
            first.hangs_up()
            await front.until(lambda: front.shard.implausible)
            await front.until(lambda: len(etcd.connections) > 3)
            assert not front.shard.is_ready

    @in_a_loop
    async def test_what_it_has_told_is_forgotten_with_the_connection(self) -> None:
        """Who answers there the next time may have been restored from a backup, or allow fewer operations."""
        async with ScriptedEtcd() as etcd:
            etcd.revision = 7
            async with Front(etcd.endpoint) as front:
                shard = front.shard
                await front.until(lambda: shard.seen == 7)
                shard.saw(9)
                shard.saw(8)
                assert shard.seen == 9
                shard.allowed_ops = 1024
                etcd.revision = 5
                (await etcd.accepts()).hangs_up()
                await front.until(lambda: shard.seen in (0, 5))
                await front.until(lambda: shard.seen == 5)
                assert shard.allowed_ops == DEFAULT_TXN_OPS

    @in_a_loop
    async def test_one_that_does_not_tell_is_used_all_the_same(self) -> None:
        async with ScriptedEtcd() as etcd:
            etcd.version = None
            async with Front(etcd.endpoint) as front:
                await front.until(lambda: front.shard.is_ready)
                assert front.shard.implausible == ""

    @in_a_loop
    async def test_one_that_does_not_answer_when_it_is_asked_gets_no_calls(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with ScriptedEtcd() as first, ScriptedEtcd() as second:
            first.tells = False
            async with Front(first.endpoint, second.endpoint, limits=QUICK) as front:
                assert front.shard.endpoint == second.endpoint
            async with Front(first.endpoint, limits=QUICK, waits=False) as front:
                await front.until(lambda: front.shard.troubles)
                assert list(front.shard.troubles.values()) == ["it does not tell its status within 0.3 s"]
                assert await front.outcome(front.put()) == told(errors.NO_CONNECTION)
                first.tells = True
                await front.until(lambda: front.shard.is_ready)
            assert not first.calls

    @in_a_loop
    async def test_a_deadline_goes_along_as_it_came_when_the_call_is_sent_at_once(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            for path, ask in ((PUT, front.put), (RANGE, front.range)):
                stream = ask(b"", (b"grpc-timeout", b"07000m"))
                call = await connection.hears()
                assert (call.path, call.fields[b"grpc-timeout"]) == (path, b"07000m")
                connection.answers(call)
                assert await front.outcome(stream) == OK

    @pytest.mark.parametrize("ask", [Front.put, Front.watch])
    @in_a_loop
    async def test_of_a_deadline_only_the_rest_goes_along_when_the_call_waited(self, ask: Callable[..., int]) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT, waits=False) as front:
            stream = ask(front, *([b""] if ask is Front.put else []), (b"grpc-timeout", b"10S"))
            await etcd.accepts()
            await front.until(lambda: etcd.calls)
            left = parse_timeout(etcd.calls[0].fields[b"grpc-timeout"])
            assert left is not None
            assert 0 < left < 10
            front.cancels(stream)

    @in_a_loop
    async def test_a_deadline_that_passes_while_the_call_waits_is_the_client_s_own(self) -> None:
        async with Front(dead(), limits=PATIENT, waits=False) as front:
            streams = [front.put(b"", (b"grpc-timeout", b"50m")), front.watch((b"grpc-timeout", b"50m"))]
            for stream in streams:
                assert (await front.outcome(stream))[0] == Code.DEADLINE_EXCEEDED

    @in_a_loop
    async def test_a_deadline_that_passes_upstream_cancels_there(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            stream = front.put(b"", (b"grpc-timeout", b"100m"))
            call = await connection.hears()
            assert (await front.outcome(stream))[0] == Code.DEADLINE_EXCEEDED
            await connection.hears_frame(frames.RST_STREAM, call.stream)

    @in_a_loop
    async def test_a_client_that_cancels_cancels_there(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            stream = front.put()
            call = await connection.hears()
            front.cancels(stream)
            assert (await connection.hears_frame(frames.RST_STREAM)).stream == call.stream
            connection.answers(call)
            stream = front.put()
            connection.answers(await connection.hears())
            assert await front.outcome(stream) == OK


class TestWaiting:
    @in_a_loop
    async def test_calls_wait_for_the_connection_and_go_in_order(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT, waits=False) as front:
            streams = [front.put(b"%d" % n) for n in range(10)]
            connection = await etcd.accepts()
            for n in range(10):
                call = await connection.hears()
                assert bytes(call.body) == message(b"%d" % n)
                connection.answers(call)
            assert [await front.outcome(stream) for stream in streams] == [OK] * 10

    @in_a_loop
    async def test_not_longer_than_they_may(self) -> None:
        async with Front(dead(), limits=Limits(max_waiting_seconds=0.05), waits=False) as front:
            for ask in (front.put, front.range, front.watch):
                answer = await front.answer(ask())
                assert answer.outcome == told(errors.NO_CONNECTION)
                assert answer.fields[SHARD_TRAILER] == b"s0"
            assert front.client.limits_reached["max_waiting_seconds"] == 3

    @in_a_loop
    async def test_not_more_than_may(self) -> None:
        limits = Limits(max_waiting_seconds=1, max_waiting_requests=3)
        async with Front(dead(), limits=limits, waits=False) as front:
            streams = [front.put() for _ in range(5)]
            outcomes = [await front.outcome(stream) for stream in streams]
            assert outcomes == [told(errors.NO_CONNECTION)] * 3 + [told(errors.TOO_MANY_REQUESTS)] * 2

    @in_a_loop
    async def test_not_with_more_memory_than_there_is(self) -> None:
        limits = Limits(max_waiting_seconds=0.5, max_buffered_bytes=1000)
        async with Front(dead(), limits=limits, waits=False) as front:
            streams = [front.put(bytes(400)) for _ in range(3)]
            assert front.client.context.buffers.used == 810
            outcomes = [await front.outcome(stream) for stream in streams]
            assert outcomes == [told(errors.NO_CONNECTION)] * 2 + [told(errors.TOO_MANY_REQUESTS)]

    @in_a_loop
    async def test_a_client_that_cancels_meanwhile_is_forgotten(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT, waits=False) as front:
            front.cancels(front.put(b"x" * 100))
            front.cancels(front.watch())
            assert front.client.context.buffers.used == 0
            kept = front.put(b"kept")
            connection = await etcd.accepts()
            call = await connection.hears()
            assert bytes(call.body) == message(b"kept")
            connection.answers(call)
            assert await front.outcome(kept) == OK
            assert len(etcd.calls) == 1

    @in_a_loop
    async def test_a_stream_s_messages_wait_with_it_and_go_in_order(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT, waits=False) as front:
            stream = front.watch()
            pieces = [b"%d" % n * 500 for n in range(10)]
            for piece in pieces:
                front.says(data(stream, piece))
            front.says(data(stream, b"", end=True))
            await front.until(lambda: etcd.calls and etcd.calls[0].whole)
            assert bytes(etcd.calls[0].body) == b"".join(pieces)
            front.cancels(stream)

    @in_a_loop
    async def test_a_stream_that_goes_on_after_it_waited(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT, waits=False) as front:
            stream = front.watch()
            front.says(data(stream, b"first"))
            await front.until(lambda: etcd.calls)
            front.says(data(stream, b"second"))
            await front.until(lambda: bytes(etcd.calls[0].body) == b"firstsecond")
            assert not etcd.calls[0].whole
            front.cancels(stream)

    @in_a_loop
    async def test_a_limit_on_streams_of_one_then_none_then_many(self) -> None:
        one = {frames.SETTINGS_MAX_CONCURRENT_STREAMS: 1}
        async with ScriptedEtcd(one) as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            connection = await etcd.accepts()
            await front.until(lambda: front.shard.version)
            streams = [front.put(b"%d" % n) for n in range(30)]
            for n in range(10):
                call = await connection.hears()
                assert bytes(call.body) == message(b"%d" % n)
                assert len(connection.calls) == 0
                if n == 9:
                    connection.says(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 0}))
                connection.answers(call)
            assert await front.outcome(streams[9]) == OK
            connection.says(frames.ping(b"12345678"))
            await connection.hears_frame(frames.PING)
            assert not connection.calls
            connection.says(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 100}))
            calls = [await connection.hears() for _ in range(20)]
            assert [bytes(call.body) for call in calls] == [message(b"%d" % n) for n in range(10, 30)]
            for call in calls:
                connection.answers(call)
            assert [await front.outcome(stream) for stream in streams] == [OK] * 30
            assert len(etcd.connections) == 1

    @in_a_loop
    async def test_esp_s_own_calls_keep_to_the_limit_too(self) -> None:
        one = {frames.SETTINGS_MAX_CONCURRENT_STREAMS: 1}
        async with ScriptedEtcd(one) as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            connection = await etcd.accepts()
            await front.until(lambda: front.shard.version)
            asked = [
                asyncio.create_task(front.shard.forward_unary((PUT, b""), b"%d" % n, idempotent=False))
                for n in range(5)
            ]
            for _ in range(5):
                call = await connection.hears()
                assert not connection.calls
                connection.answers(call, call.body[5:])
            assert sorted(await asyncio.gather(*asked)) == [b"%d" % n for n in range(5)]

    @in_a_loop
    async def test_calls_that_wait_take_no_stream_from_short_calls(self) -> None:
        two = {frames.SETTINGS_MAX_CONCURRENT_STREAMS: 2}
        async with ScriptedEtcd(two) as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            first = await etcd.accepts()
            waiting = [front.unary(LOCK, b"%d" % n) for n in range(4)]
            await front.until(lambda: len(etcd.calls) == 4)
            assert not first.calls
            put = front.put(b"a")
            first.answers(await first.hears())
            assert await front.outcome(put) == OK
            for connection in etcd.connections[1:]:
                while connection.calls:
                    connection.answers(connection.calls.pop(0), b"mine")
            assert [await front.outcome(stream) for stream in waiting] == [OK] * 4

    @in_a_loop
    async def test_a_full_connection_for_streams_makes_room_with_another(self) -> None:
        two = {frames.SETTINGS_MAX_CONCURRENT_STREAMS: 2}
        async with ScriptedEtcd(two) as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            await etcd.accepts()
            streams = []
            for n in range(5):
                streams.append(front.watch())
                await front.until(lambda n=n: len(etcd.calls) == n + 1)
            assert len(etcd.connections) == 1 + 3
            for connection in etcd.connections[1:]:
                while connection.calls:
                    call = connection.calls.pop(0)
                    connection.says(headers(call.stream, HEAD + trailers(), end=True))
            for stream in streams:
                assert await front.outcome(stream) == OK
            for connection in etcd.connections[1:3]:
                await connection.ends()


class TestBroken:
    """The connection breaks, or the call does, after it was sent."""

    @in_a_loop
    async def test_a_write_that_may_have_been_applied_is_not_sent_again(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            stream = front.put()
            await connection.hears()
            connection.hangs_up()
            answer = await front.answer(stream)
            assert answer.outcome == told(errors.REQUEST_TIMED_OUT)
            assert answer.fields[SHARD_TRAILER] == b"s0"
            await etcd.accepts()
            await front.until(lambda: front.shard.version == VERSION and front.shard.is_ready)
            assert len(etcd.calls) == 1

    @pytest.mark.parametrize("code", [c for c in ErrorCode if c != ErrorCode.REFUSED_STREAM])
    @in_a_loop
    async def test_nor_when_etcd_resets_it(self, code: ErrorCode) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            stream = front.put(b"", (b"grpc-timeout", b"20S"))
            call = await connection.hears()
            connection.says(rst(call.stream, code))
            assert await front.outcome(stream) == told(errors.REQUEST_TIMED_OUT)
            assert len(etcd.calls) == 1

    @in_a_loop
    async def test_a_read_is_sent_again_once(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            stream = front.range(b"key", (b"grpc-timeout", b"20S"))
            for number in range(2):
                connection = await etcd.accepts()
                call = await connection.hears()
                assert bytes(call.body) == message(b"key")
                assert (call.fields[b"grpc-timeout"] == b"20S") is (number == 0)
                connection.hangs_up(abort=bool(number))
            assert await front.outcome(stream) == told(errors.REQUEST_TIMED_OUT)
            assert len(etcd.calls) == 2

    @in_a_loop
    async def test_but_not_when_its_answer_had_begun(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            stream = front.range()
            call = await connection.hears()
            connection.says(headers(call.stream, HEAD), data(call.stream, message(b"half")[:-1]))
            connection.hangs_up()
            assert await front.outcome(stream) == told(errors.REQUEST_TIMED_OUT)
            assert len(etcd.calls) == 1

    @in_a_loop
    async def test_one_whose_deadline_has_passed_is_neither_sent_again_nor_called_a_time_out_of_etcd_s(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            stream = front.range(b"", (b"grpc-timeout", b"30m"))
            call = await connection.hears()
            await asyncio.sleep(0.04)
            connection.says(rst(call.stream, ErrorCode.CANCEL))
            assert (await front.outcome(stream))[0] == Code.DEADLINE_EXCEEDED
            assert len(etcd.calls) == 1

    @pytest.mark.parametrize("ask", [Front.put, Front.range])
    @in_a_loop
    async def test_what_goaway_says_was_not_processed_is_sent_again_on_another_connection(
        self, ask: Callable[..., int]
    ) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            await front.until(lambda: front.shard.version)
            stream = ask(front, b"x")
            first = await etcd.accepts()
            call = await first.hears()
            first.says(goaway(call.stream - 2, ErrorCode.NO_ERROR))
            second = await etcd.accepts()
            call = await second.hears()
            assert bytes(call.body) == message(b"x")
            second.answers(call)
            assert await front.outcome(stream) == OK
            assert len(etcd.calls) == 2
            await first.ends()

    @in_a_loop
    async def test_but_only_once_and_then_the_client_may(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            await front.until(lambda: front.shard.version)
            stream = front.put()
            for _ in range(2):
                connection = await etcd.accepts()
                await connection.hears()
                connection.says(goaway(0, ErrorCode.NO_ERROR))
            assert await front.outcome(stream) == told(errors.NO_CONNECTION)
            assert len(etcd.calls) == 2

    @in_a_loop
    async def test_what_etcd_refuses_is_sent_again_once(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            stream = front.put()
            for _ in range(2):
                call = await connection.hears()
                connection.says(rst(call.stream, ErrorCode.REFUSED_STREAM))
            assert await front.outcome(stream) == told(errors.NO_CONNECTION)
            assert len(etcd.calls) == 2

    @pytest.mark.parametrize("memory", [11_000, 9_000])
    @in_a_loop
    async def test_what_is_kept_to_be_sent_again_counts_and_is_not_kept_without_memory(self, memory: int) -> None:
        async with (
            ScriptedEtcd() as etcd,
            Front(etcd.endpoint, limits=Limits(max_buffered_bytes=memory, max_waiting_seconds=20)) as front,
        ):
            connection = await etcd.accepts()
            stream = front.put(bytes(9_995))
            call = await connection.hears()
            is_kept = memory > 10_000
            assert front.client.context.buffers.used == (10_000 if is_kept else 0)
            connection.says(rst(call.stream, ErrorCode.REFUSED_STREAM))
            if is_kept:
                connection.answers(await connection.hears())
            assert await front.outcome(stream) == (OK if is_kept else told(errors.NO_CONNECTION))
            assert front.client.context.buffers.used == 0

    @in_a_loop
    async def test_a_write_that_was_not_sent_whole_is_sent_again(self) -> None:
        small = {frames.SETTINGS_INITIAL_WINDOW_SIZE: 10}
        async with ScriptedEtcd(small) as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            first = await etcd.accepts()
            first.silent = True
            content = bytes(range(256)) * 10
            stream = front.put(content)
            assert not (await first.hears_head()).whole
            etcd.greeting = {}
            first.hangs_up()
            second = await etcd.accepts()
            call = await second.hears()
            assert bytes(call.body) == message(content)
            second.answers(call)
            assert await front.outcome(stream) == OK

    @in_a_loop
    async def test_goaway_lets_what_was_processed_finish_while_new_calls_go_elsewhere(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            await front.until(lambda: front.shard.version)
            first = await etcd.accepts()
            old = front.put(b"old")
            old_call = await first.hears()
            first.says(goaway(2**31 - 1, ErrorCode.NO_ERROR))
            second = await etcd.accepts()
            new = front.put(b"new")
            second.answers(await second.hears())
            assert await front.outcome(new) == OK
            first.says(goaway(old_call.stream, ErrorCode.NO_ERROR))
            first.answers(old_call)
            assert await front.outcome(old) == OK
            await first.ends()

    @pytest.mark.parametrize(
        "said",
        [None, rst(3, ErrorCode.INTERNAL_ERROR), rst(3, ErrorCode.REFUSED_STREAM), goaway(1, ErrorCode.NO_ERROR)],
    )
    @in_a_loop
    async def test_a_stream_that_breaks_ends_with_server_stopped(self, said: bytes | None) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            await etcd.accepts()
            stream = front.watch()
            connection = await etcd.accepts()
            assert (await connection.hears_head()).stream == 3
            if said is None:
                connection.hangs_up()
            else:
                connection.says(said)
            answer = await front.answer(stream)
            assert answer.outcome == told(errors.SERVER_STOPPED)
            assert answer.fields[SHARD_TRAILER] == b"s0"

    @in_a_loop
    async def test_a_broken_connection_for_streams_leaves_unary_calls_alone(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            unary = await etcd.accepts()
            watch = front.watch()
            streams = await etcd.accepts()
            put = front.put()
            call = await unary.hears()
            streams.hangs_up(abort=True)
            assert await front.outcome(watch) == told(errors.SERVER_STOPPED)
            unary.answers(call)
            assert await front.outcome(put) == OK
            watch = front.watch()
            await etcd.accepts()
            await front.until(lambda: len([c for c in etcd.calls if c.path == WATCH]) == 2)
            front.cancels(watch)

    @in_a_loop
    async def test_a_call_that_waits_is_sent_again_only_if_it_surely_was_not_acted_on(self) -> None:
        """A shard deletes the key of a lock whose call broke, and another call may have got the lock with it."""
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            await etcd.accepts()
            lock = front.unary(LOCK, b"m")
            streams = await etcd.accepts()
            refused = await streams.hears()
            streams.says(rst(refused.stream, ErrorCode.REFUSED_STREAM))
            again = await streams.hears()
            assert again.body == refused.body
            streams.hangs_up()
            assert await front.outcome(lock) == told(errors.REQUEST_TIMED_OUT)
            assert len(etcd.calls) == 2

    @in_a_loop
    async def test_streams_that_waited_for_room_on_it_get_another_connection(self) -> None:
        none = {frames.SETTINGS_MAX_CONCURRENT_STREAMS: 0}
        async with ScriptedEtcd(none) as etcd, Front(etcd.endpoint, limits=PATIENT, waits=False) as front:
            unary = await etcd.accepts()
            unary.says(settings({frames.SETTINGS_MAX_CONCURRENT_STREAMS: 10}))
            watch = front.watch()
            streams = await etcd.accepts()
            await streams.hears_frame(frames.SETTINGS)
            etcd.greeting = {}
            streams.hangs_up()
            another = await etcd.accepts()
            call = await another.hears_head()
            another.says(headers(call.stream, HEAD + trailers(), end=True))
            assert await front.outcome(watch) == OK


class TestEspsOwnCalls:
    @in_a_loop
    async def test_a_write_that_may_have_been_applied_is_not_sent_again(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            asked = asyncio.create_task(front.shard.forward_unary((PUT, b""), b"", idempotent=False))
            await connection.hears()
            connection.hangs_up()
            with pytest.raises(RpcError) as caught:
                await asked
            assert caught.value.status == errors.REQUEST_TIMED_OUT
            assert len(etcd.calls) == 1

    @in_a_loop
    async def test_a_read_is_sent_again_once(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            asked = asyncio.create_task(front.shard.forward_unary((RANGE, b""), b"", idempotent=True, timeout=30))
            lefts = []
            for _ in range(2):
                connection = await etcd.accepts()
                call = await connection.hears()
                lefts.append(parse_timeout(call.fields[b"grpc-timeout"]))
                connection.hangs_up()
            with pytest.raises(RpcError) as caught:
                await asked
            assert caught.value.status == errors.REQUEST_TIMED_OUT
            assert len(etcd.calls) == 2
            assert 0 < lefts[1] <= lefts[0] <= 30

    @in_a_loop
    async def test_what_was_not_processed_is_sent_again_once(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            connection = await etcd.accepts()
            asked = asyncio.create_task(front.shard.forward_unary((PUT, b""), b"", idempotent=False))
            for _ in range(2):
                call = await connection.hears()
                connection.says(rst(call.stream, ErrorCode.REFUSED_STREAM))
            with pytest.raises(RpcError) as caught:
                await asked
            assert caught.value.status == errors.NO_CONNECTION
            assert len(etcd.calls) == 2

    @in_a_loop
    async def test_time_is_up(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            with pytest.raises(RpcError) as caught:
                await front.shard.forward_unary((PUT, b""), b"", idempotent=False, timeout=0.05)
            assert caught.value.status.code == Code.DEADLINE_EXCEEDED
            call = await connection.hears()
            await connection.hears_frame(frames.RST_STREAM, call.stream)

    @in_a_loop
    async def test_without_any_time_nothing_is_sent(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            with pytest.raises(RpcError) as caught:
                await front.shard.forward_unary((PUT, b""), b"", idempotent=False, timeout=0.0)
            assert caught.value.status.code == Code.DEADLINE_EXCEEDED
            assert await front.shard.forward_unary((STATUS, b""), b"", idempotent=True)
            assert not etcd.calls

    @in_a_loop
    async def test_no_connection_in_time(self) -> None:
        async with Front(dead(), limits=Limits(max_waiting_seconds=0.05), waits=False) as front:
            with pytest.raises(RpcError) as caught:
                await front.shard.forward_unary((PUT, b""), b"", idempotent=False)
            assert caught.value.status == errors.NO_CONNECTION
            with pytest.raises(RpcError) as caught:
                await front.shard.open(b"", b"")
            assert caught.value.status == errors.NO_CONNECTION

    @in_a_loop
    async def test_one_that_is_cancelled_while_it_waits_is_forgotten(self) -> None:
        async with Front(dead(), limits=Limits(max_waiting_requests=1, max_waiting_seconds=20), waits=False) as front:
            for _ in range(3):
                asked = asyncio.create_task(front.shard.forward_unary((PUT, b""), b"", idempotent=False))
                await asyncio.sleep(0)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked


class TestEndpoints:
    @in_a_loop
    async def test_a_first_endpoint_that_is_dead_is_passed_over(self) -> None:
        async with ScriptedEtcd() as etcd, Front(dead(), dead(), etcd.endpoint) as front:
            assert front.shard.endpoint == etcd.endpoint
            connection = await etcd.accepts()
            stream = front.put()
            connection.answers(await connection.hears())
            assert await front.outcome(stream) == OK

    @in_a_loop
    async def test_the_state_of_each_is_known(self) -> None:
        dead_one, idle = dead(), dead()
        async with ScriptedEtcd() as etcd, Front(dead_one, etcd.endpoint, idle) as front:
            states = front.shard.states
            assert [state.connectivity for state in states.values()] == [
                Connectivity.TRANSIENT_FAILURE,
                Connectivity.READY,
                Connectivity.IDLE,
            ]
            assert (states[dead_one].trouble, states[dead_one].failures) == ("connection refused", 1)
            assert (states[etcd.endpoint].trouble, states[etcd.endpoint].failures) == ("", 0)
            assert states[etcd.endpoint].answers == 1
            assert (states[etcd.endpoint].round_trip or 0) > 0
            assert states[idle].round_trip is None
            assert front.shard.troubles == {}, "none while there is a connection"

    @in_a_loop
    async def test_one_that_accepts_and_says_nothing_is_passed_over(self) -> None:
        async with (
            ScriptedEtcd(None, silent=True) as frozen,
            ScriptedEtcd() as etcd,
            Front(frozen.endpoint, etcd.endpoint, limits=QUICK) as front,
        ):
            assert front.shard.endpoint == etcd.endpoint
            told = "it accepts connections, but says nothing within 0.3 s"
            assert front.shard.states[frozen.endpoint].trouble == told
            await (await frozen.accepts()).ends()

    @in_a_loop
    async def test_one_that_dies_is_left_for_the_next(self) -> None:
        async with (
            ScriptedEtcd() as first,
            ScriptedEtcd() as second,
            Front(first.endpoint, second.endpoint, limits=PATIENT) as front,
        ):
            (await first.accepts()).hangs_up()
            await front.until(lambda: front.shard.endpoint == second.endpoint)
            stream = front.put()
            other = await second.accepts()
            other.answers(await other.hears())
            assert await front.outcome(stream) == OK

    @in_a_loop
    async def test_one_that_freezes_is_left_for_the_next(self) -> None:
        """Its kernel goes on acknowledging; only a PING without an answer tells."""
        async with (
            ScriptedEtcd() as first,
            ScriptedEtcd() as second,
            Front(first.endpoint, second.endpoint, limits=QUICK) as front,
        ):
            connection = await first.accepts()
            write, read = front.put(b"w"), front.range(b"r")
            await connection.hears()
            connection.silent = True
            assert await front.outcome(write) == told(errors.REQUEST_TIMED_OUT)
            other = await second.accepts()
            call = await other.hears()
            assert call.path == RANGE
            other.answers(call)
            assert await front.outcome(read) == OK

    @in_a_loop
    async def test_one_that_answers_pings_and_nothing_else_is_left_for_the_next(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Calls that it has are left to it: it may answer them yet."""
        async with (
            ScriptedEtcd() as first,
            ScriptedEtcd() as second,
            Front(first.endpoint, second.endpoint, limits=QUICK) as front,
        ):
            connection = await first.accepts()
            old = front.put(b"old")
            call = await connection.hears()
            first.tells = False
            await front.until(lambda: front.shard.endpoint == second.endpoint)
            new = front.put(b"new")
            other = await second.accepts()
            other.answers(await other.hears())
            assert await front.outcome(new) == OK
            connection.answers(call)
            assert await front.outcome(old) == OK
            await connection.ends()
        assert "frozen: its machine takes bytes, but no answer came within 0.15 s; connected to" in caplog.text

    @in_a_loop
    async def test_the_only_one_is_not_called_connected_while_it_answers_nothing_but_pings(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=QUICK) as front:
            etcd.tells = False
            await front.until(lambda: not front.shard.is_ready)
            await front.until(lambda: front.shard.troubles)
            assert not front.shard.is_ready
            etcd.tells = True
            await front.until(lambda: front.shard.is_ready)

    @in_a_loop
    async def test_a_frozen_one_is_left_and_told_without_any_call(self, caplog: pytest.LogCaptureFixture) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=WATCHFUL) as front:
            connection = await etcd.accepts()
            with caplog.at_level(logging.INFO, "esp.shard"):
                etcd.greeting, etcd.silent, connection.silent = None, True, True
                await front.until(lambda: front.shard.outages.since)
                assert await front.outcome(front.put()) == told(errors.NO_CONNECTION)
                assert front.shard.failed_calls == 1
                down: Any = SimpleNamespace(peer="10.0.0.9:1")
                with pytest.raises(RpcError):
                    await front.shard.forward_unary((PUT, b""), b"", idempotent=True, down=down)
                with pytest.raises(RpcError):
                    await front.shard.forward_unary((PUT, b""), b"", idempotent=True)  # no client's
                assert front.shard.failed_calls == 2
                etcd.greeting, etcd.silent = {}, False
                await front.until(lambda: front.shard.is_ready)
            dead_line, back = [record.getMessage() for record in caplog.records]
            why = "it accepts connections, but says nothing within 0.3 s"
            left = f"{etcd.endpoint} was left (frozen: its machine takes bytes, but no answer came within 1.1 s)"
            assert dead_line == f"shard s0: no endpoint can be used since {left}: {etcd.endpoint}: {why}"
            assert re.fullmatch(rf"shard s0: back after .* m?s: connected to {etcd.endpoint}; 2 calls failed", back)
            assert front.shard.outages.count == front.shard.outages.losses == 1
            assert front.client.limits_reached["health_timeout"] == 1

    @in_a_loop
    async def test_a_connection_for_streams_that_falls_silent_is_left_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A firewall forgets idle connections one by one. The watch ends, and the client opens another."""
        limits = replace(WATCHFUL, max_waiting_seconds=20)
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=limits) as front:
            unary = await etcd.accepts()
            front.watch()
            streams = await etcd.accepts()
            await streams.hears_head()
            streams.silent = True
            await front.until(lambda: "left the connection for streams: frozen" in caplog.text)
            watch = front.watch()
            other = await etcd.accepts()
            call = await other.hears_head()
            other.says(headers(call.stream, HEAD + trailers(), end=True))
            assert await front.outcome(watch) == OK
            put = front.put()
            unary.answers(await unary.hears())
            assert await front.outcome(put) == OK
            assert len(etcd.connections) == 3

    @in_a_loop
    async def test_one_that_says_it_has_no_leader_is_left_without_any_call(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with (
            ScriptedEtcd() as first,
            ScriptedEtcd() as second,
            Front(first.endpoint, second.endpoint, limits=WATCHFUL) as front,
        ):
            first.leader = 0
            await front.until(lambda: front.shard.endpoint == second.endpoint)
            assert "it has no leader: it is cut off from its cluster" in caplog.text
            assert front.shard.outages.losses == 1
            # When all say so, none is kept for ever.
            second.leader = 0
            await front.until(lambda: front.shard.outages.losses == 3)
            second.leader = 7
            await front.until(lambda: front.shard.endpoint == second.endpoint and front.shard.has_leader)

    @in_a_loop
    async def test_the_only_one_is_kept_without_a_leader_and_told(self, caplog: pytest.LogCaptureFixture) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=WATCHFUL) as front:
            etcd.leader = 0
            await front.until(lambda: f"shard s0: {etcd.endpoint} serves no writes: it has no leader" in caplog.text)
            assert front.shard.is_ready
            etcd.leader = 7
            await front.until(lambda: f"shard s0: {etcd.endpoint} has a leader again" in caplog.text)
            assert len(etcd.connections) == 1
            assert front.shard.outages.losses == 0

    @in_a_loop
    async def test_round_trips_are_taken_while_nobody_asks_anything(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=WATCHFUL) as front:
            await front.until(lambda: front.shard.states[etcd.endpoint].answers > 3)
            assert front.shard.failed_calls == front.shard.outages.losses == 0

    @pytest.mark.parametrize("text", ["etcdserver: no leader", "etcdserver: server stopped"])
    @pytest.mark.parametrize("own", [False, True])
    @in_a_loop
    async def test_one_that_cannot_serve_is_left_for_the_next(self, text: str, own: bool) -> None:
        async with (
            ScriptedEtcd() as first,
            ScriptedEtcd() as second,
            Front(first.endpoint, second.endpoint, limits=PATIENT) as front,
        ):
            connection = await first.accepts()
            await front.until(lambda: front.shard.version)
            error = headers(3, HEAD + trailers(Status(Code.UNAVAILABLE, text)), end=True)
            if own:
                asked = asyncio.create_task(front.shard.forward_unary((PUT, b""), b"", idempotent=False))
                assert (await connection.hears()).stream == 3
                connection.says(error)
                with pytest.raises(RpcError, match=text):
                    await asked
            else:
                stream = front.put()
                assert (await connection.hears()).stream == 3
                connection.says(error)
                assert await front.outcome(stream) == (Code.UNAVAILABLE, text)
            await connection.ends()
            other = await second.accepts()
            stream = front.put()
            other.answers(await other.hears())
            assert await front.outcome(stream) == OK

    @in_a_loop
    async def test_when_all_say_so_each_is_kept_for_a_while(self) -> None:
        error = HEAD + trailers(errors.NO_LEADER)
        async with (
            ScriptedEtcd() as first,
            ScriptedEtcd() as second,
            Front(first.endpoint, second.endpoint, limits=PATIENT) as front,
        ):
            for etcd in (first, second):
                connection = await etcd.accepts()
                for _ in range(10):
                    stream = front.put()
                    call = await connection.hears()
                    connection.says(headers(call.stream, error, end=True))
                    assert await front.outcome(stream) == told(errors.NO_LEADER)
                    if etcd is first:
                        break
            assert len(first.connections) == len(second.connections) == 1

    @in_a_loop
    async def test_the_only_one_is_kept_whatever_it_says(self) -> None:
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint) as front:
            connection = await etcd.accepts()
            for _ in range(3):
                stream = front.put()
                call = await connection.hears()
                connection.says(headers(call.stream, HEAD + trailers(errors.NO_LEADER), end=True))
                assert await front.outcome(stream) == told(errors.NO_LEADER)
            assert len(etcd.connections) == 1

    @in_a_loop
    async def test_one_that_comes_back_is_connected_to_again(self) -> None:
        where = dead()
        async with Front(where, waits=False) as front:
            await front.until(lambda: front.shard.troubles)
            async with ScriptedEtcd(port=where.port):
                await front.until(lambda: front.shard.is_ready)
                assert front.shard.troubles == {}

    @in_a_loop
    async def test_one_that_hangs_up_at_once_is_not_dialled_without_a_pause(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses: list[float] = []
        sleep = asyncio.sleep

        async def noted(seconds: float) -> None:
            if seconds > 0.03:
                pauses.append(seconds)
                seconds = 0
            await sleep(seconds)

        monkeypatch.setattr("esp.core.shard.connected.asyncio.sleep", noted)
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, waits=False):
            for _ in range(12):
                (await etcd.accepts()).hangs_up()
        assert len(pauses) >= 10
        assert all(later > earlier for earlier, later in pairwise(pauses[:4]))
        assert 1.5 < max(pauses) < 2.5

    @in_a_loop
    async def test_used_up_stream_ids_lose_no_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A connection takes its last call, another takes over, and both finish what they have."""
        first = LAST_STREAM_ID - 99
        monkeypatch.setattr(connected, "ClientConnection", partial(ClientConnection, first_stream_id=first))
        async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
            streams = [front.put(b"%d" % n) for n in range(200)]
            served = 0
            while served < 200:
                for connection in etcd.connections:
                    for call in [c for c in connection.calls if c.whole]:
                        connection.calls.remove(call)
                        assert call.stream <= first + 100
                        connection.answers(call)
                        served += 1
                await asyncio.sleep(0.001)
            assert [await front.outcome(stream) for stream in streams] == [OK] * 200
            assert sorted(bytes(call.body) for call in etcd.calls) == sorted(message(b"%d" % n) for n in range(200))
            assert len(etcd.connections) == 4


class TestEnd:
    @in_a_loop
    async def test_what_is_open_and_what_waits_is_told(self) -> None:
        async with ScriptedEtcd() as etcd:
            front = Front(etcd.endpoint)
            async with front:
                connection = await etcd.accepts()
                put, watch = front.put(), front.watch()
                await connection.hears()
                streams = await etcd.accepts()
                await streams.hears_head()
            assert await front.outcome(put) == told(errors.REQUEST_TIMED_OUT)
            assert await front.outcome(watch) == told(errors.SERVER_STOPPED)
            await connection.ends()
            await streams.ends()
            late = front.put()
            assert await front.outcome(late) == told(errors.NO_CONNECTION)
            with pytest.raises(RpcError):
                await front.shard.forward_unary((PUT, b""), b"", idempotent=False)

    @in_a_loop
    async def test_calls_that_wait_are_refused(self) -> None:
        front = Front(dead(), limits=PATIENT, waits=False)
        async with front:
            streams = [front.put(b"x"), front.watch()]
            own = asyncio.create_task(front.shard.forward_unary((PUT, b""), b"", idempotent=False))
            await asyncio.sleep(0)
            front._others.add(own)
        for stream in streams:
            assert await front.outcome(stream) == told(errors.NO_CONNECTION)
        with pytest.raises(RpcError):
            await own

    @in_a_loop
    async def test_in_the_middle_of_a_greeting(self) -> None:
        async with ScriptedEtcd(None, silent=True) as frozen, Front(frozen.endpoint, waits=False):
            connection = await frozen.accepts()
        await connection.ends()

    @in_a_loop
    async def test_a_connection_that_finishes_what_it_has_ends_too(self) -> None:
        async with ScriptedEtcd() as etcd:
            async with Front(etcd.endpoint, limits=PATIENT) as front:
                first = await etcd.accepts()
                stream = front.put()
                call = await first.hears()
                first.says(goaway(call.stream, ErrorCode.NO_ERROR))
                await etcd.accepts()
            await first.ends()
            assert await front.outcome(stream) == told(errors.REQUEST_TIMED_OUT)


class TestRealEtcds:
    """With real members; each is a cluster of its own here, so that it shows which one answered."""

    @pytest.fixture(autouse=True)
    def _loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The one that `esp serve` uses is enough."""
        monkeypatch.setattr(f"{__name__}.loop", "uvloop")

    def put(self, front: Front, key: bytes) -> int:
        return front.put(rpc_pb2.PutRequest(key=key, value=b"v").SerializeToString())

    async def holds(self, front: Front, key: bytes) -> bool:
        stream = front.range(rpc_pb2.RangeRequest(key=key).SerializeToString())
        assert await front.outcome(stream) == OK
        answer = rpc_pb2.RangeResponse.FromString(bytes(front.answers[stream].body)[5:])
        return answer.count == 1

    @in_a_loop
    async def moves_on(self, first: LocalEtcd, second: LocalEtcd, ends: Callable[[LocalEtcd], Awaitable[None]]) -> None:
        limits = Limits(connect_timeout=0.5, keepalive_time=0.5, keepalive_timeout=0.5, max_waiting_seconds=20)
        async with Front(endpoint(first), endpoint(second), limits=limits) as front:
            await front.until(lambda: front.shard.version)
            assert front.shard.version.startswith("3.")
            assert await front.outcome(self.put(front, b"one")) == OK
            assert await self.holds(front, b"one")
            await ends(first)
            read = front.range(rpc_pb2.RangeRequest(key=b"one").SerializeToString())
            assert await front.outcome(read) == OK, "a read moves on"
            assert front.shard.endpoint == endpoint(second)
            assert not await self.holds(front, b"one")
            assert await front.outcome(self.put(front, b"two")) == OK
            assert await self.holds(front, b"two")

    def test_a_member_that_is_killed(self, start_etcd: Etcds) -> None:
        async def kill(etcd: LocalEtcd) -> None:
            await asyncio.to_thread(etcd.kill)

        self.moves_on(*start_etcd.several(2), kill)

    def test_a_member_that_freezes(self, start_etcd: Etcds) -> None:
        frozen: list[LocalEtcd] = []

        async def freeze(etcd: LocalEtcd) -> None:
            stop(etcd)
            frozen.append(etcd)

        try:
            self.moves_on(*start_etcd.several(2), freeze)
        finally:
            for etcd in frozen:
                go_on(etcd)

    def test_a_member_that_freezes_while_nobody_asks_it_anything(self, start_etcd: Etcds) -> None:
        first, second = start_etcd.several(2)

        @in_a_loop
        async def run() -> None:
            async with Front(endpoint(first), endpoint(second), limits=QUICK) as front:
                await front.until(lambda: front.shard.version_in_use)
                stop(first)
                await front.until(lambda: front.shard.endpoint == endpoint(second))

        @in_a_loop
        async def run_alone() -> None:
            async with Front(endpoint(first), limits=QUICK) as front:
                await front.until(lambda: front.shard.version_in_use)
                stop(first)
                await front.until(lambda: not front.shard.is_ready)
                go_on(first)
                await front.until(lambda: front.shard.is_ready)

        for each in (run, run_alone):
            try:
                each()
            finally:
                go_on(first)

    def test_a_member_that_is_frozen_from_the_start(self, start_etcd: Etcds) -> None:
        first, second = start_etcd.several(2)
        stop(first)

        @in_a_loop
        async def run() -> None:
            async with Front(endpoint(first), endpoint(second), limits=Limits(connect_timeout=0.5)) as front:
                assert await front.outcome(self.put(front, b"a")) == OK
                assert front.shard.endpoint == endpoint(second)

        try:
            run()
        finally:
            go_on(first)

    def test_a_busy_connection_of_tiny_requests_is_not_closed(self, etcd: LocalEtcd) -> None:
        """etcd grants back a few bytes after each tiny request; that is no abuse."""

        @in_a_loop
        async def run() -> None:
            async with Front(endpoint(etcd)) as front:
                request = rpc_pb2.RangeRequest(key=b"a").SerializeToString()
                for _ in range(2000):
                    assert await front.outcome(front.range(request)) == OK
                assert front.client.limits_reached == {}

        run()

    def test_the_other_members_are_logged_only_when_all_fail(
        self, etcd: LocalEtcd, caplog: pytest.LogCaptureFixture
    ) -> None:
        @in_a_loop
        async def run() -> None:
            async with Front(dead(), endpoint(etcd)) as front:
                assert await front.outcome(self.put(front, b"a")) == OK

        with caplog.at_level(logging.INFO, "esp.shard"):
            run()
        assert [record.levelname for record in caplog.records if "cannot connect" in record.message] == []
        assert any("connected to" in record.message for record in caplog.records)


def test_a_shard_needs_no_running_loop_to_be_made() -> None:
    shard = Shard("s0", [dead()], WireContext(Limits()), Background())
    assert not shard.is_ready
    assert shard.endpoint is None


@in_a_loop
async def test_etcd_34_tells_its_alarms_without_a_header() -> None:
    shard = Shard("s0", [dead()], WireContext(Limits()), Background())
    assert shard.parsed(rpc_pb2.AlarmResponse, b"") == rpc_pb2.AlarmResponse()
    with pytest.raises(RpcError, match="has no header"):
        shard.parsed(rpc_pb2.PutResponse, b"")


def test_a_call_whose_client_is_gone_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many calls of a connection that broke are told of that over several turns; a client may leave meanwhile."""
    sent: list[object] = []
    monkeypatch.setattr(Shard, "send_again", lambda _, down, message: sent.append(message))
    handler = SimpleNamespace(idempotent=True)
    down = SimpleNamespace(is_over=False, remaining=lambda: None, responded=False, retried=False)
    down.head = SimpleNamespace(handler=handler)
    call: Any = SimpleNamespace(down=down, message=b"x", surely_unprocessed=lambda code: False)
    shard = Shard.__new__(Shard)
    shard.repeated = 0
    shard.on_broken(call, 0, "gone")
    assert sent == [b"x"]
    down.is_over, down.retried = True, False
    shard.on_broken(call, 0, "gone")
    assert sent == [b"x"]
