"""The handler of every RPC of etcd's API, and of calls that are none."""

from __future__ import annotations

from typing import Any

import pytest

from esp.core import shard as shard_package
from esp.core.config import parse
from esp.core.proxy import Proxy
from esp.core.services.cluster import MEMBER_LIST
from esp.core.services.handlers import PassCounted, PassStream, PassUnary
from esp.core.services.kv.read_batch import PassReads
from esp.core.services.lock import ToOwner
from esp.core.services.namespace.fields import holds_keys
from esp.core.services.namespace.handler import Translated
from esp.core.services.router import METHODS, READS, WAITING, NoShard
from esp.core.shard import Method
from esp.core.shard.member import STATUS_PATH
from esp.core.wire.request import parse_request
from esp.core.wire.server_stream import Handler, Refuse
from esp.core.wire.status import Code
from tests.core.wire.conversation import call, page

THREE = """
shards:
  - {name: a, endpoints: [127.0.0.1:1], ranges: [{start: "", end: i}]}
  - {name: b, endpoints: [127.0.0.1:2], ranges: [{start: i, end: r}]}
  - {name: c, endpoints: [127.0.0.1:3], ranges: [{start: r, end: ""}]}
"""
ONE = """
shards:
  - {name: a, endpoints: [127.0.0.1:1], ranges: [{start: "", end: ""}]}
"""
SERVED = {
    "etcdserverpb.KV": {"Range", "RangeStream", "Put", "DeleteRange", "Txn", "Compact"},
    "etcdserverpb.Watch": {"Watch"},
    "etcdserverpb.Lease": {"LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"},
    "etcdserverpb.Auth": {
        *("AuthEnable", "AuthDisable", "AuthStatus", "Authenticate"),
        *("UserAdd", "UserGet", "UserList", "UserDelete", "UserChangePassword", "UserGrantRole", "UserRevokeRole"),
        *("RoleAdd", "RoleGet", "RoleList", "RoleDelete", "RoleGrantPermission", "RoleRevokePermission"),
    },
    "etcdserverpb.Maintenance": {"Status", "Alarm"},
    "etcdserverpb.Cluster": {"MemberList"},
    "v3lockpb.Lock": {"Lock", "Unlock"},
    "v3electionpb.Election": {"Campaign", "Proclaim", "Leader", "Observe", "Resign"},
    "grpc.health.v1.Health": {"Check", "List", "Watch"},
}
"""The RPCs that esp serves over several shards. All others of the API are refused."""
ELSEWHERE = {
    "MemberAdd": "member add NAME --peer-urls=URL",
    "MemberRemove": "member remove ID",
    "MemberUpdate": "member update ID --peer-urls=URL",
    "MemberPromote": "member promote ID",
    "Defragment": "defrag",
    "Hash": "endpoint hashkv",
    "HashKV": "endpoint hashkv",
    "Snapshot": "snapshot save FILE",
    "MoveLeader": "move-leader ID",
    "Downgrade": "downgrade ACTION VERSION",
}
"""The refused RPCs that concern one cluster, each with the arguments of etcdctl that make the call."""


SNAPSHOT = b"/etcdserverpb.Maintenance/Snapshot"


def find(config: str, path: bytes, *extra: tuple[bytes, bytes]) -> Handler:
    proxy = Proxy(parse(config, None))
    return proxy._listener.find(parse_request(call(path, *extra)))


def split(path: bytes) -> tuple[str, str]:
    service, method = path.decode()[1:].split("/")
    return service, method


@pytest.mark.parametrize("path", METHODS, ids=bytes.decode)
class TestEveryRpc:
    def test_over_several_shards_it_is_served_or_refused_with_the_way_to_ask_one(self, path: bytes) -> None:
        service, method = split(path)
        handler = find(THREE, path)
        if method in SERVED.get(service, ()):
            assert not isinstance(handler, Refuse)
            assert handler.waits == (path in WAITING or method == "Observe")
            assert handler.idempotent or path not in READS or not isinstance(handler, ToOwner)
            assert handler.streaming == METHODS[path].client_streaming or method == "RangeStream"
            return
        if method in ELSEWHERE:
            assert isinstance(handler, Refuse)
            assert handler.status.code == Code.UNIMPLEMENTED
            text = handler.status.message
            assert text.startswith(f"esp: {method} concerns one etcd cluster, and this proxy stands for several; ")
            for port, name in enumerate("abc", 1):
                command = f"etcdctl --endpoints=http://127.0.0.1:{port} {ELSEWHERE[method]} (shard {name})"
                assert f": {command};" in text or f"; {command};" in text
            assert "name a shard in the metadata key esp-shard" in text
            assert ("defragment: sequential" in text) == (method == "Defragment")
            return
        pytest.fail(f"{method} is neither served nor refused")

    def test_with_one_shard_it_is_passed_on(self, path: bytes) -> None:
        assert_passed_on(find(ONE, path), path)

    def test_with_the_name_of_a_shard_it_is_passed_on(self, path: bytes) -> None:
        assert_passed_on(find(THREE, path, (b"esp-shard", b"b")), path)

    def test_in_a_namespace_nothing_with_keys_goes_past_the_translation(self, path: bytes) -> None:
        """Whichever way the call takes; and what has no keys is served as without a namespace."""
        method = METHODS[path]
        has_keys = path == SNAPSHOT or any(
            message.full_name.partition(".")[0] in ("v3lockpb", "v3electionpb") or holds_keys(message)
            for message in (method.input_type, method.output_type)
        )
        for config, extra in ((THREE, ()), (ONE, ()), (THREE, ((b"esp-shard", b"b"),))):
            plain, handler = find(config, path, *extra), find(config + "namespace: x/", path, *extra)
            if path == MEMBER_LIST and not extra:
                assert type(handler) is type(find(THREE, path))  # clients that took the shard's members would leave
            elif not has_keys:
                assert type(handler) is type(plain)
            elif path == SNAPSHOT:
                assert isinstance(handler, Refuse)
                assert handler.status.code == Code.UNIMPLEMENTED
            else:
                assert isinstance(handler, Translated)
                assert type(handler.inner) is type(plain)
                assert (handler.streaming, handler.waits) == (plain.streaming, plain.waits)
                assert (handler.idempotent, handler.lasts) == (plain.idempotent, plain.lasts)


def assert_passed_on(handler: Handler, path: bytes) -> None:
    """A call with one request is sent on whole, and again only where it reads; streams are sent on as they come."""
    method = METHODS[path]
    if method.client_streaming or method.server_streaming:
        assert isinstance(handler, PassStream)
    else:
        assert handler.idempotent == (path in READS)
        assert handler.waits == (path in WAITING)
        if isinstance(handler, NoShard):
            assert path == STATUS_PATH
            handler = handler.handler
        assert isinstance(handler, PassReads if path.endswith(b"KV/Range") else (PassUnary, PassCounted))
        assert handler.idempotent == (path in READS)


READS_IN_PART = {b"/etcdserverpb.Maintenance/Alarm"}
"""RPCs of which esp's own questions, and only some of clients', change nothing."""
HARMLESS = {b"/etcdserverpb.Auth/Authenticate"}


@pytest.mark.parametrize("method", [one for one in vars(shard_package).values() if isinstance(one, Method)], ids=str)
def test_what_may_be_asked_again_is_the_same_whoever_asks(method: Method[Any]) -> None:
    assert method.path in METHODS
    if method.path not in READS_IN_PART | HARMLESS:
        assert method.idempotent == (method.path in READS)


class TestWhatIsNone:
    @pytest.mark.parametrize(
        ("path", "text"),
        [
            (b"/etcdserverpb.KV/Nothing", "unknown method Nothing for service etcdserverpb.KV"),
            (b"/grpc.health.v1.Health/Nothing", "unknown method Nothing for service grpc.health.v1.Health"),
            (b"/etcdserverpb.Later/Thing", "unknown method Thing for service etcdserverpb.Later"),
            (b"/no.Such/Thing", "unknown service no.Such"),
            (b"/Thing/Thing", "unknown service Thing"),
        ],
    )
    def test_an_rpc_that_etcd_does_not_know_gets_its_words(self, path: bytes, text: str) -> None:
        handler = find(THREE, path)
        assert isinstance(handler, Refuse)
        assert (handler.status.code, handler.status.message) == (Code.UNIMPLEMENTED, text)

    def test_defragment_is_served_where_the_config_says_so(self) -> None:
        path = b"/etcdserverpb.Maintenance/Defragment"
        handler = find(THREE + "defragment: sequential", path)
        assert not isinstance(handler, Refuse)
        assert not handler.idempotent
        assert_passed_on(find(ONE + "defragment: sequential", path), path)

    @pytest.mark.parametrize("version", ["v1", "v1alpha"])
    def test_reflection_is_esps_own(self, version: str) -> None:
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo".encode()
        for config in (ONE, THREE):
            assert not isinstance(find(config, path), Refuse | PassStream)
        assert isinstance(find(THREE, path, (b"esp-shard", b"b")), PassStream)

    def test_with_one_shard_also_an_rpc_that_esp_does_not_know_is_passed_on(self) -> None:
        assert isinstance(find(ONE, b"/later.Service/Method"), PassStream)

    @pytest.mark.parametrize("config", [ONE, THREE], ids=["one shard", "three"])
    def test_a_shard_that_is_not_there_is_told_with_those_that_are(self, config: str) -> None:
        handler = find(config, b"/etcdserverpb.KV/Range", (b"esp-shard", b"nowhere"))
        names = "a, b, c" if config == THREE else "a"
        assert isinstance(handler, Refuse)
        assert handler.status.code == Code.INVALID_ARGUMENT
        assert handler.status.message == f"esp: no shard is called 'nowhere'; there are {names}"

    @pytest.mark.parametrize("config", [ONE, THREE], ids=["one shard", "three"])
    @pytest.mark.parametrize(
        ("key", "values", "text"),
        [
            (b"esp-read", (b"each", b"nonsense"), "esp: the metadata key esp-read takes snapshot, each or default"),
            (b"esp-read", (b"",), "esp: the metadata key esp-read takes snapshot, each or default"),
            (
                b"esp-read",
                (b"each", b"snapshot"),
                "esp: the metadata key esp-read comes with two different values; send one",
            ),
            (b"esp-shard", (b"a", b"b"), "esp: the metadata key esp-shard comes with two different values; send one"),
        ],
    )
    def test_each_value_of_what_is_said_to_esp_counts(
        self, key: bytes, values: tuple[bytes, ...], text: str, config: str
    ) -> None:
        handler = find(config, b"/etcdserverpb.KV/Range", *((key, value) for value in values))
        assert isinstance(handler, Refuse)
        assert (handler.status.code, handler.status.message) == (Code.INVALID_ARGUMENT, text)

    def test_the_same_said_twice_is_said(self) -> None:
        path = b"/etcdserverpb.KV/Range"
        assert not isinstance(find(THREE, path, (b"esp-read", b"each"), (b"esp-read", b"each")), Refuse)

    def test_what_is_not_grpc_is_a_page(self) -> None:
        proxy = Proxy(parse(THREE, None))
        assert proxy._listener.find(parse_request(page(b"/health"))).is_page
