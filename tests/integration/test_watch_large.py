"""Watches over a history that is larger than esp may hold for a client: every client gets all of it, fast or slow."""

from __future__ import annotations

import time

import pytest

from esp.core.pb import rpc_pb2
from tests.harness import EVERYTHING, Esps, Etcds, Server, connect
from tests.integration.watch_talk import STOPPED, talking
from tests.stubs.rpc_pb2_grpc import KVStub

MIB = 1 << 20
Events = list[tuple[bytes, int]]


def write(server: Server, prefix: str, count: int, size: int) -> Events:
    """Puts so many values of this size, each in a revision of its own."""
    with connect(server) as channel:
        kv = KVStub(channel)
        value = bytes(size)
        made = []
        for number in range(count):
            key = f"{prefix}{number:04}".encode()
            made.append((key, kv.Put(rpc_pb2.PutRequest(key=key, value=value)).header.revision))
        return made


@pytest.mark.parametrize("size", [1, 9, 15, 40], ids=lambda size: f"{size}MiB")
def test_it_comes_once_and_whole(size: int, start_durable_etcd: Etcds, start_esp: Esps) -> None:
    """So many MiB on the first of three shards, in values of 15 KiB; a little on the others."""
    shards = start_durable_etcd.several(3)
    esp = start_esp(shards, ["i", "r"])
    made = write(esp, "a", size * MIB // 15_360, 15_360)
    made += write(esp, "j", 3, 10) + write(esp, "s", 3, 10)
    one_shard = {"key": b"a", "range_end": b"b"}
    for keys, fragment, pause in (  # every pair of two of them: all eight would take a minute
        (EVERYTHING, True, 0.05),
        (EVERYTHING, False, 0.0),
        (one_shard, False, 0.05),
        (one_shard, True, 0.0),
    ):
        wanted = made if keys is EVERYTHING else [event for event in made if event[0] < b"b"]
        came: Events = []
        message = None
        with talking(esp, shards[0]) as talk:
            talk.created(**keys, start_revision=1, fragment=fragment)
            while len(came) < len(wanted):
                [message] = talk.hears()
                assert message.events
                came += [(event.kv.key, event.kv.mod_revision) for event in message.events]
                time.sleep(pause)
        assert message is not None
        assert not message.fragment
        for prefix in (b"a", b"j", b"s"):
            assert [event for event in came if event[0][:1] == prefix] == [e for e in wanted if e[0][:1] == prefix]


def test_others_of_the_stream_go_on_beside_a_long_history_and_between_no_fragments(
    start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    """clientv3 joins what comes one behind the other, and drops what comes between."""
    shards = start_durable_etcd.several(2)
    esp = start_esp(shards, ["m"])
    made = write(esp, "a", 40, MIB)
    with talking(esp, shards[0]) as talk:
        talk.created(key=b"z")
        talk.created(key=b"b")
        talk.created(key=b"a", range_end=b"b", start_revision=1, fragment=True)
        came: Events = []
        others: list[int] = []
        joining = -1
        while len(came) < len(made) or len(others) < 40:
            if len(others) < 40 and (not len(came) % 3 or len(came) == len(made)):
                talk.puts(b"zb"[len(others) % 2 :][:1], b"beside")
            [message] = talk.hears()
            assert joining in (-1, message.watch_id), "another watcher's message between two fragments"
            joining = message.watch_id if message.fragment else -1
            if message.watch_id == 2:
                came += [(event.kv.key, event.kv.mod_revision) for event in message.events]
            else:
                others += [message.watch_id] * len(message.events)
        assert came == made


def test_a_transaction_larger_than_a_fragment_stays_one_response(start_durable_etcd: Etcds, start_esp: Esps) -> None:
    """With what was there before, a revision may be of any size: it is never cut, whatever stands beside it."""
    shards = start_durable_etcd.several(2)
    esp = start_esp(shards, ["m"])
    keys = [f"a{number:02}".encode() for number in range(30)]
    with connect(esp) as channel:
        kv = KVStub(channel)
        for key in keys:
            kv.Put(rpc_pb2.PutRequest(key=key, value=bytes(MIB)))
        puts = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=b"small")) for key in keys]
        whole = kv.Txn(rpc_pb2.TxnRequest(success=puts)).header.revision
        last = kv.Put(rpc_pb2.PutRequest(key=b"a00", value=b"last")).header.revision
    with talking(esp, shards[0]) as talk:
        talk.created(key=b"a", range_end=b"b", start_revision=1, fragment=True, prev_kv=True)
        responses: list[list[int]] = [[]]
        while not responses[-1] or responses[-1][-1] < last:
            [message] = talk.hears()
            responses[-1] += [event.kv.mod_revision for event in message.events]
            if not message.fragment:
                responses.append([])
            if responses[-1] == [] and responses[-2][-1] == last:
                break
    holding = [response for response in responses if whole in response]
    assert len(holding) == 1
    assert holding[0].count(whole) == len(keys)
    assert len(responses) > 3, "30 MiB came as one response: nothing was cut"


def test_a_client_that_does_not_read_is_let_go_and_gets_on_with_each_stream(
    start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    """What is live cannot be held back: a stream ends, which the log tells, and the next one goes on behind it."""
    shards = start_durable_etcd.several(2)
    esp = start_esp(shards, ["m"])
    with talking(esp, shards[0]) as slow:
        start = slow.created(key=b"a", range_end=b"b", fragment=True).header.revision + 1
        made = write(esp, "a", 60, MIB)
        streams = 0
        came: Events = []
        messages, status = slow.hears_out()
        assert status == STOPPED
        while True:
            streams += 1
            before = len(came)
            came += [(event.kv.key, event.kv.mod_revision) for message in messages for event in message.events]
            if len(came) == len(made):
                break
            assert len(came) > before or streams == 1
            start = came[-1][1] + 1 if came else start
            with talking(esp, shards[0]) as again:
                again.created(key=b"a", range_end=b"b", fragment=True, start_revision=start)
                messages = again.hears(len(made) - len(came))
        assert came == made
    assert "reads a watch too slowly" in esp.log()


def test_a_history_for_which_there_is_no_memory_comes_to_clients_that_want_no_fragments(
    start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    """etcd sends them 1000 revisions as one message, of 30 MiB here."""
    shards = start_durable_etcd.several(2)
    esp = start_esp(shards, ["m"], extra=f"limits: {{max_buffered_bytes: {8 * MIB}}}")
    made = write(esp, "a", 30, MIB)
    for keys in (EVERYTHING, {"key": b"a", "range_end": b"b"}):
        came: Events = []
        with talking(esp, shards[0]) as talk:
            talk.created(**keys, start_revision=1)
            while len(came) < len(made):
                [message] = talk.hears()
                assert message.events
                assert not message.fragment
                came += [(event.kv.key, event.kv.mod_revision) for event in message.events]
        assert came == made
    assert "asking for it in fragments" in esp.log()


def test_a_revision_for_which_there_is_no_memory_is_told_as_compacted(
    start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    shards = start_durable_etcd.several(2)
    esp = start_esp(shards, ["m"], extra=f"limits: {{max_buffered_bytes: {16 * MIB}}}")
    write(esp, "a", 30, MIB)
    with connect(esp) as channel:
        deleted = KVStub(channel).DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"b")).header.revision
    for keys, start in ((EVERYTHING, 1), ({"key": b"a", "range_end": b"b"}, deleted)):
        with talking(esp, shards[0]) as talk:
            talk.created(**keys, start_revision=start, prev_kv=True)
            came = 0
            while not (message := talk.hears()[0]).canceled:
                came += len(message.events)
            assert came == (30 if start == 1 else 0)
            assert message.compact_revision == deleted + 1 or keys is EVERYTHING
            talk.created(**keys, start_revision=message.compact_revision, prev_kv=True)
            behind = talk.puts(b"a", b"behind it")
            while not message.events or message.events[-1].kv.mod_revision < behind:
                [message] = talk.hears()
                assert all(event.kv.mod_revision > deleted for event in message.events)
    assert f"no memory for revision {deleted}: its watchers are told it is compacted" in esp.log()
