"""Ranges over three shards with nothing but their keys, of a client whose answers were small: the handler in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from esp.core.background import Background
from esp.core.keys import KeyRange
from esp.core.metrics.calls import Calls
from esp.core.pb import rpc_pb2
from esp.core.services import metadata
from esp.core.services.entry import LARGE_ANSWER, PLACES
from esp.core.services.gate import Gate
from esp.core.services.kv.concat_part import Part
from esp.core.services.kv.service import FREE_CALLS, Range
from esp.core.wire import frames
from esp.core.wire.frames import ErrorCode
from esp.core.wire.hpack import encode
from esp.core.wire.message import prefix
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler
from tests.core.services.kv.test_concat import (
    GOOD,
    HEAD,
    LOST,
    PARTS,
    Scene,
    check,
    data,
    head,
    message,
    only,
    part,
    trailers,
)

PATH = b"/etcdserverpb.KV/Range"
SPAN = rpc_pb2.RangeRequest(key=b"a", range_end=b"z")
REFUSED = encode([(b"grpc-status", b"7"), (b"grpc-message", b"no")])


class Served(Scene):
    """A client that has had small answers."""

    snapshots = False

    def __post_init__(self) -> None:
        self.calls = Calls(self.context, {PATH})
        super().__post_init__()
        for shard in self.shards:
            shard.connection.observe(self.calls.passed_to(shard.name))
        self.gate = Gate(self.context, Background(), clock=float)  # which stands still, so that no shard rests
        self.handler = Range(self.routing, self.gate, snapshots=self.snapshots, snapshot_tries=0)
        self.tasks: list[Any] = []
        self.handler.spawn = self.spawns  # type: ignore[assignment]
        self.fields: list[tuple[bytes, bytes]] = []

        def find(head: RequestHead) -> Handler:
            head.forward = head.path, head.encode_metadata()
            head.fields += self.fields
            return self.handler

        self.client = ServerConnection(self.context, "client", find)
        self.client.receive(frames.PREFACE + frames.settings({4: self.window}) + b"".join(self.opening()))
        self.client.take_output()
        self.client.weight = 0
        for shard in self.shards:
            shard.connection.take_output()

    def spawns(self, work: Any, on_bug: object = None, on_end: Callable[[], object] = list) -> None:
        """Notes that there is a task, which never begins."""
        self.tasks.append(work)
        work.close()
        on_end()

    def knows(self) -> None:
        """A first call, after which answers in the same form are taken in one step."""
        self.asks(SPAN)
        for shard, answer in zip(self.shards, PARTS, strict=True):
            shard.says(head(), data(answer), trailers())
        check(self)

    def asks(self, request: rpc_pb2.RangeRequest, stream_id: int = 1) -> None:
        super().asks(request, stream_id)
        self.client.paused()
        self.context.flush()

    @property
    def open(self) -> list[int]:
        return [len(shard.connection.streams) for shard in self.shards]


def test_it_is_asked_of_all_at_once_without_a_place_and_counted_as_one_call() -> None:
    scene = Served()
    scene.asks(SPAN)
    assert scene.open == [1, 1, 1]
    assert not scene.gate.at_work
    for shard, answer in zip(scene.shards, PARTS, strict=True):
        shard.says(head(), data(answer), trailers())
    check(scene)
    scene.calls.tick()
    assert scene.calls.served[PATH].codes == {0: 1}
    assert not scene.calls.passed["a"][PATH].codes
    assert [scene.calls.sent[name][PATH].codes for name in "abc"] == [{0: 1}] * 3


def test_the_answer_has_the_form_in_which_etcd_writes_it() -> None:
    scene = Served()
    scene.knows()
    scene.asks(SPAN, 3)
    for shard, answer in zip(scene.shards, PARTS, strict=True):
        shard.says(
            frames.frame(frames.HEADERS, 4, 3, HEAD),
            frames.frame(frames.DATA, 0, 3, answer),
            frames.frame(frames.HEADERS, 5, 3, GOOD),
        )
    body, seen = scene.answer(3)
    assert seen == [(frames.HEADERS, 4), (frames.DATA, 0), (frames.HEADERS, 5)]
    assert message(body).SerializeToString() == body[5:]


@pytest.mark.parametrize("weight", [-1, PLACES])
def test_other_clients_need_places(weight: int) -> None:
    scene = Served()
    scene.client.weight = weight
    scene.asks(SPAN)
    assert len(scene.gate.at_work) == 1
    for shard, answer in zip(scene.shards, PARTS, strict=True):
        shard.says(head(), data(answer), trailers())
    check(scene)
    assert not scene.gate.at_work


def test_a_snapshot_is_served_by_a_coroutine() -> None:
    scene = Served()
    scene.fields = [(metadata.READ, b"snapshot")]
    scene.asks(SPAN)
    assert len(scene.tasks) == 1
    assert scene.open == [0, 0, 0]


def test_an_undivided_range_is_refused() -> None:
    scene = Served()
    scene.routing.undivided.add(KeyRange(b"c", b"k"), "keep to one shard")
    scene.asks(SPAN)
    assert b"keep to one shard" in scene.client.take_output()
    assert scene.open == [0, 0, 0]


def test_a_large_answer_takes_places_and_so_do_the_next_reads() -> None:
    scene = Served(window=1000)
    scene.asks(SPAN)
    large = part(1, (b"a", b"v" * LARGE_ANSWER))
    pieces = [data(large[at : at + 16384]) for at in range(0, len(large), 16384)]
    scene.shards[0].says(head(), *pieces[:4])
    assert scene.client.weight == PLACES
    for shard in scene.shards[1:]:
        shard.says(head(), data(part(1)), trailers())
    assert scene.gate._held
    scene.client.receive(frames.window_update(1, 1 << 20))
    scene.shards[0].says(*pieces[4:], trailers())
    assert len(message(scene.answer()[0]).kvs) == 1
    assert not scene.client.streams
    assert not scene.gate._held
    assert not scene.gate.at_work


@pytest.mark.parametrize("away", range(3))
def test_without_a_connection_to_a_shard_it_waits_for_one_as_others_do(away: int) -> None:
    scene = Served()
    scene.shards[away].connection.lost("gone")
    scene.asks(SPAN)
    assert len(scene.tasks) == 1
    assert scene.open == [0, 0, 0]


def test_a_connection_that_breaks_has_all_shards_asked_once_more() -> None:
    scene = Served()
    scene.asks(SPAN)
    scene.shards[0].says(head(), data(PARTS[0]), trailers())
    scene.shards[1].connection.lost("gone")
    assert len(scene.tasks) == 1
    [stream] = scene.client.streams.values()
    assert stream.retried
    assert scene.open == [0, 0, 0]


def test_a_client_that_takes_it_back_at_once_has_no_shard_asked() -> None:
    scene = Served()
    scene.knows()
    for shard in scene.shards:
        shard.connection.take_output()
    Scene.asks(scene, SPAN, 3)
    scene.client.receive(frames.rst_stream(3, ErrorCode.CANCEL))
    scene.client.paused()
    scene.context.flush()
    assert scene.open == [0, 0, 0]
    assert [shard.connection.take_output() for shard in scene.shards] == [b""] * 3


class Together(Served):
    """Several calls that came in the same turn of the loop; the shards answer them when told to."""

    def all_ask(self, *requests: rpc_pb2.RangeRequest, first: int = 1) -> None:
        for place, request in enumerate(requests):
            Scene.asks(self, request, first + 2 * place)
        self.client.paused()
        self.context.flush()

    def sent(self, name: str) -> list[tuple[int, bytes]]:
        """The requests that a shard got, each with its stream, and without prefix."""
        shard = self.shards["abc".index(name)]
        out, at, found = shard.connection.take_output(), 0, []
        while at < len(out):
            word, _, stream_id = frames.unpack_header(out, at)
            if word & 0xFF == frames.DATA:
                found.append((stream_id, out[at + 14 : at + 9 + (word >> 8)]))
            at += 9 + (word >> 8)
        return found

    def joined(self, name: str) -> list[rpc_pb2.RangeRequest]:
        """The reads of the one transaction that a shard got."""
        [(_, body)] = self.sent(name)
        return [operation.request_range for operation in rpc_pb2.TxnRequest.FromString(body).success]

    def says(self, name: str, payload: bytes, end: bytes = GOOD) -> None:
        """The answer to everything that is open at a shard."""
        shard = self.shards["abc".index(name)]
        for stream_id in list(shard.connection.streams):
            said = [frames.frame(frames.HEADERS, 4, stream_id, HEAD)]
            said += [
                frames.frame(frames.DATA, 0, stream_id, payload[at : at + 16384])
                for at in range(0, len(payload), 16384)
            ]
            shard.says(*said, frames.frame(frames.HEADERS, 5, stream_id, end))


def joined_answer(revision: int, *counts: int, size: int = 3) -> bytes:
    """Of a shard to a transaction of Ranges, each of which finds so many keys."""
    answer = rpc_pb2.TxnResponse(succeeded=True)
    answer.header.CopyFrom(rpc_pb2.ResponseHeader(cluster_id=1 << 63, member_id=7, revision=revision, raft_term=2))
    for count in counts:
        found = answer.responses.add().response_range
        found.header.revision = revision
        found.count = count
        for number in range(count):
            found.kvs.add(key=b"%d" % number, value=b"v" * size)
    return prefix(answer.SerializeToString())


NARROW = rpc_pb2.RangeRequest(key=b"b", range_end=b"k")


def test_what_comes_at_once_goes_to_each_shard_as_one_transaction() -> None:
    scene = Together()
    scene.all_ask(SPAN, NARROW, SPAN)
    assert scene.joined("a") == [
        rpc_pb2.RangeRequest(key=key, range_end=b"i") for key in (SPAN.key, NARROW.key, SPAN.key)
    ]
    assert scene.joined("b") == [rpc_pb2.RangeRequest(key=b"i", range_end=end) for end in (b"r", b"k", b"r")]
    assert scene.joined("c") == [rpc_pb2.RangeRequest(key=b"r", range_end=b"z")] * 2
    assert [shard.joined_reads for shard in scene.shards] == [3, 3, 2]
    scene.says("c", joined_answer(9, 1, 2))
    scene.says("a", joined_answer(5, 1, 2, 3))
    assert scene.answer(1) == (b"", [])
    scene.says("b", joined_answer(3, 0, 0, 0))
    out = scene.client.take_output()
    found = [message(only(out, stream_id)) for stream_id in (1, 3, 5)]
    assert [(answer.count, len(answer.kvs), answer.more) for answer in found] == [
        (2, 2, False),
        (2, 2, False),
        (5, 5, False),
    ]
    tokens = [scene.routing.tokens.position(answer.header.revision) for answer in found]
    assert [position and position.vector.revisions for position in tokens] == [(5, 3, 9), (5, 3, 0), (5, 3, 9)]
    assert not scene.client.streams
    assert scene.open == [0, 0, 0]
    scene.calls.tick()
    assert scene.calls.served[PATH].codes == {0: 3}


@pytest.mark.parametrize("gone", [(1,), (1, 3)])
def test_who_goes_away_takes_nobody_along(gone: tuple[int, ...]) -> None:
    scene = Together()
    scene.all_ask(SPAN, SPAN)
    for stream_id in gone:
        scene.client.receive(frames.rst_stream(stream_id, ErrorCode.CANCEL))
    assert scene.open == ([1, 1, 1] if len(gone) == 1 else [0, 0, 0])
    for name in "abc":
        scene.says(name, joined_answer(5, 1, 1))
    if len(gone) == 1:
        assert message(scene.answer(3)[0]).count == 3
    assert scene.open == [0, 0, 0]
    assert not scene.client.streams


@pytest.mark.parametrize("code", [7, 13, 11])
def test_after_a_refusal_each_part_is_asked_for_by_itself(code: int) -> None:
    scene = Together()
    scene.all_ask(SPAN, SPAN)
    scene.says("a", joined_answer(5, 1, 1))
    scene.sent("b")
    scene.says("b", b"", encode([(b"grpc-status", b"%d" % code), (b"grpc-message", b"no")]))
    scene.context.flush()
    assert [rpc_pb2.RangeRequest.FromString(body) for _, body in scene.sent("b")] == [
        rpc_pb2.RangeRequest(key=b"i", range_end=b"r")
    ] * 2
    scene.says("b", part(3))
    scene.says("c", joined_answer(9, 0, 0))
    out = scene.client.take_output()
    assert [message(only(out, stream_id)).count for stream_id in (1, 3)] == [1, 1]


def test_an_answer_of_unusual_form_has_each_part_asked_for_by_itself() -> None:
    scene = Together()
    scene.all_ask(SPAN, SPAN)
    scene.says("a", joined_answer(5, 1))
    assert scene.open == [2, 1, 1]


def test_what_ails_a_shard_is_told_to_all() -> None:
    scene = Together()
    scene.all_ask(SPAN, SPAN)
    scene.says("a", joined_answer(5, 1, 1))
    scene.says("b", b"", LOST)
    assert scene.client.take_output().count(b"no leader") == 2
    assert scene.open == [0, 0, 0]
    assert not scene.client.streams


def test_a_connection_that_breaks_under_joined_parts_has_each_range_read_once_more() -> None:
    scene = Together()
    scene.all_ask(SPAN, SPAN)
    scene.says("a", joined_answer(5, 1, 1))
    scene.shards[1].connection.lost("gone")
    assert len(scene.tasks) == 2
    assert all(stream.retried for stream in scene.client.streams.values())
    assert scene.open == [0, 0, 0]


def test_answers_that_turn_out_to_be_large_are_read_again_with_places() -> None:
    scene = Together()
    scene.all_ask(SPAN, SPAN)
    scene.says("a", joined_answer(5, 50, 50, size=4000))
    assert scene.client.weight > 0
    assert scene.gate.at_work
    assert scene.gate.waiting + len(scene.gate.at_work) == 2
    for _ in range(8):
        scene.says("a", part(5, *[(b"%03d" % number, b"v" * 4000) for number in range(50)]))
        for name in "bc":
            scene.says(name, part(5))
        scene.context.flush()
    out = scene.client.take_output()
    assert [message(only(out, stream_id)).count for stream_id in (1, 3)] == [50, 50]
    assert scene.context.buffers.used == 0
    assert not scene.gate.at_work


def test_a_large_part_of_a_transaction_is_kept_and_counted_until_its_range_is_whole() -> None:
    scene = Together(window=1000)
    scene.all_ask(SPAN, SPAN)
    scene.says("b", joined_answer(5, 10, 1, size=4000))
    assert 40_000 < scene.context.buffers.used < 80_000
    for name in "ac":
        scene.says(name, joined_answer(5, 0, 0))
    body = scene.answer(1)[0]
    while scene.client.streams:
        scene.client.receive(frames.window_update(1, 20_000) + frames.window_update(3, 20_000))
        body += scene.answer(1)[0]
    assert message(body).count == 10
    assert scene.context.buffers.used == 0
    assert not scene.gate.at_work


@pytest.mark.parametrize("version", ["", "3.5.6"])
def test_an_etcd_that_does_not_bear_it_is_asked_for_each(version: str) -> None:
    scene = Together()
    for shard in scene.shards:
        shard.version_in_use = version
    scene.all_ask(SPAN, SPAN)
    assert scene.open == [2, 2, 2]
    scene.all_ask(SPAN, SPAN, first=5)
    assert scene.open == [4, 4, 4]


def test_few_are_joined_until_it_is_known_that_their_answers_are_small() -> None:
    scene = Together()
    scene.all_ask(*[SPAN] * 10)
    assert scene.open == [3, 3, 3]
    for name in "abc":
        shard = scene.shards["abc".index(name)]
        for stream_id, count in zip(list(shard.connection.streams), (4, 4, 2), strict=True):
            shard.says(
                frames.frame(frames.HEADERS, 4, stream_id, HEAD),
                frames.frame(frames.DATA, 0, stream_id, joined_answer(5, *[1] * count)),
                frames.frame(frames.HEADERS, 5, stream_id, GOOD),
            )
    assert not scene.client.streams
    scene.all_ask(*[SPAN] * 10, first=21)
    assert scene.open == [1, 1, 1]


def test_a_bug_that_one_part_shows_fails_its_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Together()
    scene.all_ask(SPAN, SPAN)
    take = Part.take

    def fails_once(self: Part, answer: bytes) -> None:
        monkeypatch.setattr(Part, "take", take)
        raise AssertionError("a bug")

    monkeypatch.setattr(Part, "take", fails_once)
    for name in "abc":
        scene.says(name, joined_answer(5, 1, 1))
    out = scene.client.take_output()
    assert b"esp: internal error" in out
    assert message(only(out, 3)).count == 3
    assert not scene.client.streams
    assert scene.open == [0, 0, 0]


@pytest.mark.parametrize(("end", "method"), [(LOST, "fail"), (REFUSED, "send_late")], ids=["lost", "refused"])
def test_a_bug_after_a_failure_fails_the_call_that_shows_it_only(
    end: bytes, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Together()
    scene.all_ask(SPAN, SPAN)
    usual = getattr(Part, method)

    def fails(self: Part, *what: Any) -> None:
        if self.down.id == 1:
            raise AssertionError("a bug")
        usual(self, *what)

    monkeypatch.setattr(Part, method, fails)
    scene.says("b", b"", end)
    scene.context.flush()
    scene.says("b", part(3))
    for name in "ac":
        scene.says(name, joined_answer(5, 1, 1))
    out = scene.client.take_output()
    assert out.count(b"esp: internal error") == 1
    if end is LOST:
        assert out.count(b"no leader") == 1
    else:
        assert message(only(out, 3)).count == 2
    assert not scene.client.streams
    assert scene.open == [0, 0, 0]


def test_of_many_calls_of_a_connection_the_further_ones_need_places() -> None:
    scene = Together()
    scene.all_ask(*[SPAN] * FREE_CALLS)
    assert not scene.gate.at_work
    scene.all_ask(SPAN, SPAN, first=2 * FREE_CALLS + 1)
    assert len(scene.gate.at_work) == 2
