"""The copies that judge watches find each kind of wrong event."""

from __future__ import annotations

import asyncio

import pytest

from bench.chaos.client import Endpoints
from bench.chaos.replicas import Copy, Replica, settled
from esp.core.pb import kv_pb2


def row(key: bytes, version: int, mod: int) -> kv_pb2.KeyValue:
    return kv_pb2.KeyValue(key=key, version=version, mod_revision=mod, create_revision=1, value=b"v")


def put(key: bytes, version: int, mod: int) -> kv_pb2.Event:
    return kv_pb2.Event(kv=row(key, version, mod))


def deleted(key: bytes, mod: int) -> kv_pb2.Event:
    return kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=key, mod_revision=mod))


def faults(*events: kv_pb2.Event) -> list[str]:
    """The faults of events after a list of the keys a and k, of different shards, at revisions 5 and 50."""
    copy = Copy(lambda key: key >= b"i")
    copy.begin([row(b"a", 2, 5), row(b"k", 7, 50)])
    for event in events:
        copy.take(event)
    return copy.faults


def test_each_event_once_and_in_order_is_no_fault() -> None:
    assert not faults(put(b"a", 3, 6), put(b"k", 8, 51), deleted(b"a", 7), put(b"a", 1, 8), put(b"b", 1, 8))


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([put(b"a", 4, 7)], "version 4 at 7 after 2: an event is lost"),
        ([put(b"a", 1, 9)], "version 1 at 9 after 2: an event is lost"),
        ([put(b"a", 3, 6), put(b"a", 3, 6)], "twice, or back: revision 6 after 6"),
        ([put(b"a", 2, 5)], "twice, or back: revision 5 after 5"),
        ([put(b"b", 1, 9), put(b"c", 1, 8)], "an event of revision 8 after 9 of its shard"),
        ([deleted(b"z", 51)], "deleted at 51, but the copy does not have it"),
    ],
    ids=["lost put", "lost delete", "twice", "from the list", "out of order", "lost create"],
)
def test_a_wrong_event_is_a_fault(events: list[kv_pb2.Event], fault: str) -> None:
    assert any(fault in found for found in faults(*events))


def test_a_copy_that_never_gets_there_is_a_fault() -> None:
    async def test() -> list[str]:
        copy = Copy(lambda _: 0, (b"a", b"c"))
        copy.begin([row(b"a", 1, 1), row(b"b", 1, 1)])
        replica = Replica("one", Endpoints(["127.0.0.1:1"]), 0, copy)

        async def truth() -> list[kv_pb2.KeyValue]:
            return [row(b"a", 1, 1), row(b"b", 2, 2), row(b"z", 1, 3)]

        found = await settled([replica], truth, 0)
        copy.take(put(b"b", 2, 2))
        assert not await settled([replica], truth, 0)
        await replica.close()
        return found

    assert asyncio.run(test()) == ["one: differs from the shards in 1 keys, such as b'b'"]
