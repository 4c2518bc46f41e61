"""The first key of a request in any form, and never anything but a key."""

from __future__ import annotations

import struct

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from esp.core.log.first_key import WAYS, first_key
from esp.core.pb import rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.services.namespace.fields import KEYS
from esp.core.services.router import METHODS

Op = rpc_pb2.RequestOp
LONG = 200


def framed(message: Message) -> bytes:
    data = message.SerializeToString()
    return b"\0" + struct.pack(">I", len(data)) + data


REQUESTS = [
    ("KV/Range", rpc_pb2.RangeRequest(key=b"k", range_end=b"SECRET", limit=5)),
    ("KV/RangeStream", rpc_pb2.RangeRequest(key=b"k")),
    ("KV/Put", rpc_pb2.PutRequest(key=b"k", value=b"SECRET")),
    ("KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"SECRET")),
    (
        "KV/Txn",
        rpc_pb2.TxnRequest(
            compare=[rpc_pb2.Compare(result=1, target=3, key=b"k", value=b"SECRET")],
            success=[Op(request_put=rpc_pb2.PutRequest(key=b"other", value=b"SECRET"))],
        ),
    ),
    ("KV/Txn", rpc_pb2.TxnRequest(success=[Op(request_put=rpc_pb2.PutRequest(key=b"k", value=b"SECRET"))])),
    ("KV/Txn", rpc_pb2.TxnRequest(success=[Op(request_range=rpc_pb2.RangeRequest(key=b"k"))])),
    ("KV/Txn", rpc_pb2.TxnRequest(failure=[Op(request_delete_range=rpc_pb2.DeleteRangeRequest(key=b"k"))])),
]
OTHERS = [
    ("/v3lockpb.Lock/Lock", v3lock_pb2.LockRequest(name=b"k", lease=5)),
    ("/v3lockpb.Lock/Unlock", v3lock_pb2.UnlockRequest(key=b"k")),
    ("/v3electionpb.Election/Campaign", v3election_pb2.CampaignRequest(name=b"k", value=b"SECRET")),
    (
        "/v3electionpb.Election/Proclaim",
        v3election_pb2.ProclaimRequest(leader=v3election_pb2.LeaderKey(name=b"k", key=b"SECRET"), value=b"SECRET"),
    ),
    ("/v3electionpb.Election/Resign", v3election_pb2.ResignRequest(leader=v3election_pb2.LeaderKey(name=b"k"))),
    ("/v3electionpb.Election/Leader", v3election_pb2.LeaderRequest(name=b"k")),
]
ALL = [(f"/etcdserverpb.{path}".encode(), request) for path, request in REQUESTS]
ALL += [(path.encode(), request) for path, request in OTHERS]


@pytest.mark.parametrize(("path", "request_"), ALL)
def test_the_key_is_found(path: bytes, request_: Message) -> None:
    assert first_key(path, framed(request_), 64) == (b"k", False)


def test_a_long_key_is_cut() -> None:
    message = framed(rpc_pb2.PutRequest(key=b"k" * LONG, value=b"SECRET" * LONG))
    path = b"/etcdserverpb.KV/Put"
    assert first_key(path, message, 64) == (b"k" * 64, True)
    assert first_key(path, message, LONG) == (b"k" * LONG, False)
    assert first_key(path, message[:40], 64) == (b"k" * 32, True), "of the beginning of a message its beginning"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"/etcdserverpb.KV/Range", framed(rpc_pb2.RangeRequest())),
        (b"/etcdserverpb.KV/Range", b""),
        (b"/etcdserverpb.KV/Range", b"\1" + framed(rpc_pb2.RangeRequest(key=b"k"))[1:]),
        (b"/etcdserverpb.KV/Range", b"\0\0\0\0\5\x0a"),
        (b"/etcdserverpb.KV/Range", b"\0\0\0\0\5" + b"\x0a" + b"\xff" * 20),
        (b"/etcdserverpb.KV/Range", b"\0\0\0\0\5" + b"\x18\x01" * 1000 + b"\x0a\1k"),
        (b"/etcdserverpb.KV/Range", b"\0\0\0\0\5\x0b\x0a\1k"),
        (b"/etcdserverpb.Auth/Authenticate", framed(rpc_pb2.AuthenticateRequest(name="SECRET", password="SECRET"))),
        (b"/unknown", framed(rpc_pb2.RangeRequest(key=b"k"))),
    ],
)
def test_where_there_is_no_key_none_is_made_up(path: bytes, message: bytes) -> None:
    assert first_key(path, message, 64) == (b"", False)


def test_no_way_leads_to_anything_but_a_key() -> None:
    """By the descriptors of etcd's messages."""
    for path, ways in WAYS.items():
        for way in ways:
            message = METHODS[path].input_type
            for number in way[:-1]:
                message = message.fields_by_number[number].message_type
            assert message.fields_by_number[way[-1]].full_name in KEYS


@given(st.sampled_from(sorted(WAYS)), st.binary(max_size=60))
def test_any_bytes_are_looked_through(path: bytes, data: bytes) -> None:
    key, is_cut = first_key(path, b"\0\0\0\0\0" + data, 8)
    assert key in data
    assert len(key) <= 8
    assert not is_cut or len(key) <= 8
