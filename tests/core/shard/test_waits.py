"""Calls for locks and elections that are given up: one at a time, and never so that a lock is left to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest
import uvloop

from esp.core import errors
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.shard import waits
from esp.core.shard.waits import AT_ONCE, WAITS
from esp.core.wire import frames
from esp.core.wire.limits import Limits
from esp.core.wire.message import PREFIX_SIZE
from esp.core.wire.status import DEADLINE_EXCEEDED, Code
from tests.core.front import CAMPAIGN, LOCK, OBSERVE, RANGE, Front
from tests.core.scripted_etcd import HeardCall, ScriptedConnection, ScriptedEtcd
from tests.core.wire.conversation import HEAD, data, headers, message, trailers

TXN = b"/etcdserverpb.KV/Txn"
LATE = b"m/%x" % (AT_ONCE + 1)
"""The key of the first call that is not given up at once."""
PATIENT = Limits(max_waiting_seconds=20, health_interval=60, health_timeout=60)
"""So that the questions of this module are the only ones."""


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(asyncio.wait_for(test(*arguments, **named), 60))

    return run


def lock(name: bytes, lease: int) -> bytes:
    return v3lock_pb2.LockRequest(name=name, lease=lease).SerializeToString()


def campaign(name: bytes, lease: int) -> bytes:
    return v3election_pb2.CampaignRequest(name=name, lease=lease, value=b"me").SerializeToString()


class Line:
    """Clients that wait in line, the first of them for nobody at the shard that is heard here.

    Attributes:
        heard: what the shard got of each of them.
    """

    def __init__(self, etcd: ScriptedEtcd, front: Front) -> None:
        self.etcd = etcd
        self.front = front
        self.streams: list[int] = []
        self.heard: list[HeardCall] = []
        self.shard: ScriptedConnection

    async def wait(self, number: int, path: bytes = LOCK, content: Callable[[bytes, int], bytes] = lock) -> None:
        await self.etcd.accepts()
        self.streams = [self.front.unary(path, content(b"m", 1 + n)) for n in range(number)]
        self.shard = await self.etcd.accepts()
        self.heard = [await self.shard.hears() for _ in range(number)]
        self.etcd.tells = False

    def gives_up(self) -> None:
        for stream in self.streams:
            self.front.cancels(stream)

    async def question(self) -> HeardCall:
        """The next question of esp, which came behind all that was given up."""
        await self.front.until(lambda: self.shard.untold)
        return self.shard.untold.pop(0)

    async def given_up(self, number: int) -> list[int]:
        """The places in line of the next calls that were given up."""
        gone = [(await self.shard.hears_frame(frames.RST_STREAM)).stream for _ in range(number)]
        return [[call.stream for call in self.heard].index(stream) for stream in gone]

    def gets(self, place: int, *, revision: int = 7) -> None:
        """A call that waits gets its lock."""
        call = self.heard[place]
        key = b"m/%x" % (1 + place)
        header = rpc_pb2.ResponseHeader(revision=revision)
        answer: Any = v3lock_pb2.LockResponse(header=header, key=key)
        if call.path == CAMPAIGN:
            answer = v3election_pb2.CampaignResponse(header=header, leader={"name": b"m", "key": key, "rev": 5})
        self.shard.answers(call, answer.SerializeToString())


@pytest.mark.parametrize("path", sorted(WAITS))
@in_a_loop
async def test_many_are_given_up_one_after_the_other_each_behind_an_answer_of_the_shard(path: bytes) -> None:
    number = 2 * AT_ONCE + 1
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        line = Line(etcd, front)
        await line.wait(number, path, campaign if path == CAMPAIGN else lock)
        line.gives_up()
        for first in range(0, number, AT_ONCE):
            few = list(range(first, min(first + AT_ONCE, number)))
            question = await line.question()
            assert await line.given_up(len(few)) == few
            assert front.shard.waits.waiting == number - few[-1] - 1
            assert not front.shard.waits.are_done
            etcd.tells = True
            line.shard.answers(question)
            etcd.tells = False
        await front.shard.waits.done()
        assert front.shard.waits.waiting == 0


@in_a_loop
async def test_those_on_a_connection_that_ends_are_given_up_with_it() -> None:
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        line = Line(etcd, front)
        await line.wait(2 * AT_ONCE)
        line.gives_up()
        await line.question()
        line.shard.hangs_up()
        await front.until(lambda: front.shard.waits.are_done)
        assert front.shard.waits.waiting == 0


@pytest.mark.parametrize(
    ("path", "content", "condition"),
    [
        (LOCK, lock, rpc_pb2.Compare(key=LATE, target="CREATE", result="LESS", create_revision=8)),
        (CAMPAIGN, campaign, rpc_pb2.Compare(key=LATE, target="CREATE", result="EQUAL", create_revision=5)),
    ],
)
@in_a_loop
async def test_a_lock_that_one_of_them_still_gets_is_deleted(
    path: bytes, content: Callable[[bytes, int], bytes], condition: rpc_pb2.Compare
) -> None:
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        line = Line(etcd, front)
        await line.wait(AT_ONCE + 1, path, content)
        line.gives_up()
        question = await line.question()
        line.gets(AT_ONCE)
        unary = etcd.connections[0]
        call = await unary.hears()
        assert call.path == TXN
        txn = rpc_pb2.TxnRequest.FromString(call.body[PREFIX_SIZE:])
        assert list(txn.compare) == [condition]
        assert [op.request_delete_range.key for op in txn.success] == [LATE]
        assert not txn.failure
        # The same key could be made again before it is deleted, and its maker would lose the lock.
        again = front.unary(path, content(b"m", AT_ONCE + 1))
        assert await front.outcome(again) == (errors.NO_CONNECTION.code, errors.NO_CONNECTION.message)
        other = front.unary(path, content(b"m", AT_ONCE + 2))
        assert (await line.shard.hears()).body[PREFIX_SIZE:] == content(b"m", AT_ONCE + 2)
        unary.answers(call)
        await front.until(lambda: front.shard.waits.may_begin(path, message(content(b"m", AT_ONCE + 1))))
        front.cancels(other)
        line.shard.answers(question)
        etcd.tells = True
        for late in [*line.shard.untold]:
            line.shard.answers(late)
        await front.shard.waits.done()


@in_a_loop
async def test_the_lock_of_another_call_with_the_same_request_is_not_deleted() -> None:
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        line = Line(etcd, front)
        await line.wait(AT_ONCE + 1)
        twin = front.unary(LOCK, lock(b"m", AT_ONCE + 1))
        line.heard.append(await line.shard.hears())
        line.gives_up()
        question = await line.question()
        line.gets(AT_ONCE)
        await front.until(lambda: front.shard.waits.waiting == 0)
        key = v3lock_pb2.LockResponse(header=rpc_pb2.ResponseHeader(revision=7), key=LATE)
        line.shard.answers(line.heard[-1], key.SerializeToString())
        assert (await front.outcome(twin))[0] == Code.OK
        assert front.shard.waits.may_begin(LOCK, message(lock(b"m", AT_ONCE + 1))), "no key is being deleted"
        etcd.tells = True
        line.shard.answers(question)
        await front.shard.waits.done()
        assert not etcd.connections[0].calls


@in_a_loop
async def test_a_key_that_cannot_be_deleted_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        line = Line(etcd, front)
        await line.wait(AT_ONCE + 1)
        line.gives_up()
        question = await line.question()
        line.gets(AT_ONCE)
        call = await etcd.connections[0].hears()
        etcd.tells = True
        refusal = trailers(errors.PERMISSION_DENIED)
        etcd.connections[0].says(headers(call.stream, HEAD + refusal, end=True))
        await front.until(
            lambda: f"the key {LATE.decode()} of a lock" in caplog.text and "permission denied" in caplog.text
        )
        line.shard.answers(question)
        await front.shard.waits.done()


@pytest.mark.parametrize(
    ("created", "is_told"),
    [(5, True), (6, False), (None, False)],
    ids=["the key of before", "one that was made since", "none"],
)
@in_a_loop
async def test_a_key_that_stays_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, created: int | None, is_told: bool
) -> None:
    monkeypatch.setattr(waits, "STAYS_SECONDS", 0.01)
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        line = Line(etcd, front)
        await line.wait(1)
        etcd.tells = True
        front.shard.seen = 5
        line.gives_up()
        call = await etcd.connections[0].hears()
        assert call.path == RANGE
        assert rpc_pb2.RangeRequest.FromString(call.body[PREFIX_SIZE:]).key == b"m/1"
        kvs = [] if created is None else [{"key": b"m/1", "create_revision": created}]
        header = rpc_pb2.ResponseHeader(revision=9)
        etcd.connections[0].answers(call, rpc_pb2.RangeResponse(header=header, kvs=kvs).SerializeToString())
        await front.shard.waits.done()
        await front.until(lambda: not any("look_for" in task.get_name() for task in front.shard.background.tasks))
        assert ("the key m/1 stays although its Lock or Campaign was given up" in caplog.text) is is_told


@in_a_loop
async def test_one_that_ends_with_an_error_has_no_lock() -> None:
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        line = Line(etcd, front)
        await line.wait(AT_ONCE + 2)
        line.gives_up()
        question = await line.question()
        gone, garbled = line.heard[-2:]
        line.shard.says(headers(gone.stream, HEAD + trailers(errors.SERVER_STOPPED), end=True))
        line.shard.says(headers(garbled.stream, HEAD), data(garbled.stream, message(b"\xff"), end=True))
        await front.until(lambda: front.shard.waits.waiting == 0)
        etcd.tells = True
        line.shard.answers(question)
        await front.shard.waits.done()
        assert not etcd.connections[0].calls


@in_a_loop
async def test_who_asks_for_the_same_key_comes_behind_the_one_that_is_given_up() -> None:
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        line = Line(etcd, front)
        await line.wait(AT_ONCE + 2)
        line.gives_up()
        question = await line.question()
        assert await line.given_up(AT_ONCE) == list(range(AT_ONCE))
        front.unary(LOCK, lock(b"m", AT_ONCE + 2))
        assert (await line.shard.hears()).body[PREFIX_SIZE:] == lock(b"m", AT_ONCE + 2)
        assert await line.given_up(1) == [AT_ONCE + 1]
        assert front.shard.waits.waiting == 1
        etcd.tells = True
        line.shard.answers(question)
        assert await line.given_up(1) == [AT_ONCE]
        await front.shard.waits.done()


@in_a_loop
async def test_if_too_many_wait_to_be_given_up_no_other_may_begin() -> None:
    limits = Limits(max_waiting_seconds=20, health_interval=60, health_timeout=60, max_waiting_requests=3)
    refused = errors.TOO_MANY_REQUESTS.code, errors.TOO_MANY_REQUESTS.message
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=limits) as front:
        line = Line(etcd, front)
        await line.wait(1)
        for n in range(2, AT_ONCE + 4):
            line.streams.append(front.unary(LOCK, lock(b"m", n)))
            line.heard.append(await line.shard.hears())
        line.gives_up()
        question = await line.question()
        assert await front.outcome(front.unary(LOCK, lock(b"n", 1))) == refused
        assert await front.outcome(front.unary(OBSERVE, b"")) == refused
        assert front.client.context.counters.limits["max_waiting_requests"] == 2
        etcd.tells = True
        line.shard.answers(question)
        await front.shard.waits.done()
        front.unary(LOCK, lock(b"n", 1))
        assert (await line.shard.hears()).path == LOCK


@in_a_loop
async def test_the_shard_is_not_told_when_they_end() -> None:
    async with ScriptedEtcd() as etcd, Front(etcd.endpoint, limits=PATIENT) as front:
        await etcd.accepts()
        stream = front.unary(LOCK, lock(b"m", 1), (b"grpc-timeout", b"200m"))
        shard = await etcd.accepts()
        call = await shard.hears()
        assert b"grpc-timeout" not in call.fields
        assert await front.outcome(stream) == (Code.DEADLINE_EXCEEDED, DEADLINE_EXCEEDED.message)
        assert (await shard.hears_frame(frames.RST_STREAM)).stream == call.stream
        await front.shard.waits.done()
