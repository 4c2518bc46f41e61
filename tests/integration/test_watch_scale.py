"""Many watchers, many streams, large messages, slow clients."""

from __future__ import annotations

import asyncio
import time

import grpc

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.services.watch.stream import MAX_SLOTS
from tests.harness import EspProcess, Esps, Etcds, connect, wait_until
from tests.integration.watch_talk import EVERYTHING, STOPPED, Conversation, Create, Put, talking, watchers_in
from tests.stubs import rpc_pb2_grpc
from tests.watching import check, history_of, resumable, revision_of, wanted, watching


def owner(key: bytes) -> int:
    return int(key >= b"m")


def test_watchers_of_the_same_are_one_watcher_to_the_shard(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    same = {"key": b"a", "range_end": b"c"}
    with talking(esp, shards[0]) as talk, talking(esp, shards[0]) as other:
        for number in range(100):
            talk.created(**same)
            other.created(**same, start_revision=1 if number % 2 else 0)
        talk.puts(b"a")
        assert len({message.watch_id for message in talk.hears(100)}) == 100
        assert len({message.watch_id for message in other.hears(100)}) == 100
        wait_until(lambda: watchers_in(shards[0]) == 1)
        for different in ({"prev_kv": True}, {"fragment": True}, {"filters": [Create.NOPUT]}, {"range_end": b"d"}):
            talk.created(**(same | different))
        assert watchers_in(shards[0]) == 5
        with talking(esp, shards[0], ("hasleader", "true")) as demanding:
            demanding.created(**same)
            assert watchers_in(shards[0]) == 6
    wait_until(lambda: watchers_in(shards[0]) == 0)


def test_many_watchers_on_one_stream(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    count = 3 * MAX_SLOTS  # more than may wait for their reply at a time
    with talking(esp, empty_shards[0]) as talk:
        for number in range(count):
            talk.requests.create(key=b"%s%d" % (b"ajz"[number % 3 :][:1], number))
        assert [message.watch_id for message in talk.hears(count)] == list(range(count))
        for number in range(0, count, 100):
            talk.puts(b"%s%d" % (b"ajz"[number % 3 :][:1], number))
            assert [message.watch_id for message in talk.hears()] == [number]
        for number in range(count):
            talk.requests.cancel(number)
        assert [(message.watch_id, message.canceled) for message in talk.hears(count)] == [
            (number, True) for number in range(count)
        ]
    wait_until(lambda: sum(map(watchers_in, empty_shards)) == 0)


def test_many_streams_on_one_connection(esp: EspProcess, empty_shards: list[LocalEtcd]) -> None:
    with connect(esp) as channel:
        talks = [Conversation(esp, empty_shards[0], channel, ()) for _ in range(50)]
        for talk in talks:
            talk.requests.create(**EVERYTHING)
            talk.requests.create(key=b"j", start_revision=revision_of(empty_shards[1]) + 1)
        for talk in talks:
            assert [message.watch_id for message in talk.hears(2)] == [0, 1]
        talks[0].puts(b"j")
        for talk in talks:
            assert {message.watch_id for message in talk.hears(2)} == {0, 1}
        for talk in talks:
            talk.ends()
    wait_until(lambda: sum(map(watchers_in, empty_shards)) == 0)


async def two_thousand_streams(esp: EspProcess, shards: list[LocalEtcd]) -> None:
    """Half watch the same key of one shard, half a key of their own over all shards or from a revision."""
    channels = [grpc.aio.insecure_channel(esp.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    calls = [rpc_pb2_grpc.WatchStub(channels[number % 4]).Watch() for number in range(2000)]
    start = revision_of(shards[1]) + 1

    async def create(number: int) -> None:
        kind = number % 4
        if kind < 2:
            request = Create(key=b"all")
        elif kind == 2:
            request = Create(key=b"j%d" % number, start_revision=start)
        else:
            request = Create(key=b"b%d" % number, range_end=b"z")
        await calls[number].write(rpc_pb2.WatchRequest(create_request=request))
        reply = await calls[number].read()
        assert reply.created, number
        assert not reply.canceled, number

    async def hears(number: int, *keys: bytes) -> None:
        heard = [(await calls[number].read()).events[0].kv.key for _ in keys]
        assert heard == list(keys), number

    await asyncio.gather(*map(create, range(2000)))
    assert watchers_in(shards[0]) == 503, "one for all that watch the same key, and one for each crowd"
    kv = rpc_pb2_grpc.KVStub(channels[0])
    await kv.Put(Put(key=b"all"))
    for number in (2, 1002, 1998):
        await kv.Put(Put(key=b"j%d" % number))
    await asyncio.gather(*(hears(number, b"all") for number in range(2000) if number % 4 < 2))
    await asyncio.gather(*(hears(number, b"j%d" % number) for number in (2, 1002, 1998)))
    across = [number for number in range(2000) if number % 4 == 3]
    expected = {number: [b"j%d" % n for n in (2, 1002, 1998) if b"b%d" % number <= b"j%d" % n] for number in across}
    await asyncio.gather(*(hears(number, *keys) for number, keys in expected.items()))
    for call in calls:
        call.cancel()
    for channel in channels:
        await channel.close()


def test_thousands_of_streams_each_hear_their_own(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(3)
    asyncio.run(two_thousand_streams(start_esp(shards, ["i", "r"]), shards))
    wait_until(lambda: sum(map(watchers_in, shards)) == 0)


def test_a_create_that_etcd_finds_too_large_is_its_own_clients_trouble(start_etcd: Etcds, start_esp: Esps) -> None:
    judge, *shards = start_etcd.several(3)
    esp = start_esp(shards, ["m"])
    with talking(esp, shards[0]) as bystander:
        bystander.created(key=b"a")
        for size in (2**21 - 10, 2**21):  # the first is esp's to take and, with what esp adds, too large for etcd
            with talking(esp, shards[0]) as greedy:
                greedy.created(key=b"a")
                greedy.requests.create(key=b"b" * size)
                _, (code, text) = greedy.hears_out()
                assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
                assert text.startswith("grpc: received message larger than max")
        with talking(judge, judge) as direct:
            direct.requests.create(key=b"b" * 2**21)
            assert direct.hears_out()[1] == (code, text)
        bystander.puts(b"a")
        assert [len(message.events) for message in bystander.hears()] == [1]


def test_a_message_of_a_hundred_megabytes_is_delivered_to_who_reads_it(start_etcd: Etcds, start_esp: Esps) -> None:
    """Larger than all that may wait for a connection; not in fragments, because the client did not ask for them."""
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"])
    with talking(esp, shards[0]) as talk:
        value = bytes(1_000_000)
        for _ in range(100):
            begun = talk.puts(b"a", value)
        talk.created(key=b"a", start_revision=2)
        revisions: list[int] = []
        while len(revisions) < 100:
            revisions += [event.kv.mod_revision for event in talk.hears()[0].events]
        assert revisions == list(range(begun - 99, begun + 1))


def test_a_slow_client_is_sent_away_and_delays_nobody(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"], extra="limits: {max_watch_buffer_bytes: 1000000}")
    with watching(esp, key=b"a") as quick, talking(esp, shards[0]) as slow, connect(shards[0]) as direct:
        begun = slow.created(key=b"a").header.revision + 1
        kv = rpc_pb2_grpc.KVStub(direct)
        for number in range(400):
            kv.Put(Put(key=b"a", value=b"%d" % number * 20_000))
            if number % 5 == 0:  # however loaded the machine is, one of the two keeps up
                quick.wait_for(lambda watch, number=number: len(watch.events()) > number)
        check(quick, shards, owner, {0: begun})
        messages, status = slow.hears_out()
        events = [event for message in messages for event in message.events]
        assert status == STOPPED
        assert 0 < len(events) < 400
        assert [event.kv.mod_revision for event in events] == list(range(begun, begun + len(events)))
        resumable(esp, quick, wanted(quick, history_of(shards[0]), begun + len(events)))


def test_a_client_that_reads_a_long_history_slowly_is_waited_for(start_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_etcd.several(2)
    esp = start_esp(shards, ["m"], extra="limits: {max_watch_buffer_bytes: 1000000}")
    with talking(esp, shards[0]) as talk:
        for _ in range(300):
            talk.puts(b"a", bytes(50_000))
        talk.created(key=b"a", start_revision=2)
        time.sleep(1)
        with talking(esp, shards[0]) as other:
            other.created(key=b"a", start_revision=300)
            assert other.hears()[0].events[0].kv.mod_revision == 300
        revisions: list[int] = []
        while len(revisions) < 300:
            revisions += [event.kv.mod_revision for event in talk.hears()[0].events]
        assert revisions == list(range(2, 302))
