"""A shard with answers that no etcd would give: the call's error names the shard, and all other work goes on.

Every RPC that esp parses an answer of is asked over two shards, of which one garbles it; a client with keys on the
other, a watch and a lease goes on meanwhile. With one shard the bytes pass through, and are its client's to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esp.core import config
from esp.core.local import LocalEtcd
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.proxy import Proxy
from esp.core.services.watch.messages import DUPLICATE_ID
from esp.core.shard.member import is_probe
from esp.core.wire import frames
from esp.core.wire.limits import Limits
from tests.core.scripted_etcd import STATUS, HeardCall, ScriptedConnection, ScriptedEtcd
from tests.core.wire.conversation import HEAD, Frame, data, headers, message, trailers
from tests.stubs import rpc_pb2_grpc

KV = "/etcdserverpb.KV/"
LEASE = "/etcdserverpb.Lease/"
KEEPALIVE = LEASE + "LeaseKeepAlive"
WATCH = "/etcdserverpb.Watch/Watch"
ALL = {"key": b"\0", "range_end": b"\0"}
HEADER = rpc_pb2.ResponseHeader(cluster_id=7, member_id=8, revision=9, raft_term=2)
ROW = kv_pb2.KeyValue(key=b"a", value=b"v", create_revision=3, mod_revision=4, version=1)


def good(path: str, body: bytes) -> bytes:
    """What an etcd could answer."""
    if path == KV + "Range":
        return rpc_pb2.RangeResponse(header=HEADER, kvs=[ROW], count=1).SerializeToString()
    if path == KV + "RangeStream":
        chunk = rpc_pb2.RangeResponse(header=HEADER, kvs=[ROW], count=1)
        return rpc_pb2.RangeStreamResponse(range_response=chunk).SerializeToString()
    if path == KV + "DeleteRange":
        return rpc_pb2.DeleteRangeResponse(header=HEADER, deleted=1, prev_kvs=[ROW]).SerializeToString()
    if path == KV + "Txn":
        asked = rpc_pb2.TxnRequest.FromString(body)
        one = rpc_pb2.RangeResponse(header=rpc_pb2.ResponseHeader(revision=9), kvs=[ROW], count=1)
        responses = [rpc_pb2.ResponseOp(response_range=one) for _ in asked.success]
        return rpc_pb2.TxnResponse(header=HEADER, succeeded=True, responses=responses).SerializeToString()
    if path == LEASE + "LeaseGrant":
        grant = rpc_pb2.LeaseGrantRequest.FromString(body)
        return rpc_pb2.LeaseGrantResponse(header=HEADER, ID=grant.ID, TTL=grant.TTL).SerializeToString()
    if path == KEEPALIVE:
        lease_id = rpc_pb2.LeaseKeepAliveRequest.FromString(body).ID
        return rpc_pb2.LeaseKeepAliveResponse(header=HEADER, ID=lease_id, TTL=600).SerializeToString()
    if path == LEASE + "LeaseTimeToLive":
        lease_id = rpc_pb2.LeaseTimeToLiveRequest.FromString(body).ID
        told = rpc_pb2.LeaseTimeToLiveResponse(header=HEADER, ID=lease_id, TTL=500, grantedTTL=600, keys=[b"a"])
        return told.SerializeToString()
    if path == WATCH:
        watch = rpc_pb2.WatchRequest.FromString(body)
        watch_id = watch.create_request.watch_id or watch.cancel_request.watch_id
        is_create = watch.HasField("create_request")
        told_watch = rpc_pb2.WatchResponse(header=HEADER, watch_id=watch_id, created=is_create, canceled=not is_create)
        return told_watch.SerializeToString()
    if path.endswith("Status"):
        return rpc_pb2.StatusResponse(header=HEADER, version="3.6.99", leader=8).SerializeToString()
    answer: dict[str, type[Message]] = {
        "Put": rpc_pb2.PutResponse,
        "Compact": rpc_pb2.CompactionResponse,
        "LeaseRevoke": rpc_pb2.LeaseRevokeResponse,
        "LeaseLeases": rpc_pb2.LeaseLeasesResponse,
    }
    return answer[path.rpartition("/")[2]](header=HEADER).SerializeToString()  # type: ignore[call-arg]


def in_full(stream: int, content: bytes) -> bytes:
    return headers(stream, HEAD) + data(stream, content) + headers(stream, trailers(), end=True)


def without_header(answer: bytes) -> bytes:
    """The answer behind its first field, which is the header in all but one."""
    return answer[2 + answer[1] :]


HTML = [(b":status", b"200"), (b"content-type", b"text/html")]
NO_STATUS = [(b"x-status", b"0")]

Garble = Callable[[int, bytes], bytes]
"""Frames, from a stream's id and the good answer."""

GARBLES: dict[str, Garble] = {
    "garbage": lambda stream, answer: in_full(stream, message(b"\xff\xff\xff")),
    "cut within a field": lambda stream, answer: in_full(stream, message(answer[:-1] + b"\x12\x7f")),
    "cut within a message": lambda stream, answer: in_full(stream, message(answer)[:-1]),
    "cut within the prefix": lambda stream, answer: in_full(stream, b"\0\0"),
    "longer than it says": lambda stream, answer: in_full(stream, message(answer) + b"\0"),
    "a length of 4 GiB": lambda stream, answer: in_full(stream, b"\0\xff\xff\xff\xff" + answer),
    "a varint of 12 bytes": lambda stream, answer: in_full(stream, message(b"\x18" + b"\xff" * 12)),
    "a header of another wire type": lambda stream, answer: in_full(stream, message(b"\x0d\0\0\0\0")),
    "a header that is none": lambda stream, answer: in_full(stream, message(b"\x0a\x02\xff\xff")),
    "nothing in the message": lambda stream, answer: in_full(stream, message(b"")),
    "no header": lambda stream, answer: in_full(stream, message(without_header(answer))),
    "a field of number 0": lambda stream, answer: in_full(stream, message(answer + b"\x00\x00")),
    "an end of a group": lambda stream, answer: in_full(stream, message(answer + b"\x0c")),
    "no message": lambda stream, answer: headers(stream, HEAD) + headers(stream, trailers(), end=True),
    "trailers only": lambda stream, answer: headers(stream, HEAD + trailers(), end=True),
    "two messages": lambda stream, answer: in_full(stream, message(answer) * 2),
    "a flag that is none": lambda stream, answer: in_full(stream, b"\x07" + message(answer)[1:]),
    "compressed with nothing": lambda stream, answer: in_full(stream, b"\x01" + message(answer)[1:]),
    "no grpc-status": lambda stream, answer: (
        headers(stream, HEAD) + data(stream, message(answer)) + headers(stream, NO_STATUS, end=True)
    ),
    "no trailers": lambda stream, answer: headers(stream, HEAD) + data(stream, message(answer), end=True),
    "a page": lambda stream, answer: headers(stream, HTML) + data(stream, b"<html>", end=True),
}
AS_ETCD = ("RST_STREAM", "grpc: trying to send message larger than max (")
"""How a Range that is passed on unread may end, too."""
STREAMED: dict[str, set[str]] = {
    # What is right in a stream of messages, or ends it before its time, which is no fault of an answer.
    KV + "RangeStream": {"two messages", "no header", "no message", "trailers only"},
    KEEPALIVE: {"no message", "trailers only", "no trailers"},
}


class Garbler:
    """An etcd as far as `good` goes; what is asked by `path` it garbles.

    Attributes:
        path: of the RPC, "" for none.
        garble: how.
    """

    def __init__(self, etcd: ScriptedEtcd) -> None:
        self.path = ""
        self.garble: Garble = GARBLES["garbage"]
        self.met = 0
        self._read: dict[tuple[ScriptedConnection, int], int] = {}
        self._watched: set[tuple[ScriptedConnection, int, int]] = set()
        etcd.tells = False  # that is for here, too
        etcd.on_frame = self.on_frame  # type: ignore[assignment]

    def on_frame(self, connection: ScriptedConnection, frame: Frame) -> None:
        call = connection.call(frame.stream)
        if call is None:
            return
        path = "" if is_probe(call.body) else call.path.decode()
        if path in (KEEPALIVE, WATCH):
            if frame.kind == frames.DATA:
                self._on_stream(connection, call, path)
        elif call.whole and frame.kind == frames.DATA and frame.flags & frames.END_STREAM:
            answer = good(path or STATUS.decode(), bytes(call.body[5:]))
            if path and path == self.path:
                self.met += 1
                connection.says(self.garble(call.stream, answer))
            else:
                connection.says(in_full(call.stream, message(answer)))

    def _on_stream(self, connection: ScriptedConnection, call: HeardCall, path: str) -> None:
        key = connection, call.stream
        at = self._read.get(key, 0)
        while len(call.body) - at >= 5:
            end = at + 5 + int.from_bytes(call.body[at + 1 : at + 5], "big")
            if end > len(call.body):
                break
            body = bytes(call.body[at + 5 : end])
            answer = good(path, body) if path == KEEPALIVE else self._watch(connection, call.stream, body)
            if path == self.path:
                self.met += 1
                said = self.garble(call.stream, answer)
                if at > 0 and said.startswith(headers(call.stream, HEAD)):
                    said = said.removeprefix(headers(call.stream, HEAD))
                connection.says(said)
                at = 1 << 60  # the stream is over
                break
            if at == 0:
                connection.says(headers(call.stream, HEAD), data(call.stream, message(answer)))
            else:
                connection.says(data(call.stream, message(answer)))
            at = end
        self._read[key] = at

    def _watch(self, connection: ScriptedConnection, stream: int, body: bytes) -> bytes:
        """The reply to a create or a cancel: no id is watched twice."""
        answer = good(WATCH, body)
        told = rpc_pb2.WatchResponse.FromString(answer)
        watch = connection, stream, told.watch_id
        if told.canceled:
            self._watched.discard(watch)
        elif watch in self._watched:
            told.MergeFrom(rpc_pb2.WatchResponse(watch_id=-1, canceled=True, cancel_reason=DUPLICATE_ID))
            return told.SerializeToString()
        else:
            self._watched.add(watch)
        return answer


class Client:
    """A client of its own connection, which gets bytes."""

    def __init__(self, proxy: Proxy) -> None:
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{proxy.bound[0][1]}", [("grpc.use_local_subchannel_pool", 1)]
        )

    async def asks(self, path: str, request: Message, seconds: float = 20) -> tuple[grpc.StatusCode, str, list[bytes]]:
        """How the call ends, and the messages that came."""
        call: Any
        if path in (WATCH, KEEPALIVE):
            call = self.channel.stream_stream(path)(iter([request.SerializeToString()]), timeout=seconds)
        elif path.endswith("RangeStream"):
            call = self.channel.unary_stream(path)(request.SerializeToString(), timeout=seconds)
        else:
            unary = self.channel.unary_unary(path)(request.SerializeToString(), timeout=seconds)
            try:
                return grpc.StatusCode.OK, "", [await unary]
            except grpc.aio.AioRpcError as error:
                return error.code(), error.details() or "", []
        got: list[bytes] = []
        try:
            async for one in call:
                got.append(one)  # noqa: PERF401 - what came before an error counts
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or "", got
        return grpc.StatusCode.OK, "", got


class Bystander:
    """A client of the other shard: it puts, watches, and keeps a lease alive."""

    def __init__(self, proxy: Proxy) -> None:
        self._channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{proxy.bound[0][1]}", [("grpc.use_local_subchannel_pool", 1)]
        )
        self._kv: Any = rpc_pb2_grpc.KVStub(self._channel)
        self._lease: Any = rpc_pb2_grpc.LeaseStub(self._channel)
        self._count = 0

    async def begins(self) -> None:
        self._watch: Any = rpc_pb2_grpc.WatchStub(self._channel).Watch()
        create = rpc_pb2.WatchCreateRequest(key=b"z")
        await self._watch.write(rpc_pb2.WatchRequest(create_request=create))
        async with asyncio.timeout(20):
            assert (await self._watch.read()).created
        self.id = (await self._lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600), timeout=20)).ID
        self._keepalives = self._lease.LeaseKeepAlive()

    async def goes_on(self) -> None:
        self._count += 1
        value = b"%d" % self._count
        await self._kv.Put(rpc_pb2.PutRequest(key=b"z", value=value, lease=self.id), timeout=20)
        async with asyncio.timeout(20):
            seen = b""
            while seen != value:
                for event in (await self._watch.read()).events:
                    seen = event.kv.value
            await self._keepalives.write(rpc_pb2.LeaseKeepAliveRequest(ID=self.id))
            assert (await self._keepalives.read()).TTL > 0

    async def leaves(self) -> None:
        self._watch.cancel()
        self._keepalives.cancel()
        await self._channel.close()


@pytest.fixture
def etcd(calm_etcd: LocalEtcd) -> LocalEtcd:
    """What one shard garbles ends the call to the other."""
    return calm_etcd


@asynccontextmanager
async def scene(etcd: LocalEtcd | None) -> AsyncIterator[tuple[Garbler, Client, Proxy]]:
    """The garbling shard "g" has the keys below m, an etcd the others; without an etcd it has them all."""
    async with ScriptedEtcd() as scripted:
        endpoint = f"127.0.0.1:{scripted.endpoint.port}"
        if etcd is None:
            text = f"shards: [{{name: g, endpoints: ['{endpoint}'], ranges: [{{start: '', end: ''}}]}}]\n"
        else:
            text = (
                f"shards:\n- {{name: g, endpoints: ['{endpoint}'], ranges: [{{start: '', end: m}}]}}\n"
                f"- {{name: b, endpoints: ['{etcd.endpoint}'], ranges: [{{start: m, end: ''}}]}}\n"
            )
        loaded = config.parse(text, Path("esp.yaml"))
        listen = config.listen_of(["http://127.0.0.1:0"])
        garbler = Garbler(scripted)
        async with Proxy(replace(loaded, listen=listen, limits=Limits(max_waiting_seconds=10))) as proxy:
            assert not await proxy.connected(20)
            client = Client(proxy)
            try:
                yield garbler, client, proxy
            finally:
                await client.channel.close()


def txn_reads() -> rpc_pb2.TxnRequest:
    one = rpc_pb2.RangeRequest(**ALL)  # type: ignore[arg-type]
    return rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=one)] * 2)


ASKED: list[tuple[str, Message]] = [
    (KV + "Range", rpc_pb2.RangeRequest(**ALL)),  # type: ignore[arg-type]
    (KV + "Range", rpc_pb2.RangeRequest(**ALL, limit=5)),  # type: ignore[arg-type]
    (KV + "Range", rpc_pb2.RangeRequest(**ALL, count_only=True)),  # type: ignore[arg-type]
    (KV + "Range", rpc_pb2.RangeRequest(**ALL, sort_order=2, sort_target=4)),  # type: ignore[arg-type]
    (KV + "RangeStream", rpc_pb2.RangeRequest(key=b"a", range_end=b"m\0")),
    (KV + "DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"m\0", prev_kv=True)),
    (KV + "Txn", txn_reads()),
    (KV + "Txn", rpc_pb2.TxnRequest()),
    (KV + "Compact", rpc_pb2.CompactionRequest()),
    (LEASE + "LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=7, keys=True)),
    (LEASE + "LeaseLeases", rpc_pb2.LeaseLeasesRequest()),
    (LEASE + "LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=7)),
]


async def ask_garbled(
    etcd: LocalEtcd, path: str, request_: Message, judge: Callable[[str, grpc.StatusCode, str, list[bytes]], None]
) -> None:
    """Asks over two shards, one of which garbles its answer in each way; a bystander goes on beside it."""
    async with scene(etcd) as (garbler, client, proxy):
        bystander = Bystander(proxy)
        await bystander.begins()
        if isinstance(request_, rpc_pb2.CompactionRequest):
            _, _, [read] = await client.asks(KV + "Range", rpc_pb2.RangeRequest(**ALL))  # type: ignore[arg-type]
            request_ = rpc_pb2.CompactionRequest(revision=rpc_pb2.RangeResponse.FromString(read).header.revision)
        for name, garble in GARBLES.items():
            garbler.path, garbler.garble, garbler.met = path, garble, 0
            code, text, got = await client.asks(path, request_)
            assert garbler.met, name
            judge(name, code, text, got)
            garbler.path = ""
            await bystander.goes_on()
        await bystander.leaves()
        assert not proxy.background.failures


@pytest.mark.parametrize(("path", "request_"), ASKED, ids=[path.rpartition("/")[2] for path, _ in ASKED])
def test_over_several_shards_the_call_blames_the_shard(
    etcd: LocalEtcd, path: str, request_: Message, caplog: pytest.LogCaptureFixture
) -> None:
    def judge(name: str, code: grpc.StatusCode, text: str, got: list[bytes]) -> None:
        if code == grpc.StatusCode.OK and path == KV + "Range":
            with pytest.raises(DecodeError):  # what was passed on unread, its client reads
                rpc_pb2.RangeResponse.FromString(got[0])
        elif name not in STREAMED.get(path, ()) and not any(one in text for one in AS_ETCD):
            assert code == grpc.StatusCode.INTERNAL, (name, code, text)
            assert "esp: the answer of shard g " in text, (name, text)
        else:
            assert "internal error" not in text, name

    asyncio.run(ask_garbled(etcd, path, request_, judge))
    assert "Traceback" not in caplog.text
    assert "a bug in esp" not in caplog.text


GOES_ON: list[tuple[str, Message, Callable[[list[bytes]], bool]]] = [
    # What a shard that is away does not keep from being answered, one that garbles does not either.
    (
        LEASE + "LeaseGrant",
        rpc_pb2.LeaseGrantRequest(TTL=600),
        lambda got: rpc_pb2.LeaseGrantResponse.FromString(got[0]).TTL == 600,
    ),
    (
        "/etcdserverpb.Maintenance/Status",
        rpc_pb2.StatusRequest(),
        lambda got: "esp: the answer of shard g " in rpc_pb2.StatusResponse.FromString(got[0]).errors[0],
    ),
]


@pytest.mark.parametrize(("path", "request_", "is_right"), GOES_ON, ids=["LeaseGrant", "Status"])
def test_over_several_shards_the_call_does_without_the_shard(
    etcd: LocalEtcd, path: str, request_: Message, is_right: Callable[[list[bytes]], bool]
) -> None:
    def judge(name: str, code: grpc.StatusCode, text: str, got: list[bytes]) -> None:
        assert code == grpc.StatusCode.OK, (name, text)
        assert is_right(got), name

    asyncio.run(ask_garbled(etcd, path, request_, judge))


def test_keepalives_of_all_clients_go_on_without_the_shard(etcd: LocalEtcd, caplog: pytest.LogCaptureFixture) -> None:
    """A lease that the other shard has renewed lives for as long as it is known to live on this one."""

    async def run() -> None:
        async with scene(etcd) as (garbler, _, proxy):
            for name, garble in GARBLES.items():
                bystander = Bystander(proxy)
                await bystander.begins()
                await bystander.goes_on()
                garbler.path, garbler.garble, garbler.met = KEEPALIVE, garble, 0
                await bystander.goes_on()
                assert garbler.met, name
                garbler.path = ""
                await bystander.goes_on()
                await bystander.leaves()
            assert not proxy.background.failures

    asyncio.run(run())
    assert "shard g: an answer of" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_watch_begins_when_the_shard_says_what_can_be_read(etcd: LocalEtcd, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with scene(etcd) as (garbler, client, proxy):
            bystander = Bystander(proxy)
            await bystander.begins()
            for name, garble in GARBLES.items():
                garbler.path, garbler.garble, garbler.met = WATCH, garble, 0
                watch: Any = client.channel.stream_stream(WATCH)(timeout=60)
                create = rpc_pb2.WatchCreateRequest(key=b"a")
                await watch.write(rpc_pb2.WatchRequest(create_request=create).SerializeToString())
                async with asyncio.timeout(20):
                    while True:
                        if garbler.met:
                            break
                        await asyncio.sleep(0.01)
                await bystander.goes_on()
                garbler.path = ""
                async with asyncio.timeout(20):
                    assert rpc_pb2.WatchResponse.FromString(await watch.read()).created, name
                watch.cancel()
            await bystander.leaves()
            assert not proxy.background.failures

    asyncio.run(run())
    assert "shard g: an answer of" in caplog.text
    assert "is no WatchResponse" in caplog.text
    assert "Traceback" not in caplog.text


PASSED_ON: list[tuple[str, Message]] = [
    (KV + "Range", rpc_pb2.RangeRequest(key=b"a")),
    (KV + "Put", rpc_pb2.PutRequest(key=b"a")),
    (KV + "DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"a")),
    (KV + "Txn", txn_reads()),
    (KV + "Compact", rpc_pb2.CompactionRequest(revision=3)),
    (KV + "RangeStream", rpc_pb2.RangeRequest(key=b"a")),
    (LEASE + "LeaseGrant", rpc_pb2.LeaseGrantRequest(ID=5, TTL=600)),
    (LEASE + "LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=5)),
    (LEASE + "LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=5)),
    (LEASE + "LeaseLeases", rpc_pb2.LeaseLeasesRequest()),
    (KEEPALIVE, rpc_pb2.LeaseKeepAliveRequest(ID=5)),
    (WATCH, rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=b"a"))),
    ("/etcdserverpb.Maintenance/Status", rpc_pb2.StatusRequest()),
]
IN_ONE_PIECE = {"garbage", "a varint of 12 bytes", "a header of another wire type", "a header that is none"}


@pytest.mark.parametrize(("path", "request_"), PASSED_ON, ids=[path.rpartition("/")[2] for path, _ in PASSED_ON])
def test_over_one_shard_bytes_go_to_the_client_as_they_came(path: str, request_: Message) -> None:
    """It reads them, or its library tells what it would tell of an etcd."""

    async def run() -> None:
        async with scene(None) as (garbler, client, proxy):
            for name, garble in GARBLES.items():
                if name == "longer than it says":
                    continue  # grpcio waits for the rest of the second message until its deadline
                if name == "two messages" and path not in (KV + "Range", *STREAMED, WATCH):
                    continue  # in answer to a unary call grpcio waits as well: once is enough
                garbler.path, garbler.garble, garbler.met = path, garble, 0
                code, text, got = await client.asks(path, request_, 3)
                assert garbler.met, name
                assert "internal error" not in text, name
                if name in IN_ONE_PIECE:
                    assert code == grpc.StatusCode.OK, (name, text)
                    assert message(got[0]) in garble(1, b"\x0a\0"), name
            garbler.path = ""
            code, text, _ = await client.asks(KV + "Range", rpc_pb2.RangeRequest(key=b"a"))
            assert code == grpc.StatusCode.OK, text
            assert not proxy.background.failures

    asyncio.run(run())


WRITTEN = {path: good(path, b"") for path in (KV + "Range", KV + "DeleteRange", LEASE + "LeaseTimeToLive")}
QUESTIONS = {path: request_ for path, request_ in ASKED if path in WRITTEN}


@pytest.fixture
def stage(etcd: LocalEtcd) -> Iterator[tuple[asyncio.Runner, Garbler, Client, Proxy]]:
    """A scene that many examples share."""
    with asyncio.Runner() as runner:
        one = scene(etcd)
        garbler, client, proxy = runner.run(one.__aenter__())
        try:
            yield runner, garbler, client, proxy
        finally:
            runner.run(one.__aexit__(None, None, None))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(sorted(WRITTEN)), what=st.data())
def test_whatever_bytes_a_shard_says(
    stage: tuple[asyncio.Runner, Garbler, Client, Proxy], path: str, what: st.DataObject
) -> None:
    """Bytes of a good answer left out, put in and changed: an answer or a status that blames the shard, and no bug."""
    runner, garbler, client, proxy = stage
    answer = bytearray(WRITTEN[path])
    for _ in range(what.draw(st.integers(1, 4))):
        at = what.draw(st.integers(0, len(answer)))
        answer[at : at + what.draw(st.integers(0, 3))] = what.draw(st.binary(max_size=3))
    garbler.path = path
    garbler.garble = lambda stream, _: in_full(stream, message(bytes(answer)))
    code, text, _ = runner.run(client.asks(path, QUESTIONS[path]))
    assert code == grpc.StatusCode.OK or "shard g " in text or "RST_STREAM" in text, (code, text)
    assert not proxy.background.failures
    assert proxy.routing.shards["b"].garbled == 0
