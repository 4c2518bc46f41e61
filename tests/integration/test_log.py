"""The log of a real esp over real etcds: its lines of calls, and what is in no line."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from esp.core.auth_tokens import split as parts_of
from esp.core.local import LocalEtcd
from esp.core.pb import auth_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from tests.core.wire.conversation import data, headers
from tests.harness import PATIENCE, EspProcess, Esps, Etcds, connect, frozen, wait_until
from tests.integration.raw_client import RawClient, request
from tests.stubs import rpc_pb2_grpc, v3election_pb2_grpc, v3lock_pb2_grpc

EVERYTHING = "log: {level: debug, access: all, slow_seconds: 0.000001}"


def lines_of(esp: EspProcess, method: str, logger: str = "esp.access") -> list[dict[str, Any]]:
    """The JSON lines about calls of a method."""
    whole = esp.log().rpartition("\n")[0]  # the last line may be on its way
    objects = [json.loads(line) for line in whole.splitlines()]
    return [line for line in objects if line["logger"] == logger and line["method"].endswith(f"/{method}")]


class TestCalls:
    def test_every_call_has_a_line_and_each_way_of_answering_tells_its_key_when_slow(
        self, empty_shards: list[LocalEtcd], start_esp: Esps
    ) -> None:
        esp = start_esp(empty_shards, ["i", "r"], extra="log: {format: json, access: all, slow_seconds: 0.000001}")
        put, get, both = rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.RequestOp
        with connect(esp) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)
            kv.Put(put(key=b"usual", value=b"1"), metadata=[("traceparent", f"00-{'4b' * 16}-{'f0' * 8}-01")])
            kv.Range(get(key=b"joined"))
            kv.Range(get(key=b"all", range_end=b"\0"))
            kv.Range(get(key=b"some", range_end=b"\0", limit=1, sort_order=1, sort_target=4))
            kv.Range(get(key=b"gathered", range_end=b"\0", limit=1, sort_order=2, sort_target=4))
            kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"deleted", range_end=b"\0"))
            kv.Txn(rpc_pb2.TxnRequest(success=[both(request_range=get(key=key)) for key in (b"read", b"a")]))
            kv.Txn(rpc_pb2.TxnRequest(success=[both(request_put=put(key=b"written", value=b"1"))]))
            with contextlib.suppress(grpc.RpcError):
                kv.Range(get(key=b"", range_end=b""))
            watch = rpc_pb2_grpc.WatchStub(channel).Watch(iter(()))
            watch.cancel()
            body = json.dumps({"key": base64.b64encode(b"json").decode()}).encode()
            urllib.request.urlopen(f"{esp.url}/v3/kv/range", body, timeout=PATIENCE).read()
        wait_until(lambda: len(lines_of(esp, "Range")) == 6 and lines_of(esp, "Watch"))
        for method, keys in {
            "Put": ["usual"],
            "Range": ["joined", "all", "some", "gathered", None, "json"],
            "DeleteRange": ["deleted"],
            "Txn": ["read", "written"],
        }.items():
            got = [line.get("key") for line in lines_of(esp, method, "esp.slow")]
            assert got == keys, (method, got)
            assert len(lines_of(esp, method)) == len(keys)
        (usual,) = lines_of(esp, "Put")
        assert (usual["code"], usual["shard"], usual["level"]) == ("OK", "s2", "info")
        assert 0 < usual["shard_seconds"] <= usual["seconds"] < PATIENCE
        assert usual["trace"] == lines_of(esp, "Put", "esp.slow")[0]["trace"] == "4b" * 16
        assert lines_of(esp, "Range")[4]["code"] == "InvalidArgument"
        assert "shard" not in lines_of(esp, "DeleteRange")[0], "there are several"
        for method in ("DeleteRange", "Txn"):
            slow = lines_of(esp, method, "esp.slow")[0]
            assert sorted(slow["shards"]) == (["s0", "s1", "s2"] if method == "DeleteRange" else ["s0", "s2"])
            assert 0 < slow["slowest_seconds"] <= slow["shard_seconds"] <= slow["seconds"]
            assert slow["slowest_shard"] in slow["shards"]
        several = ["s0", "s1", "s2"]
        assert [line.get("shards") for line in lines_of(esp, "Range", "esp.slow")[1:4]] == [several, None, several]
        assert not lines_of(esp, "Watch", "esp.slow"), "a watch lasts as long as its client wants"

    def test_by_default_only_slow_calls_are_told_with_their_shard_and_key(
        self, start_etcd: Etcds, start_esp: Esps
    ) -> None:
        shards = start_etcd.several(2)
        esp = start_esp(shards, ["m"])
        with connect(esp) as channel:
            kv, lease = rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.LeaseStub(channel)
            kv.Put(rpc_pb2.PutRequest(key=b"a"))
            kv.Range(rpc_pb2.RangeRequest(key=b"a", range_end=b"\0"))  # the first one waits for a place
            with frozen(shards[1]):
                delete = rpc_pb2.DeleteRangeRequest(key=b"gone", range_end=b"\0")
                ordered = rpc_pb2.RangeRequest(key=b"both", range_end=b"\0", limit=9, sort_order=1, sort_target=4)
                asked = [
                    kv.Put.future(rpc_pb2.PutRequest(key=b"z\n", value=b"SECRET"), timeout=1.2),
                    kv.Range.future(rpc_pb2.RangeRequest(key=b"all", range_end=b"\0"), timeout=1.2),
                    kv.Range.future(ordered, timeout=1.2),
                    kv.DeleteRange.future(delete, timeout=1.2),
                ]
                granted = lease.LeaseGrant.future(rpc_pb2.LeaseGrantRequest(TTL=60), timeout=PATIENCE)
                for call in asked:
                    with pytest.raises(grpc.RpcError):
                        call.result()
                granted.result()  # without s1, which esp has waited for
            expected = (
                r'WARNING slow: /etcdserverpb.KV/Put "z\\x0a" of 127\.0\.0\.1:\d+ took \d+\.\d+ s, '
                r"\d+\.\d+ s at shard s1, \d+\.\d+ s in esp before: (DeadlineExceeded|Canceled)\n",
                r'slow: /etcdserverpb.KV/Range "all" of \S+ took \d+\.\d+ s, '
                r"\d+\.\d+ s at shards s0, s1 \(most at s1: \d+\.\d+ s\), \d+\.\d+ s in esp: ",
                r'slow: /etcdserverpb.KV/Range "both" of \S+ took \d+\.\d+ s, '
                r"\d+\.\d+ s at shards s0, s1 \(most at s1: \d+\.\d+ s\), \d+\.\d+ s in esp: ",
                r"slow: /etcdserverpb.Lease/LeaseGrant of \S+ took \d+\.\d+ s, "
                r"\d+\.\d+ s at shards s0, s1 \(most at s1: \d+\.\d+ s\), \d+\.\d+ s in esp: OK",
                r'slow: /etcdserverpb.KV/DeleteRange "gone" of \S+ took \d+\.\d+ s, '
                r"\d+\.\d+ s at shards s0, s1 \(most at s1: \d+\.\d+ s\), \d+\.\d+ s in esp: ",
            )
            wait_until(lambda: all(re.search(line, esp.log()) for line in expected))
        assert "SECRET" not in esp.log()

    def test_a_reload_begins_and_ends_the_access_log_on_open_connections(
        self, empty_shards: list[LocalEtcd], start_esp: Esps
    ) -> None:
        without = "log: {slow_seconds: off}"  # on a busy machine any call may be slow
        esp = start_esp(empty_shards, ["i", "r"], extra=without)
        assert esp.config
        text = esp.config.read_text()

        def reload(log: str) -> None:
            assert esp.config
            before = esp.log().count("is in force: ")
            esp.config.write_text(text.replace(without, log))
            esp.process.send_signal(signal.SIGHUP)
            wait_until(lambda: esp.log().count("is in force: ") > before)

        with connect(esp) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)

            def asks() -> None:
                kv.Put(rpc_pb2.PutRequest(key=b"a"))
                kv.Range(rpc_pb2.RangeRequest(key=b"a"))

            asks()
            reload("log: {access: all, slow_seconds: 0.000001}")
            asks()
            wait_until(lambda: "KV/Put OK" in esp.log() and "KV/Range OK" in esp.log())
            reload(without)
            asks()
        assert esp.stop() == 0
        assert len(re.findall("/etcdserverpb.KV/(?:Put|Range) OK in 0", esp.log())) == 2
        assert esp.log().count("slow: ") == 2


class TestSecrets:
    """Values, tokens and passwords are in no line of any level, in no form."""

    @pytest.fixture(params=["text", "json"])
    def esp(self, request: pytest.FixtureRequest, start_etcd: Etcds, start_esp: Esps, tmp_path: Path) -> EspProcess:
        (tmp_path / "password").write_text("password-OWN-4711")
        extra = EVERYTHING.replace("{", f"{{format: {request.param}, ")
        return start_esp(
            start_etcd.several(2, "--bcrypt-cost=4"),
            ["m"],
            extra=f"{extra}\nauth: {{user: root, password_file: password}}\nleases: tolerant",
        )

    def test_none_of_them_is_in_the_log(self, esp: EspProcess) -> None:
        secrets = Secrets()
        with connect(esp) as channel:
            tokens = self._auth(channel, secrets)
            for metadata in ([("token", tokens)], [("authorization", tokens)], [("token", secrets("token"))], []):
                self._data(channel, metadata, secrets)
            self._json(esp, tokens, secrets)
        self._raw(esp, secrets)
        self._http1(esp, secrets)
        assert esp.stop() == 0
        log = esp.log()
        for method in ("Put", "Range", "Txn", "Lock", "Campaign", "Authenticate", "UserAdd", "LeaseGrant"):
            assert re.search(rf"/{method}\b", log), f"{method} has a line, so something could have been in it"
        assert "key-of-all" in log
        assert "password-OWN-4711" not in log
        for secret in [*secrets.given, tokens, *parts_of(tokens.encode()).values()]:
            text = secret if isinstance(secret, str) else secret.decode()
            for form in (text, text[:16], base64.b64encode(text.encode()).decode()[:16], text.encode().hex()[:24]):
                assert form not in log, form

    def _auth(self, channel: grpc.Channel, secrets: Secrets) -> str:
        auth = rpc_pb2_grpc.AuthStub(channel)
        root = "password-OWN-4711"
        auth.UserAdd(rpc_pb2.AuthUserAddRequest(name="root", password=root))
        auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"))
        auth.AuthEnable(rpc_pb2.AuthEnableRequest())
        token = auth.Authenticate(rpc_pb2.AuthenticateRequest(name="root", password=root)).token
        by_root = [("token", token)]
        auth.UserAdd(rpc_pb2.AuthUserAddRequest(name="u", password=secrets("password")), metadata=by_root)
        change = rpc_pb2.AuthUserChangePasswordRequest(name="u", password=secrets("password"))
        auth.UserChangePassword(change, metadata=by_root)
        forever = auth_pb2.Permission(key=b"\0", range_end=b"\0", permType=2)  # type: ignore[arg-type]
        auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name="r"), metadata=by_root)
        auth.RoleGrantPermission(rpc_pb2.AuthRoleGrantPermissionRequest(name="r", perm=forever), metadata=by_root)
        for wrong in (
            lambda: auth.Authenticate(rpc_pb2.AuthenticateRequest(name="u", password=secrets("password"))),
            lambda: auth.UserAdd(rpc_pb2.AuthUserAddRequest(name="u", password=secrets("password")), metadata=by_root),
            lambda: auth.UserAdd(rpc_pb2.AuthUserAddRequest(name="w", password=secrets("password"))),
        ):
            with pytest.raises(grpc.RpcError):
                wrong()
        return str(token)

    def _data(self, channel: grpc.Channel, metadata: Any, secrets: Secrets) -> None:
        kv, lease = rpc_pb2_grpc.KVStub(channel), rpc_pb2_grpc.LeaseStub(channel)
        lock, election = v3lock_pb2_grpc.LockStub(channel), v3election_pb2_grpc.ElectionStub(channel)
        put, get, op = rpc_pb2.PutRequest, rpc_pb2.RangeRequest, rpc_pb2.RequestOp
        value = secrets.value

        def writes() -> Iterator[rpc_pb2.RequestOp]:
            for key in (b"key-a", b"key-b"):
                yield op(request_put=put(key=key, value=value()))

        compare = rpc_pb2.Compare(result=0, target=3, key=b"key-a", value=value())  # type: ignore[arg-type]
        for ask in (
            lambda: kv.Put(put(key=b"key-a", value=value()), metadata=metadata),
            lambda: kv.Put(put(key=b"key-z", value=value() * 10_000), metadata=metadata),
            lambda: kv.Put(put(key=b"key-z", value=value(), lease=5), metadata=metadata),
            lambda: kv.Put(put(value=value()), metadata=metadata),
            lambda: kv.Put(put(key=b"key-z", value=value() * 100_000), metadata=metadata),
            lambda: kv.Txn(rpc_pb2.TxnRequest(compare=[compare], success=list(writes())), metadata=metadata),
            lambda: kv.Txn(rpc_pb2.TxnRequest(success=[*writes(), *writes()]), metadata=metadata),
            lambda: kv.Txn(
                rpc_pb2.TxnRequest(success=[*writes(), op(request_put=put(key=b"z", value=value()))]), metadata=metadata
            ),
            lambda: kv.Range(get(key=b"key-a"), metadata=metadata),
            lambda: kv.Range(get(key=b"key-of-all", range_end=b"\0"), metadata=metadata),
            lambda: kv.DeleteRange(
                rpc_pb2.DeleteRangeRequest(key=b"key", range_end=b"\0", prev_kv=True), metadata=metadata
            ),
            lambda: lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(TTL=60, ID=4711), metadata=metadata),
            lambda: lease.LeaseTimeToLive(rpc_pb2.LeaseTimeToLiveRequest(ID=4711, keys=True), metadata=metadata),
            lambda: next(lease.LeaseKeepAlive(iter([rpc_pb2.LeaseKeepAliveRequest(ID=4711)]), metadata=metadata)),
            lambda: lock.Lock(v3lock_pb2.LockRequest(name=b"lock"), metadata=metadata),
            lambda: election.Campaign(
                v3election_pb2.CampaignRequest(name=b"vote", value=value(), lease=4711), metadata=metadata
            ),
            lambda: election.Leader(v3election_pb2.LeaderRequest(name=b"vote"), metadata=metadata),
        ):
            with contextlib.suppress(grpc.RpcError):
                ask()
        created = rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=1, prev_kv=True)
        watch = rpc_pb2_grpc.WatchStub(channel).Watch(
            iter([rpc_pb2.WatchRequest(create_request=created)]), metadata=metadata
        )
        with contextlib.suppress(grpc.RpcError, StopIteration):
            next(watch)
        watch.cancel()

    def _json(self, esp: EspProcess, token: str, secrets: Secrets) -> None:
        key, value = base64.b64encode(b"json").decode(), base64.b64encode(secrets.value()).decode()
        good = json.dumps({"key": key, "value": value})
        for path, body in (
            ("kv/put", good),
            ("kv/put", good[:-5]),
            ("kv/put", good.replace('"key"', f'"{secrets("field")}"')),
            ("kv/put", json.dumps({"key": key, "value": secrets("not base64 ")})),
            ("kv/put", json.dumps({"key": key, "lease": secrets("number")})),
            ("auth/authenticate", json.dumps({"name": "u", "password": secrets("password")})),
            ("auth/authenticate", json.dumps({"name": "u", "password": {secrets("password"): 1}})),
            (f"kv/put?{secrets('query')}=1", good),
        ):
            for header in ({"Authorization": token}, {"Authorization": f"Bearer {secrets('bearer')}"}):
                asked = urllib.request.Request(f"{esp.url}/v3/{path}", body.encode(), header)
                with contextlib.suppress(urllib.error.HTTPError):
                    urllib.request.urlopen(asked, timeout=PATIENCE).read()

    def _raw(self, esp: EspProcess, secrets: Secrets) -> None:
        """Requests that break the rules with a secret in them."""
        for name, value in ((b"token", b"\0"), (b"Token", b""), (b"authorization", b"\n"), (b"to ken", b"")):
            with RawClient(esp) as client:
                field = (name, secrets("header").encode() + value)
                client.socket.sendall(headers(1, request(b"/etcdserverpb.KV/Put", extra=[field]), end=False))
                client.socket.sendall(data(1, b"\0\0\0\0\5" + secrets.value(), end=True))
                client.socket.sendall(data(3, secrets.value(), end=True))
                with contextlib.suppress(OSError):
                    while client.socket.recv(65536):
                        pass

    def _http1(self, esp: EspProcess, secrets: Secrets) -> None:
        """The same over HTTP/1.1, and what is no HTTP at all."""
        good = "POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n"
        for said in (
            f"{good}Authorization: Bearer {secrets('bearer')}\0\r\n\r\n",
            f"{good}{secrets('name')} : x\r\n\r\n",
            f"{good}{secrets('name')}\r\n\r\n",
            f"{good} {secrets('folded')}\r\n\r\n",
            f"{good}\r\n{secrets('body')}\xff\xfe",
            f"{good}Content-Length: {secrets('size')}\r\n\r\n",
            f"{good}Transfer-Encoding: {secrets('coding')}\r\n\r\n",
            f"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{secrets('chunk')}\r\n",
            f"POST /v3/{secrets('path')} HTTP/9\r\n\r\n",
            f"{secrets('method')} /v3/kv/put HTTP/1.1\r\nHost: {secrets('host')}\r\n\r\n",
            f"{secrets('nonsense')}\r\n\r\n",
            f"PROXY TCP4 {secrets('proxy')}\r\n",
        ):
            with socket.create_connection(("127.0.0.1", esp.port), timeout=PATIENCE) as client:
                client.sendall(said.encode("latin-1"))
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    while client.recv(65536):
                        pass


class Secrets:
    """Texts that no line may have, each another one."""

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self, what: str) -> str:
        self.given.append(f"{what}-{len(self.given):04}-SECRET-{len(self.given):08x}")
        # The beginning would be the same in each, and in the log perhaps for another reason.
        self.given[-1] = self.given[-1][::-1]
        return self.given[-1]

    def value(self) -> bytes:
        return self("value").encode()
