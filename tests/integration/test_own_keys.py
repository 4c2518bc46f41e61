"""Keys of esp's own on the shards: clients of esp see and change none of them, and notice nothing of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from esp.core.local import LocalEtcd
from esp.core.own_keys import LEASES
from esp.core.pb import auth_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.proxy import Proxy
from esp.core.shared_map import GUARD_KEY, MAP_KEY
from tests.harness import Etcds, connect, peer
from tests.integration.mapped import Mapped, proxy_of
from tests.stubs import rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc

Put, Range, Txn, Op = rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.TxnRequest, rpc_pb2.RequestOp
Delete, Compare = rpc_pb2.DeleteRangeRequest, rpc_pb2.Compare
OWN = "esp: keys that begin with a zero byte are esp's own where the shards hold the map"
KEYS = [b"\1", b"a", b"b\0", b"m", b"z", b"\xff\xff"]
FROM_THE_FIRST = [b"\0", b"\0\0", b"\0esp/guard", b"\0\xff", b"\1"]
TO_OTHERS = [b"\0", b"\1\0", b"m", b"n\0", b"\xff"]


class Clients:
    """Stock clients of a server."""

    def __init__(self, address: str) -> None:
        self.channel = channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self.kv: Any = rpc_pb2_grpc.KVStub(channel)
        self.watch: Any = rpc_pb2_grpc.WatchStub(channel)
        self.auth: Any = rpc_pb2_grpc.AuthStub(channel)
        self.lock: Any = v3lock_pb2_grpc.LockStub(channel)
        self.election: Any = v3election_pb2_grpc.ElectionStub(channel)


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def mapped(request: pytest.FixtureRequest, start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(request.param), ["m"][: request.param - 1], tmp_path / "esp.yaml")


@pytest.fixture
def judge(start_etcd: Etcds) -> LocalEtcd:
    return start_etcd()


Work = Callable[[Clients], Awaitable[None]]


def serve(mapped: Mapped, work: Work) -> None:
    async def main() -> None:
        async with proxy_of(mapped.config) as proxy:
            clients = Clients(address_of(proxy))
            await work(clients)
            await clients.channel.close()

    held = {name: mapped.read(name, b"\0", b"\1") for name in mapped.etcds}
    asyncio.run(main())
    assert {name: mapped.read(name, b"\0", b"\1") for name in mapped.etcds} == held


def address_of(proxy: Proxy) -> str:
    return f"127.0.0.1:{proxy.bound[0][1]}"


async def outcome(call: Awaitable[Any]) -> Any:
    """What a client is told, without headers and revisions, in which shards differ."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return seen(answer)


def seen(answer: Any) -> Any:
    match answer:
        case rpc_pb2.RangeResponse():
            return [(pair.key, pair.value) for pair in answer.kvs], answer.count, answer.more
        case rpc_pb2.DeleteRangeResponse():
            return answer.deleted, [(pair.key, pair.value) for pair in answer.prev_kvs]
        case rpc_pb2.TxnResponse():
            inner = [getattr(one, str(one.WhichOneof("response"))) for one in answer.responses]
            return answer.succeeded, [seen(one) for one in inner]
    return type(answer).__name__


def ranges() -> Iterator[dict[str, bytes]]:
    for key in FROM_THE_FIRST:
        for end in TO_OTHERS:
            yield {"key": key, "range_end": end}


def reads() -> Iterator[Range]:
    for span in ranges():
        yield Range(**span)
        yield Range(**span, limit=2)
        yield Range(**span, count_only=True)
        yield Range(**span, keys_only=True, sort_order=2, sort_target=0)
        yield Range(**span, serializable=True)


def test_ranges_over_everything_are_answered_as_by_an_etcd_without_such_keys(mapped: Mapped, judge: LocalEtcd) -> None:
    async def work(clients: Clients) -> None:
        etcd = Clients(judge.address)
        for one in (clients, etcd):
            for key in KEYS:
                await one.kv.Put(Put(key=key, value=b"v\0" + key))
        for read in reads():
            assert await outcome(clients.kv.Range(read)) == await outcome(etcd.kv.Range(read)), read
        for span in ranges():
            compare = Compare(**span, target=Compare.VERSION, result=Compare.GREATER, version=0)
            if len(mapped.etcds) == 1:  # over several shards a transaction compares nothing
                for txn in (
                    Txn(compare=[compare], success=[Op(request_range=Range(**span))]),
                    Txn(success=[Op(request_txn=Txn(compare=[compare], failure=[Op(request_range=Range(**span))]))]),
                    Txn(success=[Op(request_put=Put(key=b"n", value=b"\0")), Op(request_range=Range(**span))]),
                ):
                    assert await outcome(clients.kv.Txn(txn)) == await outcome(etcd.kv.Txn(txn)), txn
            txn = Txn(success=[Op(request_range=Range(**span)), Op(request_range=Range(key=b"a"))])
            assert await outcome(clients.kv.Txn(txn)) == await outcome(etcd.kv.Txn(txn)), txn
        for span in ranges():
            delete = Delete(**span, prev_kv=True)
            assert await outcome(clients.kv.DeleteRange(delete)) == await outcome(etcd.kv.DeleteRange(delete)), delete
            for one in (clients, etcd):
                for key in KEYS:
                    await one.kv.Put(Put(key=key, value=b"v"))
        await etcd.channel.close()

    serve(mapped, work)


def own_calls(clients: Clients) -> Iterator[Awaitable[Any]]:
    """Calls for keys of esp's own only."""
    for key in (GUARD_KEY, MAP_KEY, b"\0", b"\0other"):
        named = [("esp-shard", "s0")]
        compare = Compare(key=key, target=Compare.VERSION, result=Compare.GREATER)
        put = Op(request_put=Put(key=key))
        for metadata in ([], named):
            yield clients.kv.Put(Put(key=key, value=b"x"), metadata=metadata)
            yield clients.kv.Range(Range(key=key), metadata=metadata)
            yield clients.kv.Range(Range(key=key, serializable=True, limit=0x80), metadata=metadata)
            yield clients.kv.Range(Range(key=key, range_end=b"\1"), metadata=metadata)
            yield clients.kv.DeleteRange(Delete(key=key), metadata=metadata)
            yield clients.kv.DeleteRange(Delete(key=key, range_end=b"\1"), metadata=metadata)
            yield clients.kv.Txn(Txn(compare=[compare]), metadata=metadata)
            yield clients.kv.Txn(Txn(success=[put]), metadata=metadata)
            yield clients.kv.Txn(Txn(failure=[Op(request_txn=Txn(failure=[put]))]), metadata=metadata)
            yield clients.kv.Txn(Txn(success=[Op(request_range=Range(key=key, range_end=b"\1"))]), metadata=metadata)
            yield clients.lock.Lock(v3lock_pb2.LockRequest(name=key, lease=1), metadata=metadata)
            yield clients.lock.Unlock(v3lock_pb2.UnlockRequest(key=key), metadata=metadata)
            leader = v3election_pb2.LeaderKey(name=b"n", key=key)
            yield clients.election.Campaign(v3election_pb2.CampaignRequest(name=key, lease=1), metadata=metadata)
            yield clients.election.Leader(v3election_pb2.LeaderRequest(name=key), metadata=metadata)
            yield clients.election.Proclaim(v3election_pb2.ProclaimRequest(leader=leader), metadata=metadata)
            yield clients.election.Resign(v3election_pb2.ResignRequest(leader=leader), metadata=metadata)
            permission = auth_pb2.Permission(key=key, range_end=b"\0\2" if key == b"\0" else b"")
            grant = rpc_pb2.AuthRoleGrantPermissionRequest(name="r", perm=permission)
            revoke = rpc_pb2.AuthRoleRevokePermissionRequest(role="r", key=key, range_end=permission.range_end)
            yield clients.auth.RoleGrantPermission(grant, metadata=metadata)
            yield clients.auth.RoleRevokePermission(revoke, metadata=metadata)


def test_a_call_for_keys_of_esps_own_is_refused(mapped: Mapped) -> None:
    async def work(clients: Clients) -> None:
        outcomes = await asyncio.gather(*(outcome(call) for call in own_calls(clients)))
        assert set(outcomes) == {(grpc.StatusCode.INVALID_ARGUMENT, OWN)}
        watch = clients.watch.Watch(metadata=[("esp-shard", "s0")])
        code, text = await outcome(watch.read())
        assert code == grpc.StatusCode.UNIMPLEMENTED
        assert "cannot be passed on to a shard" in text
        stream = clients.kv.RangeStream(Range(key=b"\0"), metadata=[("esp-shard", "s0")])
        assert (await outcome(stream.read()))[0] == grpc.StatusCode.UNIMPLEMENTED

    serve(mapped, work)


NO_LEASE = (grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")


def lease_calls(clients: Clients, lease: int) -> Iterator[Awaitable[Any]]:
    """Calls that use a lease."""
    put = Op(request_put=Put(key=b"a", lease=lease))
    leader = v3election_pb2.LeaderKey(name=b"n", key=b"n/1", lease=lease)
    for metadata in ([], [("esp-shard", "s0")]):
        yield clients.kv.Put(Put(key=b"a", value=b"v\0", lease=lease), metadata=metadata)
        yield clients.kv.Put(Put(key=b"a", lease=lease), metadata=metadata)
        yield clients.kv.Txn(Txn(success=[put]), metadata=metadata)
        yield clients.kv.Txn(Txn(success=[Op(request_txn=Txn(failure=[put]))]), metadata=metadata)
        yield clients.lock.Lock(v3lock_pb2.LockRequest(name=b"n", lease=lease), metadata=metadata)
        yield clients.election.Campaign(v3election_pb2.CampaignRequest(name=b"n", lease=lease), metadata=metadata)
        yield clients.election.Proclaim(v3election_pb2.ProclaimRequest(leader=leader), metadata=metadata)
        yield clients.election.Resign(v3election_pb2.ResignRequest(leader=leader), metadata=metadata)


def test_nobody_uses_or_keeps_alive_a_lease_of_esps_own(mapped: Mapped) -> None:
    with connect(mapped.etcds["s0"][0]) as channel:
        leases = rpc_pb2_grpc.LeaseStub(channel)
        leases.LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=LEASES + 5, TTL=600))

        async def work(clients: Clients) -> None:
            outcomes = await asyncio.gather(*(outcome(call) for call in lease_calls(clients, LEASES + 5)))
            assert set(outcomes) == {NO_LEASE}
            stub: Any = rpc_pb2_grpc.LeaseStub(clients.channel)
            for metadata in ([], [("esp-shard", "s0")]):
                revoke = rpc_pb2.LeaseRevokeRequest(ID=LEASES + 5)
                assert await outcome(stub.LeaseRevoke(revoke, metadata=metadata)) == NO_LEASE
                grant = rpc_pb2.LeaseGrantRequest(ID=LEASES + 6, TTL=600)
                code, _ = await outcome(stub.LeaseGrant(grant, metadata=metadata))
                assert code == grpc.StatusCode.FAILED_PRECONDITION
            other = await stub.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=600))
            call = stub.LeaseKeepAlive()
            for lease, ttl in ((LEASES + 5, 0), (other.ID, 600), (LEASES + 5, 0)):
                await call.write(rpc_pb2.LeaseKeepAliveRequest(ID=lease))
                answer = await call.read()
                assert lease == answer.ID
                assert ttl == answer.TTL
                assert answer.header.revision > 0
            call.cancel()

        serve(mapped, work)
        assert leases.LeaseTimeToLive(rpc_pb2.LeaseTimeToLiveRequest(ID=LEASES + 5)).grantedTTL == 600


UNUSUAL = [
    b"\x0a\x01a\x0a\x0a\0esp/guard",  # the last key counts
    b"\x12\x01v\x0a\x0a\0esp/guard",
    b"\x8a\x00\x0a\0esp/guard",  # a long tag
    b"\x0a\x8a\x00\0esp/guard",  # a long length
]


@pytest.mark.parametrize("message", UNUSUAL)
def test_an_unusual_form_gets_no_key_past_the_look(mapped: Mapped, message: bytes) -> None:
    async def work(clients: Clients) -> None:
        is_range = message.startswith(b"\x12")  # for other requests than a Put, which means other keys
        for method in ("Put",) if is_range else ("Put", "DeleteRange", "Range"):
            call = clients.channel.unary_unary(f"/etcdserverpb.KV/{method}")
            code, _ = await outcome(call(message))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
        for tag in (0x12,) if is_range else (0x0A, 0x12, 0x1A):  # as each operation of a transaction, in either branch
            for branch in (0x12, 0x1A):
                operation = bytes((tag, len(message))) + message
                body = bytes((branch, len(operation))) + operation
                code, _ = await outcome(clients.channel.unary_unary("/etcdserverpb.KV/Txn")(body))
                assert code == grpc.StatusCode.INVALID_ARGUMENT

    serve(mapped, work)


def test_watches_of_everything_see_the_keys_of_clients_only(mapped: Mapped) -> None:
    async def work(clients: Clients) -> None:
        for key in (b"", b"\0", b"\0esp/", b"\1"):
            watch = clients.watch.Watch()
            create = rpc_pb2.WatchCreateRequest(key=key, range_end=b"\0")
            await watch.write(rpc_pb2.WatchRequest(create_request=create))
            assert (await watch.read()).created
            mapped.hold("s0", mapped.now)  # esp's own keys are written once more
            await clients.kv.Put(Put(key=b"a", value=key))
            events = []
            while not events:
                events += (await watch.read()).events
            assert [(event.kv.key, event.kv.value) for event in events] == [(b"a", key)]
            watch.cancel()
        for create in (
            rpc_pb2.WatchCreateRequest(key=GUARD_KEY),
            rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\1"),
        ):
            watch = clients.watch.Watch()
            await watch.write(rpc_pb2.WatchRequest(create_request=create))
            answer = await watch.read()
            assert answer.canceled
            assert answer.cancel_reason == OWN
            watch.cancel()

    async def main() -> None:
        async with proxy_of(mapped.config) as proxy:
            clients = Clients(address_of(proxy))
            await work(clients)
            await clients.channel.close()

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2])
def test_roles_may_have_the_guard_compared_and_do_not_show_it(start_etcd: Etcds, tmp_path: Path, count: int) -> None:
    etcds = start_etcd.several(count, "--bcrypt-cost=4", binary=peer("etcd"))
    mapped = Mapped(etcds, ["m"][: count - 1], tmp_path / "esp.yaml")

    async def work(clients: Clients) -> None:
        auth = clients.auth
        await auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name="r"))
        assert list((await auth.RoleGet(rpc_pb2.AuthRoleGetRequest(role="r"))).perm) == []
        everything = auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"\0", range_end=b"\0")
        some = auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"a", range_end=b"b")
        for one in (everything, some):
            await auth.RoleGrantPermission(rpc_pb2.AuthRoleGrantPermissionRequest(name="r", perm=one))
        told = await auth.RoleGet(rpc_pb2.AuthRoleGetRequest(role="r"))
        assert sorted(one.key for one in told.perm) == [b"\0", b"a"]
        revoke = rpc_pb2.AuthRoleRevokePermissionRequest(role="r", key=b"\0", range_end=b"\0")
        await auth.RoleRevokePermission(revoke)
        await auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name="root"))
        for name, role in (("root", "root"), ("user", "r")):
            await auth.UserAdd(rpc_pb2.AuthUserAddRequest(name=name, password="p"))
            await auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user=name, role=role))
        await auth.AuthEnable(rpc_pb2.AuthEnableRequest())
        token = (await auth.Authenticate(rpc_pb2.AuthenticateRequest(name="user", password="p"))).token
        metadata = [("token", token)]
        await clients.kv.Put(Put(key=b"a", value=b"1"), metadata=metadata)
        assert [pair.value for pair in (await clients.kv.Range(Range(key=b"a"), metadata=metadata)).kvs] == [b"1"]
        denied = (grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied")
        for call in (
            clients.kv.Put(Put(key=b"c"), metadata=metadata),
            clients.kv.Range(Range(key=b"\0", range_end=b"\0"), metadata=metadata),
            clients.kv.Txn(Txn(failure=[Op(request_put=Put(key=b"c"))]), metadata=metadata),
        ):
            assert await outcome(call) == denied
        root = (await auth.Authenticate(rpc_pb2.AuthenticateRequest(name="root", password="p"))).token
        await auth.AuthDisable(rpc_pb2.AuthDisableRequest(), metadata=[("token", root)])

    serve(mapped, work)


def test_auth_stays_off_where_an_etcd_would_give_rights_in_a_compared_put(mapped: Mapped) -> None:
    """The tests' own etcd is older than 3.5.30."""

    async def work(clients: Clients) -> None:
        code, text = await outcome(clients.auth.AuthEnable(rpc_pb2.AuthEnableRequest()))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert "auth would have to stay off on shard" in text
        assert "it needs etcd 3.4.44, 3.5.30, 3.6.11 or later" in text

    serve(mapped, work)


def test_a_shard_with_auth_that_is_too_old_for_it_is_left(mapped: Mapped) -> None:
    """Auth was turned on at the shard itself."""

    async def main() -> None:
        async with proxy_of(mapped.config) as proxy:
            clients = Clients(address_of(proxy))
            await clients.kv.Put(Put(key=b"a", value=b"1"))
            shard = proxy.routing.shards["s0"]
            shard.learn_auth(is_on=True)  # type: ignore[attr-defined]
            code, _ = await outcome(clients.kv.Put(Put(key=b"a", value=b"2"), timeout=20))
            assert code == grpc.StatusCode.UNAVAILABLE
            assert "auth is on, and etcd" in shard.trouble
            shard.learn_auth(is_on=False)  # type: ignore[attr-defined]
            assert await proxy.connected(20) == []
            await clients.channel.close()

    asyncio.run(main())
