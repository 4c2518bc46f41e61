"""Ranges with a limit over three shards in memory, which answer as etcd does, against one that has all keys."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.handlers import UNFLUSHED_BYTES
from esp.core.services.kv.kept_answer import RESERVED
from esp.core.tokens import Position
from esp.core.wire import frames
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.message import prefix
from esp.core.wire.server import ServerConnection
from tests.core.services.kv.test_concat import (
    GOOD,
    HEAD,
    LOST,
    PARTS,
    Scene,
    Upstream,
    data,
    head,
    message,
    part,
    trailers,
)
from tests.examples import tries

Request = rpc_pb2.RangeRequest
Row = tuple[bytes, bytes]
KEYS = [b"%s%03d" % (letter, number) for letter in (b"a", b"h", b"j", b"q", b"s") for number in range(70)]


def version(key: bytes) -> int:
    return KEYS.index(key) * 7919 % 1009 + 1


def etcds(request: rpc_pb2.RangeRequest, rows: Sequence[Row]) -> rpc_pb2.RangeResponse:
    """The answer of an etcd that has these rows; without header."""
    end = request.range_end
    found = [row for row in sorted(rows) if request.key <= row[0] and (end == b"\0" or row[0] < end)]
    count = len(found)
    if request.count_only:
        return rpc_pb2.RangeResponse(count=count)
    limit = request.limit if request.limit > 0 else count
    by_key = request.sort_target == Request.KEY
    if request.sort_order == Request.NONE or (request.sort_order == Request.ASCEND and by_key):
        found = found[: limit + 1]
    if request.sort_target == Request.VALUE:
        found.sort(key=lambda row: row[1])
    elif request.sort_target == Request.VERSION:
        found.sort(key=lambda row: version(row[0]))
    if request.sort_order == Request.DESCEND:
        found.reverse()
    kvs = [
        kv_pb2.KeyValue(key=key, version=version(key), value=b"" if request.keys_only else value)
        for key, value in found[:limit]
    ]
    return rpc_pb2.RangeResponse(kvs=kvs, count=count, more=limit < count)


class Etcd:
    """Plays one shard."""

    def __init__(self, upstream: Upstream, rows: Sequence[Row], revision: int) -> None:
        self.upstream = upstream
        self.rows = rows
        self.revision = revision
        self.asked: list[rpc_pb2.RangeRequest] = []
        self.said: list[bytes] = []

    def hears(self) -> None:
        out, at = self.upstream.connection.take_output(), 0
        while at < len(out):
            if out.startswith(frames.PREFACE, at):
                at += len(frames.PREFACE)
                continue
            word, _, stream_id = frames.unpack_header(out, at)
            body = out[at + 9 : at + 9 + (word >> 8)]
            at += 9 + (word >> 8)
            if word & 0xFF != frames.DATA:
                continue
            request = Request.FromString(body[5:])
            self.asked.append(request)
            answer = etcds(request, self.rows)
            answer.header.CopyFrom(rpc_pb2.ResponseHeader(cluster_id=1 << 63, revision=self.revision, raft_term=2))
            whole = prefix(answer.SerializeToString())
            self.said.append(frames.frame(frames.HEADERS, 4, stream_id, HEAD))
            size = random.choice([16_384, 16_384, 7, 1000]) if len(whole) < 10_000 else 16_384
            self.said += [
                frames.frame(frames.DATA, 0, stream_id, whole[cut : cut + size]) for cut in range(0, len(whole), size)
            ]
            self.said.append(frames.frame(frames.HEADERS, 5, stream_id, GOOD))

    def says(self) -> bool:
        """Some of what it has to say; whether there was anything."""
        self.hears()
        said = []
        left = {number: stream.recv_window for number, stream in self.upstream.connection.streams.items()}
        for frame in self.said[: random.randint(1, 20)]:
            word, _, stream_id = frames.unpack_header(frame, 0)
            if word & 0xFF == frames.DATA:
                left[stream_id] = left.get(stream_id, 0) - (word >> 8)
                if left[stream_id] < 0 and stream_id in self.upstream.connection.streams:
                    break
            said.append(frame)
        del self.said[: len(said)]
        self.upstream.says(*said)
        return bool(said)


def served(
    scene: Scene, request: rpc_pb2.RangeRequest, rows: Sequence[Row]
) -> tuple[rpc_pb2.RangeResponse, list[Etcd]]:
    shards = [Etcd(upstream, [], 5 + place) for place, upstream in enumerate(scene.shards)]
    by_name = {shard.upstream.name: shard for shard in shards}
    for name, shard in by_name.items():
        shard.rows = [row for row in rows if scene.map.owner(row[0]) == name]
        shard.upstream.connection.take_output()
    scene.asks(request)
    body = b""
    for _ in range(100_000):
        if not scene.client.streams:
            break
        order = random.sample(shards, 3)
        moved = [shard.says() for shard in order]
        scene.context.flush()
        body += scene.answer()[0]
        assert any(moved) or not scene.client.streams, "nobody has anything to say, and the call is open"
    assert not any(shard.connection.streams for shard in scene.shards)
    assert scene.context.buffers.used == 0
    assert not scene.gate.at_work
    assert not any(scene.gate.busy.values())
    return message(body), shards


REQUESTS = st.builds(
    Request,
    key=st.sampled_from([b"\0", b"a", b"a069", b"h", b"j030", b"q069"]),
    range_end=st.sampled_from([b"\0", b"z", b"s001"]),
    limit=st.sampled_from(
        [0, 0, 1, 2, 30, 69, 70, 71, 99, 100, 139, 140, 141, 150, 210, 280, 281, 349, 350, 351, 2**63 - 1]
    ),
    sort_order=st.sampled_from([Request.NONE, Request.ASCEND, Request.DESCEND]),
    sort_target=st.sampled_from([Request.KEY, Request.KEY, Request.VALUE, Request.VERSION]),
    keys_only=st.sampled_from([False, False, True]),
    count_only=st.sampled_from([False, False, False, True]),
)


@settings(max_examples=tries(60), deadline=None)
@given(REQUESTS, st.sampled_from([0, 1, 2, 5]), st.sampled_from([1, 40, 3000, 20_000]), st.integers(), st.booleans())
def test_a_page_is_that_of_one_etcd(
    request: rpc_pb2.RangeRequest, sparse: int, size: int, seed: int, first_has_all: bool
) -> None:
    random.seed(seed)
    keys = KEYS[:: sparse or 1] if sparse else KEYS[:70]
    ends = [b"v" * size, b"\x18\x01" * (size // 2), b"\x20\x01" * (size // 2)]
    # No two are alike, so that the order is given; some only behind a long head that is.
    heads = random.sample(range(1000), len(keys))
    rows = [
        (key, b"v" * random.choice([0, size]) + b"%03d" % head + random.choice(ends))
        for key, head in zip(keys, heads, strict=True)
    ]
    scene = Scene(window=1 << 30, connection_window=1 << 30)
    scene.spans.first_has_all = first_has_all
    answer, _ = served(scene, request, rows)
    assert answer.header.revision
    answer.ClearField("header")
    assert answer == etcds(request, rows)


@pytest.mark.parametrize("order", [Request.NONE, Request.DESCEND])
@pytest.mark.parametrize("target", [Request.VALUE, Request.VERSION])
def test_many_rows_are_sorted_in_steps(target: Any, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(key, b"%08d" % (place * 7919 % 1009) + b"v" * 2000) for place, key in enumerate(KEYS)]
    request = Request(key=b"\0", range_end=b"\0", sort_target=target, sort_order=order)
    steps = 0

    def counted(self: ServerConnection, work: Iterator[None]) -> None:
        nonlocal steps
        for _ in work:
            steps += 1

    monkeypatch.setattr(ServerConnection, "do_later", counted)
    answer, _ = served(Scene(window=1 << 30, connection_window=1 << 30), request, rows)
    answer.ClearField("header")
    assert answer == etcds(request, rows)
    assert steps >= 5


def test_a_row_that_is_none_is_blamed_on_its_shard() -> None:
    scene = Scene()
    scene.asks(Request(key=b"\0", range_end=b"\0", sort_target=Request.VALUE))
    for shard, answer in zip(scene.shards, PARTS, strict=True):
        if shard is scene.shards[1]:
            header, count = answer[5 : 7 + answer[6]], answer[-2:]
            answer = prefix(header + b"\x12\x03\x0a\x07j" + count)
        shard.says(head(), data(answer), trailers())
    assert b"has a row that is no KeyValue" in scene.client.take_output()
    assert [len(shard.faults) for shard in scene.shards] == [0, 1, 0]
    assert scene.context.buffers.used == 0
    assert not any(scene.gate.busy.values())


def test_the_answer_is_written_as_etcd_writes_it() -> None:
    rows = [(key, b"v" * 3) for key in KEYS]
    for limit in (3, 100, 150):
        scene = Scene()
        answer, _ = served(scene, Request(key=b"\0", range_end=b"\0", limit=limit), rows)
        assert len(answer.kvs) == limit
        assert (answer.more, answer.count) == (True, 350)


def test_a_page_at_a_token_in_one_shard_needs_no_second_round() -> None:
    scene = Scene()
    vector = scene.routing.layout.vector({"a": 3, "b": 4, "c": 5})
    scene.position = Position(vector, 0)
    rows = [(key, b"v") for key in KEYS]
    answer, shards = served(scene, Request(key=b"s", range_end=b"\0", limit=100, revision=1 << 52), rows)
    assert len(answer.kvs) == answer.count == 70
    assert answer.header.revision == 1 << 52
    assert [[one.revision for one in shard.asked] for shard in shards] == [[], [], [5]]


@pytest.mark.parametrize("limit", [150, 350])
def test_a_page_that_waits_is_counted_and_fails_alone_without_memory(limit: int) -> None:
    scene = Scene(context=WireContext(Limits(max_buffered_bytes=300_000)))
    rows = [(key, b"v" * 5000) for key in KEYS]
    shards = [Etcd(upstream, [], 5) for upstream in scene.shards]
    for shard in shards:
        shard.rows = [row for row in rows if scene.map.owner(row[0]) == shard.upstream.name]
        shard.upstream.connection.take_output()
    scene.asks(Request(key=b"\0", range_end=b"\0", limit=limit))
    most = 0
    while sum(shard.says() for shard in shards):
        most = max(most, scene.context.buffers.used)
    assert RESERVED <= most <= 300_000
    assert b"no memory for what waits" in scene.client.take_output()
    assert scene.context.buffers.used == 0
    assert not scene.client.ended
    assert not any(scene.gate.busy.values())


@pytest.mark.parametrize("how", ["lost", "trailers"])
@pytest.mark.parametrize("round_", [1, 2])
def test_a_shard_that_fails_before_all_is_there_leaves_no_part_of_an_answer(how: str, round_: int) -> None:
    scene = Scene()
    rows = [(key, b"v" * 3000) for key in KEYS]
    shards = [
        Etcd(upstream, rows[:140] if place == 0 else rows[140:], 5) for place, upstream in enumerate(scene.shards)
    ]
    for shard in shards:
        shard.upstream.connection.take_output()
    scene.asks(Request(key=b"\0", range_end=b"\0", limit=200))
    failing = shards[round_ - 1]
    if round_ == 2:
        while shards[0].says():
            pass
    failing.hears()
    assert failing.asked
    failing.upstream.says(*failing.said[: len(failing.said) // 2])
    if how == "lost":
        failing.upstream.connection.lost("gone")
    else:
        failing.upstream.says(trailers(LOST))
    said = scene.client.take_output()
    assert (b"asked in another way" if how == "lost" else b"no leader") in said
    assert not scene.client.streams
    assert scene.context.buffers.used == 0
    assert not any(scene.gate.busy.values())


def test_a_large_answer_that_has_come_leaves_in_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(window=1 << 30, connection_window=1 << 30)
    rows = [(key, b"v" * 10_000) for key in KEYS]
    put_off: list[int] = []
    real = WireContext.put_off

    def counted(self: WireContext, one: Any) -> None:
        put_off.append(len(self.put_off_ones))
        real(self, one)

    monkeypatch.setattr(WireContext, "put_off", counted)
    answer, _ = served(scene, Request(key=b"\0", range_end=b"\0", limit=349), rows)
    assert len(answer.kvs) == 349
    assert len(put_off) >= 349 * 10_000 // UNFLUSHED_BYTES
    assert not any(put_off), "it waits for its turn once at a time"


def asked_by(shard: Upstream) -> list[rpc_pb2.RangeRequest]:
    """What the shard was asked since the last time."""
    etcd = Etcd(shard, [], 1)
    etcd.hears()
    return etcd.asked


class TestCountsAreAskedAlong:
    """The last page had all its rows from its first shard: the others are asked for their count at the same time."""

    PAGE = Request(key=b"\0", range_end=b"\0", limit=100)

    def scene(self, request: rpc_pb2.RangeRequest = PAGE) -> Scene:
        scene = Scene(window=1 << 30, connection_window=1 << 30)
        scene.spans.first_has_all = True
        for shard in scene.shards:
            shard.connection.take_output()
        scene.asks(request)
        asked = [[(one.limit, one.count_only) for one in asked_by(shard)] for shard in scene.shards]
        assert asked == [[(100, False)], [(0, True)], [(0, True)]]
        return scene

    def first(self, rows: int, count: int) -> bytes:
        whole = rpc_pb2.RangeResponse.FromString(part(5, *[(b"a%03d" % number, b"v") for number in range(rows)])[5:])
        whole.more, whole.count = rows < count, count
        return prefix(whole.SerializeToString())

    @pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    def test_a_page_that_is_full_needs_no_second_round(self, order: list[int]) -> None:
        scene = self.scene()
        answers = [self.first(100, 120), part(3, count=7), part(9, count=0)]
        for place in order:
            scene.shards[place].says(head(), data(answers[place]), trailers())
        assert [asked_by(shard) for shard in scene.shards] == [[], [], []]
        answer = message(scene.answer()[0])
        assert (len(answer.kvs), answer.count, answer.more) == (100, 127, True)
        position = scene.routing.tokens.position(answer.header.revision)
        assert position is not None
        assert position.vector.revisions == (5, 3, 9)
        assert scene.spans.first_has_all
        assert not any(scene.gate.busy.values())

    @pytest.mark.parametrize("come", [[], [1], [1, 2]], ids=str)
    @pytest.mark.parametrize("in_part", [False, True])
    def test_counts_of_a_page_that_is_not_full_are_of_no_use(self, come: list[int], in_part: bool) -> None:
        """Rows and count of a shard are of one moment, so its answer to the count is dropped."""
        scene = self.scene()
        for place in come:
            answer = part(2, count=50)
            if in_part:
                scene.shards[place].says(head(), data(answer[:12]))
            else:
                scene.shards[place].says(head(), data(answer), trailers())
        scene.shards[0].says(head(), data(self.first(60, 60)), trailers())
        asked = [[(one.limit, one.count_only) for one in asked_by(shard)] for shard in scene.shards]
        assert asked == [[], [(40, False)], [(40, False)]]
        assert [len(shard.connection.streams) for shard in scene.shards] == [0, 1, 1]
        assert not scene.spans.first_has_all
        for place, answer in ((1, part(3, (b"j", b"v"))), (2, part(9, (b"s", b"v"), (b"t", b"v")))):
            frame = frames.frame
            scene.shards[place].says(frame(frames.HEADERS, 4, 3, HEAD), frame(frames.DATA, 0, 3, answer))
            scene.shards[place].says(frame(frames.HEADERS, 5, 3, GOOD))
        answer = message(scene.answer()[0])
        assert (len(answer.kvs), answer.count, answer.more) == (63, 63, False)
        position = scene.routing.tokens.position(answer.header.revision)
        assert position is not None
        assert position.vector.revisions == (5, 3, 9)
        assert scene.context.buffers.used == 0
        assert not any(scene.gate.busy.values())
        assert not any(shard.connection.streams for shard in scene.shards)

    def test_the_next_page_asks_for_rows_again(self) -> None:
        scene = self.scene()
        scene.shards[0].says(head(), data(self.first(60, 60)), trailers())
        scene.client.receive(frames.frame(frames.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        for shard in scene.shards:
            shard.connection.take_output()
        scene.asks(self.PAGE, 3)
        assert [len(asked_by(shard)) for shard in scene.shards] == [1, 0, 0]

    def test_a_count_that_fails_fails_the_page(self) -> None:
        scene = self.scene()
        scene.shards[2].says(frames.frame(frames.HEADERS, 5, 1, LOST))
        assert not scene.client.streams
        assert not any(shard.connection.streams for shard in scene.shards)
        assert not any(scene.gate.busy.values())

    def test_a_broken_connection_has_all_asked_in_another_way(self) -> None:
        scene = self.scene()
        scene.shards[0].says(head(), data(self.first(100, 120)), trailers())
        scene.shards[1].connection.lost("gone")
        assert b"asked in another way" in scene.client.take_output()
        assert not any(scene.gate.busy.values())

    def test_counts_are_asked_at_the_revisions_of_a_token(self) -> None:
        scene = Scene(window=1 << 30, connection_window=1 << 30)
        scene.spans.first_has_all = True
        scene.position = Position(scene.routing.layout.vector({"a": 3, "b": 4, "c": 5}), 0)
        for shard in scene.shards:
            shard.connection.take_output()
        scene.asks(Request(key=b"\0", range_end=b"\0", limit=100, revision=1 << 52))
        asked = [[(one.revision, one.count_only) for one in asked_by(shard)] for shard in scene.shards]
        assert asked == [[(3, False)], [(4, True)], [(5, True)]]
