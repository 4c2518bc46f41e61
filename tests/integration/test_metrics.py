"""/metrics of an esp at work: what clients did is in it, and promtool finds nothing to say."""

from __future__ import annotations

import subprocess
import urllib.request
from collections import Counter

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from tests.harness import Esps, Server, connect, peer, wait_until, wipe
from tests.stubs import rpc_pb2_grpc

Samples = dict[tuple[str, ...], float]
KV, WATCH = "etcdserverpb.KV", "etcdserverpb.Watch"


@pytest.fixture(scope="module")
def server(shards: list[LocalEtcd], module_esps: Esps) -> Server:
    for shard in shards:
        wipe(shard)
    return module_esps(shards, ["i", "r"])


def page(server: Server) -> str:
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def samples(server: Server, name: str) -> Samples:
    """The samples of this name by the values of their labels, sorted by the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(server))
        for sample in family.samples
        if sample.name == name
    }


def test_calls_of_all_kinds_are_in_it(server: Server) -> None:
    # esp itself asks each shard once whether it holds the map, and looks once for a kube-apiserver's key in the first.
    wait_until(lambda: sum(samples(server, "grpc_client_handled_total").values()) == 4)
    with connect(server) as channel:
        kv, watch = rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.WatchStub(channel)
        for key in (b"a", b"b", b"z"):
            kv.Put(rpc_pb2.PutRequest(key=key), timeout=30)
        kv.Range(rpc_pb2.RangeRequest(key=b"a", range_end=b"zz"), timeout=30)
        with pytest.raises(grpc.RpcError):
            kv.Put(rpc_pb2.PutRequest(key=b"a", lease=77), timeout=30)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/made.up/Call")(b"", timeout=30)
        create = rpc_pb2.WatchCreateRequest(key=b"a", range_end=b"zz")
        events = watch.Watch(iter([rpc_pb2.WatchRequest(create_request=create)]), timeout=60)
        assert next(events).created
        kv.Put(rpc_pb2.PutRequest(key=b"a"), timeout=30)
        assert next(events).events
        handled = samples(server, "grpc_server_handled_total")  # labels: code, method, service, type
        assert handled["OK", "Put", KV, "unary"] == 4
        assert handled["NotFound", "Put", KV, "unary"] == 1
        assert handled["OK", "Range", KV, "unary"] == 1
        assert handled["Unimplemented", "unknown", "unknown", "unknown"] == 1
        assert samples(server, "grpc_server_started_total")["Watch", WATCH, "bidi_stream"] == 1
        assert ("OK", "Watch", WATCH, "bidi_stream") not in handled
        assert samples(server, "esp_client_calls")["Watch", WATCH, "bidi_stream"] == 1
        assert samples(server, "grpc_server_msg_sent_total")["Watch", WATCH, "bidi_stream"] == 2
        assert samples(server, "grpc_server_msg_received_total")["Watch", WATCH, "bidi_stream"] == 1
        assert samples(server, "esp_watchers") == samples(server, "esp_watch_streams") == {(): 1}
        sent = samples(server, "grpc_client_handled_total")  # labels: code, method, service, type, shard
        puts = {labels[-1]: number for labels, number in sent.items() if labels[:2] == ("OK", "Put")}
        assert sum(puts.values()) == 4
        assert len(puts) == 2
        ranges = {labels[-1]: number for labels, number in sent.items() if labels[:2] == ("OK", "Range")}
        assert ranges == {"s0": 3, "s1": 2, "s2": 2}
        assert sum(samples(server, "esp_shard_watch_events_total").values()) == 1
        assert list(samples(server, "esp_shard_streams").values()) == [1, 1, 1]
        lease = rpc_pb2_grpc.LeaseStub(channel)
        granted = lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=60), timeout=30).ID
        renewed = lease.LeaseKeepAlive(iter([rpc_pb2.LeaseKeepAliveRequest(ID=granted)] * 2), timeout=60)
        assert next(renewed).ID == next(renewed).ID == granted
        for direction, of_watch in (("sent", 3), ("received", 4)):  # three creates, as many answers, and an event
            told = samples(server, f"grpc_client_msg_{direction}_total")  # labels: method, service, type, shard
            by_method = Counter[str]()
            for labels, number in told.items():
                by_method[labels[0]] += int(number)
            assert by_method["Put"] == 4
            assert by_method["LeaseGrant"] == 3
            assert by_method["LeaseKeepAlive"] == 6
            assert by_method["Watch"] == of_watch
        took = samples(server, "grpc_server_handling_seconds_count")
        assert took["Put", KV, "unary"] == 5
        assert all(value > 0 for value in samples(server, "grpc_server_handling_seconds_sum").values())
        events.cancel()
    wait_until(lambda: samples(server, "esp_client_calls") == {})
    assert samples(server, "grpc_server_handled_total")["Canceled", "Watch", WATCH, "bidi_stream"] == 1
    assert samples(server, "esp_watchers") == samples(server, "esp_watch_streams") == {(): 0}


def test_shards_and_their_endpoints(server: Server) -> None:
    up = samples(server, "esp_shard_up")
    assert list(up.values()) == [1, 1, 1]
    assert list(samples(server, "esp_endpoint_state").values()) == [2, 2, 2]
    assert all(0 < seconds < 30 for seconds in samples(server, "esp_endpoint_round_trip_seconds").values())
    for direction in ("received", "sent"):
        assert min(samples(server, f"esp_shard_{direction}_bytes_total").values()) > 100
        assert samples(server, f"esp_client_{direction}_bytes_total")[()] > 1000


def test_no_counter_goes_back(server: Server) -> None:
    def counters() -> Samples:
        families = text_string_to_metric_families(page(server))
        counting = [sample for one in families if one.type in ("counter", "histogram") for sample in one.samples]
        return {(sample.name, *sample.labels.values()): sample.value for sample in counting}

    before = counters()
    with connect(server) as channel:
        rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(key=b"a", range_end=b"zz"), timeout=30)
    after = counters()
    assert before.keys() <= after.keys()
    assert [name for name, value in before.items() if after[name] < value] == []


def test_promtool_finds_nothing(server: Server) -> None:
    promtool = peer("promtool")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=page(server), capture_output=True, text=True, timeout=120, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
