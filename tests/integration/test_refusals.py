"""Calls that no library would make, compared with a real etcd's answers."""

from __future__ import annotations

import pytest

from esp.core.local import LocalEtcd
from tests.core.wire.conversation import data, headers, message
from tests.harness import EspProcess, Esps
from tests.integration.raw_client import RawClient, ask, request

RANGE = b"/etcdserverpb.KV/Range"
PUT = b"/etcdserverpb.KV/Put"
A = message(b"\x0a\x01a")

PATHS = [
    b"/", b"//", b"///", b"/a", b"//[", b"/[", b"//a", b"/a/", b"/a//", b"/etcdserverpb.KV/", b"/etcdserverpb.KV",
    b"/etcdserverpb.KV/Nope", b"/nope/Range", b"/nope.Nope/Range/x",
    b"/etcdserverpb.KV/Range/x", b"/etcdserverpb.KV//Range",
    b"//etcdserverpb.KV/Range", b"etcdserverpb.KV/Range", b"", None, b"*", b"nope", RANGE + b"?x=1", RANGE + b"#x",
    b"/x%20y/z%41", b"/x/" + b"y" * 300, b"http://x/etcdserverpb.KV/Range",
    b"/etcdserverpb.KV/range", b'/a"b', "/sch\u00f6n".encode(), b"/\xff",
]  # fmt: skip
REQUESTS = {
    **{f"path {path!r}": request(path) for path in PATHS},
    "GET": request(RANGE, b"GET"),
    "PUT": request(RANGE, b"PUT"),
    "GET of nothing": request(b"/nope", b"GET"),
    "text": request(RANGE, content_type=b"text/plain"),
    "no type": request(RANGE, content_type=None),
    "JSON": request(RANGE, content_type=b"application/json"),
    "gRPC-web": request(RANGE, content_type=b"application/grpc-web"),
    "upper case": request(RANGE, content_type=b"Application/GRPC"),
    "zstd": request(RANGE, extra=[(b"grpc-encoding", b"zstd")]),
    "zstd to nobody": request(b"/nope/x", extra=[(b"grpc-encoding", b"zstd")]),
    "zstd to a watch": request(b"/etcdserverpb.Watch/Watch", extra=[(b"grpc-encoding", b"zstd")]),
}


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS)
def test_a_refusal_is_etcds(fields: list[tuple[bytes, bytes]], esp: EspProcess, etcd37: LocalEtcd) -> None:
    said = headers(1, fields), data(1, A, end=True)
    expected = ask(etcd37, *said)
    told = ask(esp, *said)
    assert told.status == expected.status
    assert told.body == expected.body == b""
    assert told.fields[b"content-type"] == expected.fields[b"content-type"]
    text = told.fields[b"grpc-message"]
    assert text == text.strip()


def test_a_service_that_a_later_etcd_may_have_is_refused_in_other_words(esp: EspProcess, etcd37: LocalEtcd) -> None:
    said = headers(1, request(b"/etcdserverpb.kv/Range")), data(1, A, end=True)
    assert ask(etcd37, *said).status == (200, 12, "unknown service etcdserverpb.kv")
    assert ask(esp, *said).status == (200, 12, "unknown method Range for service etcdserverpb.kv")


@pytest.mark.parametrize("path", [b"/", b"//", b"/nope/x", b"/etcdserverpb.KV/"])
def test_with_one_shard_too(path: bytes, etcd37: LocalEtcd, start_esp: Esps) -> None:
    said = headers(1, request(path)), data(1, A, end=True)
    told = ask(start_esp([etcd37]), *said)
    assert told.status == ask(etcd37, *said).status
    text = told.fields[b"grpc-message"]
    assert text == text.strip()


@pytest.mark.parametrize("path", [RANGE, PUT])
def test_a_call_that_never_ends_its_request_is_answered(
    path: bytes, esp: EspProcess, etcd: LocalEtcd, etcd37: LocalEtcd
) -> None:
    for server in (etcd, etcd37, esp):
        with RawClient(server) as client:
            client.says(headers(1, request(path)), data(1, A))
            [answer] = client.hears(1)
            assert answer.status == (200, 0, "")
            client.is_answered()
            assert answer.reset == 0
            client.says(data(1, b"", end=True), headers(3, request(RANGE)), data(3, A, end=True))
            assert client.hears(3)[0].status == (200, 0, "")
