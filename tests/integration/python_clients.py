"""A program that watches with a client from PyPI and prints what it was told: `python_clients.py etcd3|aetcd PORT`.

Programs of their own, because both bring etcd's messages along under names that protobuf allows once in a process, and
etcd3 needs its implementation in Python (`PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python`).
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

EVERYTHING = (b"\0", b"\0")
WATCHES: dict[str, tuple[bytes, bytes | None]] = {
    "one key": (b"a1", None),
    "a prefix": (b"j", b"k"),
    "all keys": EVERYTHING,
    "all keys again": EVERYTHING,
}
WRITES = [(b"a1", b"1"), (b"j1", b"2"), (b"z1", b"3"), (b"j2", b"4"), (b"a1", b"5")]
DELETED = b"j1"
EXPECTED = {"one key": 2, "a prefix": 3, "all keys": 6, "all keys again": 6}
Told = dict[str, list[tuple[str, str, str]]]


def by_first_letter(told: Told) -> dict[str, dict[str, list[tuple[str, str, str]]]]:
    """Over several shards only what is in one shard has an order."""
    result: dict[str, dict[str, list[tuple[str, str, str]]]] = {}
    for name, events in told.items():
        for event in events:
            result.setdefault(name, {}).setdefault(event[1][0], []).append(event)
    return result


def with_etcd3(port: int) -> dict[str, Any]:
    import etcd3

    client = etcd3.client(host="127.0.0.1", port=port, timeout=30)
    told: Told = {name: [] for name in WATCHES}
    came = threading.Condition()
    errors: list[str] = []

    def noting(name: str) -> Any:
        def note(response: Any) -> None:
            with came:
                if isinstance(response, Exception):
                    errors.append(repr(response))
                else:
                    for event in response.events:
                        told[name].append((type(event).__name__, event.key.decode(), event.value.decode()))
                came.notify_all()

        return note

    ids = {name: client.add_watch_callback(key, noting(name), range_end=end) for name, (key, end) in WATCHES.items()}
    for key, value in WRITES:
        client.put(key, value)
    client.delete(DELETED)
    with came:
        complete = came.wait_for(lambda: errors or {n: len(e) for n, e in told.items()} == EXPECTED, 30)
    client.cancel_watch(ids["all keys"])
    client.cancel_watch(ids["one key"])
    client.add_watch_callback(b"b", noting("one key"))  # answered when the cancels were
    client.put(b"a1", b"6")
    with came:
        complete = complete and came.wait_for(lambda: len(told["all keys again"]) == 7, 30)
    compacted = ""
    try:
        compacted = str(next(client.watch(b"a1", start_revision=1)[0]))
    except Exception as error:
        compacted = type(error).__name__
    return {
        "complete": bool(complete),
        "errors": errors,
        "ids": list(ids.values()),
        "told": by_first_letter(told),
        "compacted": compacted,
    }


async def with_aetcd(port: int) -> dict[str, Any]:
    import aetcd

    told: Told = {name: [] for name in WATCHES}
    async with aetcd.Client(host="127.0.0.1", port=port, timeout=30) as client:
        watches = {name: await client.watch(key, range_end=end) for name, (key, end) in WATCHES.items()}

        async def read(name: str, count: int) -> None:
            async for event in watches[name]:
                told[name].append((str(event.kind), event.kv.key.decode(), event.kv.value.decode()))
                if len(told[name]) == count:
                    return

        async def read_all(counts: dict[str, int]) -> None:
            await asyncio.wait_for(asyncio.gather(*(read(name, count) for name, count in counts.items())), 30)

        for key, value in WRITES:
            await client.put(key, value)
        await client.delete(DELETED)
        await read_all(EXPECTED)
        await watches["all keys"].cancel()
        await watches["one key"].cancel()
        await client.put(b"a1", b"6")
        await read_all({"all keys again": 7})
        compacted = ""
        try:
            async for event in await client.watch(b"a1", start_revision=1):
                compacted = str(event)
                break
        except Exception as error:
            compacted = type(error).__name__
        ids = [watch.watch_id for watch in watches.values()]
    return {"complete": True, "errors": [], "ids": ids, "told": by_first_letter(told), "compacted": compacted}


if __name__ == "__main__":
    chosen, port = sys.argv[1], int(sys.argv[2])
    outcome = with_etcd3(port) if chosen == "etcd3" else asyncio.run(with_aetcd(port))
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()
