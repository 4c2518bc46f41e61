"""Hosts, CORS, redirects and paths, as etcd has them."""

from __future__ import annotations

import pytest

from esp.core.gateway.site import cors_lines, hostname
from esp.core.pb import rpc_pb2
from tests.core.gateway.browser import Answer, Browser, gives

ANY = dict(line.split(": ", 1) for line in cors_lines("*").decode().split("\r\n") if line)


def client(**site: object) -> Browser:
    made = Browser(**site)
    made.handlers[b"/etcdserverpb.KV/Range"] = gives(rpc_pb2.RangeResponse(count=1))
    return made


COUNT = (200, b'{"count":"1"}')
NOT_FOUND = (404, b'{"code":5,"message":"Not Found"}')
NOT_ALLOWED = (501, b'{"code":12,"message":"Method Not Allowed"}')


def told(answer: Answer) -> tuple[int, bytes]:
    return answer.status, answer.body


@pytest.mark.parametrize(
    ("method", "target", "answer"),
    [
        ("POST", "/v3/kv/range", COUNT),
        ("POST", "/v3beta/kv/range", COUNT),
        ("POST", "/v3/kv/range?a=b", COUNT),
        ("POST", "/v3/kv/%72ange", COUNT),
        ("POST", "/%763/kv/range", COUNT),
        ("POST", "http://elsewhere:1/v3/kv/range", COUNT),
        ("GET", "/v3/kv/range", NOT_ALLOWED),
        ("PUT", "/v3/kv/range", NOT_ALLOWED),
        ("DELETE", "/v3/kv/range", NOT_ALLOWED),
        ("POST", "/v3/", NOT_FOUND),
        ("POST", "/v3/kv/range/", NOT_FOUND),
        ("POST", "/v3/kv/range%2F", NOT_FOUND),
        ("POST", "/v3/kv/range:x", NOT_FOUND),
        ("GET", "/v3/nothing", NOT_FOUND),
        ("OPTIONS", "/v3/kv/range", (200, b"")),
        ("OPTIONS", "/nothing", (200, b"")),
        ("GET", "/health?a=b", (200, b"GET /health?a=b\n")),
        ("POST", "/v3beta", (404, b"POST /v3beta\n")),
        ("POST", "/V3/kv/range", (404, b"POST /V3/kv/range\n")),
        ("POST", "/v3%2Fkv%2Frange", (404, b"POST /v3%2Fkv%2Frange\n")),
        ("CONNECT", "a:1", (404, b"CONNECT a:1\n")),
    ],
)
def test_what_is_where(method: str, target: str, answer: tuple[int, bytes]) -> None:
    found = client().asks(target, {}, method=method)
    assert told(found) == answer
    assert found.headers.items() >= ANY.items()


def test_options_for_the_server_as_a_whole() -> None:
    answer = client().asks("*", method="OPTIONS")
    assert (answer.status, answer.headers) == (200, {"Content-Length": "0"})


@pytest.mark.parametrize("target", ["/v3/kv/ra%nge", "v3/kv/range", "*"])
def test_a_path_that_is_no_path(target: str) -> None:
    browser = client()
    answer = browser.asks(target, {})
    assert (answer.status, answer.body, answer.headers["Connection"]) == (400, b"400 Bad Request", "close")
    assert browser.http.ended


@pytest.mark.parametrize("host", ["a b", "x/y", "a@b"])
def test_a_host_that_is_no_host(host: str) -> None:
    answer = client().asks("/v3/kv/range", {}, host=host)
    assert (answer.status, answer.body) == (400, b"400 Bad Request: malformed Host header")


def test_no_body_is_asked_for_where_there_is_none() -> None:
    browser = client()
    browser.says(b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
    assert told(browser.hears()) == COUNT


def test_head_has_the_head_of_get() -> None:
    browser = client()
    browser.posts("/v3/kv/range", method="HEAD")
    assert browser.said.startswith(b"HTTP/1.1 501 ")
    assert browser.said.endswith(b"\r\n\r\n")
    browser.said.clear()
    assert told(browser.asks("/v3/kv/range", {})) == COUNT


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/v3", "/v3/"),
        ("//v3/kv/range?x=<", "/v3/kv/range?x=<"),
        ("/v3//kv/range", "/v3/kv/range"),
        ("/v3/./kv/../watch/", "/v3/watch/"),
        ("/v3beta//kv/range", "/v3/kv/range"),
        ("/..", "/"),
        ("//health", "/health"),
    ],
)
def test_redirects(target: str, location: str) -> None:
    answer = client().asks(target, {})
    assert (answer.status, answer.headers["Location"], answer.body) == (307, location, b"")
    answer = client().asks(target, method="GET")
    assert answer.body == f'<a href="{location.replace("<", "&lt;")}">Temporary Redirect</a>.\n\n'.encode()


def test_a_form_may_name_another_method() -> None:
    lines = ("Content-Type: application/x-www-form-urlencoded", "X-HTTP-Method-Override: get")
    assert told(client().asks("/v3/kv/range", {}, *lines)) == NOT_ALLOWED
    assert told(client().asks("/v3/kv/range", {}, lines[1])) == COUNT
    assert told(client().asks("/v3/kv/range", {}, lines[0])) == COUNT


@pytest.mark.parametrize("wanted", ["foo", "h2c", "HTTP/3.0"])
def test_an_upgrade_to_another_protocol_is_ignored(wanted: str) -> None:
    browser = client()
    assert told(browser.asks("/v3/kv/range", {}, "Connection: Upgrade", f"Upgrade: {wanted}")) == COUNT
    assert told(browser.asks("/v3/kv/range", {})) == COUNT


def test_an_upgrade_to_websocket_is_refused() -> None:
    browser = client()
    answer = browser.asks("/v3/watch", None, "Connection: keep-alive, Upgrade", "Upgrade: WebSocket", method="GET")
    assert (answer.status, answer.json["code"]) == (501, 12)
    assert told(browser.asks("/v3/kv/range", {})) == COUNT


# Origins and hosts.


def test_origins() -> None:
    browser = client(cors=["http://a", "http://b:80"])
    assert "Access-Control-Allow-Origin" not in browser.asks("/v3/kv/range", {}).headers
    assert "Access-Control-Allow-Origin" not in browser.asks("/v3/kv/range", {}, "Origin: http://c").headers
    for method, path in (("POST", "/v3/kv/range"), ("OPTIONS", "/v3/kv/range"), ("GET", "/health"), ("GET", "/v3/x")):
        answer = browser.asks(path, {}, "Origin: http://b:80", method=method)
        assert answer.headers.items() >= (ANY | {"Access-Control-Allow-Origin": "http://b:80"}).items()


def test_hosts() -> None:
    browser = client(hosts=["a.example", "::1"])
    for host in ("a.example", "a.example:2379", "[::1]:2379"):
        assert told(browser.asks("/v3/kv/range", {}, host=host)) == COUNT
    for path in ("/v3/kv/range", "/health", "/nothing"):
        answer = browser.asks(path, {}, host="b.example:1")
        assert answer.status == 421
        assert b"- e.g. host_whitelist: [b.example] in esp's config\n" in answer.body
        assert "Access-Control-Allow-Origin" not in answer.headers
    assert told(client(hosts=[]).asks("/v3/kv/range", {}, host="anything")) == COUNT


@pytest.mark.parametrize(
    ("host", "name"),
    [("a", "a"), ("a:1", "a"), ("[::1]:1", "::1"), ("[::1]", "[::1]"), ("::1", "::1"), ("a:b:c", "a:b:c"), ("", "")],
)
def test_the_name_of_a_host(host: str, name: str) -> None:
    assert hostname(host) == name
