"""The status page over HTTP/1.1 and HTTP/2: where it is, what it lets run, who may read it."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256

import pytest
from hpack import Decoder

from esp.core import config as configs
from esp.core.proxy import Proxy
from esp.core.ui.pages import PATH, STATE, whole
from esp.core.wire import frames
from esp.core.wire.http1 import Http1Connection
from tests.core.metrics.test_page import ONE, answers
from tests.core.wire.conversation import body, headers, meet, page, window

Answer = tuple[int, dict[str, str], bytes]
Over = Callable[..., Answer]


def over_http1(proxy: Proxy, path: str, method: str = "GET", *, only_pages: bool = False) -> Answer:
    listener = proxy._metrics_listener if only_pages else proxy._listener
    connection = Http1Connection(listener.serve)
    said = connection.receive(f"{method} {path} HTTP/1.1\r\nHost: esp\r\nOrigin: http://elsewhere\r\n\r\n".encode())
    while connection.behind:
        said += connection.receive(b"")
    [(status, fields, content)] = answers(said, (method,))
    return status, {name.decode(): value.decode() for name, value in fields.items()}, content


def over_http2(proxy: Proxy, path: str, method: str = "GET", *, only_pages: bool = False) -> Answer:
    listener = proxy._metrics_listener if only_pages else proxy._listener
    client, server = meet(find=listener.find)
    client.sends(headers(1, page(path.encode(), method.encode()), end=True))
    said = server.frames()
    while not said[-1].flags & frames.END_STREAM:
        client.sends(window(0, 65_535), window(1, 65_535))
        said += server.frames()
    fields = {
        bytes(name).decode(): bytes(value).decode() for name, value in Decoder().decode(said[0].payload, raw=True)
    }
    server.holds_nothing()
    return int(fields.pop(":status")), fields, body(said, 1)


OVER = pytest.mark.parametrize("over", [over_http1, over_http2])


def made(more: str = "") -> Proxy:
    return Proxy(configs.parse(f"{ONE}\n{more}", None))


@OVER
def test_the_page(over: Over) -> None:
    proxy = made()
    status, fields, content = over(proxy, PATH)
    assert (status, content) == (200, whole().body)
    assert fields["content-type"] == "text/html; charset=utf-8"
    assert proxy.context.counters.pages == {(PATH, 200): 1}


@OVER
def test_what_the_page_asks_for(over: Over) -> None:
    status, fields, content = over(made(), STATE)
    assert (status, fields["content-type"], fields["cache-control"]) == (200, "application/json", "no-store")
    assert [shard["name"] for shard in json.loads(content)["shards"]] == ["a"]


@OVER
def test_methods_and_the_path_with_a_slash(over: Over) -> None:
    assert over(made(), PATH, "HEAD")[::2] == (200, b"")
    assert over(made(), STATE, "HEAD")[::2] == (200, b"")
    for path in (PATH, STATE):
        status, fields, _ = over(made(), path, "POST")
        assert (status, fields["allow"]) == (405, "GET")
    status, fields, _ = over(made(), f"{PATH}/")
    assert (status, fields["location"]) == (301, "../ui")
    assert over(made(), f"{PATH}/other")[0] == 404
    assert over(made(), "/metrics")[0] == 200


@OVER
@pytest.mark.parametrize(
    ("more", "client", "pages"),
    [("", 200, 200), ("ui: false", 404, 404), ("metrics_for_clients: false", 404, 200)],
)
def test_where_it_is(over: Over, more: str, client: int, pages: int) -> None:
    proxy = made(f"{more}\nmetrics_listen: ['http://127.0.0.1:1']")
    for path in (PATH, STATE):
        assert over(proxy, path)[0] == client
        assert over(proxy, path, only_pages=True)[0] == pages


def test_nothing_else_runs_in_it_and_nobody_else_reads_it() -> None:
    _, fields, content = over_http1(made(), PATH)
    policy = dict(part.strip().split(" ", 1) for part in fields["content-security-policy"].split(";"))
    for element in ("script", "style"):
        [text] = re.findall(f"<{element}>(.*?)</{element}>".encode(), content, re.DOTALL)
        assert policy[f"{element}-src"] == f"'sha256-{b64encode(sha256(text).digest()).decode()}'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert not re.search(rb"(src|href)=.https?:|@import|url\(|innerHTML|eval\(| style=", content)
    for path in (PATH, STATE):
        assert "access-control-allow-origin" not in over_http1(made(), path)[1]
