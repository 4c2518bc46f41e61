"""What clients do with a JSON gateway, as programs that give what they heard.

Keys are below "i", and each program has its own, so that one shard of three has all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.integration.json_streams import Client, create
from tests.integration.json_talk import Conversation, b64, comparable, comparable_body, post


def one_key(client: Client) -> None:
    watch = client.watch(create("f1", prev_kv=True))
    client.heard.append(watch.begins())
    client.hear(watch)
    for value in ("1", "2"):
        client.put("f1", value)
        client.hear(watch)
    client.ask("/v3/kv/deleterange", {"key": b64("f1")})
    client.hear(watch)


def a_request_with_a_length(client: Client) -> None:
    with Conversation(client.server) as conversation:
        conversation.says(post("/v3/watch", create("f2")))
        answer = conversation.head()
        assert answer is not None
        client.heard.append(comparable(answer))
        pieces = conversation.body(answer)
        client.heard.append(_line(pieces))
        client.put("f2")
        client.heard.append(_line(pieces))


def _line(pieces: Iterator[bytes]) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += next(pieces)
    return comparable_body(line)


def a_prefix_with_history(client: Client) -> None:
    first = client.put("f4/a", "1")["header"]["revision"]
    client.put("f4/b", "2")
    client.ask("/v3/kv/deleterange", {"key": b64("f4/"), "range_end": b64("f40"), "prev_kv": True})
    watch = client.watch(create("f4/", "f40", start_revision=first))
    client.hear(watch, 2)


def several_objects_in_one_piece(client: Client) -> None:
    both = json.dumps(create("f5/a", watch_id=5)) + json.dumps(create("f5/b", watchId="6")) + "\n"
    watch = client.watch(both + json.dumps({"cancel_request": {"watch_id": 5}}))
    client.hear(watch, 3)
    client.put("f5/a")
    client.put("f5/b")
    client.hear(watch)


def an_object_in_pieces(client: Client) -> None:
    text = json.dumps(create("f6", "f7", filters=["NODELETE"], progress_notify=True)).encode()
    watch = client.watch(*(text[start : start + 7] for start in range(0, len(text), 7)))
    client.hear(watch)
    client.put("f6")
    client.hear(watch)
    client.ask("/v3/kv/deleterange", {"key": b64("f6")})
    client.put("f6")
    client.hear(watch)


def progress(client: Client) -> None:
    watch = client.watch(create("f7"), {"progress_request": {}})
    client.heard += sorted(watch.hears(2))  # etcd gives them in any order


def cancels(client: Client) -> None:
    cancel = {"cancel_request": {"watch_id": 77}}  # not answered
    watch = client.watch(create("f7"), cancel, {"cancelRequest": {"watchId": "0"}}, create("f7"))
    client.hear(watch, 3)
    client.put("f7")
    client.hear(watch)


def ids(client: Client) -> None:
    wanted: list[Any] = [3, 3, -1, "9007199254740993", None]
    watch = client.watch(*(create("f8", watch_id=wanted_id) for wanted_id in wanted))
    client.hear(watch, 5)
    client.put("f8")
    client.heard += sorted(watch.hears(4))


def odd_requests(client: Client) -> None:
    filters = {"create_request": {"key": b64("f9"), "filters": ["NOSUCH", 0, 1]}}
    odd = [{}, {"other": 1}, {"create_request": None}, {"progress_request": None}, create("f9")]
    watch = client.watch(*odd, {"create_request": {}}, filters, create("fb", "fa"))
    client.hear(watch, 4)
    client.put("f9")
    client.hear(watch)


def a_transaction(client: Client) -> None:
    watch = client.watch(create("fa", "fb"))
    client.hear(watch)
    operations = [{"request_put": {"key": b64(f"fa{n}"), "value": b64("x")}} for n in range(3)]
    client.ask("/v3/kv/txn", {"success": operations})
    client.hear(watch)


def a_large_event(client: Client) -> None:
    watch = client.watch(create("fc", fragment=True))
    client.hear(watch)
    client.put("fc", "x" * 1_000_000)
    client.hear(watch)


def the_future(client: Client) -> None:
    revision = int(client.put("fd")["header"]["revision"])
    watch = client.watch(create("fd", start_revision=revision + 2))
    client.hear(watch)
    client.put("fd", "1")
    client.put("fd", "2")
    client.hear(watch)


def a_deadline(client: Client) -> None:
    watch = client.watch(create("fe"), headers="Grpc-Timeout: 2S\r\n")
    client.hear(watch)
    client.hear_the_end(watch)


def a_deadline_before_the_first_message(client: Client) -> None:
    stream = client.stream("/v3/election/observe", {"name": b64("fe")}, headers="Grpc-Timeout: 200m\r\n")
    client.heard.append(stream.begins())
    client.hear_the_end(stream)


def a_compacted_start(client: Client) -> None:
    revision = client.put("ff")["header"]["revision"]
    client.put("ff")
    client.ask("/v3/kv/compaction", {"revision": client.put("ff")["header"]["revision"]})
    watch = client.watch(create("ff", start_revision=revision), create("ff"))
    client.heard += sorted(watch.hears(3))


def renewals(client: Client) -> None:
    client.ask("/v3/lease/grant", {"ID": 7201, "TTL": 600})
    stream = client.stream("/v3/lease/keepalive", {"ID": 7201}, {"ID": "7202"}, '{"ID":7201}\n{"ID":7201}')
    client.heard.append(stream.begins())
    client.hear_the_end(stream)
    client.ask("/v3/lease/revoke", {"ID": 7201})


def renewals_on_one_connection(client: Client) -> None:
    client.ask("/v3/lease/grant", {"ID": 7203, "TTL": 600})
    with Conversation(client.server) as conversation:
        renewal = post("/v3/lease/keepalive", {"ID": 7203})
        for _ in range(3):
            client.heard.append(comparable(conversation.ask(renewal)))
    client.ask("/v3/lease/revoke", {"ID": 7203})


def an_election(client: Client) -> None:
    name = b64("fg")
    client.ask("/v3/lease/grant", {"ID": 7204, "TTL": 600})
    observed = client.stream("/v3/election/observe", {"name": name})
    leader = client.ask("/v3/election/campaign", {"name": name, "lease": 7204, "value": b64("1")})["leader"]
    client.heard.append(observed.begins())
    client.hear(observed)
    client.ask("/v3/election/proclaim", {"leader": leader, "value": b64("2")})
    client.hear(observed)
    client.ask("/v3/election/resign", {"leader": leader})
    client.ask("/v3/election/campaign", {"name": name, "lease": 7204, "value": b64("3")})
    client.hear(observed)
    client.ask("/v3/lease/revoke", {"ID": 7204})


def a_lock_that_is_waited_for(client: Client) -> None:
    for lease in (7205, 7206):
        client.ask("/v3/lease/grant", {"ID": lease, "TTL": 600})
    held = client.ask("/v3/lock/lock", {"name": b64("fh"), "lease": 7205})["key"]
    with Conversation(client.server) as second:
        second.says(post("/v3/lock/lock", {"name": b64("fh"), "lease": 7206}))
        client.waits_for_keys("fh/", "fh0", 2)  # of both: their revisions are heard
        client.heard.append(second.is_over())
        client.ask("/v3/lock/unlock", {"key": held})
        client.heard.append(comparable(second.hears()))
    client.ask("/v3/lease/revoke", {"ID": 7205})
    client.ask("/v3/lease/revoke", {"ID": 7206})


def wrong_json_after_a_watch(client: Client) -> None:
    client.hear_the_end(client.watch(create("fi"), "{]"))


def a_wrong_number_after_a_watch(client: Client) -> None:
    wrong = {"create_request": {"key": b64("fj"), "start_revision": "x"}}
    client.hear_the_end(client.watch(create("fj"), wrong, create("fj")))


def wrong_json_after_a_renewal(client: Client) -> None:
    stream = client.stream("/v3/lease/keepalive", {"ID": 7207}, "{]", {"ID": 7208})
    client.heard.append(stream.begins())
    client.hear_the_end(stream)


def a_call_with_auth(client: Client) -> None:
    """Turns auth on, and off."""
    auth, get, put = "/v3/auth", "/v3/kv/range", "/v3/kv/put"
    for name in ("root", "u"):
        client.ask(f"{auth}/user/add", {"name": name, "password": "p"})
        client.ask(f"{auth}/role/add", {"name": name})
        client.ask(f"{auth}/user/grant", {"user": name, "role": name})
    allowed = {"permType": "READWRITE", "key": b64("fl"), "range_end": b64("fm")}
    client.ask(f"{auth}/role/grant", {"name": "u", "perm": allowed})
    client.ask(f"{auth}/enable", {})
    try:
        client.ask(f"{auth}/authenticate", {"name": "u", "password": "wrong"})
        client.ask(f"{auth}/authenticate", {"name": "nobody", "password": "p"})
        client.ask(f"{auth}/status", {})
        tokens = [client.authenticates(name) for name in ("root", "u")]
        good = {"key": b64("fl")}
        for token in [
            "",
            "wrong",
            "Bearer wrong",
            "Bearer ",
            "Basic dTpw",
            tokens[1] + "x",
            tokens[1][: len(tokens[1]) // 2],
        ]:
            client.compare(get, good, Authorization=token)
        for token in [tokens[1], f"Bearer {tokens[1]}", f"bearer {tokens[1]}"]:
            client.compare(put, good, Authorization=token)
        client.compare(put, good, Grpc_Metadata_Token=tokens[1])
        client.compare(put, good, Grpc_Metadata_Authorization=tokens[1])
        client.compare(put, good, Authorization="wrong", Grpc_Metadata_Token=tokens[1])
        client.compare(put, {"key": b64("fa")}, Authorization=tokens[1])
        client.compare(get, {"key": b64("fl"), "range_end": b64("fz")}, Authorization=tokens[1])
        client.compare(f"{auth}/user/list", {}, Authorization=tokens[1])
        client.compare(f"{auth}/user/get", {"name": "u"}, Authorization=tokens[1])
        client.compare(get, good, Authorization=tokens[0], TE="trailers")
        for token in ["", "wrong", tokens[1]]:
            client.compare("/v3/lease/keepalive", {"ID": 7301}, Authorization=token)
            client.compare("/v3/lock/lock", {"name": b64("fl/lock"), "lease": 7301}, Authorization=token)
            for key in ["fl", "fa"]:
                watch = client.watch(create(key), headers=f"Authorization: {token}\r\n" if token else "")
                client.heard.append(watch.begins())
                client.hear(watch)
    finally:
        client.ask(f"{auth}/disable", {}, Authorization=client.authenticates("root"))
        for name in ("root", "u"):
            client.ask(f"{auth}/user/delete", {"name": name})
            client.ask(f"{auth}/role/delete", {"role": name})


def old_http(client: Client) -> None:
    with Conversation(client.server) as conversation:
        conversation.says(post("/v3/watch", create("fk")).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = conversation.head()
        assert answer is not None
        client.heard.append(comparable(answer))
        client.heard.append(_line(iter(lambda: conversation._exactly(1), b"")))
        client.put("fk")
        client.heard.append(_line(iter(lambda: conversation._exactly(1), b"")))


PROGRAMS: list[Callable[[Client], None]] = [
    one_key,
    a_request_with_a_length,
    a_prefix_with_history,
    several_objects_in_one_piece,
    an_object_in_pieces,
    progress,
    cancels,
    ids,
    odd_requests,
    a_transaction,
    a_large_event,
    the_future,
    a_deadline,
    a_deadline_before_the_first_message,
    a_compacted_start,
    renewals,
    renewals_on_one_connection,
    an_election,
    a_lock_that_is_waited_for,
    a_call_with_auth,
    old_http,
]
ONE_SHARD = {a_compacted_start}
