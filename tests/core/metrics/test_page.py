"""/metrics over HTTP/1.1 and HTTP/2: whole, in steps, as fast as the client reads, and for GET only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import h11
import pytest
from hpack import Decoder
from prometheus_client.parser import text_string_to_metric_families

from esp.core import config as configs
from esp.core.metrics.families import Family
from esp.core.metrics.page import PATH, OnlyPages
from esp.core.metrics.text import OPEN, PLAIN
from esp.core.proxy import Proxy
from esp.core.wire import frames
from esp.core.wire.http1 import Http1Connection
from esp.core.wire.status import Code
from tests.core.wire.conversation import ECHO, body, call, data, headers, meet, message, page, window

ONE = "shards: [{name: a, endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]"
GET = b"GET /metrics HTTP/1.1\r\nHost: esp\r\n\r\n"


@pytest.fixture
def proxy() -> Proxy:
    """A proxy that does not run, with some 100 kB of metrics."""
    proxy = Proxy(configs.parse(ONE, None))
    rows = [((f"{number:030}",), number) for number in range(2000)]
    proxy.metrics.more.append(lambda: [Family("esp_many", "gauge", "Many.", ("n",), rows)])
    return proxy


def only_pages(proxy: Proxy) -> OnlyPages:
    page = proxy._metrics_page
    return OnlyPages({PATH: page.exchange}, proxy._find_page, page)


def names(text: bytes) -> set[str]:
    return {family.name for family in text_string_to_metric_families(text.decode())}


def answers(said: bytes, requests: Sequence[str] = ("GET",)) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """Status, header fields and body of each answer, as h11 reads them."""
    client = h11.Connection(h11.CLIENT)
    client.receive_data(said)
    found = []
    for method in requests:
        client.send(h11.Request(method=method, target="/metrics", headers=[("Host", "esp")]))
        client.send(h11.EndOfMessage())
        head, content = client.next_event(), b""
        assert isinstance(head, h11.Response)
        while isinstance(event := client.next_event(), h11.Data):
            content += event.data
        assert isinstance(event, h11.EndOfMessage)
        found.append((head.status_code, dict(head.headers), content))
        client.start_next_cycle()
    return found


class OverHttp1:
    """A connection whose turns end after `steps` looks at the clock each."""

    def __init__(self, proxy: Proxy, steps: int = 10**9) -> None:
        self.now = 0.0
        self.server = Http1Connection(only_pages(proxy), self.clock)
        self.server.on_late = lambda data: None
        self._steps = steps

    def clock(self) -> float:
        self.now += 1.0
        return self.now

    def says(self, data: bytes) -> tuple[bytes, int]:
        """What is answered, and after how many turns."""
        self.server.stop = self.now + self._steps
        said, turns = self.server.receive(data), 1
        while self.server.behind:
            self.server.stop = self.now + self._steps
            said += self.server.receive(b"")
            turns += 1
        return said, turns


class TestHttp1:
    def test_the_page_and_the_next_one_on_the_same_connection(self, proxy: Proxy) -> None:
        said, _ = OverHttp1(proxy).says(GET + GET)
        for status, fields, content in answers(said, ("GET", "GET")):
            assert (status, fields[b"content-type"].decode()) == (200, PLAIN)
            assert {"esp_build_info", "esp_many", "grpc_server_handled"} <= names(content)
        assert proxy.context.counters.pages == {(PATH, 200): 2}

    def test_it_is_made_in_turns(self, proxy: Proxy) -> None:
        over = OverHttp1(proxy, steps=3)
        said, turns = over.says(GET)
        assert turns > 10
        assert len(names(answers(said)[0][2])) > 50

    def test_a_client_that_does_not_read_holds_up_nothing_but_its_own_answer(self, proxy: Proxy) -> None:
        over = OverHttp1(proxy, steps=1)
        server = over.server
        server.stop = 0.0
        said, pauses = server.receive(GET), 0
        while server.is_served:
            server.is_full, server.stop = True, inf
            said += server.receive(b"")
            if server.is_served:
                assert not server.behind
                pauses += 1
                server.resumed()
                assert server.behind
        assert pauses > 10
        assert len(names(answers(said)[0][2])) > 50

    def test_open_metrics_for_who_wants_it(self, proxy: Proxy) -> None:
        asked = GET.replace(b"Host", b"Accept: application/openmetrics-text; version=1.0.0\r\nHost")
        [(_, fields, content)] = answers(OverHttp1(proxy).says(asked)[0])
        assert fields[b"content-type"].decode() == OPEN
        assert content.endswith(b"\n# EOF\n")

    def test_a_query_changes_nothing(self, proxy: Proxy) -> None:
        assert answers(OverHttp1(proxy).says(GET.replace(b"/metrics", b"/metrics?x=1"))[0])[0][0] == 200

    def test_head_and_other_methods(self, proxy: Proxy) -> None:
        over = OverHttp1(proxy)
        said = over.says(GET.replace(b"GET", b"HEAD") + GET.replace(b"GET", b"POST"))[0]
        head, post = answers(said, ("HEAD", "POST"))
        assert (head[0], head[2]) == (200, b"")
        assert (post[0], post[1][b"allow"]) == (405, b"GET")

    def test_a_client_that_is_gone_costs_nothing_more(self, proxy: Proxy) -> None:
        later: list[Callable[[Sequence[Sequence[Family]]], None]] = []
        proxy.metrics.others = later.append
        over = OverHttp1(proxy)
        assert over.says(GET) == (b"", 1)
        over.server.lost()
        [give] = later
        give([])
        assert not over.server.behind

    def test_other_processes_answer_later(self, proxy: Proxy) -> None:
        later: list[Callable[[Sequence[Sequence[Family]]], None]] = []
        proxy.metrics.others = later.append
        over = OverHttp1(proxy)
        over.says(GET)
        told: list[bytes] = []
        over.server.on_late = told.append
        later[0]([[Family("esp_other", "gauge", "Other.", rows=[((), 1)])]])
        said = b"".join(told) + over.says(b"")[0]
        assert "esp_other" in names(answers(said)[0][2])

    def test_other_pages_of_the_address(self, proxy: Proxy) -> None:
        assert answers(OverHttp1(proxy).says(GET.replace(b"/metrics", b"/livez"))[0])[0][2] == b"ok\n"
        assert answers(OverHttp1(proxy).says(GET.replace(b"/metrics", b"/v3/kv/put"))[0])[0][0] == 404


def over_http2(proxy: Proxy, *, initial: int = 65_535, method: bytes = b"GET") -> tuple[bytes, bytes]:
    """Status and body; the client grants its windows one after the other."""
    only = only_pages(proxy)
    client, server = meet(find=only.find, client_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: initial})
    client.sends(headers(1, page(PATH.encode(), method), end=True))
    said = server.frames()
    while not said[-1].flags & frames.END_STREAM:
        client.sends(window(0, initial), window(1, initial))
        said += server.frames()
    fields = dict(Decoder().decode(said[0].payload, raw=True))
    server.holds_nothing()
    return bytes(fields[b":status"]), body(said, 1)


class TestHttp2:
    @pytest.mark.parametrize("initial", [2**24, 65_535, 1000])
    def test_the_page_whatever_the_windows(self, proxy: Proxy, initial: int) -> None:
        status, content = over_http2(proxy, initial=initial)
        assert status == b"200"
        assert {"esp_build_info", "esp_many"} <= names(content)

    def test_head_and_other_methods(self, proxy: Proxy) -> None:
        assert over_http2(proxy, method=b"HEAD") == (b"200", b"")
        assert over_http2(proxy, method=b"PUT") == (b"405", b"")

    def test_calls_are_refused_where_there_are_only_pages(self, proxy: Proxy) -> None:
        only = only_pages(proxy)
        client, server = meet(find=only.find)
        client.sends(headers(1, call(ECHO)), data(1, message(b""), end=True))
        [said] = [frame for frame in server.frames() if frame.kind == frames.HEADERS]
        fields = dict(Decoder().decode(said.payload, raw=True))
        assert int(fields[b"grpc-status"]) == Code.UNIMPLEMENTED
        assert b"this address has only pages" in bytes(fields[b"grpc-message"])


def test_clients_see_it_among_the_pages_unless_it_is_switched_off() -> None:
    for text, status in ((ONE, 200), (f"{ONE}\nmetrics_for_clients: false", 404)):
        proxy = Proxy(configs.parse(text, None))
        over = Http1Connection(proxy._listener.serve)
        said = over.receive(GET)
        while over.behind:
            said += over.receive(b"")
        assert answers(said)[0][0] == status


def test_it_has_the_lines_for_pages_of_other_origins() -> None:
    proxy = Proxy(configs.parse(ONE, None))
    said = Http1Connection(proxy._listener.serve).receive(GET)
    assert b"\r\nAccess-Control-Allow-Origin: *\r\n" in said
