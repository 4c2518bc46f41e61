"""Keepalives between clients and shards, frame by frame: the test is the clients and the shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from esp.core import errors
from esp.core.background import Background
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.pb import rpc_pb2
from esp.core.services.lease import keepalive, keepalive_call, keepalive_lane
from esp.core.services.lease import table as lease_table
from esp.core.services.lease.keepalive import PATH, LeaseKeepAlive
from esp.core.services.lease.keepalive_call import FEW_AT_WORK, MOST_AT_WORK, MUCH_AT_WORK
from esp.core.services.lease.keepalive_lane import Lane, LaneKeepalive
from esp.core.services.lease.repair import LeaseRepair
from esp.core.services.lease.table import LeaseTable
from esp.core.shard.link import StreamOpener
from esp.core.shard_map import ShardMap
from esp.core.wire import client, connection, frames, handler, server, server_stream
from esp.core.wire.client import ClientConnection
from esp.core.wire.limits import Limits
from esp.core.wire.message import MessageReader
from esp.core.wire.request import RequestHead
from esp.core.wire.server_stream import Handler
from esp.core.wire.status import Code, Status
from tests.core.wire.conftest import Clock
from tests.core.wire.conversation import HEAD, Server, call, data, headers, meet, message, rst, split, trailers, window
from tests.core.wire.upstream import Caller, dial

Ask = rpc_pb2.LeaseKeepAliveRequest
Answer = rpc_pb2.LeaseKeepAliveResponse
NAMES = ("s0", "s1", "s2")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (
        keepalive,
        keepalive_call,
        keepalive_lane,
        lease_table,
        client,
        connection,
        handler,
        server,
        server_stream,
    ):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


class FakeShard:
    """A shard's client as far as keepalives need it; its server is the test."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.user = None
        self.is_ready = True
        self.dialled = 1
        self.barred: Status | None = None
        self.caller: Caller | None = dial(limits)
        self.context = self.caller.context
        self.waiting: list[StreamOpener] = []
        self.moved: list[Status] = []
        self._heads: dict[int, dict[str, str]] = {}
        self._readers: dict[int, MessageReader] = {}
        self._closed: list[int] = []

    # For the code under test.

    def open_stream(self, opener: StreamOpener) -> None:
        if self.caller is not None:
            opener.go(self.caller.connection)
        else:
            self.waiting.append(opener)

    def forget_opener(self, opener: StreamOpener) -> None:
        if opener in self.waiting:
            self.waiting.remove(opener)

    def consider_moving(self, connection: ClientConnection, status: Status) -> None:
        self.moved.append(status)

    # For the test.

    def reconnect(self) -> None:
        self.caller = dial()
        waiting, self.waiting = self.waiting, []
        for opener in waiting:
            opener.go(self.caller.connection)

    def asked(self) -> list[tuple[int, list[int]]]:
        """Since the last time: each stream that was written to, and the leases; ended streams come with []."""
        assert self.caller is not None
        self.caller.flush()
        found: dict[int, list[int]] = {}
        for frame in split(self.caller.said()):
            if frame.kind == frames.DATA:
                reader = self._readers.setdefault(frame.stream, MessageReader(10_000))
                found.setdefault(frame.stream, []).extend(Ask.FromString(m).ID for m in reader.feed(frame.payload))
            elif frame.kind == frames.RST_STREAM:
                found[frame.stream] = []
        return sorted(found.items())

    def answers(self, stream: int, *ids: int, ttl: int = 60, revision: int = 5, first: bool = False) -> None:
        assert self.caller is not None
        body = b"".join(
            message(Answer(header={"revision": revision}, ID=id_, TTL=ttl).SerializeToString()) for id_ in ids
        )
        head = [headers(stream, HEAD)] if first else []
        self.caller.hears(*head, data(stream, body))

    def ends(self, stream: int, status: Status, *, first: bool = False) -> None:
        assert self.caller is not None
        self.caller.hears(headers(stream, (HEAD if first else []) + trailers(status), end=True))


class FakeDoubts:
    """The keepalives whose shard is asked once more when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[LaneKeepalive, Lane]] = []

    def add(self, keepalive: LaneKeepalive, lane: Lane) -> None:
        self.waiting.append((keepalive, lane))

    def ask(self) -> list[str]:
        """Asks the shards; their names."""
        waiting, self.waiting = self.waiting, []
        for one, lane in waiting:
            lane.send([one], one.body)
        return [lane.name for _, lane in waiting]


class World:
    """Clients, esp's keepalive service, and three shards."""

    def __init__(self, clock: Clock, limits: Limits, *, tolerant: bool = True) -> None:
        self.clock = clock
        shard_map = ShardMap.build(
            [("s0", KeyRange(b"", b"i")), ("s1", KeyRange(b"i", b"r")), ("s2", KeyRange(b"r", None))], NAMES
        )
        self.shards = [FakeShard(name, limits) for name in NAMES]
        self.limits = limits
        client, self.server = meet(limits, find=self._find)
        self.client = client
        self.context = self.server.context
        self.table = LeaseTable(self.context, tolerant=tolerant)
        self.layout = Layout.of(shard_map, self.shards)  # type: ignore[arg-type]
        self.repair = LeaseRepair(self.layout, self.table, self.context, Background())
        self.service = LeaseKeepAlive(self.layout, self.table, self.repair, self.context, Background())
        self.doubts = FakeDoubts()
        self.service.doubts = self.doubts  # type: ignore[assignment]
        self._reader = MessageReader(10_000)

    def _find(self, head: RequestHead) -> Handler:
        return self.service

    def opens(self, stream: int = 1, *metadata: tuple[bytes, bytes]) -> None:
        self.client.sends(headers(stream, call(PATH, *metadata)))

    def asks(self, *ids: int, stream: int = 1, end: bool = False) -> None:
        self.client.sends(data(stream, b"".join(message(Ask(ID=id_).SerializeToString()) for id_ in ids), end=end))

    def hears(self, stream: int = 1) -> list[tuple[int, int]]:
        """Lease and TTL of the answers since the last time."""
        self.server.flush()
        payload = b"".join(
            frame.payload for frame in split(self.server.says()) if frame.kind == frames.DATA and frame.stream == stream
        )
        answers = [Answer.FromString(m) for m in self._reader.feed(payload)]
        return [(answer.ID, answer.TTL) for answer in answers]

    def passes(self, seconds: float) -> None:
        self.service.tick(self.clock.passes(seconds))
        self.server.flush()

    def reached(self) -> dict[str, int]:
        return dict(self.context.counters.limits)

    def joins(self, name: str) -> FakeShard:
        """A layout with one shard more is in force."""
        self.becomes(*self.layout.shards, name)
        return self.shards[-1]

    def leaves(self, name: str) -> None:
        """A layout with one shard less is in force."""
        self.becomes(*(other for other in self.layout.shards if other != name))

    def anew(self, name: str) -> FakeShard:
        """A layout is in force in which a shard has another client, as after a change of its certificates."""
        self.shards = [shard for shard in self.shards if shard.name != name]
        self.shards.append(FakeShard(name, self.limits))
        self.becomes(*self.layout.shards)
        return self.shards[-1]

    def becomes(self, *names: str) -> None:
        known = {shard.name for shard in self.shards}
        self.shards += [FakeShard(name, self.limits) for name in names if name not in known]
        shards: list[Any] = [shard for shard in self.shards if shard.name in names]
        edges = [b"", *(name.encode() for name in names[1:]), None]
        ranges = [(name, KeyRange(edges[i] or b"", edges[i + 1])) for i, name in enumerate(names)]
        self.layout = Layout.of(ShardMap.build(ranges, names, self.layout.epoch + 1), shards)
        self.repair.install(self.layout)
        self.service.install(self.layout)
        self.server.flush()

    def jobs(self) -> list[dict[int, bool]]:
        """By shard: leases that are to be granted (True) or revoked (False)."""
        return [{id_: job.grants for id_, job in yard.jobs.items()} for yard in self.repair._yards.values()]


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock, Limits())


@pytest.fixture
def strict(clock: Clock) -> World:
    return World(clock, Limits(), tolerant=False)


def is_over(server: Server, status: Status, stream: int = 1) -> None:
    """The last that the client heard is the end of the stream with that status."""
    from hpack import Decoder

    server.flush()
    ends = [f for f in split(server.says()) if f.kind == frames.HEADERS and f.stream == stream and f.flags & 1]
    fields = dict(Decoder().decode(ends[-1].payload, raw=True))
    assert (int(fields[b"grpc-status"]), fields.get(b"grpc-message", b"").decode()) == (status.code, status.message)


OK = Status(Code.OK)


class TestOrder:
    def test_an_answer_waits_for_every_shard_and_has_the_lowest_ttl_and_revision(self, world: World) -> None:
        world.opens()
        world.asks(7)
        for shard in world.shards:
            assert shard.asked() == [(1, [7])]
        world.shards[2].answers(1, 7, ttl=30, first=True)
        world.shards[0].answers(1, 7, ttl=60, revision=9, first=True)
        assert world.hears() == []
        world.shards[1].answers(1, 7, ttl=40, first=True)
        assert world.hears() == [(7, 30)]

    def test_answers_come_in_the_order_of_the_requests_whatever_the_shards_order(self, world: World) -> None:
        world.opens()
        world.asks(7, 8)
        world.asks(9)
        for shard in world.shards[:2]:
            shard.answers(1, 7, 8, 9, first=True)
        world.shards[2].answers(1, 7, first=True)
        assert world.hears() == [(7, 60)]
        world.shards[2].answers(1, 8, 9)
        assert world.hears() == [(8, 60), (9, 60)]

    def test_clients_share_a_stream_and_each_hears_its_own(self, world: World) -> None:
        world.opens(1)
        world.opens(3)
        world.asks(7, stream=1)
        world.asks(7, 8, stream=3)
        assert world.shards[0].asked() == [(1, [7, 7, 8])]
        for shard in world.shards:
            shard.answers(1, 7, 7, 8, first=True)
        world.server.flush()
        said = list(split(world.server.says()))
        for stream, count in ((1, 1), (3, 2)):
            payload = b"".join(f.payload for f in said if f.kind == frames.DATA and f.stream == stream)
            assert len(MessageReader(1000).feed(payload)) == count

    def test_clients_with_different_tokens_share_nothing(self, world: World) -> None:
        world.opens(1, (b"token", b"a"))
        world.opens(3, (b"token", b"b"))
        world.opens(5, (b"token", b"a"), (b"user-agent", b"another"))
        for stream in (1, 3, 5):
            world.asks(stream, stream=stream)
        assert world.shards[0].asked() == [(1, [1, 5]), (3, [3])]

    def test_the_half_close_drains(self, world: World) -> None:
        world.opens()
        world.asks(7, 8, end=True)
        for shard in world.shards:
            shard.answers(1, 7, first=True)
        assert world.hears() == [(7, 60)]
        for shard in world.shards:
            shard.answers(1, 8)
        is_over(world.server, OK)
        world.server.holds_nothing()

    def test_a_message_may_come_in_pieces(self, world: World) -> None:
        world.opens()
        whole = message(Ask(ID=2**40).SerializeToString())
        for byte in whole:
            world.client.sends(data(1, bytes((byte,))))
        assert world.shards[0].asked() == [(1, [2**40])]

    def test_a_client_that_has_left_is_not_waited_for_and_its_neighbours_are_served(self, world: World) -> None:
        world.opens(1)
        world.opens(3)
        world.asks(7, stream=1)
        world.asks(8, stream=3)
        world.client.sends(rst(1))
        for shard in world.shards:
            shard.answers(1, 7, 8, first=True)
        assert world.hears(3) == [(8, 60)]


class TestBytes:
    """Most requests and answers are handled as the bytes that came; those of any other form mean the same."""

    def raw(self, world: World) -> list[bytes]:
        world.server.flush()
        frames_said = [frame.payload for frame in split(world.server.says()) if frame.kind == frames.DATA]
        return MessageReader(10_000).feed(b"".join(frames_said))

    @pytest.mark.parametrize("ttl", [1, 127, 128, 300, 16_383, 16_384, 2**40])
    def test_an_answer_is_written_as_protobuf_writes_it(self, world: World, ttl: int) -> None:
        world.opens()
        ids = [1, 127, 128, 2**14, 2**56 - 1, 2**56, 2**63 - 1, -5, -(2**63)]
        for id_ in ids:
            world.asks(id_)
        for shard in world.shards:
            shard.answers(1, ids[0], ttl=ttl, first=True)  # the header is known from here on
            for id_ in ids[1:]:
                shard.answers(1, id_, ttl=ttl)
        answers = self.raw(world)
        assert len(answers) == len(ids)
        for id_, answer in zip(ids, answers, strict=True):
            parsed = Answer.FromString(answer)
            assert (parsed.ID, parsed.TTL, parsed.header.revision) == (id_, ttl, 5)
            assert answer == parsed.SerializeToString()
        assert world.table.get(2**56) is not None

    @pytest.mark.parametrize(
        "request_bytes",
        [b"\x08\x87\x00", b"\x08\x05\x08\x07", b"\x08\x07\x18\x3c", b"\x18\x3c\x08\x07", b"\x08\x07\x12\0"],
    )
    def test_a_request_in_another_form_is_read_all_the_same(self, world: World, request_bytes: bytes) -> None:
        world.opens()
        world.asks(7)
        world.client.sends(data(1, message(request_bytes)))
        for shard in world.shards:
            assert shard.asked() == [(1, [7, 7])]
            shard.answers(1, 7, first=True)
            shard.answers(1, 7, ttl=50)
        assert world.hears() == [(7, 60), (7, 50)]

    @pytest.mark.parametrize(
        "tail",
        [
            b"\x18\xb2\x00",  # a number with a byte too many
            b"\x18\x05\x18\x32",  # the last of a field counts
            b"\x18\x32\x20\x01",  # a field of a newer etcd
            b"\x20\x01\x18\x32",
        ],
    )
    def test_an_answer_in_another_form_is_read_all_the_same(self, world: World, tail: bytes) -> None:
        world.opens()
        world.asks(7)
        world.asks(7)
        head = Answer(header={"revision": 5}, ID=7).SerializeToString()
        for shard in world.shards:
            shard.answers(1, 7, first=True)
            assert shard.caller is not None
            shard.caller.hears(data(1, message(head + tail)))
        assert world.hears() == [(7, 60), (7, 50)]

    def test_an_answer_about_another_lease_with_the_same_first_bytes_is_not_taken(self, world: World) -> None:
        world.opens()
        world.asks(7)
        world.asks(1)
        for shard in world.shards:
            shard.answers(1, 7, first=True)
        world.shards[0].answers(1, 1 + (1 << 7))
        assert world.shards[0].asked()[-1] == (1, []), "the stream has ended for that"

    def test_leases_that_are_unknown_everywhere_are_answered_with_no_ttl(self, strict: World) -> None:
        strict.opens()
        for id_ in (4711, 0, 4711):
            strict.asks(id_)
        for shard in strict.shards:
            shard.answers(1, 4711, ttl=0, first=True)
            shard.answers(1, 0, ttl=0)
            shard.answers(1, 4711, ttl=0)
        assert strict.hears() == [(4711, 0), (0, 0), (4711, 0)]

    def test_an_answer_to_nobody_is_not_taken(self, world: World) -> None:
        world.opens()
        world.asks(7)
        for shard in world.shards:
            shard.answers(1, 7, first=True)
        world.shards[0].asked()
        world.shards[0].answers(1, 7)
        assert world.shards[0].asked() == [(1, [])]

    def test_keepalives_of_one_turn_leave_in_one_frame(self, world: World) -> None:
        for stream in (1, 3, 5):
            world.opens(stream)
        world.asks(7, stream=1)
        for shard in world.shards:
            assert shard.asked() == [(1, [7])]
        for stream in (1, 3, 5):
            world.asks(8, 9, stream=stream)
            world.asks(10, stream=stream)
        for shard in world.shards:
            assert shard.caller is not None
            shard.caller.flush()
            said = [frame.payload for frame in split(shard.caller.said()) if frame.kind == frames.DATA]
            assert len(said) == 1
            assert [Ask.FromString(m).ID for m in MessageReader(1000).feed(said[0])] == [8, 9, 10] * 3

    def test_keepalives_that_do_not_fit_a_frame_all_leave(self, world: World) -> None:
        world.opens(1)
        world.asks(7)
        world.shards[0].asked()
        large = message(b"\x08\x08\x12\xf6\x1f" + bytes(4086))
        for _ in range(9):
            world.client.sends(data(1, large))
        caller = world.shards[0].caller
        assert caller is not None
        caller.flush()
        said = [frame.payload for frame in split(caller.said()) if frame.kind == frames.DATA]
        assert len(said) == 3
        assert len(MessageReader(10_000).feed(b"".join(said))) == 9


class TestAnotherLayout:
    def test_a_shard_that_has_come_is_asked_on_the_streams_that_are_open(self, world: World) -> None:
        world.opens()
        world.asks(7)
        joined = world.joins("s3")
        world.asks(8)
        for shard in world.shards[:3]:
            shard.answers(1, 7, 8, first=True)
        assert world.hears() == [(7, 60)], "it was asked by the layout before"
        assert joined.asked() == [(1, [8])]
        joined.answers(1, 8, ttl=50, first=True)
        assert world.hears() == [(8, 50)]
        assert world.table.was_on(8, "s3")
        assert not world.table.was_on(7, "s3")

    def test_what_waits_for_a_shard_that_has_left_is_answered_without_it(self, world: World) -> None:
        world.opens()
        world.asks(7, 8)
        for shard in world.shards[:2]:
            shard.answers(1, 7, 8, ttl=40, first=True)
        world.shards[2].answers(1, 7, ttl=30, first=True)
        assert world.hears() == [(7, 30)]
        world.leaves("s2")
        assert world.hears() == [(8, 40)]
        world.asks(9)
        assert world.shards[2].asked() == [(1, [])], "its stream has ended, and no other begins"
        for shard in world.shards[:2]:
            shard.answers(1, 9, ttl=20)
        assert world.hears() == [(9, 20)]
        assert world.table.was_on(7, "s2")

    def test_what_waits_for_a_shard_that_is_reached_in_another_way_now_is_asked_there_once_more(
        self, strict: World
    ) -> None:
        """Without its answer the renewal would promise what that shard does not know of."""
        strict.opens()
        strict.asks(7, 8)
        for shard in strict.shards[:2]:
            shard.answers(1, 7, 8, ttl=40, first=True)
        strict.shards[2].answers(1, 7, ttl=30, first=True)
        again = strict.anew("s2")
        assert strict.hears() == [(7, 30)]
        assert again.asked() == [(1, [8])]
        again.answers(1, 8, ttl=20, first=True)
        assert strict.hears() == [(8, 20)]

    def test_repairs_that_wait_for_such_a_shard_still_do(self, world: World) -> None:
        world.repair.revoke(7, ["s2"], [])
        world.anew("s2")
        assert world.jobs() == [{}, {}, {7: False}]

    def test_where_every_shard_has_left_the_client_comes_again(self, world: World) -> None:
        world.opens()
        world.asks(7)
        world.becomes("t0", "t1")
        is_over(world.server, errors.SERVER_STOPPED)

    def test_repairs_that_wait_for_a_shard_that_has_left_are_dropped(self, world: World) -> None:
        world.repair.revoke(7, NAMES, [])
        assert world.repair.waiting == 3
        world.leaves("s1")
        assert world.repair.waiting == 2
        world.repair.grant(8, "s1", [])
        world.repair.revoke(8, ["s1"], [])
        world.repair.drop(8, ["s1"])
        assert world.repair.waiting == 2
        assert world.table.left_out == set()


class TestFaultsOfClients:
    def test_what_is_no_message_ends_the_stream(self, world: World) -> None:
        world.opens()
        world.client.sends(data(1, message(b"\xff\xff")))
        said = [f for f in split(world.server.says()) if f.kind == frames.HEADERS]
        assert b"unmarshalling" in said[-1].payload or said[-1].flags & 1

    def test_a_half_message_at_the_end_is_an_error(self, world: World) -> None:
        world.opens()
        world.client.sends(data(1, message(b"12345")[:-1], end=True))
        is_over(world.server, Status(Code.INTERNAL, "the request ended within a message"))

    def test_a_request_is_of_bounded_size(self, world: World) -> None:
        world.opens()
        world.client.sends(data(1, message(bytes(5000))))
        is_over(world.server, Status(Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5000 vs. 4096)"))

    def test_the_window_is_given_back_only_with_the_answers(self, world: World) -> None:
        world.opens()
        ids = [2**60] * 2000
        body = message(Ask(ID=2**60).SerializeToString()) * 1000
        granted = len(body) * 2
        for part in (body[:15000], body[15000:], body[:15000], body[15000:]):
            world.client.sends(data(1, part))
        world.server.flush()

        def given_back() -> int:
            return sum(
                int.from_bytes(f.payload, "big")
                for f in split(world.server.says())
                if f.kind == frames.WINDOW_UPDATE and f.stream == 1
            )

        assert given_back() == 0
        assert 0 < world.context.buffers.used <= granted, "what waits counts for its client"
        answered = 0
        while answered < len(ids):
            asked = [shard.asked()[0][1] for shard in world.shards]
            assert asked == [ids[: len(asked[0])]] * 3
            assert len(asked[0]) <= MOST_AT_WORK
            for shard in world.shards:
                shard.answers(1, *asked[0], first=not answered)
            answered += len(asked[0])
        # The client has no window for all the answers; what waits for it is owed until it has left.
        assert given_back() < granted / 2
        world.client.sends(window(0, 100_000), window(1, 100_000))
        assert granted / 2 < given_back() <= granted

    def test_a_client_that_sends_many_does_not_stand_before_others(self, world: World) -> None:
        world.opens(1)
        world.opens(3)
        world.asks(*range(1, 2001), stream=1)
        world.asks(7, stream=3)
        [(_, asked)] = world.shards[0].asked()
        assert asked == [*range(1, MOST_AT_WORK + 1), 7]
        world.shards[0].answers(1, *asked[: MOST_AT_WORK // 2], first=True)
        assert world.shards[0].asked() == [], "the other shards have not answered"
        for shard in world.shards[1:]:
            shard.answers(1, *asked, first=True)
        assert world.shards[0].asked() == [(1, list(range(MOST_AT_WORK + 1, MOST_AT_WORK * 3 // 2 + 1)))]
        world.client.sends(rst(1))
        assert world.shards[0].asked() == []
        world.shards[0].answers(1, *asked[MOST_AT_WORK // 2 :])
        assert world.hears(3) == [(7, 60)]

    def test_many_that_send_many_have_a_few_at_work_each(self, world: World) -> None:
        streams = range(1, 120, 2)
        for stream in streams:
            world.opens(stream)
            world.asks(*range(1, 101), stream=stream)
        heard, most = 0, 0
        while asked := world.shards[0].asked():
            most = max(most, len(asked[0][1]))
            for shard in world.shards:
                for start in range(0, len(asked[0][1]), 500):
                    shard.answers(1, *asked[0][1][start : start + 500], first=not heard and not start)
            heard += len(asked[0][1])
        assert heard == 100 * len(streams)
        assert most <= MUCH_AT_WORK + FEW_AT_WORK * len(streams) + MOST_AT_WORK

    @pytest.mark.parametrize("ttl", [0, 60, 300])
    def test_one_answer_of_a_shard_is_parsed_and_those_that_are_like_it_are_not(
        self, world: World, monkeypatch: pytest.MonkeyPatch, ttl: int
    ) -> None:
        """However many come in a frame, of leases that live, or of leases that no shard knows."""
        parsed = []
        parse = keepalive_lane._parse
        monkeypatch.setattr(keepalive_lane, "_parse", lambda answer: parsed.append(answer) or parse(answer))
        world.opens(1)
        world.asks(*range(1, MOST_AT_WORK + 1))
        for shard in world.shards:
            shard.answers(1, *shard.asked()[0][1], ttl=ttl, first=True)
        assert world.hears() == [(lease, ttl) for lease in range(1, MOST_AT_WORK + 1)]
        assert len(parsed) == len(world.shards)

    def test_what_waits_is_given_up_with_its_client(self, world: World) -> None:
        world.opens(1)
        world.asks(*range(1, 1001), stream=1)
        assert world.context.buffers.used > 0
        world.client.sends(rst(1))
        assert world.context.buffers.used == 0

    def test_the_half_close_waits_for_all_that_waits(self, world: World) -> None:
        world.opens()
        world.asks(*range(1, 101), end=True)
        heard = []
        while asked := world.shards[0].asked():
            for shard in world.shards:
                shard.answers(1, *asked[0][1], first=not heard)
            heard += world.hears()
        assert [lease for lease, _ in heard] == list(range(1, 101))
        world.server.holds_nothing()


class TestLimits:
    def test_keepalives_that_wait(self, clock: Clock) -> None:
        world = World(clock, Limits(max_keepalives=3))
        world.opens(1)
        world.asks(1, 2, 3, stream=1)
        world.opens(3)
        world.asks(4, stream=3)
        is_over(world.server, errors.TOO_MANY_REQUESTS, 3)
        assert world.reached() == {"max_keepalives": 1}
        for shard in world.shards:
            shard.answers(1, 1, 2, 3, first=True)
        world.opens(5)
        world.asks(1, 2, 3, stream=5)
        world.client.sends(rst(5))
        world.opens(7)
        world.asks(1, 2, 3, stream=7)
        assert world.reached() == {"max_keepalives": 1}

    def test_streams_to_a_shard(self, clock: Clock) -> None:
        world = World(clock, Limits(max_keepalive_streams=2))
        for stream, token in ((1, b"a"), (3, b"b")):
            world.opens(stream, (b"token", token))
            world.asks(1, stream=stream)
        world.opens(5, (b"token", b"c"))
        is_over(world.server, errors.TOO_MANY_REQUESTS, 5)
        assert world.reached() == {"max_keepalive_streams": 1}
        assert world.shards[0].asked() == [(1, [1]), (3, [1])]
        # One that nobody uses makes room.
        world.client.sends(rst(1))
        world.opens(7, (b"token", b"c"))
        world.asks(2, stream=7)
        assert world.shards[0].asked() == [(1, []), (5, [2])]

    def test_one_address_cannot_have_the_last_streams_to_the_shards(self, clock: Clock) -> None:
        world = World(clock, Limits(max_keepalive_streams=64))
        for number in range(60):
            world.opens(1 + 2 * number, (b"token", b"%d" % number))
        is_over(world.server, errors.TOO_MANY_REQUESTS, 113)
        assert world.reached() == {"max_keepalive_streams": 4}
        world.server.connection.peer = "10.0.0.2:1"
        world.opens(201, (b"token", b"other"))
        world.asks(1, stream=201)
        assert world.shards[0].asked() == [(1, [1])]
        world.opens(203, (b"token", b"another"))
        is_over(world.server, errors.TOO_MANY_REQUESTS, 203)

    def test_one_address_cannot_have_the_last_keepalives(self, clock: Clock) -> None:
        world = World(clock, Limits(max_keepalives=64))
        world.opens(1)
        world.opens(3)
        world.opens(7)
        world.asks(*range(1, 29))
        world.asks(*range(29, 57), stream=7)
        world.asks(57, stream=3)
        is_over(world.server, errors.TOO_MANY_REQUESTS, 3)
        world.server.connection.peer = "10.0.0.2:1"
        world.opens(9)
        world.asks(1, stream=9)
        assert world.reached() == {"max_keepalives": 1}
        for shard in world.shards:
            shard.answers(1, *range(1, 57), 1, first=True)
        assert world.hears(9) == [(1, 60)]
        assert world.service.waiting.used == 0

    def test_leases_known(self, clock: Clock) -> None:
        world = World(clock, Limits(max_known_leases=2))
        world.opens()
        world.asks(1, 2, 3)
        for shard in world.shards:
            shard.answers(1, 1, 2, 3, first=True)
        assert [world.table.get(id_) is None for id_ in (1, 2, 3)] == [True, False, False]
        assert world.reached() == {"max_known_leases": 1}

    def test_repairs(self, clock: Clock) -> None:
        world = World(clock, Limits(max_lease_repairs=2))
        world.repair.grant(1, "s0", [])
        world.repair.revoke(1, NAMES, [])
        assert world.jobs() == [{1: False}, {1: False}, {}]
        assert world.reached() == {"max_lease_repairs": 1}

    def test_a_stream_without_clients_is_closed(self, world: World) -> None:
        world.opens()
        world.asks(7, end=True)
        for shard in world.shards:
            shard.answers(1, 7, first=True)
        assert world.shards[0].asked() == [(1, [7])]
        world.passes(29)
        assert world.shards[0].asked() == []
        world.passes(2)
        assert world.shards[0].asked() == [(1, [])]


class TestOneThatHoldsUpOthers:
    """etcd does not answer for a lease that has ended until it is revoked, nor for any behind it."""

    def test_it_goes_on_a_slow_stream_and_the_others_on_a_new_one(self, world: World) -> None:
        world.opens(1)
        world.opens(3)
        world.asks(7, stream=1)
        world.asks(8, 9, stream=3)
        for shard in world.shards[1:]:
            shard.answers(1, 7, ttl=0, first=True)
            shard.answers(1, 8, 9)
        slow = world.shards[0]
        slow.asked()
        world.passes(0.5)
        assert slow.asked() == [(1, []), (3, [7]), (5, [8, 9])]
        slow.answers(5, 8, 9, first=True)
        assert world.hears(3) == [(8, 60), (9, 60)]
        # What comes meanwhile does not wait behind it either, and it is not given up.
        for _ in range(20):
            world.asks(8, stream=3)
            slow.answers(5, 8)
            for shard in world.shards[1:]:
                shard.answers(1, 8)
            assert world.hears(3) == [(8, 60)]
            world.passes(0.5)
            for stream, ids in slow.asked():
                assert (stream, ids) in ((5, [8]), (5, [8, 0]))
                if 0 in ids:
                    slow.answers(5, 0, ttl=0)
        slow.answers(3, 7, ttl=0, first=True)
        assert world.hears(1) == [(7, 0)]

    def test_alone_it_is_waited_for_while_the_shard_answers_other_questions(self, world: World) -> None:
        world.opens()
        world.asks(7)
        for shard in world.shards[1:]:
            shard.answers(1, 7, ttl=0, first=True)
        slow = world.shards[0]
        slow.asked()
        world.passes(0.5)
        assert slow.asked() == [(1, []), (3, [7])]
        first = True
        for _ in range(20):
            world.passes(0.5)
            assert slow.asked() == [(5, [0])]
            slow.answers(5, 0, ttl=0, first=first)
            first = False
        assert world.hears() == []
        slow.answers(3, 7, ttl=0, first=True)
        assert world.hears() == [(7, 0)]

    def test_a_shard_that_is_only_slow_is_left_alone(self, world: World) -> None:
        world.opens()
        world.asks(*range(1, 11))
        world.shards[0].asked()
        for id_ in range(1, 11):
            world.passes(0.2)
            for shard in world.shards:
                shard.answers(1, id_, first=id_ == 1)
        assert len(world.hears()) == 10
        assert world.shards[0].asked() == []


class TestAShardThatDoesNotAnswer:
    def know(self, world: World, ttl: int = 60) -> None:
        """All shards have answered once for lease 7."""
        world.opens()
        world.asks(7)
        for shard in world.shards:
            shard.answers(1, 7, ttl=ttl, first=True)
        assert world.hears() == [(7, ttl)]

    def test_it_counts_with_what_is_left_until_that_has_run_out(self, world: World) -> None:
        self.know(world, ttl=5)
        world.shards[1].asked()
        seen = []
        for _ in range(8):
            world.asks(7)
            for shard in (world.shards[0], world.shards[2]):
                shard.answers(1, 7, ttl=5)
            for _ in range(3):
                world.passes(0.5)
            seen += [ttl for _, ttl in world.hears()]
        assert seen[0] in (3, 4)
        assert seen == [*sorted((ttl for ttl in seen if ttl < 5), reverse=True), *[5] * seen.count(5)]
        assert seen.count(5) > 2
        assert 0 not in seen
        assert world.table.counters["left_out"] == seen.count(5)

    def test_in_strict_mode_the_stream_ends(self, strict: World) -> None:
        self.know(strict)
        strict.asks(7)
        for shard in (strict.shards[0], strict.shards[2]):
            shard.answers(1, 7)
        for _ in range(3):
            strict.passes(0.5)
        is_over(strict.server, errors.REQUEST_TIMED_OUT)

    def test_without_a_connection_it_is_given_up_soon(self, world: World) -> None:
        world.shards[1].caller = None
        world.opens()
        world.asks(7)
        for shard in (world.shards[0], world.shards[2]):
            shard.answers(1, 7, first=True)
        world.passes(0.5)
        assert world.hears() == [(7, 60)]
        assert world.shards[1].waiting == []

    def test_a_connection_in_time_is_used(self, world: World) -> None:
        world.shards[1].caller = None
        world.opens()
        world.asks(7)
        world.asks(8)
        world.shards[1].reconnect()
        assert world.shards[1].asked() == [(1, [7, 8])]

    def test_a_stream_that_breaks_is_opened_again_once(self, world: World) -> None:
        self.know(world)
        shard = world.shards[1]
        shard.asked()
        world.asks(7, 8)
        assert shard.asked() == [(1, [7, 8])]
        assert shard.caller
        shard.caller.hears(rst(1))
        assert shard.asked() == [(3, [7, 8])]
        for other in (world.shards[0], world.shards[2]):
            other.answers(1, 7, 8)
        shard.caller.hears(rst(3))  # without an answer since: no more
        assert shard.asked() == []
        assert world.hears() == [(7, 60), (8, 60)]

    def test_a_connection_that_is_left_takes_the_stream_with_it(self, world: World) -> None:
        """As when the shard client leaves a member without a leader."""
        self.know(world)
        shard = world.shards[1]
        world.asks(7)
        shard.asked()
        assert shard.caller
        old = shard.caller
        stream = old.connection.streams[1]
        shard.reconnect()
        stream.on_retired()
        assert shard.asked() == [(1, [7])]
        assert 1 not in old.connection.streams

    def test_a_status_that_says_no_leader_is_told_to_the_shard(self, world: World) -> None:
        self.know(world)
        world.asks(7)
        world.shards[1].ends(1, errors.NO_LEADER)
        assert world.shards[1].moved == [errors.NO_LEADER]

    @pytest.mark.parametrize(
        "status", [errors.INVALID_AUTH_TOKEN, Status(Code.UNKNOWN, "etcdserver: whatever")], ids=str
    )
    def test_an_error_that_is_not_about_being_away_goes_to_the_client(self, world: World, status: Status) -> None:
        self.know(world)
        world.asks(7)
        for shard in (world.shards[0], world.shards[2]):
            shard.answers(1, 7)
        world.shards[1].ends(1, status)
        is_over(world.server, status)

    def test_permission_denied_is_for_the_first_alone(self, world: World) -> None:
        world.opens(1)
        world.opens(3)
        world.asks(7, stream=1)
        world.asks(8, stream=3)
        for shard in world.shards[1:]:
            shard.answers(1, 7, 8, first=True)
        shard = world.shards[0]
        shard.asked()
        shard.ends(1, errors.PERMISSION_DENIED, first=True)
        is_over(world.server, errors.PERMISSION_DENIED, 1)
        assert shard.asked() == [(1, []), (3, [8])]
        shard.answers(3, 8, first=True)
        assert world.hears(3) == [(8, 60)]

    @pytest.mark.parametrize(
        "say",
        [
            lambda shard: shard.answers(1, 99),
            lambda shard: shard.caller.hears(data(1, message(b"\xff\xff"))),
            lambda shard: shard.answers(1, 7, 7),
        ],
        ids=["another lease", "no message", "one too many"],
    )
    def test_an_answer_that_cannot_be_ends_that_stream(self, world: World, say: Callable[[FakeShard], None]) -> None:
        self.know(world)
        world.shards[1].asked()
        world.asks(7)
        say(world.shards[1])
        assert world.shards[1].asked() == [(1, [])]

    def test_without_any_answer_the_clients_stream_ends(self, world: World) -> None:
        self.know(world)
        world.asks(7)
        for shard in world.shards:
            shard.ends(1, errors.NO_LEADER)
        for _ in range(3):
            world.passes(0.5)
        is_over(world.server, errors.REQUEST_TIMED_OUT)


class TestShardsThatDisagree:
    def answer(self, world: World, *ttls: int, revision: int = 5, first: bool = True) -> list[tuple[int, int]]:
        """What the client hears of lease 7 when these are the shards' TTLs; `revision` is that of the second shard."""
        if first:
            world.opens()
        world.asks(7)
        for shard, ttl in zip(world.shards, ttls, strict=True):
            own = revision if shard is world.shards[1] else 5
            shard.answers(1, 7, ttl=ttl, revision=own, first=first)
        again = world.doubts.ask()
        for shard in world.shards:
            if shard.name in again:
                shard.answers(1, 7, ttl=0)
        return world.hears()

    def test_a_lease_that_was_on_the_shard_is_dead_and_revoked_on_the_others(self, world: World) -> None:
        assert self.answer(world, 60, 60, 60) == [(7, 60)]
        assert self.answer(world, 60, 0, 60, first=False) == [(7, 0)]
        assert world.jobs() == [{7: False}, {}, {7: False}]
        assert world.table.get(7) is None

    def test_a_lease_of_which_nothing_is_known_there_is_dead(self, world: World) -> None:
        """As after a restart of esp: it may have ended there, and its keys be gone."""
        assert self.answer(world, 60, 0, 50) == [(7, 0)]
        assert world.jobs() == [{7: False}, {}, {7: False}]

    def test_a_lease_that_was_granted_without_the_shard_is_granted_there(self, world: World) -> None:
        world.table.granted(7, {"s0": 100.0, "s2": 100.0}, [])
        assert self.answer(world, 60, 0, 50) == [(7, 50)]
        assert world.jobs() == [{}, {7: True}, {}]

    def test_a_shard_that_has_never_had_a_key_gets_it_also_when_it_has_one_by_then(self, world: World) -> None:
        assert self.answer(world, 60, 0, 50, revision=1) == [(7, 50)]
        assert world.jobs() == [{}, {7: True}, {}]
        assert self.answer(world, 60, 0, 50, revision=2, first=False) == [(7, 50)]

    def test_a_shard_that_was_away_just_now_is_left_out_for_a_moment(self, world: World) -> None:
        world.table.away("s1")
        world.table.returned("s1", world.clock())
        assert self.answer(world, 60, 0, 50) == [(7, 50)]
        assert world.jobs() == [{}, {}, {}]
        world.clock.passes(4)
        assert self.answer(world, 60, 0, 50, first=False) == [(7, 0)]

    def test_in_strict_mode_it_is_dead_at_once(self, strict: World) -> None:
        strict.table.granted(7, {"s0": 100.0, "s2": 100.0}, [])
        strict.table.away("s1")
        assert self.answer(strict, 60, 0, 50, revision=1) == [(7, 0)]
        assert strict.jobs() == [{7: False}, {}, {7: False}]

    def test_a_lease_that_no_shard_has_is_only_answered_for(self, world: World) -> None:
        assert self.answer(world, 60, 60, 60) == [(7, 60)]
        assert self.answer(world, 0, 0, 0, first=False) == [(7, 0)]
        assert world.jobs() == [{}, {}, {}]

    def test_one_shard_that_does_not_answer_does_not_hide_that_another_has_lost_it(self, world: World) -> None:
        assert self.answer(world, 60, 60, 60) == [(7, 60)]
        world.asks(7)
        world.shards[0].answers(1, 7)
        world.shards[1].answers(1, 7, ttl=0)
        for _ in range(3):
            world.passes(0.5)
        assert world.doubts.ask() == ["s1"]
        world.shards[1].answers(1, 7, ttl=0)
        assert world.hears() == [(7, 0)]
        assert world.jobs() == [{7: False}, {}, {7: False}]

    @pytest.mark.parametrize("known", [False, True])
    @pytest.mark.parametrize("tolerant", [False, True])
    def test_a_shard_that_has_lost_it_and_then_has_it_was_frozen(
        self, clock: Clock, known: bool, tolerant: bool
    ) -> None:
        """Its member believed that it still led, and did not know a lease that another proxy has granted meanwhile."""
        world = World(clock, Limits(), tolerant=tolerant)
        world.opens()
        if known:
            world.table.granted(7, dict.fromkeys(NAMES, 100.0), [])
        world.asks(7, 8)
        for shard in world.shards:
            shard.answers(1, 7, ttl=0 if shard.name == "s1" else 60, first=True)
            shard.answers(1, 8, ttl=50)
        assert world.hears() == [], "answers keep their order"
        assert world.doubts.ask() == ["s1"]
        world.shards[1].answers(1, 7, ttl=40)
        assert world.hears() == [(7, 40), (8, 50)]
        assert world.jobs() == [{}, {}, {}]
        assert world.table.was_on(7, "s1")

    def test_what_cannot_be_made_sure_is_not_told(self, strict: World) -> None:
        strict.opens()
        strict.asks(7)
        for shard in strict.shards:
            shard.answers(1, 7, ttl=0 if shard.name == "s1" else 60, first=True)
        ((keepalive, lane),) = strict.doubts.waiting
        keepalive.failed(lane.name, errors.REQUEST_TIMED_OUT)
        is_over(strict.server, errors.REQUEST_TIMED_OUT)
        assert strict.jobs() == [{}, {}, {}]

    def test_it_is_asked_once_more_only_if_others_have_it_and_it_did_not_just_miss_it(self, world: World) -> None:
        world.table.granted(7, {"s0": 100.0, "s2": 100.0}, [])
        world.opens()
        world.asks(7, 8)
        for shard in world.shards:
            shard.answers(1, 7, ttl=0 if shard.name == "s1" else 60, first=True)
            shard.answers(1, 8, ttl=0)
        assert not world.doubts.waiting
        assert world.hears() == [(7, 60), (8, 0)]
