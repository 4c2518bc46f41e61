"""The JSON gateway, compared with that of etcd 3.7: the same requests to an etcd and to esp, answer by answer.

Each request goes to an etcd, to an esp over one other etcd, and to an esp over three. All began empty and are told the
same in the same order, so that revisions agree as well. What may differ, and why: `comparable` in json_talk.py, and
`DIFFERENT` here. What several shards answer together has another header.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from tests.harness import Etcds, Server, foreign, peer, running_esps, wait_until
from tests.integration import json_calls, json_forms, json_http
from tests.integration.json_case import Case
from tests.integration.json_programs import (
    ONE_SHARD,
    PROGRAMS,
    a_call_with_auth,
    a_wrong_number_after_a_watch,
    wrong_json_after_a_renewal,
    wrong_json_after_a_watch,
)
from tests.integration.json_streams import Client, create, heard_by
from tests.integration.json_talk import Conversation, b64, comparable, post
from tests.integration.watch_talk import watchers_in

CASES = [
    replace(case, name=f"{name}: {case.name}", is_alone=module is json_http)
    for module in (json_calls, json_forms, json_http)
    for name, group in module.GROUPS.items()
    for case in group()
]
FOLLOWING = post("/v3/kv/range", {"key": b64("follows")})

DIFFERENT: dict[str, str] = {
    "leases: renewals of wrong JSON": "etcd keeps the error to itself",
    "leases: renewals of a wrong number": "etcd keeps the error to itself",
    "paths: wrong JSON to lease/keepalive": "etcd keeps the error to itself",
    'forms: limit "1 2"': "etcd takes the 1 and forgets the rest",
    "paths: POST '/v3/kv/rang\u00e9'": "h11 takes only ASCII there",
    "headers: many headers": "max_header_fields",
    "headers: te: trailers, and an error": "etcd repeats the content type of its gRPC as a trailer",
    "framing: chunks without their end": "etcd answers before it looks for the end",
    "framing: a list of lengths": "h11 takes lengths that are alike, as RFC 9110 allows",
    "framing: a length and chunks": "whoever believes one of them reads another request",
    "framing: HTTP/1.0, kept alive": "esp closes a connection of HTTP/1.0",
    "framing: HTTP/1.2": "esp speaks HTTP/1.1",
    "framing: a path of 6 kB": "etcd takes it for another protocol",
    "paths: FOO range": "esp takes it for another protocol",
    "paths: FOO an unknown path": "esp takes it for another protocol",
    "paths: post range": "esp takes it for another protocol",
    "paths: post an unknown path": "esp takes it for another protocol",
}
"""Requests that esp answers otherwise, and why."""


@dataclass
class Side:
    """A server, and a client that is there all the time.

    Attributes:
        inner: another esp over the same etcds, with a namespace.
    """

    server: Server
    etcds: list[LocalEtcd]
    is_sharded: bool = False
    inner: Server | None = None
    neighbour: Conversation = field(init=False)

    def __post_init__(self) -> None:
        self.neighbour = Conversation(self.server)
        self.has_a_neighbour_served()  # or esp ends the connection if the next server takes long to start

    def has_a_neighbour_served(self) -> None:
        answer = self.neighbour.ask(FOLLOWING)
        assert answer is not None
        assert answer.status == 200

    def seen(self, case: Case) -> tuple[object, ...]:
        """The answer to a request, and whether another request is answered on its connection."""
        if case.is_alone:
            with Conversation(self.server) as conversation:
                answer = conversation.ask(case.request())
                following = None if answer is None or answer.is_last else conversation.ask(FOLLOWING)
            self.has_a_neighbour_served()
        else:
            answer, following = self.neighbour.ask(case.request()), None
        return (*(masked(part, case.masked) for part in comparable(answer)), following and following.status)


def masked(told: object, names: tuple[str, ...] = ("header",)) -> object:
    """What was told, without the values of these members."""
    if isinstance(told, tuple | list):
        return [masked(part, names) for part in told]
    if isinstance(told, bytes):
        for name in names:
            told = re.sub(rb'("%s":)("[^"]*"|\d+|\[[^]]*\]|\{[^}]*\})' % name.encode(), rb'\1"#"', told)
    return told


@pytest.fixture(scope="module")
def sides(module_etcds: Etcds, tmp_path_factory: pytest.TempPathFactory, etcd_binary: Path) -> Iterator[list[Side]]:
    """An etcd, an esp over one, and an esp over three: keys below "i", from "i" to below "r", and from "r" on."""
    with running_esps(tmp_path_factory.mktemp("json"), etcd_binary) as esps, ExitStack() as stack:
        judge, *shards = module_etcds.several(5, "--bcrypt-cost=4", binary=peer("etcd"))
        sides = [
            Side(judge, [judge]),
            Side(esps(shards[:1]), shards[:1], inner=esps(shards[:1], extra="namespace: inner/")),
            Side(esps(shards[1:], ["i", "r"]), shards[1:], is_sharded=True),
        ]
        for side in sides:
            stack.enter_context(side.neighbour)
        yield sides


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_request_is_answered_as_by_etcd(sides: list[Side], case: Case) -> None:
    etcd, one, three = sides
    expected = etcd.seen(case)
    mine, sharded = one.seen(case), three.seen(case)
    if case.name in DIFFERENT:
        assert mine != expected, "is no difference any more"
        return
    assert mine == expected
    if not case.one_shard:
        assert masked(sharded) == masked(expected)


WRONG_LATER = {
    wrong_json_after_a_watch: b"invalid character ']' looking for beginning of object key string",
    a_wrong_number_after_a_watch: b'proto: (line 1:50): invalid value for int64 field startRevision: \\"x\\"',
    wrong_json_after_a_renewal: b"invalid character ']' looking for beginning of object key string",
}
"""etcd keeps these errors to itself, and serves no request behind them; a watch then goes on until its client goes."""


@pytest.mark.parametrize("program", WRONG_LATER, ids=[program.__name__ for program in WRONG_LATER])
def test_a_wrong_request_behind_others_is_told(sides: list[Side], program: Callable[[Client], None]) -> None:
    fault = b'{"error":{"code":3,"message":"Failed to decode request: %s"}}' % WRONG_LATER[program]
    for side in sides[1:]:
        heard = heard_by(program, side.server)
        assert fault in heard
        assert heard.index(fault) < heard.index("the end")
        side.has_a_neighbour_served()


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.__name__ for program in PROGRAMS])
def test_a_program_hears_what_etcd_says(sides: list[Side], program: Callable[[Client], None]) -> None:
    etcd, one, three = sides
    expected = heard_by(program, etcd.server)
    assert heard_by(program, one.server) == expected
    if program is not a_call_with_auth:  # permissions are for keys with their prefix
        assert one.inner is not None
        assert heard_by(program, one.inner) == expected
    if program not in ONE_SHARD:
        assert masked(heard_by(program, three.server)) == masked(expected)
    for side in sides:
        side.has_a_neighbour_served()


GET, GOOD = "/v3/kv/range", {"key": b64("h1")}
PROTO = "proto: (line 1:8): invalid value for"
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "eA==",
}
BAD: dict[str, tuple[bytes, int, str]] = {
    "wrong JSON": (post(GET, '{"key":'), 400, "unexpected EOF"),
    "wrong base64": (post(GET, '{"key":"!"}'), 400, 'proto: (line 1:8): invalid value for bytes field key: "!"'),
    "an unknown enum": (post(GET, GOOD | {"sort_order": 77}), 400, "etcdserver: invalid sort option"),
    "a number out of range": (
        post(GET, '{"limit":1e19}'),
        400,
        "proto: (line 1:10): invalid value for int64 field limit: 1e19",
    ),
    "another content": (
        post(GET, b"\n\2h1", {"Content-Type": "application/grpc"}),
        400,
        "invalid character '\\x02' looking for beginning of value",
    ),
    "a GET": (post(GET, None, {"Content-Length": ""}, "GET"), 501, "Method Not Allowed"),
    "a WebSocket": (
        post("/v3/watch", None, WEBSOCKET),
        501,
        "esp: no WebSocket here; POST the JSON, answers come line by line",
    ),
    "a body too large": (
        post(GET, '{"key":"' + "A" * (1 << 22) + '"}'),
        413,
        "esp: the JSON of the request has more than 4194304 bytes; raise max_json_bytes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_nobody_else_hears_of_it(sides: list[Side], name: str) -> None:
    request, status, text = BAD[name]
    for side in sides[1:]:
        with ExitStack() as stack:
            client = Client(side.server, stack)
            watch = client.watch(create("h2"))
            watch.hears()
            conversation = stack.enter_context(Conversation(side.server))
            answer = conversation.ask(request)
            assert answer is not None
            assert (answer.status, answer.json()["message"].replace("\u00a0", " ")) == (status, text)
            assert answer.is_last == (status == 413)  # there, the rest of the body would be the next request
            assert answer.is_last or conversation.ask(FOLLOWING).status == 200  # type: ignore[union-attr]
            client.put("h2")
            assert b64("h2").encode() in watch.hears()[0]
        side.has_a_neighbour_served()


def test_a_token_of_other_shards_is_refused_as_any_wrong_one(sides: list[Side]) -> None:
    """Not each to each: etcd waits for ever until it has written as much as the etcd that gave a simple token."""
    with ExitStack() as stack:
        clients = [Client(side.server, stack) for side in sides]
        for client in clients:
            auth_on(client)
            stack.callback(auth_off, client)
        of_etcd, of_one, of_three = tokens = [client.authenticates("root") for client in clients]
        for client, token in zip(clients, tokens, strict=True):
            assert "header" in client.ask(GET, GOOD, Authorization=f"Bearer {token}")
        for client, token in [(clients[0], of_three), (clients[2], of_etcd), (clients[2], of_one)]:
            assert client.ask(GET, GOOD, Authorization=token) == {
                "code": 16,
                "message": "etcdserver: invalid auth token",
            }
    for side in sides:
        side.has_a_neighbour_served()


def auth_on(client: Client) -> None:
    client.ask("/v3/auth/user/add", {"name": "root", "password": "p"})
    client.ask("/v3/auth/role/add", {"name": "root"})
    client.ask("/v3/auth/user/grant", {"user": "root", "role": "root"})
    assert "header" in client.ask("/v3/auth/enable", {})


def auth_off(client: Client) -> None:
    client.ask("/v3/auth/disable", {}, Authorization=client.authenticates("root"))
    client.ask("/v3/auth/user/delete", {"name": "root"})
    client.ask("/v3/auth/role/delete", {"role": "root"})


def test_a_watch_over_all_shards_hears_of_each(sides: list[Side]) -> None:
    with ExitStack() as stack:
        client = Client(sides[2].server, stack)
        watch = client.watch(create("\0", "\0", prev_kv=True))
        [created] = watch.hears()
        assert json.loads(created)["result"]["created"]
        for key in ("a-x", "k-x", "z-x"):
            client.put(key)
            [line] = watch.hears()
            [event] = json.loads(line)["result"]["events"]
            assert event["kv"]["key"] == b64(key)
        kvs = client.ask("/v3/kv/range", {"key": b64("\0"), "range_end": b64("\0")})["kvs"]
        assert [b64("a-x"), b64("k-x"), b64("z-x")] == [
            kv["key"] for kv in kvs if kv["key"] in map(b64, ("a-x", "k-x", "z-x"))
        ]


@pytest.mark.parametrize("side", [1, 2])
def test_a_watch_answers_while_its_request_goes_on(sides: list[Side], side: int) -> None:
    with ExitStack() as stack:
        client = Client(sides[side].server, stack)
        watch = client.watch(create("g1"), is_whole=False)
        client.hear(watch)
        client.put("g1")
        client.hear(watch)
        watch.says({"cancel_request": {"watch_id": "0"}})
        client.hear(watch)
        watch.says(create("g2"))
        client.hear(watch)
        client.put("g1")
        client.put("g2")
        client.hear(watch)
    told = [json.loads(line)["result"] for line in client.heard if isinstance(line, bytes)]
    events = [[event["kv"]["key"] for event in one.get("events", [])] for one in told]
    assert events == [[], [b64("g1")], [], [], [b64("g2")]]
    assert [sorted(one.keys() & {"created", "canceled"}) for one in told] == [
        ["created"],
        [],
        ["canceled"],
        ["created"],
        [],
    ]


@pytest.mark.parametrize("side", [1, 2])
def test_a_watch_ends_on_the_shards_with_its_client(sides: list[Side], side: int) -> None:
    def watchers() -> int:
        return sum(watchers_in(etcd) for etcd in sides[side].etcds)

    before = watchers()
    with ExitStack() as stack:
        client = Client(sides[side].server, stack)
        assert len(client.watch(create("g3"), create("g4"), create("g5")).hears(3)) == 3
        assert watchers() == before + 3
    wait_until(lambda: watchers() == before)


def test_a_snapshot_comes_in_lines(sides: list[Side]) -> None:
    def told(side: Side) -> list[dict[str, str]]:
        with ExitStack() as stack:
            stream = Client(side.server, stack).stream("/v3/maintenance/snapshot", {})
            return [json.loads(line)["result"] for line in stream.lines()]

    expected, mine = told(sides[0]), told(sides[1])
    may_be = {"version", "remaining_bytes"}  # an etcd that has just begun knows no version of its storage
    assert {*mine[0], *mine[-1]} - may_be == {*expected[0], *expected[-1]} - may_be
    assert {len(line["blob"]) for line in mine[:-1]} <= {len(b64(b"x" * 32768)), len(mine[-2]["blob"])}
    assert "remaining_bytes" not in mine[-1]
    answer = sides[2].neighbour.ask(post("/v3/maintenance/snapshot", {}))
    assert answer is not None
    assert answer.status == 501
    assert "esp: " in answer.json()["error"]["message"]


def test_answers_of_several_shards_are_joined(sides: list[Side]) -> None:
    with ExitStack() as stack:
        client = Client(sides[2].server, stack)
        for key in ("b-y", "m-y", "s-y"):
            client.put(key, key)
        ranged = client.ask("/v3/kv/range", {"key": b64("b-y"), "range_end": b64("t")})
        assert int(ranged["header"]["revision"]) > 2**52
        again = client.ask(
            "/v3/kv/range", {"key": b64("b-y"), "range_end": b64("t"), "revision": ranged["header"]["revision"]}
        )
        assert again["kvs"] == ranged["kvs"]
        assert (
            client.ask("/v3/kv/deleterange", {"key": b64("b-y"), "range_end": b64("t")})["deleted"] == ranged["count"]
        )
        refused = client.ask(
            "/v3/kv/txn", {"success": [{"request_put": {"key": b64("a")}}, {"request_put": {"key": b64("z")}}]}
        )
        assert (refused["code"], refused["message"][:5]) == (9, "esp: ")
        members = client.ask("/v3/cluster/member/list", {})["members"]
        assert [member["clientURLs"] for member in members] == [[f"http://{sides[2].server.address}"]]


# Stock clients.


@pytest.mark.parametrize("client", ["etcd3gw", "etcd3-py"])
def test_a_client_from_pypi_cannot_tell_esp_from_etcd(sides: list[Side], client: str) -> None:
    python = foreign("python") / "venv" / "bin" / "python"

    def begin(side: Side) -> subprocess.Popen[str]:
        command = [python, Path(__file__).parent / "json_clients.py", client, side.server.address.partition(":")[2]]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    expected, told = ((done.communicate(timeout=60), done.returncode) for done in [begin(sides[0]), begin(sides[2])])
    assert expected[1] == told[1] == 0, (expected, told)
    assert len(expected[0][0].splitlines()) > 30
    assert told[0][0].splitlines() == expected[0][0].splitlines()


CURL = [
    ["-d", '{"key":"aGg="}', "/v3/kv/range"],
    ["-d", '{"key":"aGg="}', "-H", "Expect: 100-continue", "-i", "/v3/kv/range"],
    ["-d", '{"key":"aGg="}', "-H", "Transfer-Encoding: chunked", "/v3/kv/range"],
    ["-d", "key=aGg=", "-w", "%{http_code} %{content_type}", "/v3/kv/range"],
    ["-X", "POST", "-w", "%{http_code}", "/v3/kv/range"],
    ["-I", "-w", "%{http_code}", "/v3/kv/range"],
    ["-L", "-d", '{"key":"aGg="}', "--post301", "/v3//kv/range"],
    ["-X", "OPTIONS", "-w", "%{http_code} %{size_download}", "/v3/kv/range"],
    ["-d", "{}", "-w", "%{http_code} %{num_connects}", "/v3/kv/range", "/v3/nothing", "/v3/kv/put"],
    ["-d", '{"create_request":{"key":"aGg="}}', "-m", "3", "-w", "%{http_code}", "/v3/watch"],  # ends by itself never
]


@pytest.mark.parametrize("arguments", CURL, ids=[" ".join(arguments) for arguments in CURL])
def test_curl_shows_what_it_shows_of_etcd(sides: list[Side], arguments: list[str]) -> None:
    curl = shutil.which("curl") or pytest.skip("no curl")

    def told(side: Side) -> tuple[int, object]:
        there = [f"http://{side.server.address}{part}" if part.startswith("/") else part for part in arguments]
        done = subprocess.run([curl, "-sS", "--max-time", "20", *there], capture_output=True, check=False)
        lines = sorted(re.sub(rb"(?m)^(Date|Content-Length|Transfer-Encoding): .*\r\n", b"", done.stdout).splitlines())
        return done.returncode, masked([line.replace(b" ", b"") for line in lines])

    expected = told(sides[0])
    assert told(sides[1]) == expected
    assert told(sides[2]) == expected
