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
from esp.core.services.kv.service import Range
from esp.core.wire import frames
from esp.core.wire.frames import ErrorCode
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler
from tests.core.services.kv.test_concat import GOOD, HEAD, PARTS, Scene, check, data, head, message, part, trailers

PATH = b"/etcdserverpb.KV/Range"
SPAN = rpc_pb2.RangeRequest(key=b"a", range_end=b"z")


class Served(Scene):
    """A client that has had small answers."""

    snapshots = False

    def __post_init__(self) -> None:
        self.calls = Calls(self.context, {PATH})
        super().__post_init__()
        for shard in self.shards:
            shard.connection.observe(self.calls.passed_to(shard.name))
        self.gate = Gate(self.context, Background())
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


@pytest.mark.parametrize(
    ("fields", "request_"),
    [
        ([(metadata.READ, b"snapshot")], SPAN),
        ([], rpc_pb2.RangeRequest(key=b"a", range_end=b"z", sort_target="VALUE", sort_order="DESCEND")),
    ],
)
def test_what_is_served_by_a_coroutine_goes_there(
    fields: list[tuple[bytes, bytes]], request_: rpc_pb2.RangeRequest
) -> None:
    scene = Served()
    scene.fields = fields
    scene.asks(request_)
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
