"""Methods that esp does not know, at an etcd that has them: in each form of streaming, with one shard and several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from esp.core.local import LocalEtcd, free_port
from tests.harness import EspProcess, connect, outcome, running_esps

SERVICES = ["etcdserverpb.Later", "etcdserverpb.KV", "laterpb.Service"]
FORMS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


class LaterEtcd(grpc.GenericRpcHandler):
    """An etcd with a method for each form of streaming in every service; all other calls go to a real etcd."""

    def __init__(self, etcd: LocalEtcd) -> None:
        self._etcd = connect(etcd)

    def service(self, call: Any) -> grpc.RpcMethodHandler:
        form = call.method.rpartition("/")[2]
        if form not in FORMS:
            ask = self._etcd.unary_unary(call.method)
            return grpc.unary_unary_rpc_method_handler(lambda request, _: ask(request, timeout=30))
        make: Callable[..., grpc.RpcMethodHandler] = getattr(grpc, f"{form}_rpc_method_handler")
        return make(self._stream if form.endswith("stream") else self._unary)

    def _unary(self, request: Any, _: grpc.ServicerContext) -> bytes:
        said = request if isinstance(request, bytes) else b"".join(request)
        return b"one answer to " + said

    def _stream(self, request: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_trailing_metadata([("later", "yes")])
        for each in [request] if isinstance(request, bytes) else request:
            yield b"answer to " + each
        yield b"last"


@pytest.fixture(scope="module")
def later(etcd37: LocalEtcd) -> Iterator[Any]:
    """As much of a shard as a config names."""
    server = grpc.server(futures.ThreadPoolExecutor(16), handlers=[LaterEtcd(etcd37)])
    port = free_port()
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    yield SimpleNamespace(endpoint=f"http://127.0.0.1:{port}")
    server.stop(None)


@pytest.fixture(scope="module")
def proxies(
    later: Any, etcd: LocalEtcd, etcd_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, EspProcess]]:
    """esp over the later etcd alone, and over it and another."""
    with running_esps(tmp_path_factory.mktemp("esp"), etcd_binary) as esps:
        yield {"one": esps([[later]]), "several": esps([[later], etcd], ["m"])}


def say(channel: grpc.Channel, service: str, form: str, metadata: list[tuple[str, str]]) -> list[bytes]:
    method = getattr(channel, form)(f"/{service}/{form}")
    request: Any = iter([b"a", b"b"]) if form.startswith("stream") else b"a"
    answer = method(request, timeout=30, metadata=metadata)
    return list(answer) if form.endswith("stream") else [answer]


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("form", FORMS)
def test_it_passes_to_the_only_shard_or_the_named_one_and_is_named_over_several(
    proxies: dict[str, EspProcess], service: str, form: str
) -> None:
    expected = {
        "unary_unary": [b"one answer to a"],
        "unary_stream": [b"answer to a", b"last"],
        "stream_unary": [b"one answer to ab"],
        "stream_stream": [b"answer to a", b"answer to b", b"last"],
    }[form]
    for name, metadata in (("one", []), ("several", [("esp-shard", "s0")])):
        with connect(proxies[name]) as channel:
            assert say(channel, service, form, metadata) == expected
    with connect(proxies["several"]) as channel:
        unknown = "" if service.startswith("laterpb") else f"method {form} for "
        text = f"unknown {unknown}service {service}"
        assert outcome(lambda: say(channel, service, form, [])) == (grpc.StatusCode.UNIMPLEMENTED, text)
        to_other = [("esp-shard", "s1")]
        assert outcome(lambda: say(channel, service, form, to_other))[0] == grpc.StatusCode.UNIMPLEMENTED
