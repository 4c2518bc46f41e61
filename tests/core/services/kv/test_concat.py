"""A Range answered with the shards' bytes, frame by frame: real connections of the wire, moved by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from esp.core.background import Background
from esp.core.gateway.printing import Printer
from esp.core.gateway.shapes import shape_of
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.routing import Routing
from esp.core.services.entry import LARGE_ANSWER, PLACES, WAITING_PART
from esp.core.services.gate import Entry, Gate
from esp.core.services.kv.concat import Concat
from esp.core.services.kv.kept_answer import RESERVED
from esp.core.services.kv.spans import Spans
from esp.core.shard_map import ShardMap
from esp.core.tokens import Position, Tokens
from esp.core.wire import frames
from esp.core.wire.client import ClientConnection
from esp.core.wire.context import WireContext
from esp.core.wire.ended import Several
from esp.core.wire.hpack import encode
from esp.core.wire.limits import Limits
from esp.core.wire.message import MessageReader, prefix
from esp.core.wire.request import RequestHead
from esp.core.wire.server import ServerConnection
from esp.core.wire.server_stream import Handler, ServerStream
from esp.core.wire.status import Code, RpcError, Status

Request = rpc_pb2.RangeRequest
HEAD = encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
GOOD = encode([(b"grpc-status", b"0"), (b"grpc-message", b"")])
LOST = encode([(b"grpc-status", b"14"), (b"grpc-message", b"etcdserver: no leader")])
CALL = encode(
    [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/etcdserverpb.KV/Range"),
        (b":authority", b"esp"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
)


@dataclass(eq=False)
class Upstream:
    """A shard whose answers the test writes; `Routing` wants no more of one than this."""

    name: str
    context: WireContext
    connection: ClientConnection = field(init=False)
    told: list[Status] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    version_in_use: str = "3.7.1"
    joined_transactions: int = 0
    joined_reads: int = 0
    max_txn_ops: int = 128
    guard: None = None

    def __post_init__(self) -> None:
        self.connection = ClientConnection(self.context, "shard")
        self.connection.receive(frames.settings({4: 1 << 20}) + frames.SETTINGS_ACK + frames.window_update(0, 1 << 20))

    def free_connection(self) -> ClientConnection | None:
        return self.connection if self.connection.has_room else None

    def consider_moving(self, connection: object, status: Status) -> None:
        self.told.append(status)

    def blamed(self, fault: str) -> RpcError:
        self.faults.append(fault)
        return Status(Code.INTERNAL, fault).error()

    def says(self, *pieces: bytes) -> None:
        self.connection.receive(b"".join(pieces))


@dataclass
class Scene:
    """A client with one call open, and three shards it is answered from."""

    context: WireContext = field(default_factory=lambda: WireContext(Limits()))
    window: int = 1 << 20
    connection_window: int = 1 << 24

    def __post_init__(self) -> None:
        names = ("a", "b", "c")
        self.map = ShardMap.build(
            [("a", KeyRange(b"", b"i")), ("b", KeyRange(b"i", b"r")), ("c", KeyRange(b"r", None))], names
        )
        self.shards = tuple(Upstream(name, self.context) for name in names)
        layout = Layout.of(self.map, self.shards)  # type: ignore[arg-type]
        self.routing = Routing(layout, Tokens(self.context, instance=1))
        self.position: Position | None = None
        # The clock stands still, so that no shard rests: there is no loop for its timer.
        self.gate = Gate(self.context, Background(), clock=float)
        self.spans = Spans(self.routing, self.gate)
        scene = self

        class Ranges(Handler):
            def on_message(self, stream: ServerStream, message: bytes) -> None:
                request = Request.FromString(message[5:])
                segments = scene.map.split(KeyRange.of_request(request.key, request.range_end))
                spans = scene.spans
                concat = Concat(stream, spans, scene.entry(stream), lambda: scene.again(stream))
                try:
                    scene.begun = concat.begin(request, segments, scene.position)  # type: ignore[arg-type]
                except RpcError as error:
                    stream.finish(error.status)

        def find(head: RequestHead) -> Handler:
            head.forward = head.path, head.encode_metadata()
            return Ranges()

        self.client = ServerConnection(self.context, "client", find)
        self.client.receive(frames.PREFACE + frames.settings({4: self.window}) + b"".join(self.opening()))
        self.client.take_output()

    def entry(self, stream: ServerStream) -> Entry:
        return Entry(self.gate, stream, ("a", "b", "c"), 0, lambda _: None)

    def opening(self) -> list[bytes]:
        return [frames.window_update(0, self.connection_window)] if self.connection_window else []

    def again(self, stream: ServerStream) -> None:
        stream.finish(Status(Code.UNAVAILABLE, "asked in another way"))

    def asks(self, request: rpc_pb2.RangeRequest, stream_id: int = 1) -> None:
        body = prefix(request.SerializeToString())
        call = frames.frame(frames.HEADERS, 4, stream_id, CALL) + frames.frame(frames.DATA, 1, stream_id, body)
        self.client.receive(call)

    def answer(self, wanted: int = 1) -> tuple[bytes, list[tuple[int, int]]]:
        """The DATA the client has got, and type and flags of every frame of its stream."""
        data, position = self.client.take_output(), 0
        body, seen = b"", []
        while position < len(data):
            word, flags, stream_id = frames.unpack_header(data, position)
            payload = data[position + 9 : position + 9 + (word >> 8)]
            position += 9 + (word >> 8)
            if stream_id == wanted:
                seen.append((word & 0xFF, flags))
                body += payload if word & 0xFF == frames.DATA else b""
        return body, seen


EVERYTHING = Request(key=b"\0", range_end=b"\0")


def part(revision: int, *rows: tuple[bytes, bytes], count: int | None = None) -> bytes:
    header = rpc_pb2.ResponseHeader(cluster_id=1 << 63, member_id=7, revision=revision, raft_term=revision)
    kvs = [kv_pb2.KeyValue(key=key, value=value) for key, value in rows]
    return prefix(
        rpc_pb2.RangeResponse(header=header, kvs=kvs, count=len(kvs) if count is None else count).SerializeToString()
    )


def data(payload: bytes) -> bytes:
    return frames.frame(frames.DATA, 0, 1, payload)


def head() -> bytes:
    return frames.frame(frames.HEADERS, 4, 1, HEAD)


def trailers(block: bytes = GOOD) -> bytes:
    return frames.frame(frames.HEADERS, 5, 1, block)


PARTS = [part(5, (b"a", b"1")), part(3, (b"j", b"2"), (b"k", b"\x20\x01")), part(9)]
MERGED = [b"a", b"j", b"k"]


def message(body: bytes) -> rpc_pb2.RangeResponse:
    (whole,) = MessageReader(1 << 30).feed(body)
    return rpc_pb2.RangeResponse.FromString(whole)


def check(scene: Scene, keys: list[bytes] = MERGED) -> None:
    body, seen = scene.answer()
    answer = message(body)
    assert [kv.key for kv in answer.kvs] == keys
    assert answer.count == 3
    assert not answer.more
    position = scene.routing.tokens.position(answer.header.revision)
    assert position is not None
    assert position.vector.revisions == (5, 3, 9)
    assert answer.header.raft_term == 9
    assert answer.header.cluster_id == scene.routing.identity.cluster_id
    assert seen[-1] == (frames.HEADERS, 5)
    assert not scene.client.streams
    assert not any(shard.connection.streams for shard in scene.shards)


def test_the_parts_come_out_in_key_order_whatever_the_order_they_come_in() -> None:
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        scene = Scene()
        scene.asks(EVERYTHING)
        for index in order:
            scene.shards[index].says(head(), data(PARTS[index]), trailers())
        check(scene)


def test_descending_keys_come_from_the_last_shard_first() -> None:
    scene = Scene()
    scene.asks(Request(key=b"\0", range_end=b"\0", sort_order=Request.DESCEND))
    for index in range(3):
        scene.shards[index].says(head(), data(PARTS[index]), trailers())
    check(scene, [b"j", b"k", b"a"])  # the rows of one part are as the shard sorted them


def test_a_part_may_be_cut_anywhere() -> None:
    for cut in range(1, len(PARTS[1])):
        scene = Scene()
        scene.asks(EVERYTHING)
        scene.shards[1].says(head(), data(PARTS[1][:cut]))
        scene.shards[2].says(head(), data(PARTS[2]), trailers())
        scene.shards[0].says(head(), data(PARTS[0]), trailers())
        scene.shards[1].says(data(PARTS[1][cut:]), trailers())
        check(scene)


def test_whoever_looks_after_ended_calls_is_told_the_shards_wherever_a_part_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the client's answers are small, so that the call has no places at the shards."""
    told: list[object] = []
    monkeypatch.setattr(ServerStream, "tell", lambda stream, code, server=None, *rest: told.append(server))
    monkeypatch.setattr(Scene, "entry", lambda scene, stream: None)
    for cut in range(1, len(PARTS[1])):
        scene = Scene()
        scene.asks(EVERYTHING)
        scene.shards[1].says(head(), data(PARTS[1][:cut]))
        scene.shards[2].says(head(), data(PARTS[2]), trailers())
        scene.shards[0].says(head(), data(PARTS[0]), trailers())
        scene.shards[1].says(data(PARTS[1][cut:]), trailers())
        check(scene)
        assert isinstance(told[0], Several)
        assert told[0].names == ("a", "b", "c"), cut
        told.clear()


@pytest.mark.parametrize("count", [1, 127, 128, 300, 2**31, 2**63 - 1])
def test_counts_of_any_size_add_up(count: int) -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    for shard, number in zip(scene.shards, (count, 0, 0), strict=True):
        shard.says(head(), data(part(1, count=number)), trailers())
    assert message(scene.answer()[0]).count == count


def test_nothing_is_sent_before_every_shard_has_begun() -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    for index in (0, 2):
        scene.shards[index].says(head(), data(PARTS[index]), trailers())
    assert scene.answer() == (b"", [])


def test_a_shard_that_fails_before_it_begins_gives_the_call_its_error() -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    scene.shards[0].says(head(), data(PARTS[0]), trailers())
    scene.shards[1].says(
        frames.frame(
            frames.HEADERS, 5, 1, encode([(b":status", b"200"), (b"content-type", b"application/grpc")]) + LOST
        )
    )
    out = scene.client.take_output()
    assert b"etcdserver: no leader" in out
    assert not scene.client.streams
    assert not any(shard.connection.streams for shard in scene.shards), "the third is cancelled"
    assert [status.message for status in scene.shards[1].told] == ["etcdserver: no leader"], "so that it may move on"
    assert scene.context.buffers.used == 0


def test_a_connection_that_breaks_before_anything_was_sent_is_made_up_for_in_another_way() -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    scene.shards[0].says(head(), data(PARTS[0]), trailers())
    scene.shards[1].connection.lost("gone")
    assert b"asked in another way" in scene.client.take_output()
    assert not any(shard.connection.streams for shard in scene.shards)


@pytest.mark.parametrize("how", ["trailers", "reset", "lost", "short"])
def test_a_shard_that_fails_later_ends_the_stream_and_leaves_no_answer(how: str) -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    scene.shards[0].says(head(), data(PARTS[0]), trailers())
    scene.shards[2].says(head(), data(PARTS[2]), trailers())
    scene.shards[1].says(head(), data(PARTS[1][:-4]))
    match how:
        case "trailers":
            scene.shards[1].says(trailers(LOST))
        case "reset":
            scene.shards[1].says(frames.rst_stream(1, frames.ErrorCode.CANCEL))
        case "lost":
            scene.shards[1].connection.lost("gone")
        case "short":
            scene.shards[1].says(trailers())
    body, seen = scene.answer()
    assert seen[-1][0] == frames.RST_STREAM
    assert MessageReader(1 << 30).feed(body) == []
    assert not scene.client.streams


def test_an_answer_without_a_count_at_its_end_is_refused() -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    strange = part(3, (b"j", b"2"), count=0)
    for index, answer in enumerate((PARTS[0], strange, PARTS[2])):
        scene.shards[index].says(head(), data(answer), trailers())
    assert scene.answer()[1][-1][0] == frames.RST_STREAM
    assert scene.shards[1].faults == ["is no RangeResponse"]


def known(*answers: bytes) -> tuple[Scene, bytes, list[tuple[int, int]]]:
    """The answer made of these by connections that know the heads from an earlier call, so take each in one step."""
    scene = Scene()
    for stream_id, payloads in ((1, PARTS), (3, answers)):
        scene.asks(EVERYTHING, stream_id)
        for shard, payload in zip(scene.shards, payloads, strict=True):
            shard.says(
                frames.frame(frames.HEADERS, 4, stream_id, HEAD),
                frames.frame(frames.DATA, 0, stream_id, payload),
                frames.frame(frames.HEADERS, 5, stream_id, GOOD),
            )
        body, seen = scene.answer(stream_id)
    assert not scene.client.streams
    assert not any(shard.connection.streams for shard in scene.shards)
    assert not scene.gate.at_work
    assert scene.context.buffers.used == 0
    return scene, body, seen


def test_small_answers_that_come_whole_leave_in_one_message() -> None:
    _, body, seen = known(*PARTS)
    assert [row.key for row in message(body).kvs] == MERGED
    assert message(body).count == 3
    assert seen == [(frames.HEADERS, 4), (frames.DATA, 0), (frames.HEADERS, 5)]


@pytest.mark.parametrize("count", [1, 127, 128, 300, 2**31, 2**63 - 1])
def test_counts_of_small_answers_add_up(count: int) -> None:
    _, body, _ = known(part(1, count=count), part(1, count=0), part(1))
    assert message(body).count == count


@pytest.mark.parametrize("size", [1300, 1320, 1321, 1325, 1330])
def test_an_answer_that_is_printed_while_it_comes_has_the_merged_header_in_front(size: int) -> None:
    _, body, seen = known(*[part(5, (key, b"v" * size)) for key in MERGED])
    printed: list[str] = []
    printer = Printer(shape_of(rpc_pb2.RangeResponse.DESCRIPTOR), printed.append, lambda is_whole: None, lambda: None)
    printer.feed(body)
    for _ in printer.steps():
        pass
    assert f'"revision":"{message(body).header.revision}"' in "".join(printed)
    assert len(seen) == 3, "in one message"


def test_large_answers_that_come_whole_leave_in_pieces() -> None:
    large = part(3, (b"j", b"v" * 5000))
    _, body, seen = known(PARTS[0], large, PARTS[2])
    assert [len(row.value) for row in message(body).kvs] == [1, 5000]
    assert len(seen) > 3


@pytest.mark.parametrize(
    "strange",
    [
        part(3, (b"j", b"2"), count=0),
        PARTS[1][:-1],
        PARTS[1] + b"\0",
        PARTS[1][:3],
        prefix(b"\x12\x02no"),
        prefix(b"\x0a\x01\x08"),
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_a_strange_answer_that_comes_whole_is_blamed_on_its_shard(strange: bytes, place: int) -> None:
    answers = list(PARTS)
    answers[place] = strange
    scene, body, seen = known(*answers)
    assert not body
    assert seen == [(frames.HEADERS, 5)]
    assert [len(shard.faults) for shard in scene.shards] == [int(number == place) for number in range(3)]


def test_a_client_that_does_not_read_holds_back_the_shards() -> None:
    scene = Scene(window=1000)
    scene.asks(EVERYTHING)
    big = [part(1, (b"%d" % index, b"v" * 200_000)) for index in range(3)]
    for shard, answer in zip(scene.shards, big, strict=True):
        shard.says(head(), *(data(answer[i : i + 16384]) for i in range(0, len(answer), 16384)))
    sent, _ = scene.answer()
    assert len(sent) == 1000
    granted = sum(len(shard.connection.take_output()) for shard in scene.shards[1:])
    assert scene.context.buffers.used <= 3 * 262_144, "all of it is counted, a window for each shard at most"
    body = sent
    while scene.client.streams:
        scene.client.receive(frames.window_update(1, 50_000))
        for shard in scene.shards:
            if shard.connection.streams:
                shard.says(trailers())
        body += scene.answer()[0]
    assert [len(kv.value) for kv in message(body).kvs] == [200_000] * 3
    assert scene.context.buffers.used == 0
    assert granted < 20_000, "window updates are small; nobody was granted a window for what nobody read"


@pytest.mark.parametrize("how", ["reads", "leaves"])
def test_a_large_answer_that_waits_for_its_client_counts_for_the_connection_until_it_ends(how: str) -> None:
    scene = Scene(window=1000)
    scene.asks(EVERYTHING)
    large = part(1, (b"a", b"v" * LARGE_ANSWER))
    pieces = [data(large[i : i + 16384]) for i in range(0, len(large), 16384)]
    scene.shards[0].says(head(), *pieces[:4])
    for shard in scene.shards[1:]:
        shard.says(head(), data(part(1)), trailers())
    scene.answer()
    assert not scene.gate.at_work
    assert scene.gate._held == {("a", scene.client): PLACES // WAITING_PART}
    if how == "leaves":
        scene.client.receive(frames.rst_stream(1, frames.ErrorCode.CANCEL))
    else:
        scene.client.receive(frames.window_update(1, 1 << 20))
        scene.shards[0].says(pieces[4])
        assert scene.gate._held == {("a", scene.client): PLACES}
        assert len(scene.gate.at_work) == 1
        scene.shards[0].says(*pieces[5:], trailers())
        assert not scene.client.streams
    assert not scene.gate._held
    assert not scene.gate.at_work
    assert not any(scene.gate.busy.values())


def test_a_client_that_goes_away_cancels_the_parts() -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    scene.shards[0].says(head(), data(PARTS[0]), trailers())
    scene.client.receive(frames.rst_stream(1, frames.ErrorCode.CANCEL))
    assert not any(shard.connection.streams for shard in scene.shards)


def test_it_leaves_the_call_to_others_when_a_shard_cannot_be_asked_at_once() -> None:
    scene = Scene()
    scene.shards[1].connection.lost("gone")
    scene.asks(EVERYTHING)
    assert scene.begun is False
    assert not any(shard.connection.streams for shard in scene.shards)


@pytest.mark.parametrize("window", [0, 1, 4, 5, 6, 100])
def test_it_gets_through_a_window_of_any_size(window: int) -> None:
    scene = Scene(window=window)
    scene.asks(EVERYTHING)
    for index in range(3):
        scene.shards[index].says(head(), data(PARTS[index]), trailers())
    body, _ = scene.answer()
    assert len(body) == window
    for _ in range(300):
        if scene.client.streams:
            scene.client.receive(frames.window_update(1, 1))
        body += scene.answer()[0]
    assert [kv.key for kv in message(body).kvs] == MERGED
    assert not scene.client.streams
    assert scene.context.buffers.used == 0


def test_two_of_one_client_share_its_connection_window() -> None:
    scene = Scene(connection_window=0)  # 65,535 bytes
    big = [part(1, (b"%d" % index, b"v" * 30_000)) for index in range(3)]
    for stream_id in (1, 3):
        scene.asks(EVERYTHING, stream_id)
    for up_id in (1, 3):
        for shard, answer in zip(scene.shards, big, strict=True):
            frames_ = [frames.frame(frames.DATA, 0, up_id, answer[i : i + 16384]) for i in range(0, len(answer), 16384)]
            shard.says(
                frames.frame(frames.HEADERS, 4, up_id, HEAD), *frames_, frames.frame(frames.HEADERS, 5, up_id, GOOD)
            )
    bodies = {1: b"", 3: b""}
    for _ in range(20):
        out = scene.client.take_output()
        for stream_id in bodies:
            bodies[stream_id] += only(out, stream_id)
        scene.client.receive(frames.window_update(0, 20_000))
    for body in bodies.values():
        assert [len(kv.value) for kv in message(body).kvs] == [30_000] * 3
    assert scene.context.buffers.used == 0


def only(out: bytes, wanted: int) -> bytes:
    """The DATA of one stream."""
    body, position = b"", 0
    while position < len(out):
        word, _, stream_id = frames.unpack_header(out, position)
        position += 9 + (word >> 8)
        if stream_id == wanted and word & 0xFF == frames.DATA:
            body += out[position - (word >> 8) : position]
    return body


def test_more_than_a_protobuf_message_can_hold_is_refused_as_etcd_does() -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    for shard, answer in zip(scene.shards, PARTS, strict=True):
        shard.says(head(), data(b"\0" + frames.pack_u32(2**30) + answer[5:]))
    answered = scene.client.take_output()
    assert b"grpc: trying to send message larger than max (" in answered
    assert b" vs. 2147483647)" in answered
    assert not any(shard.connection.streams for shard in scene.shards)


def test_what_waits_for_its_turn_is_accounted_for_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.asks(EVERYTHING)
    used, steps = scene.context.buffers, []
    hold, release = ServerStream.hold, ServerStream.release

    def holds(self: ServerStream, size: int) -> bool:
        steps.append(size)
        return hold(self, size)

    def releases(self: ServerStream, size: int) -> None:
        steps.append(-size)
        release(self, size)

    monkeypatch.setattr(ServerStream, "hold", holds)
    monkeypatch.setattr(ServerStream, "release", releases)
    answer = part(9, (b"z", b"v" * 200_000))
    scene.shards[2].says(head())
    for at in range(0, len(answer), 2_000):
        scene.shards[2].says(data(answer[at : at + 2_000]))
        kept = min(at + 2_000, len(answer)) - 5
        assert kept <= used.used <= min(kept + RESERVED, len(answer))
    scene.shards[2].says(trailers())
    for shard, whole in zip(scene.shards[:2], PARTS, strict=False):
        shard.says(head(), data(whole), trailers())
    assert message(scene.answer()[0]).kvs[-1].key == b"z"
    assert used.used == 0
    assert len(steps) <= 2 * (len(answer) // RESERVED + 2)
    assert sum(steps) == 0


def test_what_fits_without_its_neighbours_is_kept() -> None:
    scene = Scene(context=WireContext(Limits(max_buffered_bytes=20_000)))
    scene.asks(EVERYTHING)
    answer = part(9, (b"z", b"v" * 60_000))
    scene.shards[2].says(head(), data(answer[:15_000]))
    assert 14_000 < scene.context.buffers.used <= 20_000
    assert scene.client.streams


def test_what_waits_for_its_turn_is_counted_and_what_does_not_fit_fails_the_call() -> None:
    scene = Scene(context=WireContext(Limits(max_buffered_bytes=20_000)))
    scene.asks(EVERYTHING)
    scene.shards[2].says(head(), data(part(1, (b"z", b"v" * 15_000))))
    assert scene.context.buffers.used > 15_000
    scene.shards[1].says(head(), data(part(1, (b"j", b"v" * 15_000))))
    assert b"no memory for what waits" in scene.client.take_output()
    assert scene.context.buffers.used == 0
    assert not any(shard.connection.streams for shard in scene.shards)


def test_a_part_that_cannot_be_sent_leaves_no_other_open() -> None:
    scene = Scene(context=WireContext(Limits(max_buffered_bytes=10)))
    for shard in scene.shards:
        shard.connection.send_window = 0
    scene.asks(EVERYTHING)
    assert not scene.client.streams
    assert not any(shard.connection.streams for shard in scene.shards)
    assert scene.context.buffers.used == 0


@pytest.mark.parametrize("order", [(1, 2, 0), (0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize("how", ["a shard's answer", "the client reads"])
def test_without_memory_it_fails_alone_whoever_moved_last(how: str, order: tuple[int, ...]) -> None:
    for window in (0, 1, 6, *range(30, 140, 3)):
        without_memory(window, how, order)


def without_memory(window: int, how: str, order: tuple[int, ...]) -> None:
    scene = Scene(context=WireContext(Limits(max_buffered_bytes=10)), window=window)
    scene.asks(EVERYTHING)
    for index in order:
        scene.shards[index].says(head(), data(PARTS[index]), trailers())
    if how == "the client reads":
        for more in (1, 7, 60):
            scene.client.receive(frames.window_update(1, more))
    scene.context.flush()
    assert not scene.client.ended
    assert how == "the client reads" or not any(shard.connection.streams for shard in scene.shards)
    assert not any(scene.gate.busy.values())


@pytest.mark.parametrize(
    "request_",
    [
        Request(key=b"a", range_end=b"c", sort_target=Request.MOD, sort_order=Request.DESCEND, limit=2),
        Request(key=b"a", range_end=b"c", sort_target=Request.VALUE, keys_only=True, limit=200),
        Request(key=b"a", range_end=b"c", min_mod_revision=3, limit=1),
        Request(key=b"a", range_end=b"c", sort_target=Request.VERSION),
    ],
    ids=str,
)
def test_one_shard_alone_at_a_token_orders_filters_and_cuts_itself(request_: rpc_pb2.RangeRequest) -> None:
    scene = Scene()
    scene.position = Position(scene.routing.layout.vector({"a": 3, "b": 4, "c": 5}), 0)
    request_.revision = 1 << 52
    scene.asks(request_)
    out = scene.shards[0].connection.take_output()
    request_.revision = 3
    assert prefix(request_.SerializeToString()) in out
    kvs = [kv_pb2.KeyValue(key=key, value=b"\x18\x01") for key in (b"b", b"a")]
    answer = rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=9), kvs=kvs, more=True, count=7)
    scene.shards[0].says(head(), data(prefix(answer.SerializeToString())), trailers())
    got = message(scene.answer()[0])
    assert got.header.revision == 1 << 52
    answer.ClearField("header")
    got.ClearField("header")
    assert got == answer


@pytest.mark.parametrize("limit", [0, 99, 100, 2**63 - 1])
@pytest.mark.parametrize("position", [(3, 4, 0), (0, 4, 5)])
def test_a_token_without_a_revision_for_a_shard_is_refused_before_any_shard_is_asked(
    limit: int, position: tuple[int, ...]
) -> None:
    scene = Scene()
    revisions = dict(zip(("a", "b", "c"), position, strict=True))
    scene.position = Position(scene.routing.layout.vector(revisions), 0)
    scene.asks(Request(key=b"a", range_end=b"z", limit=limit, revision=1 << 52))
    assert b"required revision has been compacted" in scene.client.take_output()
    assert not any(shard.connection.streams for shard in scene.shards)
