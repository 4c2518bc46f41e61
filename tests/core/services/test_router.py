"""The fields that the router keeps of a head: only those needed later, because a call may stay open for days."""

from __future__ import annotations

import pytest

from esp.core.auth_tokens import join
from esp.core.keys import KeyRange
from esp.core.layout import Layout
from esp.core.routing import Routing
from esp.core.services import router
from esp.core.services.cluster import MEMBER_LIST
from esp.core.services.router import Router
from esp.core.shard_map import ShardMap
from esp.core.wire.hpack import Fields
from esp.core.wire.request import RequestHead, parse_request
from esp.core.wire.server_stream import Handler
from tests.core.services.kv.test_paths import gate_of, routing

KV, WATCH = b"/etcdserverpb.KV/Range", b"/etcdserverpb.Watch/Watch"
MANY: Fields = [(b"x-%02d" % number, b"y" * 20) for number in range(90)]
TOKEN = join(dict.fromkeys(routing().shards, "secret")).encode()
OURS: Fields = [(b"token", TOKEN), (b"hasleader", b"true"), (b"esp-read", b"default")]


class _Own(Handler):
    forwards = False


def router_for(served: dict[bytes, Handler]) -> Router:
    world = routing()
    return Router(world, gate_of(world), served, Handler())


def head(path: bytes, fields: Fields) -> RequestHead:
    start = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b"content-type", b"application/grpc")]
    return parse_request(start + fields)


@pytest.mark.parametrize("path", [KV, WATCH, b"/no.Such/Method", b"/health"])
def test_the_fields_that_nobody_asks_for_later_are_forgotten(path: bytes) -> None:
    found = head(path, MANY + OURS)
    found.weigh()
    big = found.size
    router_for({KV: Handler(), WATCH: _Own()}).find(found)
    found.weigh()
    assert found.fields == OURS
    assert found.field(b"token") == TOKEN
    assert found.size < big


def test_metadata_is_kept_once_and_in_the_form_it_is_sent_on_in() -> None:
    found = head(KV, MANY)
    router_for({KV: Handler()}).find(found)
    found.weigh()
    assert found.forward == (KV, head(KV, MANY).encode_metadata())
    assert found.size < 4_000


def test_what_makes_heads_of_its_own_keeps_no_metadata() -> None:
    found = head(WATCH, MANY)
    router_for({WATCH: _Own()}).find(found)
    found.weigh()
    assert found.forward == (WATCH, b"")
    assert found.size < 500


def test_the_services_that_do_so_say_so() -> None:
    from esp.core.services.lease.keepalive import LeaseKeepAlive
    from esp.core.services.watch.service import Watch

    assert not Watch.forwards
    assert not LeaseKeepAlive.forwards
    assert router.METHODS[WATCH].client_streaming


@pytest.mark.parametrize("served_by_esp", [False, True])
def test_what_esp_serves_with_one_shard_too_is_not_passed_on_unless_the_shard_is_named(served_by_esp: bool) -> None:
    world = routing()
    one = Layout.of(ShardMap.build([("a", KeyRange(b"", None))], ["a"]), [world.shards["a"]])
    own, paths = _Own(), [MEMBER_LIST] if served_by_esp else []
    found = Router(Routing(one, world.tokens), gate_of(world), {MEMBER_LIST: own}, Handler(), own=paths).find
    assert (found(head(MEMBER_LIST, [])) is own) == served_by_esp
    assert found(head(MEMBER_LIST, [(b"esp-shard", b"a")])) is not own
