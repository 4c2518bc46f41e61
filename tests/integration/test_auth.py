"""Auth over three shards: compared with the answers of one etcd to the same programs, and stock clients with users."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from esp.core import errors
from esp.core.auth_tokens import join, split
from esp.core.local import LocalEtcd
from esp.core.pb import auth_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from tests.harness import EspProcess, Esps, Etcds, Server, connect, peer, wait_until
from tests.stubs import rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc

Etcdctl = Callable[..., subprocess.CompletedProcess[str]]

QUICK = "--bcrypt-cost=4"
READ, WRITE, READWRITE = (auth_pb2.Permission.Type.Value(name) for name in ("READ", "WRITE", "READWRITE"))
BOUNDARIES = ["i", "r"]
STUBS = {
    "Auth": rpc_pb2_grpc.AuthStub,
    "KV": rpc_pb2_grpc.KVStub,
    "Lease": rpc_pb2_grpc.LeaseStub,
    "Lock": v3lock_pb2_grpc.LockStub,
    "Election": v3election_pb2_grpc.ElectionStub,
    "Maintenance": rpc_pb2_grpc.MaintenanceStub,
}


class Client:
    """Users of an etcd or an esp, each with a token."""

    def __init__(self, server: Server) -> None:
        self.channel = connect(server)
        self.tokens: dict[str, str] = {}
        self.stubs = {name: make(self.channel) for name, make in STUBS.items()}

    def call(
        self, path: str, request: Message, user: str = "", *, token: str | None = None, field: str = "token"
    ) -> Any:
        """The answer to an RPC, or code and text of the refusal."""
        service, method = path.split("/")
        token = self.tokens.get(user) if token is None else token
        metadata = [] if token is None else [(field, token)]
        try:
            return getattr(self.stubs[service], method)(request, metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            return error.code().name, error.details()

    def auth(self, method: str, by: str = "root", **fields: Any) -> Any:
        return self.call(f"Auth/{method}", REQUESTS[method](**fields), by)

    def log_in(self, user: str, password: str | None = None) -> Any:
        request = rpc_pb2.AuthenticateRequest(name=user, password=password or user)
        answer = self.call("Auth/Authenticate", request, token=self.tokens.get(user))
        if isinstance(answer, Message):
            self.tokens[user] = answer.token
            return "token"
        return answer


REQUESTS: dict[str, Any] = {
    "AuthEnable": rpc_pb2.AuthEnableRequest,
    "AuthDisable": rpc_pb2.AuthDisableRequest,
    "AuthStatus": rpc_pb2.AuthStatusRequest,
    "UserAdd": rpc_pb2.AuthUserAddRequest,
    "UserGet": rpc_pb2.AuthUserGetRequest,
    "UserList": rpc_pb2.AuthUserListRequest,
    "UserDelete": rpc_pb2.AuthUserDeleteRequest,
    "UserChangePassword": rpc_pb2.AuthUserChangePasswordRequest,
    "UserGrantRole": rpc_pb2.AuthUserGrantRoleRequest,
    "UserRevokeRole": rpc_pb2.AuthUserRevokeRoleRequest,
    "RoleAdd": rpc_pb2.AuthRoleAddRequest,
    "RoleGet": rpc_pb2.AuthRoleGetRequest,
    "RoleList": rpc_pb2.AuthRoleListRequest,
    "RoleDelete": rpc_pb2.AuthRoleDeleteRequest,
    "RoleGrantPermission": rpc_pb2.AuthRoleGrantPermissionRequest,
    "RoleRevokePermission": rpc_pb2.AuthRoleRevokePermissionRequest,
}


def told(answer: Any) -> Any:
    """What of an answer has to be the same everywhere."""
    if not isinstance(answer, Message):
        return answer
    same = type(answer)()
    same.CopyFrom(answer)
    for descriptor, value in list(same.ListFields()):
        if descriptor.name == "header":
            same.ClearField("header")
        if descriptor.name in ("kvs", "prev_kvs", "prev_kv"):
            for row in [value] if descriptor.name == "prev_kv" else value:
                row.create_revision = row.mod_revision = 0
    return same


def permission(key: str, range_end: str = "", kind: int = READWRITE) -> auth_pb2.Permission:
    return auth_pb2.Permission(key=key.encode(), range_end=range_end.encode(), permType=kind)  # type: ignore[arg-type]


def set_up(client: Client) -> None:
    """Root, alice who may do anything from "c" to "m", bob who may read from "a" on, and auth."""
    for name in ("root", "alice", "bob"):
        client.auth("UserAdd", name=name, password=name)
        client.auth("RoleAdd", name=name)
        client.auth("UserGrantRole", user=name, role=name)
    client.auth("RoleGrantPermission", name="alice", perm=permission("c", "m"))
    client.auth("RoleGrantPermission", name="bob", perm=permission("a", "\0", READ))
    assert isinstance(client.auth("AuthEnable"), Message)
    for name in ("root", "alice", "bob"):
        assert client.log_in(name) == "token"


@pytest.fixture
def shards(start_etcd: Etcds) -> list[LocalEtcd]:
    return start_etcd.several(3, QUICK)


def jwt_flag(folder: Path) -> str:
    """Tokens that are JWTs; a few minutes old at most, and of their revision of users and roles."""
    key = folder / "key"
    key.write_bytes(bytes(range(64)))
    return f"--auth-token=jwt,priv-key={key},sign-method=HS256,ttl=10m"


@pytest.fixture
def esp(shards: list[LocalEtcd], start_esp: Esps) -> EspProcess:
    return start_esp(shards, BOUNDARIES)


def program(client: Client) -> Iterator[Any]:
    """What users and roles can do, step by step, and what comes of it."""
    auth, log_in = client.auth, client.log_in

    def kv(method: str, request: Message, user: str, **how: Any) -> Any:
        return client.call(f"KV/{method}", request, user, **how)

    def ranged(user: str, key: str, end: str = "", **how: Any) -> Any:
        return kv("Range", rpc_pb2.RangeRequest(key=key.encode(), range_end=end.encode()), user, **how)

    def put(user: str, key: str, **how: Any) -> Any:
        return kv("Put", rpc_pb2.PutRequest(key=key.encode(), value=key.encode()), user, **how)

    def delete(user: str, key: str, end: str = "", *, prev_kv: bool = False) -> Any:
        request = rpc_pb2.DeleteRangeRequest(key=key.encode(), range_end=end.encode(), prev_kv=prev_kv)
        return kv("DeleteRange", request, user)

    # Without auth.
    yield log_in("root")
    yield auth("AuthStatus")
    yield auth("AuthEnable")
    yield auth("UserAdd", name="", password="x")
    yield auth("UserAdd", name="root", password="root")
    yield auth("UserAdd", name="root", password="root")
    yield auth("AuthEnable")
    yield auth("UserGrantRole", user="root", role="nothing")
    yield auth("RoleAdd", name="")
    for name in ("root", "wide", "middle", "reader", "writer"):
        yield auth("RoleAdd", name=name)
    yield auth("RoleAdd", name="wide")
    yield auth("UserGrantRole", user="root", role="root")
    yield auth("UserGrantRole", user="root", role="root")
    for name in ("ann", "mia", "rae", "will", "nobody"):
        yield auth("UserAdd", name=name, password=name)
    yield auth("UserAdd", name="certified", options=auth_pb2.UserAddOptions(no_password=True))
    for name, role in (("ann", "wide"), ("mia", "middle"), ("rae", "reader"), ("will", "writer")):
        yield auth("UserGrantRole", user=name, role=role)
    yield auth("RoleGrantPermission", name="wide", perm=permission("\0", "\0"))
    yield auth("RoleGrantPermission", name="middle", perm=permission("c", "t"))
    yield auth("RoleGrantPermission", name="middle", perm=permission("x"))
    yield auth("RoleGrantPermission", name="reader", perm=permission("c", "t", READ))
    yield auth("RoleGrantPermission", name="writer", perm=permission("c", "t", WRITE))
    yield auth("RoleGrantPermission", name="absent", perm=permission("c", "t", WRITE))
    yield auth("UserGet", name="ann")
    yield auth("UserGet", name="absent")
    yield auth("RoleGet", role="middle")
    yield auth("RoleGet", role="absent")
    yield auth("UserList")
    yield auth("RoleList")
    yield put("", "k", token="a token from before")
    yield auth("AuthEnable")
    # With auth.
    yield auth("AuthStatus")[0] if isinstance(auth("AuthStatus"), tuple) else "told"
    yield ranged("", "a")
    yield put("", "a")
    yield auth("UserList", by="")
    yield auth("UserAdd", by="", name="x", password="x")
    yield auth("AuthEnable", by="")
    yield log_in("ann", "wrong")
    yield log_in("absent")
    yield log_in("certified")
    for name in ("root", "ann", "mia", "rae", "will", "nobody"):
        yield log_in(name)
    for user in ("root", "ann", "mia", "rae", "will", "nobody"):
        for key in ("a", "c", "k", "s", "t", "x", "z"):
            yield put(user, key)
            yield ranged(user, key)
        for key, end in (
            ("a", "b"),
            ("c", "i"),
            ("c", "t"),
            ("c", "u"),
            ("d", "s"),
            ("a", "\0"),
            ("\0", "\0"),
            ("z", "a"),
        ):
            yield ranged(user, key, end)
        for key, end in (("z", "zz"), ("s", "u"), ("h", "j"), ("q", "s"), ("d", "u"), ("a", "\0")):
            yield delete(user, key, end)
            yield delete(user, key, end, prev_kv=True)
            yield ranged("root", "\0", "\0")
        everything = rpc_pb2.RangeRequest(key=b"c", range_end=b"t")
        reads = [rpc_pb2.RequestOp(request_range=everything)]
        hidden = [rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=b"y", range_end=b"z"))]
        yield kv("Txn", rpc_pb2.TxnRequest(success=reads), user).__class__
        yield isinstance(kv("Txn", rpc_pb2.TxnRequest(success=reads, failure=hidden), user), tuple)
        for method in ("AuthStatus", "UserList", "RoleList"):
            answer = auth(method, by=user)
            yield answer.enabled if isinstance(answer, rpc_pb2.AuthStatusResponse) else answer
        yield auth("UserGet", by=user, name=user)
        yield auth("UserGet", by=user, name="ann")
        yield auth("RoleGet", by=user, role="middle")
        if user != "root":
            yield auth("UserAdd", by=user, name="x", password="x")
            yield auth("AuthDisable", by=user)
        lease = client.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=600), user)
        yield lease.__class__
        yield client.call("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease.ID), user).__class__
    # Tokens that are none.
    for token in ("", "x", "a.1", "esp1:", "Bearer x", "eyJhbGciOiJIUzI1NiJ9.e30.x"):
        for field in ("token", "authorization"):
            yield put("", "k", token=token, field=field)
            yield ranged("", "a", "z", token=token, field=field)
            yield client.call("Auth/UserList", rpc_pb2.AuthUserListRequest(), token=token, field=field)
            yield client.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=9), token=token, field=field)
    yield put("", "k", token=f"Bearer {client.tokens['ann']}", field="authorization")
    # What changes while a token is in use.
    yield auth("RoleRevokePermission", role="middle", key=b"c", range_end=b"t")
    yield auth("RoleRevokePermission", role="middle", key=b"c", range_end=b"t")
    yield ranged("mia", "c", "t")
    yield ranged("mia", "x")
    yield auth("UserRevokeRole", name="ann", role="wide")
    yield auth("UserRevokeRole", name="ann", role="wide")
    yield ranged("ann", "a", "z")
    yield auth("UserChangePassword", name="rae", password="new")
    yield ranged("rae", "c", "t")
    yield log_in("rae")
    yield log_in("rae", "new")
    yield ranged("rae", "c", "t")
    yield auth("UserDelete", name="will")
    yield put("will", "k")
    yield log_in("will")
    yield auth("UserDelete", name="root")
    yield auth("UserRevokeRole", name="root", role="root")
    yield auth("RoleDelete", role="root")
    yield auth("RoleDelete", role="reader")
    yield ranged("rae", "c", "t")
    yield auth("UserList")
    yield auth("RoleList")
    yield auth("AuthDisable")
    yield put("", "k")
    yield put("will", "k")
    yield log_in("root")
    yield auth("AuthStatus", by="")


def compare(one: LocalEtcd, esp: EspProcess) -> None:
    expected, found = Client(one), Client(esp)
    for step, (right, answer) in enumerate(zip(program(expected), program(found), strict=True)):
        assert told(answer) == told(right), f"step {step}"


@pytest.mark.parametrize(("version", "kind"), [("tests", "simple"), ("tests", "jwt"), ("newest", "jwt")])
def test_a_program_of_users_and_roles_goes_as_at_one_etcd(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path, version: str, kind: str
) -> None:
    flags = (QUICK,) if kind == "simple" else (QUICK, jwt_flag(tmp_path))
    one, *shards = start_etcd.several(4, *flags, binary=peer("etcd") if version == "newest" else None)
    compare(one, start_esp(shards, BOUNDARIES))


class TestTokens:
    @pytest.fixture
    def client(self, esp: EspProcess) -> Client:
        client = Client(esp)
        set_up(client)
        return client

    def test_any_proxy_with_these_shards_takes_it(
        self, client: Client, shards: list[LocalEtcd], start_esp: Esps
    ) -> None:
        other = Client(start_esp(shards, BOUNDARIES))
        other.tokens = client.tokens
        everything = rpc_pb2.RangeRequest(key=b"a", range_end=b"\0")
        assert isinstance(other.call("KV/Range", everything, "bob"), Message)
        fewer = Client(start_esp(shards[:1]))  # names it s0, as the others do
        assert isinstance(fewer.call("KV/Range", everything, token=client.tokens["bob"]), Message)

    def test_one_that_is_not_of_all_shards_is_none_anywhere(self, client: Client) -> None:
        parts = split(client.tokens["root"].encode())
        assert parts is not None
        tokens = {name: part.decode() for name, part in parts.items()}
        without_one = join({name: token for name, token in tokens.items() if name != "s2"})
        of_one = tokens["s0"]
        for token in (without_one, of_one, client.tokens["root"][:-1], "x"):
            for key, end in ((b"a", b""), (b"z", b""), (b"a", b"z")):
                request = rpc_pb2.RangeRequest(key=key, range_end=end)
                for field in ("token", "authorization"):
                    refused = client.call("KV/Range", request, token=token, field=field)
                    assert refused == ("UNAUTHENTICATED", errors.INVALID_AUTH_TOKEN.message)
        with_another = join({**tokens, "later": "x"})
        assert isinstance(client.call("KV/Range", request, token=with_another), Message)

    def test_with_the_name_of_a_shard_its_part_and_its_own_token_go_there(self, client: Client) -> None:
        parts = split(client.tokens["root"].encode())
        assert parts is not None
        for token in (client.tokens["root"], parts["s1"].decode()):
            metadata = [("token", token), ("esp-shard", "s1")]
            request = rpc_pb2.RangeRequest(key=b"k")
            assert client.stubs["KV"].Range(request, metadata=metadata).header.revision
            with pytest.raises(grpc.RpcError, match="invalid auth token"):
                client.stubs["KV"].Range(request, metadata=[("token", parts["s0"].decode()), ("esp-shard", "s1")])

    def test_a_stale_part_of_it_is_refused_before_anything_is_deleted(self, client: Client) -> None:
        for key in (b"a", b"k", b"z"):
            assert isinstance(client.call("KV/Put", rpc_pb2.PutRequest(key=key), "root"), Message)
        parts = split(client.tokens["root"].encode())
        assert parts is not None
        stale = join({**{name: part.decode() for name, part in parts.items()}, "s2": "gone.1"})
        request = rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"\0")
        refused = ("UNAUTHENTICATED", errors.INVALID_AUTH_TOKEN.message)
        assert client.call("KV/DeleteRange", request, token=stale) == refused
        assert client.call("Auth/UserAdd", rpc_pb2.AuthUserAddRequest(name="x", password="x"), token=stale) == refused
        assert client.call("KV/DeleteRange", request, "root").deleted == 3
        assert isinstance(client.auth("UserAdd", name="x", password="x"), Message)

    def test_what_goes_to_all_shards_at_once_goes_with_each_ones_part(self, client: Client) -> None:
        for key in (b"a", b"k", b"z"):
            client.call("KV/Put", rpc_pb2.PutRequest(key=key), "root")
        everything = rpc_pb2.RangeRequest(key=b"a", range_end=b"\0")
        revision = client.call("KV/Range", everything, "root").header.revision
        for path, request in (
            ("KV/Compact", rpc_pb2.CompactionRequest(revision=revision)),
            ("Maintenance/Status", rpc_pb2.StatusRequest()),
            ("Maintenance/Alarm", rpc_pb2.AlarmRequest()),
            ("Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest()),
        ):
            answer = client.call(path, request, "root")
            assert isinstance(answer, Message), (path, answer)
        lease = client.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=600), "alice")
        client.call("KV/Put", rpc_pb2.PutRequest(key=b"k", lease=lease.ID), "alice")
        asked = rpc_pb2.LeaseTimeToLiveRequest(ID=lease.ID, keys=True)
        assert client.call("Lease/LeaseTimeToLive", asked, "alice").keys == [b"k"]
        keepalive = iter([rpc_pb2.LeaseKeepAliveRequest(ID=lease.ID)])
        metadata = [("token", client.tokens["alice"])]
        assert [answer.TTL for answer in client.stubs["Lease"].LeaseKeepAlive(keepalive, metadata=metadata)] == [600]

    def test_two_users_read_together_what_each_may_read(self, client: Client) -> None:
        for key in (b"k1", b"k2", b"b"):
            client.call("KV/Put", rpc_pb2.PutRequest(key=key, value=key), "root")
        kv = client.stubs["KV"]
        calls = [
            (user, key, kv.Range.future(rpc_pb2.RangeRequest(key=key), metadata=[("token", client.tokens[user])]))
            for _ in range(50)
            for user in ("alice", "bob", "root")
            for key in (b"k1", b"k2", b"b")
        ]
        for user, key, call in calls:
            if (user, key) == ("alice", b"b"):
                assert call.exception().code() == grpc.StatusCode.PERMISSION_DENIED
            else:
                assert [row.value for row in call.result().kvs] == [key]

    def test_a_token_longer_than_a_request_can_carry_is_not_given(
        self, start_etcd: Etcds, start_esp: Esps, tmp_path: Path
    ) -> None:
        shards = start_etcd.several(3, QUICK, jwt_flag(tmp_path))
        set_up(Client(start_esp(shards, BOUNDARIES)))
        esp = start_esp(shards, BOUNDARIES, extra="limits: {max_header_list_bytes: 800}")
        code, text = Client(esp).log_in("root")
        assert code == "FAILED_PRECONDITION"
        assert text.startswith("esp: the tokens of all shards take ")
        assert "a request has room for 400; raise max_header_list_bytes" in text


class TestWhatDiffers:
    def test_auth_is_not_enabled_before_root_is_on_every_shard(self, shards: list[LocalEtcd], esp: EspProcess) -> None:
        client = Client(esp)
        client.auth("RoleAdd", name="root")
        for shard in (shards[0], shards[2]):
            Client(shard).auth("UserAdd", name="root", password="root")
            Client(shard).auth("UserGrantRole", user="root", role="root")
        assert client.auth("AuthEnable") == ("FAILED_PRECONDITION", errors.ROOT_USER_NOT_EXIST.message)
        Client(shards[1]).auth("UserAdd", name="root", password="root")
        assert client.auth("AuthEnable") == ("FAILED_PRECONDITION", errors.ROOT_ROLE_NOT_EXIST.message)
        off = (errors.AUTH_NOT_ENABLED.code.name, errors.AUTH_NOT_ENABLED.message)
        assert [Client(shard).log_in("root") for shard in shards] == [off] * 3
        Client(shards[1]).auth("UserGrantRole", user="root", role="root")
        assert isinstance(client.auth("AuthEnable"), Message)
        assert client.log_in("root") == "token"

    def test_enabling_is_finished_where_it_was_begun(self, shards: list[LocalEtcd], esp: EspProcess) -> None:
        client = Client(esp)
        client.auth("UserAdd", name="root", password="root")
        client.auth("RoleAdd", name="root")
        client.auth("UserGrantRole", user="root", role="root")
        Client(shards[0]).auth("AuthEnable")
        cure = "esp check tells how they differ, mend it at the shards themselves (esp exec SHARD -- etcdctl ...)"
        refused = (
            "FAILED_PRECONDITION",
            f"esp: authentication is not switched alike on all shards (s0 | s1, s2); {cure}",
        )
        assert client.log_in("root") == refused
        assert isinstance(client.auth("AuthEnable"), Message)
        assert client.log_in("root") == "token"
        assert client.auth("AuthEnable", by="") == ("INVALID_ARGUMENT", errors.USER_EMPTY.message)

    def test_what_is_not_the_same_is_not_told(self, shards: list[LocalEtcd], esp: EspProcess) -> None:
        client, apart = Client(esp), Client(shards[1])
        client.auth("UserAdd", name="ann", password="ann")
        client.auth("RoleAdd", name="reader")
        apart.auth("UserAdd", name="bob", password="bob")
        apart.auth("RoleAdd", name="writer")
        apart.auth("RoleGrantPermission", name="reader", perm=permission("a"))
        apart.auth("UserGrantRole", user="ann", role="reader")
        for answer, what in (
            (client.auth("UserList"), "there are not the same users on all shards (s0, s2 | s1)"),
            (client.auth("RoleList"), "there are not the same roles on all shards (s0, s2 | s1)"),
            (client.auth("UserGet", name="ann"), 'the user "ann" is not the same on all shards (s0, s2 | s1)'),
            (client.auth("UserGet", name="bob"), 'the user "bob" is not the same on all shards (s0, s2 | s1)'),
            (client.auth("RoleGet", role="reader"), 'the role "reader" is not the same on all shards (s0, s2 | s1)'),
        ):
            assert answer[0] == "FAILED_PRECONDITION"
            assert answer[1].startswith(f"esp: {what}; ")

    def test_a_change_is_made_to_the_last_shard_and_the_first_error_told(
        self, shards: list[LocalEtcd], esp: EspProcess
    ) -> None:
        client = Client(esp)
        Client(shards[0]).auth("UserAdd", name="ann", password="ann")
        exists = ("FAILED_PRECONDITION", "etcdserver: user name already exists")
        assert client.auth("UserAdd", name="ann", password="ann") == exists
        assert client.auth("UserList").users == ["ann"]

    def test_a_grant_of_nothing_crashes_no_shard(self, shards: list[LocalEtcd], esp: EspProcess) -> None:
        client = Client(esp)
        client.auth("RoleAdd", name="reader")
        refused = (errors.PERMISSION_NOT_GIVEN.code.name, errors.PERMISSION_NOT_GIVEN.message)
        assert client.auth("RoleGrantPermission", name="reader") == refused
        assert isinstance(client.auth("RoleGet", role="reader"), Message)

    def test_nothing_is_changed_while_a_shard_is_away(self, shards: list[LocalEtcd], esp: EspProcess) -> None:
        client = Client(esp)
        shards[2].kill()
        code, _ = client.auth("UserAdd", name="ann", password="ann")
        assert code == "UNAVAILABLE"
        assert not Client(shards[0]).auth("UserList").users


class TestStockClients:
    def test_etcdctl_with_a_user(self, esp: EspProcess, etcdctl: Etcdctl) -> None:
        for command in (
            "user add root:secret",
            "role add root",
            "user grant-role root root",
            "user add ann:pass",
            "role add middle",
            "role grant-permission middle readwrite c t",
            "user grant-role ann middle",
            "auth enable",
        ):
            etcdctl(esp, *command.split())
        root, ann = "--user=root:secret", "--user=ann:pass"
        status = etcdctl(esp, root, "auth", "status", check=False)
        assert "Authentication Status: true" in status.stdout or "unknown method AuthStatus" in status.stderr  # 3.4
        assert etcdctl(esp, root, "user", "list").stdout.split() == ["ann", "root"]
        for key in ("d", "k", "s"):
            assert etcdctl(esp, ann, "put", key, "v").stdout == "OK\n"
        assert "permission denied" in etcdctl(esp, ann, "put", "a", "v", check=False).stderr
        assert etcdctl(esp, ann, "get", "c", "t", "--keys-only").stdout.split() == ["d", "k", "s"]
        assert "permission denied" in etcdctl(esp, ann, "get", "c", "u", check=False).stderr
        assert "permission denied" in etcdctl(esp, ann, "del", "c", "u", check=False).stderr
        assert etcdctl(esp, ann, "del", "c", "t").stdout == "3\n"
        assert "user name is empty" in etcdctl(esp, "get", "c", check=False).stderr
        assert "authentication failed" in etcdctl(esp, "--user=ann:wrong", "get", "c", check=False).stderr
        lease = etcdctl(esp, ann, "lease", "grant", "60").stdout.split()[1]
        assert etcdctl(esp, ann, "put", "k", "v", f"--lease={lease}").stdout == "OK\n"
        assert "TTL(60)" in etcdctl(esp, ann, "lease", "keep-alive", "--once", lease).stdout
        assert "revoked" in etcdctl(esp, ann, "lease", "revoke", lease).stdout
        etcdctl(esp, root, "auth", "disable")
        assert etcdctl(esp, "put", "a", "v").stdout == "OK\n"


class TestEspsOwnUser:
    @pytest.fixture
    def own(self, tmp_path: Path) -> str:
        """What a config says of it."""
        (tmp_path / "password").write_text("esp's secret\n")
        return "auth: {user: esp, password_file: password}"

    def test_check_tells_what_differs_and_esps_own_user_sees_it(
        self, shards: list[LocalEtcd], start_esp: Esps, own: str
    ) -> None:
        esp = start_esp(shards, BOUNDARIES, extra=own)
        client = Client(esp)
        code, report = check(esp)
        assert (code, report["problems"], of_auth(report)) == (0, [], [])
        client.auth("UserAdd", name="esp", password="esp's secret")
        client.auth("RoleAdd", name="root")
        client.auth("UserGrantRole", user="esp", role="root")
        set_up(client)
        code, report = check(esp)
        assert (code, report["problems"], of_auth(report)) == (0, [], [])
        apart = Client(shards[1])
        assert apart.log_in("root") == "token"
        apart.auth("UserRevokeRole", name="bob", role="bob")
        apart.auth("RoleGrantPermission", name="alice", perm=permission("x", "y", READ))
        code, report = check(esp)
        assert code == 1
        assert [(problem["kind"], problem["text"]) for problem in report["problems"]] == [
            ("accounts", 'the user "bob" is not the same (s0, s2: roles bob; s1: roles none)'),
            ("accounts", 'the role "alice" is not the same (s0, s2: nothing more; s1: read ["x", "y"))'),
        ]
        apart.auth("AuthDisable")
        code, report = check(esp)
        assert code == 1
        text = "auth is on at s0, s2 and off at s1: clients cannot authenticate; "
        assert report["problems"][0]["text"].startswith(text)

    def test_check_without_a_user_says_that_it_needs_one(self, shards: list[LocalEtcd], esp: EspProcess) -> None:
        set_up(Client(esp))
        code, report = check(esp)
        assert (code, report["problems"]) == (0, [])
        told = "does not tell its users and roles: etcdserver: user name is empty; give esp a user"
        shown = [note["shards"] for note in report["notes"] if note["text"].startswith(told)]
        assert shown == [["s0"], ["s1"], ["s2"]]

    def test_a_wrong_password_is_told_without_it(
        self, shards: list[LocalEtcd], start_esp: Esps, own: str, tmp_path: Path
    ) -> None:
        esp = start_esp(shards, BOUNDARIES, extra=own)
        client = Client(esp)
        client.auth("UserAdd", name="esp", password="another")
        set_up(client)
        code, report = check(esp)
        assert code == 1
        told = 'esp cannot authenticate: as "esp": etcdserver: authentication failed, invalid user ID or password'
        assert told in [problem["text"] for problem in report["problems"]]
        assert "esp's secret" not in json.dumps(report) + esp.log()

    def test_leases_that_a_shard_missed_are_granted_though_the_clients_token_has_ended(
        self, start_durable_etcd: Etcds, start_esp: Esps, own: str
    ) -> None:
        shards = start_durable_etcd.several(3, QUICK)
        esp = start_esp(shards, BOUNDARIES, extra=own)
        client = Client(esp)
        client.auth("UserAdd", name="esp", password="esp's secret")
        client.auth("RoleAdd", name="root")
        client.auth("UserGrantRole", user="esp", role="root")
        set_up(client)
        shards[2].kill()
        ended = with_part(client.tokens["alice"], "s2", "ended.1")
        lease = client.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=600), token=ended)
        assert isinstance(lease, Message), lease
        shards[2].start()
        own_user = Client(shards[2])

        def has_it() -> bool:
            if own_user.log_in("root") != "token":
                return False
            answer = own_user.call("Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=lease.ID), "root")
            return isinstance(answer, Message) and answer.TTL > 0

        wait_until(has_it)

    def test_revocations_are_finished_by_a_shard_that_knows_no_token_any_more(
        self, start_durable_etcd: Etcds, start_esp: Esps, own: str
    ) -> None:
        """Simple tokens are in the memory of a member, which has started anew; some are found again in its log, so the
        client's is another here. A client's own revocation needs its permission where there are keys; there the lease
        is left to its TTL, and the log says so."""
        shards = start_durable_etcd.several(3, QUICK)
        esp = start_esp(shards, BOUNDARIES, extra=own)
        client = Client(esp)
        client.auth("UserAdd", name="esp", password="esp's secret")
        client.auth("RoleAdd", name="root")
        client.auth("UserGrantRole", user="esp", role="root")
        set_up(client)

        def grant(key: bytes) -> int:
            lease = client.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=600), "alice").ID
            if key:
                put = rpc_pb2.PutRequest(key=key, lease=lease)
                assert isinstance(client.call("KV/Put", put, "alice"), Message)
            return lease

        empty, full, ended = grant(b""), grant(b"j"), grant(b"k")
        first = Client(shards[0])
        first.log_in("root")
        first.call("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=ended), "root")
        shards[1].kill()
        token = with_part(client.tokens["alice"], "s1", "ended.1")
        for lease in (empty, full):
            request = rpc_pb2.LeaseRevokeRequest(ID=lease)
            assert client.call("Lease/LeaseRevoke", request, token=token)[0] == "UNAVAILABLE"
        asked = iter([rpc_pb2.LeaseKeepAliveRequest(ID=ended)])
        alive = client.stubs["Lease"].LeaseKeepAlive(asked, metadata=[("token", token)], timeout=30)
        assert [answer.TTL for answer in alive] == [0]
        shards[1].start()
        direct = Client(shards[1])

        def left() -> list[int]:
            if direct.log_in("root") != "token":
                return []
            answer = direct.call("Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest(), "root")
            return [lease.ID for lease in answer.leases] if isinstance(answer, Message) else []

        wait_until(lambda: left() == [full])
        wait_until(lambda: f"shard s1: lease {full:x} cannot be repaired: etcdserver: invalid auth token" in esp.log())

    def test_lease_sync_asks_as_esps_own_user(self, shards: list[LocalEtcd], start_esp: Esps, own: str) -> None:
        esp = start_esp(shards, BOUNDARIES, extra=own)
        client = Client(esp)
        client.auth("UserAdd", name="esp", password="esp's secret")
        client.auth("RoleAdd", name="root")
        client.auth("UserGrantRole", user="esp", role="root")
        set_up(client)
        lease = client.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=600), "alice")
        client.call("KV/Put", rpc_pb2.PutRequest(key=b"k", lease=lease.ID), "alice")
        done = command(esp, "lease-sync", "-o", "json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["leases"] == 1


def with_part(token: str, shard: str, part: str) -> str:
    """A composite token with another part for a shard."""
    parts = split(token.encode())
    assert parts is not None
    return join({**{name: value.decode() for name, value in parts.items()}, shard: part})


def command(esp: EspProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`esp` with the config of a running one."""
    assert esp.config is not None
    return subprocess.run(
        [sys.executable, "-m", "esp", *arguments, "-c", str(esp.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check(esp: EspProcess) -> tuple[int, Any]:
    done = command(esp, "check", "-o", "json")
    return done.returncode, json.loads(done.stdout)


def of_auth(report: Any) -> list[Any]:
    """The notes on auth; others are on the shards of these tests."""
    return [note for note in report["notes"] if note["kind"] == "auth"]


class TestWatches:
    def test_one_that_runs_when_auth_is_enabled_goes_on_and_a_new_one_needs_a_user(
        self, shards: list[LocalEtcd], esp: EspProcess
    ) -> None:
        client = Client(esp)
        with watching(client, "a", "\0") as events, watching(client, "k", "l") as inside:
            assert next(events).created
            assert next(inside).created
            set_up(client)
            for key in (b"b", b"k", b"z"):
                assert isinstance(client.call("KV/Put", rpc_pb2.PutRequest(key=key), "root"), Message)
            seen = sorted(event.kv.key for _ in range(3) for event in next(events).events)
            assert seen == [b"b", b"k", b"z"]
            assert next(inside).events[0].kv.key == b"k"
            for key, end in (("k", "l"), ("a", "\0")):
                with watching(client, key, end) as refused:
                    answer = next(refused)
                    assert (answer.created, answer.canceled) == (True, True)
                    assert answer.cancel_reason == reason_at(shards[1])

    def test_each_user_sees_what_it_may_read(self, esp: EspProcess) -> None:
        client = Client(esp)
        set_up(client)
        denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        for user, key, end, allowed in (
            ("root", "a", "\0", True),
            ("bob", "a", "\0", True),
            ("alice", "a", "\0", False),
            ("alice", "c", "m", True),
            ("alice", "c", "n", False),
        ):
            with watching(client, key, end, user) as answers:
                answer = next(answers)
                assert (answer.created, answer.canceled) == (True, not allowed), (user, key, end)
                assert answer.cancel_reason == ("" if allowed else denied)

    def test_a_stale_token_is_refused_with_etcds_words(self, shards: list[LocalEtcd], esp: EspProcess) -> None:
        client = Client(esp)
        set_up(client)
        client.tokens["stale"] = "x.1"
        for key, end in (("k", "l"), ("a", "\0")):
            with watching(client, key, end, "stale") as answers:
                answer = next(answers)
                assert answer.canceled
                assert answer.cancel_reason == reason_at(shards[1], "x.1")


def reason_at(shard: LocalEtcd, token: str = "") -> str:
    """Why a shard itself refuses a watch with this token; its words depend on its version."""
    client = Client(shard)
    if token:
        client.tokens["it"] = token
    with watching(client, "k", "l", "it") as answers:
        return next(answers).cancel_reason


@contextmanager
def watching(
    client: Client, key: str | bytes, end: str | bytes, user: str = ""
) -> Iterator[Iterator[rpc_pb2.WatchResponse]]:
    """The responses to a watch of a range."""
    requests: SimpleQueue[rpc_pb2.WatchRequest | None] = SimpleQueue()
    keys = [each.encode() if isinstance(each, str) else each for each in (key, end)]
    create = rpc_pb2.WatchCreateRequest(key=keys[0], range_end=keys[1])
    requests.put(rpc_pb2.WatchRequest(create_request=create))
    token = client.tokens.get(user)
    metadata = [] if token is None else [("token", token)]
    watch = rpc_pb2_grpc.WatchStub(client.channel).Watch
    answers = watch(iter(requests.get, None), metadata=metadata, timeout=60)
    try:
        yield answers
    finally:
        answers.cancel()
        requests.put(None)


def test_locks_and_elections_are_for_those_who_may_write_their_keys(esp: EspProcess, start_etcd: Etcds) -> None:
    def outcomes(client: Client) -> Iterator[Any]:
        for user in ("root", "alice", "bob", "", "wrong"):
            token = "wrong" if user == "wrong" else None
            for name in (b"d", b"x"):
                locked = client.call("Lock/Lock", v3lock_pb2.LockRequest(name=name), user, token=token)
                yield user, name, "locked" if isinstance(locked, Message) else locked
                if isinstance(locked, Message):
                    client.call("Lock/Unlock", v3lock_pb2.UnlockRequest(key=locked.key), user)
                asked = v3election_pb2.LeaderRequest(name=name)
                yield user, name, client.call("Election/Leader", asked, user, token=token)

    said = []
    for server in (esp, start_etcd(QUICK)):
        client = Client(server)
        set_up(client)
        said.append(list(outcomes(client)))
        client.channel.close()
    assert said[0] == said[1]
    assert ("alice", b"d", "locked") in said[0]
