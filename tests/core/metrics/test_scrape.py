"""What a proxy tells: each name once, no label that a client can choose, each limit."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open

import esp
from esp.core import config as configs
from esp.core.metrics.families import Family
from esp.core.metrics.limits import WITHOUT_USE
from esp.core.metrics.names import KNOWN, METHOD, NAMES
from esp.core.metrics.scrape import of_fellows
from esp.core.metrics.text import text
from esp.core.moves import MOST
from esp.core.proxy import Proxy
from esp.core.wire.ended import UNKNOWN, EndedCall
from esp.core.wire.limits import Limits
from esp.core.wire.status import CODE_NAMES, Code

TWO = """
shards:
- {name: a, endpoints: [127.0.0.1:1, 127.0.0.1:2], ranges: [{start: "", end: m}]}
- {name: b, endpoints: [127.0.0.1:3], ranges: [{start: m, end: ""}]}
"""
PUT, RANGE, WATCH = b"/etcdserverpb.KV/Put", b"/etcdserverpb.KV/Range", b"/etcdserverpb.Watch/Watch"


@pytest.fixture
def proxy() -> Proxy:
    """A proxy that does not run."""
    return Proxy(configs.parse(TWO, None))


def gathered(proxy: Proxy) -> dict[str, Family]:
    return {family.name: family for family in proxy.metrics.collect() if family is not None}


def rows(proxy: Proxy, name: str) -> dict[tuple[str, ...], object]:
    return dict(gathered(proxy)[name].rows)


def ended(path: bytes, code: int = 0, **more: object) -> EndedCall:
    return EndedCall(path, "client:1", code, 1.0, 1.5, **more)  # type: ignore[arg-type]


class TestNames:
    def test_each_name_is_told_once_also_without_the_endings_of_open_metrics(self, proxy: Proxy) -> None:
        names = [family.name for family in proxy.metrics.collect() if family is not None]
        bare = [name.removesuffix("_total") for name in names]
        assert len(set(bare)) == len(names)

    def test_names_and_kinds_are_as_prometheus_wants_them(self, proxy: Proxy) -> None:
        for family in gathered(proxy).values():
            assert re.fullmatch("(process|grpc_server|grpc_client|esp)_[a-z0-9_]+", family.name)
            assert family.name.endswith("_total") == (family.kind == "counter"), family.name
            assert family.help.endswith("."), family.name
            assert all(len(labels) == len(family.labels) for labels, _ in family.rows), family.name
            assert len({labels for labels, _ in family.rows}) == len(family.rows), family.name

    def test_the_whole_is_open_metrics(self, proxy: Proxy) -> None:
        proxy.calls.ended(ended(PUT, server="a", sent=1.0))
        made = "".join(text(proxy.metrics.collect(), open_metrics=True))
        assert len(list(parse_open(made))) == len(gathered(proxy))

    def test_codes_are_gos(self) -> None:
        assert len(CODE_NAMES) == len(Code)
        assert (CODE_NAMES[Code.OK], CODE_NAMES[Code.CANCELLED], CODE_NAMES[Code.UNAUTHENTICATED]) == (
            "OK",
            "Canceled",
            "Unauthenticated",
        )


class TestCalls:
    def test_a_call_passed_on_is_one_of_a_client_and_one_of_the_shard(self, proxy: Proxy) -> None:
        proxy.calls.passed_to("a").took[PUT](0.004)
        proxy.calls.ended(ended(PUT, Code.NOT_FOUND, server="b", sent=1.0))
        assert rows(proxy, "grpc_server_handled_total") == {
            (*NAMES[PUT], "OK"): 1,
            (*NAMES[PUT], "NotFound"): 1,
        }
        assert rows(proxy, "grpc_client_handled_total") == {
            ("a", *NAMES[PUT], "OK"): 1,
            ("b", *NAMES[PUT], "NotFound"): 1,
        }
        assert rows(proxy, "grpc_server_started_total") == {NAMES[PUT]: 2}
        assert rows(proxy, "grpc_server_msg_received_total") == {NAMES[PUT]: 2}
        assert rows(proxy, "grpc_server_msg_sent_total") == {NAMES[PUT]: 1}
        (buckets,) = rows(proxy, "grpc_server_handling_seconds").values()
        assert buckets == [0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0.504]

    def test_a_call_over_shards_is_one_of_a_client_and_one_of_each_shard(self, proxy: Proxy) -> None:
        proxy.calls.ended(ended(RANGE))
        for shard in "ab":
            proxy.calls.asked(shard, RANGE, 0, 0.1)
        assert rows(proxy, "grpc_server_handled_total") == {(*NAMES[RANGE], "OK"): 1}
        assert rows(proxy, "grpc_client_handled_total") == {(shard, *NAMES[RANGE], "OK"): 1 for shard in "ab"}

    def test_messages_of_a_shard_are_those_of_its_calls_and_those_that_its_streams_have_counted(
        self, proxy: Proxy
    ) -> None:
        proxy.calls.asked("a", PUT, Code.OK, 0.1)
        proxy.calls.asked("a", PUT, Code.NOT_FOUND, 0.1)
        proxy.calls.asked("b", WATCH, Code.OK, 0.1)
        for sent, received in ((1, 7), (2, 8)):
            messages = proxy.calls.passed_to("b").messages_of(WATCH)
            messages.sent += sent
            messages.received += received
        proxy.calls.passed_to("b").messages_of(b"/made.up/Call").sent += 5
        told = {("a", *NAMES[PUT]): 2, ("b", *NAMES[WATCH]): 3, ("b", *NAMES[UNKNOWN]): 5}
        assert rows(proxy, "grpc_client_msg_sent_total") == told
        told = {("a", *NAMES[PUT]): 1, ("b", *NAMES[WATCH]): 15, ("b", *NAMES[UNKNOWN]): 0}
        assert rows(proxy, "grpc_client_msg_received_total") == told

    def test_messages_of_streams_are_those_that_were_counted(self, proxy: Proxy) -> None:
        proxy.calls.ended(ended(WATCH, Code.CANCELLED))
        proxy.context.counters.messages_sent[WATCH] = 7
        assert rows(proxy, "grpc_server_msg_sent_total") == {NAMES[WATCH]: 7}
        assert rows(proxy, "grpc_server_msg_received_total") == {}

    def test_no_label_has_what_a_client_or_a_shard_makes_up(self, proxy: Proxy) -> None:
        before = sum(len(family.rows) for family in gathered(proxy).values())
        for number in range(100):
            proxy.calls.ended(ended(b"/made.up/%d" % number, 1000 + number, server="a", sent=1.0))
            proxy.calls.asked("a", b"/made.up/%d" % number, 1000 + number, 0.1)
            proxy._find_page("GET", f"/made/up/{number}", lambda page: None)
        after = gathered(proxy)
        assert sum(len(family.rows) for family in after.values()) - before == 6
        assert dict(after["grpc_server_handled_total"].rows) == {("unknown", "unknown", "unknown", "Unknown"): 100}
        assert dict(after["esp_http_requests_total"].rows) == {("other", "404"): 100}

    def test_each_rpc_of_etcd_has_its_type_service_and_name(self) -> None:
        assert NAMES[PUT] == ("unary", "etcdserverpb.KV", "Put")
        assert NAMES[WATCH] == ("bidi_stream", "etcdserverpb.Watch", "Watch")
        assert NAMES[b"/etcdserverpb.Maintenance/Snapshot"][0] == "server_stream"
        assert len(KNOWN) < 100
        assert METHOD == ("grpc_type", "grpc_service", "grpc_method")


class TestLimits:
    def test_each_limit_has_its_value_its_hits_and_its_use_or_a_reason_for_none(self, proxy: Proxy) -> None:
        names = {(limit.name,) for limit in fields(Limits)}
        assert rows(proxy, "esp_limit").keys() == rows(proxy, "esp_limit_reached_total").keys() == names
        used = {name for (name,) in rows(proxy, "esp_limit_used")}
        assert {(name,) for name in used | WITHOUT_USE} == names
        assert not used & WITHOUT_USE

    def test_each_limit_that_can_be_reached_is_counted_somewhere(self) -> None:
        """Searches the code for `reached` and its like: a limit that nobody counts would seem never to be reached."""
        never = {
            # Windows and rates make peers slower; shares are parts of other limits, which are counted.
            *("glitch_refill_per_second", "common_share", "costly_share"),
            # Times between questions of esp's own.
            *("keepalive_time", "sample_seconds", "health_interval"),
        }
        told = {
            node.value
            for file in Path(esp.__file__).parent.rglob("*.py")
            if file.name not in ("limits.py",)
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert {limit.name for limit in fields(Limits)} - told == never

    def test_hits_are_counted(self, proxy: Proxy) -> None:
        proxy.context.reached("max_tokens")
        assert rows(proxy, "esp_limit_reached_total")["max_tokens",] == 1


def test_the_map_and_the_endpoints(proxy: Proxy) -> None:
    found = gathered(proxy)
    assert dict(found["esp_map_shards"].rows) == {(): 2}
    assert dict(found["esp_map_info"].rows) == {(proxy.routing.layout.map.fingerprint,): 1}
    assert set(dict(found["esp_endpoint_state"].rows)) == {
        ("a", "http://127.0.0.1:1"),
        ("a", "http://127.0.0.1:2"),
        ("b", "http://127.0.0.1:3"),
    }


def test_families_of_other_processes_are_added(proxy: Proxy) -> None:
    other = [family for family in proxy.metrics.collect() if family is not None]
    proxy.metrics.others = lambda give: give([other])
    seen: dict[str, Family] = {}
    proxy.metrics.ask(lambda steps: seen.update({step.name: step for step in steps if step is not None}))
    assert dict(seen["esp_map_shards"].rows) == {(): 2}
    assert dict(seen["process_open_fds"].rows)[()] > dict(other[6].rows)[()]  # type: ignore[operator]


def test_moved_ranges_are_counted_and_a_change_that_is_half_done_is_told(proxy: Proxy) -> None:
    def told() -> tuple[object, object]:
        both = rows(proxy, "esp_map_moved_ranges_total"), rows(proxy, "esp_map_change_unfinished")
        return both[0][()], both[1][()]

    assert told() == (0, 0)
    proxy.moves.unfinished = "A change is half done."
    assert told() == (0, 1)
    proxy.moves.unfinished = ""
    elsewhere = configs.parse(TWO.replace("m}", "k}").replace("start: m", "start: k"), None)
    for _ in range(MOST + 1):  # more than the status page remembers
        proxy.moves.take(proxy.config.shard_map, elsewhere.shard_map, "a reload")
    assert told() == (MOST + 1, 0)


def test_families_of_parts_that_are_added_later(proxy: Proxy) -> None:
    proxy.metrics.more.append(lambda: [Family("esp_more", "gauge", "More.", rows=[((), 1)])])
    assert dict(gathered(proxy)["esp_more"].rows) == {(): 1}


def test_the_page_on_metrics_has_every_metric(proxy: Proxy) -> None:
    page = (Path(esp.__file__).parent.parent / "docs" / "metrics.md").read_text()
    told = {line for line in page.splitlines() if re.match(r"\| `\w+` \| (counter|gauge|histogram) \|", line)}
    found = {
        f"| `{family.name}` | {family.kind} | {', '.join(f'`{label}`' for label in family.labels)} | {family.help} |"
        for family in (
            *gathered(proxy).values(),
            *of_fellows({}, 0, -1, 0, 0, 0),
        )  # those where the shards hold the map
    }
    assert told == found
