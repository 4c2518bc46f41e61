"""Many calls at once over one honest connection: a shard in trouble affects only the calls to that shard."""

from __future__ import annotations

import grpc

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.wire.frames import MAX_FRAME_SIZE
from esp.core.wire.hpack import encode
from tests.core.wire.conversation import Fields, continuation, data, headers, message
from tests.harness import EspProcess, Esps, Etcds, frozen
from tests.integration.raw_client import RawClient, ask, request
from tests.integration.watch_talk import talking

Range = rpc_pb2.RangeRequest
PUT, RANGE, WATCH = b"/etcdserverpb.KV/Put", b"/etcdserverpb.KV/Range", b"/etcdserverpb.Watch/Watch"


def put(stream: int, key: bytes) -> bytes:
    asked = rpc_pb2.PutRequest(key=key, value=b"v").SerializeToString()
    return headers(stream, request(PUT)) + data(stream, message(asked), end=True)


def get(stream: int, key: bytes, extra: Fields | None = None) -> bytes:
    block = encode(request(RANGE, extra=extra or []))
    pieces = [block[at : at + MAX_FRAME_SIZE] for at in range(0, len(block), MAX_FRAME_SIZE)]
    said = headers(stream, pieces[0], end_headers=len(pieces) == 1)
    for piece in pieces[1:]:
        said += continuation(stream, piece, end_headers=piece is pieces[-1])
    return said + data(stream, message(Range(key=key).SerializeToString()), end=True)


def watch(stream: int, key: bytes) -> bytes:
    asked = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key)).SerializeToString()
    return headers(stream, request(WATCH)) + data(stream, message(asked))


PATIENT = "limits: {keepalive_time: 100, health_timeout: 100}"
"""esp does not give up a stopped shard while the test goes on, however busy the machine is."""


def test_calls_that_wait_for_a_stopped_shard_are_in_nobodys_way(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"], extra=PATIENT)
    with RawClient(esp) as client:
        client.says(put(1, b"a"), put(3, b"z"))
        client.hears(1, 3)
        with frozen(shards[1]):
            client.says(*(get(stream, b"z%d" % stream) for stream in range(5, 5005, 2)))
            puts = range(5005, 5205, 2)
            for stream in puts:
                client.says(put(stream, b"a"))
                assert client.hears(stream)[0].status == (200, 0, "")
            assert not any(stream in client.answers for stream in range(5, 5005, 2))
        assert {answer.status[:2] for answer in client.hears(*range(5, 5005, 2))} == {(200, 0)}


def test_five_thousand_watch_streams_and_a_put_beside_them(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    """Clients in Rust and Java open a stream for each watch."""
    streams = range(1, 10_001, 2)
    keys = {stream: b"%c%d" % (b"ajz"[stream % 3], stream) for stream in streams}
    with RawClient(esp) as client:
        for first in range(0, len(streams), 100):
            client.says(*(watch(stream, keys[stream]) for stream in streams[first : first + 100]))
        client.hears_of(*streams)
        for number, stream in enumerate(streams[::500]):
            beside = 10_003 + 2 * number
            client.answers[stream].body = b""
            client.says(put(beside, keys[stream]))
            assert client.hears(beside)[0].status == (200, 0, "")
            client.hears_of(stream)
            assert keys[stream] in client.answers[stream].body
        assert all(answer.reset is None for answer in client.answers.values())


def test_metadata_that_is_too_large_costs_only_its_own_call(esp: EspProcess, etcd37: LocalEtcd) -> None:
    """What etcd takes, esp takes up to its limit; beyond that the watch on the same connection goes on."""
    large = get(1, b"a", [(b"x", b"v" * 10_000)] * 4)
    assert ask(esp, large).status == ask(etcd37, large).status == (200, 0, "")
    with RawClient(esp) as client:
        client.says(watch(1, b"a1"))
        client.hears_of(1)
        client.says(get(3, b"a", [(b"x", b"v" * 10_000)] * 7), get(5, b"a", [(b"x", b"y")] * 200))
        too_long, too_many = client.hears(3, 5)
        assert too_long.status[:2] == too_many.status[:2] == (200, 8)
        assert "max_header_list_bytes is 65536; send less" in too_long.status[2]
        assert "max_header_fields is 100; send less" in too_many.status[2]
        client.answers[1].body = b""
        client.says(put(7, b"a1"))
        client.hears_of(1)


def test_deadlines_that_run_out_on_a_stopped_shard_cost_nothing_else(start_etcd: Etcds, start_esp: Esps) -> None:
    """300 calls with a time-out of half a second, again and again; their client takes each back when it has run out."""
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"], extra=PATIENT)
    with talking(esp, shards[0]) as talk:
        talk.created(key=b"a")
        with frozen(shards[1]):
            for _ in range(8):
                late = [talk.kv.Range.future(Range(key=b"z%d" % number), timeout=0.5) for number in range(300)]
                for number in range(20):
                    talk.puts(b"b%d" % number)
                assert {call.code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        talk.puts(b"a")
        assert [event.kv.key for event in talk.hears()[0].events] == [b"a"]
    assert "ENHANCE_YOUR_CALM" not in esp.log()
