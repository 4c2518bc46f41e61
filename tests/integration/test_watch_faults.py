"""Watches go on after any break between esp and the shards: no event is lost, none comes twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.tokens import MARK
from tests.harness import EspProcess, Esps, Etcds, Server, connect, progress_flag, wait_ready
from tests.stubs import rpc_pb2_grpc
from tests.watching import (
    Watch,
    Writers,
    check,
    history_of,
    relaying,
    resumable,
    revision_of,
    wanted,
    watching,
)

Create = rpc_pb2.WatchCreateRequest
BOUNDARIES = ["i", "r"]
PREFIXES = ["a-", "j-", "z-"]


def _progress(etcds: Etcds) -> str:
    """So that there is progress to be wrong about."""
    return progress_flag(etcds.binary, 100)


def owner(key: bytes) -> int:
    return (key >= b"i") + (key >= b"r")


@contextmanager
def all_kinds(esp: EspProcess, shards: list[LocalEtcd]) -> Iterator[list[tuple[Watch, dict[int, int]]]]:
    """Watchers of many kinds, while nobody writes; and from where on each must be told of a shard's events."""
    now = {shard: revision_of(etcd) + 1 for shard, etcd in enumerate(shards)}
    middle = {"key": b"j-", "range_end": b"j."}
    kinds = [
        (middle, [1]),
        (middle, [1]),
        (middle | {"prev_kv": True}, [1]),
        (middle | {"filters": [Create.NODELETE]}, [1]),
        (middle | {"progress_notify": True}, [1]),
        (middle | {"start_revision": 1}, [1]),
        (middle | {"start_revision": 1, "progress_notify": True}, [1]),
        (middle | {"start_revision": now[1], "fragment": True}, [1]),
        (middle | {"start_revision": now[1], "fragment": True}, [1]),
        ({"key": b"z-", "range_end": b"\0"}, [2]),
        ({"key": b"a-3"}, [0]),
        ({"key": b"b", "range_end": b"j-5"}, [1]),
        ({"key": b"\0", "range_end": b"\0"}, [0, 1, 2]),
        ({"key": b"\0", "range_end": b"\0", "start_revision": 1, "prev_kv": True}, [0, 1, 2]),
        ({"key": b"a-", "range_end": b"k", "filters": [Create.NOPUT]}, [0, 1]),
    ]
    with ExitStack() as stack:
        watches = []
        for create, concerned in kinds:
            watch = stack.enter_context(watching(esp, **create))
            starts = {shard: create.get("start_revision") or now[shard] for shard in concerned}
            watches.append((watch, starts))
        yield watches


def test_kill_9_and_restart_of_shards_is_hidden(start_durable_etcd: Etcds, start_esp: Esps) -> None:
    shards = start_durable_etcd.several(3, "--unsafe-no-fsync=false", _progress(start_durable_etcd))
    esp = start_esp(shards, BOUNDARIES)
    with Writers(shards, PREFIXES, pause=0.004) as writers:
        writers.wait_for_more(20)
    with all_kinds(esp, shards) as watches:
        with Writers(shards, PREFIXES, pause=0.004) as writers:
            writers.wait_for_more()
            for victim in (1, 1, 2):
                shards[victim].kill()
                writers.wait_for_more(20, shards=[0])
                shards[victim].start()
                wait_ready(shards[victim])
                writers.wait_for_more()
        for watch, starts in watches:
            check(watch, shards, owner, starts)
        watch = watches[0][0]
        resumable(esp, watch, wanted(watch, history_of(shards[1]), watches[0][1][1]))


@pytest.mark.parametrize("shared", [256, 1])
def test_a_connection_that_is_cut_again_and_again_is_hidden(
    shared: int, start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    """With 1 nearly all watchers of the same, which are on one connection here, are its crowd."""
    shards = start_durable_etcd.several(3, _progress(start_durable_etcd))
    with ExitStack() as stack:
        relays = [stack.enter_context(relaying(shard)) for shard in shards]
        limits = f"limits: {{max_shared_watchers: {shared}}}"
        esp = start_esp([[relay] for relay in relays], BOUNDARIES, extra=limits)  # type: ignore[list-item]
        watches = stack.enter_context(all_kinds(esp, shards))
        if shared == 1:
            watches += stack.enter_context(all_kinds(esp, shards))
        with Writers(shards, PREFIXES, pause=0.004) as writers:
            for _ in range(10):
                for relay in relays:
                    writers.wait_for_more(15)
                    relay.cut()
        for watch, starts in watches:
            check(watch, shards, owner, starts)


def test_another_endpoint_of_a_shard_takes_over(start_durable_etcd: Etcds, start_esp: Esps) -> None:
    members = start_durable_etcd.members(3, "--unsafe-no-fsync=false", _progress(start_durable_etcd))
    other = start_durable_etcd()
    esp = start_esp([members, other], ["r"])
    both: list[Server] = [members[0], other]
    with ExitStack() as stack:
        now = revision_of(members[0]) + 1
        watches = [
            (stack.enter_context(watching(esp, key=b"a", range_end=b"r")), {0: now}),
            (stack.enter_context(watching(esp, key=b"a", range_end=b"r", start_revision=now)), {0: now}),
            (stack.enter_context(watching(esp, key=b"a", range_end=b"r", progress_notify=True)), {0: now}),
            (stack.enter_context(watching(esp, key=b"a", range_end=b"\0")), {0: now, 1: revision_of(other) + 1}),
        ]
        for number, member in enumerate(members):
            survivor = members[(number + 1) % 3]
            with Writers([survivor, other], ["a-", "z-"], pause=0.004) as writers:
                writers.wait_for_more(50)
                member.kill()
                writers.wait_for_more(50)
                member.start()
                wait_ready(member)
                writers.wait_for_more(50)
        for watch, starts in watches:
            check(watch, both, lambda key: int(key >= b"r"), starts)


def test_what_was_compacted_while_the_shard_was_away_is_told_as_etcd_tells_it(
    start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    shards = start_durable_etcd.several(2)
    with relaying(shards[0]) as relay, connect(shards[0]) as direct:
        esp = start_esp([[relay], shards[1]], ["m"])  # type: ignore[list-item]
        kv = rpc_pb2_grpc.KVStub(direct)
        with ExitStack() as stack:
            behind = stack.enter_context(watching(esp, key=b"a"))
            across = stack.enter_context(watching(esp, key=b"a", range_end=b"\0"))
            elsewhere = stack.enter_context(watching(esp, key=b"z"))
            ahead = stack.enter_context(watching(esp, key=b"a", start_revision=1000))
            relay.cut(stay=True)
            for number in range(10):
                revision = kv.Put(rpc_pb2.PutRequest(key=b"a", value=b"%d" % number)).header.revision
            kv.Compact(rpc_pb2.CompactionRequest(revision=revision))
            relay.mend()
            for watch in (behind, across):
                watch.wait_for(lambda watch: bool(watch.messages))
                [message] = watch.messages
                assert (message.canceled, message.cancel_reason, message.watch_id) == (True, "", 0)
            assert behind.messages[0].compact_revision == revision
            assert across.messages[0].compact_revision >= MARK
            with connect(shards[1]) as second:
                put = rpc_pb2_grpc.KVStub(second).Put(rpc_pb2.PutRequest(key=b"z"))
            elsewhere.wait_for(lambda watch: bool(watch.messages))
            assert elsewhere.messages[0].header == put.header
            assert [watch.ended for watch in (behind, across, elsewhere, ahead)] == [None] * 4
            assert ahead.messages == []
            again = stack.enter_context(watching(esp, key=b"a", start_revision=revision))
            again.wait_for(lambda watch: bool(watch.messages))
            assert [event.kv.value for event in again.events()] == [b"9"]


def test_a_watch_that_is_created_while_the_shard_is_away_begins_when_it_is_back(
    start_durable_etcd: Etcds, start_esp: Esps
) -> None:
    shards = start_durable_etcd.several(2, "--unsafe-no-fsync=false")
    esp = start_esp(shards, ["m"])
    with connect(esp) as channel, connect(shards[0]) as direct:
        shards[0].kill()
        requests = iter_of(Create(key=b"a"))
        answers = rpc_pb2_grpc.WatchStub(channel).Watch(requests, timeout=60)
        time.sleep(0.5)
        shards[0].start()
        wait_ready(shards[0])
        assert next(answers).created
        rpc_pb2_grpc.KVStub(direct).Put(rpc_pb2.PutRequest(key=b"a"), wait_for_ready=True)
        assert next(answers).events[0].kv.key == b"a"
        answers.cancel()


def iter_of(*creates: rpc_pb2.WatchCreateRequest) -> Iterator[rpc_pb2.WatchRequest]:
    return iter([rpc_pb2.WatchRequest(create_request=create) for create in creates])


def test_who_asks_for_a_leader_is_told_that_there_is_none(start_durable_etcd: Etcds, start_esp: Esps) -> None:
    members = start_durable_etcd.members(3)
    esp = start_esp([members, start_durable_etcd()], ["r"])
    leaderless = (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
    with watching(esp, [("hasleader", "true")], key=b"a") as asking, watching(esp, key=b"a") as patient:
        with connect(esp) as channel:
            rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"a"))
        asking.wait_for(lambda watch: bool(watch.messages))
        for member in members[1:]:
            member.kill()
        deadline = time.monotonic() + 60
        while asking.ended is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert asking.ended == leaderless
        assert patient.ended is None
        for member in members[1:]:
            member.start()
        wait_ready(*members)
        with connect(esp) as channel:
            rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=b"a"), timeout=60, wait_for_ready=True)
        patient.wait_for(lambda watch: len(watch.events()) == 2)
