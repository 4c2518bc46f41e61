"""A program that uses a client from PyPI for the JSON gateway, and prints what it was told.

`json_clients.py etcd3gw|etcd3-py PORT`. A program of its own, because etcd3-py goes by the same name as etcd3, which
other tests use.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

A, K, Z = "a/key", "k/key", "z/key"
"""A key of each of three shards."""


def outcome(call: Callable[[], Any]) -> Any:
    """What `call` returns, or the error."""
    try:
        return call()
    except Exception as error:
        return [type(error).__name__, str(error)]


def with_etcd3gw(port: int) -> list[Any]:
    import etcd3gw

    client = etcd3gw.client("127.0.0.1", port, timeout=20)
    client.post(client.get_url("/kv/deleterange"), json={"key": "AA==", "range_end": "AA=="})  # all keys
    told: list[Any] = [client.api_path]
    told += [client.put(key, value) for key, value in [(A, "1"), (K, "2"), (Z, b"\x00\xff"), ("a/more", "")]]
    told += [client.get(key) for key in (A, K, Z, "a/more", "a/none")]
    told += [[item["key"] for _, item in client.get_prefix("a/", sort_order="descend")]]
    told += [[item["key"] for _, item in client.get_all()]]
    told += [client.create("k/new", "1"), client.create("k/new", "2"), client.replace("k/new", "1", "3")]
    told += [client.replace("k/new", "1", "4"), client.get("k/new"), client.delete("k/new"), client.delete("k/new")]
    put = {"request_put": {"key": "YS9rZXk=", "value": "NA=="}}
    compare = {"key": "YS9rZXk=", "result": "GREATER", "target": "VERSION", "version": 0}
    told += [client.transaction({"compare": [compare], "success": [put], "failure": []})["succeeded"]]
    told += [client.get(A), outcome(lambda: client.transaction({"success": [put, put]}))]
    told += [outcome(lambda: client.get(A, revision=10**9)), outcome(lambda: client.get(""))]

    lease = client.lease(600)
    told += [client.put("k/leased", "x", lease=lease), lease.ttl() > 590, lease.keys(), lease.refresh()]
    told += [lease.revoke(), lease.ttl(), client.get("k/leased"), outcome(lease.revoke), lease.refresh()]
    with client.lock("one", ttl=60) as lock:
        told += [lock.is_acquired(), lock.refresh(), client.lock("one", ttl=60).acquire()]
    told += [lock.is_acquired()]

    for watch, keys in [(lambda: client.watch("a/w"), ["a/w"]), (lambda: client.watch_prefix("z/"), ["z/1", "z/2"])]:
        events, cancel = watch()
        for key in keys:
            client.put(key, "1")
            client.put(key, "x" * 100_000)
            client.delete(key)
        for _ in range(3 * len(keys)):
            event = next(events)
            told.append([event.get("type", "PUT"), event["kv"]["key"], len(event["kv"].get("value", b""))])
        cancel()
    timer = threading.Timer(0.3, lambda: client.put("a/once", "1"))
    timer.start()
    told += [client.watch_once("a/once", 20)["kv"]["value"], outcome(lambda: client.watch_once("a/never", 0.3))]
    timer.join()
    told += [len(client.members()) >= 1, int(client.status()["dbSize"]) > 0, client.delete_prefix("a/")]
    return told


def with_etcd3_py(port: int) -> list[Any]:
    from etcd3 import Client

    client = Client("127.0.0.1", port, timeout=20)
    client.delete_range(all=True)
    told: list[Any] = [client.api_prefix]
    told += ["header" in client.put(key, value) for key, value in [(A, "1"), (K, "2"), (Z, b"\x00\xff")]]
    told += [client.put(A, "3", prev_kv=True).prev_kv.value]
    told += [[pair.value for pair in client.range(key).kvs or []] for key in (A, K, Z, "a/none")]
    told += [[pair.key for pair in client.range(all=True, keys_only=True).kvs]]
    told += [[pair.key for pair in client.range("a", prefix=True, limit=1).kvs], client.range("k", prefix=True).count]

    txn = client.Txn()
    txn.If(txn.key(A).value == b"3")
    txn.If(txn.key(A).version > 0)
    txn.Then(txn.put(A, "4"))
    txn.Then(txn.range(A))
    txn.Else(txn.delete(A))
    done = txn.commit()
    told += [done.succeeded, [pair.value for pair in done.responses[1].response_range.kvs]]
    told += [outcome(lambda: client.range("")), outcome(lambda: client.put("a", "x", lease=77))]

    lease = client.Lease(600)
    lease.grant()
    told += ["header" in client.put("k/leased", "x", lease=lease.ID), lease.ttl() > 590, lease.alive()]
    told += [lease.time_to_live(keys=True)._data["keys"], lease.keepalive_once().TTL]
    client.lease_revoke(lease.ID)
    told += [lease.alive(), client.range("k/leased").kvs]
    lock = client.Lock("one", lock_ttl=60)
    with lock:
        told += [lock.is_acquired, lock.holders()]
    told += [lock.is_acquired, client.lock("a-lock", 0).key[:7]]

    events: list[Any] = []
    watcher = client.Watcher("z/", prefix=True, prev_kv=True)
    with watcher:  # has asked
        for value in ("1", "2"):
            client.put("z/w", value)
        client.delete_range("z/w")
        for event in watcher:
            events.append([event.type.value, event.key, event.value, event.prev_kv and event.prev_kv.value])
            if len(events) == 3:
                break
    told += events
    told += [next(iter(client.watch_create("a/w"))).created]

    for name in ("root", "someone"):
        client.user_add(name, "p")
        client.role_add(name)
        client.user_grant_role(name, name)
    client.role_grant_permission("someone", "a", prefix=True)
    client.auth_enable()
    try:
        user = Client("127.0.0.1", port, timeout=20, username="someone", password="p")
        told += [outcome(lambda: user.range("a/key"))]
        user.auth()
        told += [user.range("a/key").kvs[0].value, outcome(lambda: user.put("a/key", "5"))]
        told += [outcome(lambda: user.range("k/key")), outcome(lambda: user.range(all=True))]
        user.token = "wrong"
        told += [outcome(lambda: user.range("a/key"))]
        told += [outcome(lambda: Client("127.0.0.1", port, username="someone", password="x").auth())]
    finally:
        client.auth("root", "p")
        told += [client.user_list().users, client.role_get("someone").perm[0].key]
        client.auth_disable()
        client.token = None
        for name in ("root", "someone"):
            client.user_delete(name)
            client.role_delete(name)
    return told


def main() -> None:
    chosen, port = sys.argv[1], int(sys.argv[2])
    told = with_etcd3gw(port) if chosen == "etcd3gw" else with_etcd3_py(port)
    sys.stdout.write("".join(json.dumps(one, default=lambda other: other.decode("latin-1")) + "\n" for one in told))


if __name__ == "__main__":
    main()
