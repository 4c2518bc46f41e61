"""`esp check` and the members of real clusters: missing, dead, frozen, added; clocks, quotas, certificates, leases."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from esp.core.config import load
from esp.core.health import examine
from esp.core.local import LocalEtcd
from esp.core.local_tls import Authority
from esp.core.pb import rpc_pb2
from esp.core.tls_files import Files
from tests.commands.test_check import check, check_json
from tests.harness import Etcds, connect, wait_ready, wait_until, write_config
from tests.harness import frozen as harness_frozen
from tests.stubs import rpc_pb2_grpc


@pytest.fixture(scope="module")
def members(module_etcds: Etcds) -> list[LocalEtcd]:
    return module_etcds.members(3)


@pytest.fixture
def frozen(members: list[LocalEtcd]) -> Iterator[LocalEtcd]:
    with harness_frozen(members[2]):
        yield members[2]
    wait_ready(members[2])


@pytest.fixture
def killed(members: list[LocalEtcd]) -> Iterator[LocalEtcd]:
    members[2].kill()
    yield members[2]
    members[2].start()
    wait_ready(members[2])


def problems_of(told: dict[str, object], kind: str) -> list[str]:
    return [f["text"] for f in told["problems"] if f["kind"] == kind]  # type: ignore[attr-defined]


def notes_of(told: dict[str, object], kind: str) -> list[str]:
    return [f["text"] for f in told["notes"] if f["kind"] == kind]  # type: ignore[attr-defined]


def kinds(config: Path) -> list[str]:
    return [one["kind"] for one in check_json(config)[1]["problems"]]


class TestMembers:
    def test_a_member_that_is_no_endpoint_and_lives(self, members: list[LocalEtcd], tmp_path: Path) -> None:
        code, told = check_json(write_config(tmp_path / "two.yaml", [members[:2]], []))
        (unlisted,) = told["shards"][0]["unlisted_members"]
        assert unlisted["alive"]
        assert (unlisted["name"], unlisted["client_urls"]) == (members[2].name, [members[2].endpoint])
        (note,) = notes_of(told, "unlisted-member")
        assert note.startswith(f"member {members[2].name} (")
        assert f"lives at {members[2].endpoint} and is not" in note
        assert (code, told["problems"]) == (0, [])

    def test_a_member_that_is_no_endpoint_and_dead(
        self, members: list[LocalEtcd], killed: LocalEtcd, tmp_path: Path
    ) -> None:
        config = write_config(tmp_path / "two.yaml", [members[:2]], [])
        wait_until(lambda: kinds(config) == ["dead-member"])  # the others may have to elect a leader first
        code, told = check_json(config)
        assert code == 1
        assert f"does not answer at {killed.endpoint}: connection refused" in told["problems"][0]["text"]
        assert told["shards"][0]["state"] == "up"

    def test_a_dead_endpoint_is_told_once(self, members: list[LocalEtcd], killed: LocalEtcd, tmp_path: Path) -> None:
        config = write_config(tmp_path / "three.yaml", [members], [])
        wait_until(lambda: kinds(config) == ["unreachable"])
        _, told = check_json(config)
        assert told["shards"][0]["unlisted_members"] == []
        assert told["shards"][0]["state"] == "degraded"

    def test_a_frozen_member(self, members: list[LocalEtcd], frozen: LocalEtcd, tmp_path: Path) -> None:
        config = write_config(tmp_path / "three.yaml", [members], [], "limits: {connect_timeout: 0.3}")
        wait_until(lambda: kinds(config) == ["unreachable"])
        code, out, _ = check("-c", config)
        assert code == 1
        assert out.startswith(
            'shard s0 degraded: keys ["", end) can be read and written, through 2 of 3 endpoints\n\nProblems:\n'
            f'  shard "s0", {frozen.endpoint}: cannot be reached: it accepts connections, but says nothing within '
            "0.3 s; it is frozen (stopped, swapping, a dead disk), or no etcd\n"
        )

    def test_a_learner_among_the_endpoints_and_beside_them(self, start_etcd: Etcds, tmp_path: Path) -> None:
        voter = start_etcd(name="voter")
        learner = start_etcd.learner_of(voter)
        config = write_config(tmp_path / "both.yaml", [[voter, learner]], [])
        wait_until(lambda: kinds(config) == ["learner"])  # until then it has not heard of the leader
        code, told = check_json(config)
        assert (code, told["problems"][0]["endpoint"]) == (1, learner.endpoint)
        text = "is a learner, which refuses writes and linearizable reads; promote it or take it out of the endpoints"
        assert problems_of(told, "learner") == [text]
        assert told["shards"][0]["state"] == "degraded"
        assert [one["is_learner"] for one in told["shards"][0]["endpoints"]] == [False, True]
        _, told = check_json(write_config(tmp_path / "one.yaml", [voter], []))
        (unlisted,) = told["shards"][0]["unlisted_members"]
        assert (unlisted["alive"], unlisted["is_learner"]) == (True, True)
        (note,) = notes_of(told, "unlisted-member")
        assert note.startswith("learner learner (")
        assert note.endswith("promote it first")
        _, told = check_json(write_config(tmp_path / "learner.yaml", [learner], []))
        assert (told["shards"][0]["state"], told["shards"][0]["verdict"]) == (
            "down",
            'keys ["", end) cannot be read or written: only learners answer',
        )

    def test_a_member_whose_log_is_behind(self, members: list[LocalEtcd], tmp_path: Path) -> None:
        """A follower that was stopped while the others went on: it answers before it has caught up."""
        config = write_config(tmp_path / "three.yaml", [members], [], "limits: {connect_timeout: 30}")
        told = check_json(config)[1]["shards"][0]["endpoints"]
        follower = next(member for member, here in zip(members, told, strict=True) if not here["is_leader"])
        others = [member for member in members if member is not follower]

        def lagging() -> bool:
            with ThreadPoolExecutor(1) as thread, connect(others[0]) as channel:
                with harness_frozen(follower):
                    kv = rpc_pb2_grpc.KVStub(channel)
                    put = rpc_pb2.PutRequest(key=b"a", value=bytes(4096))
                    for answer in [kv.Put.future(put) for _ in range(1500)]:
                        answer.result()
                    looked = thread.submit(check_json, config)
                    time.sleep(0.2)  # its question waits there
                code, told = looked.result()
            found = [
                (note["endpoint"], "entries behind" in note["text"])
                for note in told["notes"]
                if note["kind"] == "raft-lag"
            ]
            return (code, found) == (0, [(follower.endpoint, True)])

        wait_until(lagging)  # once more, should it have caught up before it answered

    def test_a_member_that_has_been_added_and_never_started(self, start_etcd: Etcds, tmp_path: Path) -> None:
        etcd = start_etcd()
        with connect(etcd) as channel:
            request = rpc_pb2.MemberAddRequest(peerURLs=["http://127.0.0.1:1"], isLearner=True)
            rpc_pb2_grpc.ClusterStub(channel).MemberAdd(request)
        code, told = check_json(write_config(tmp_path / "one.yaml", [etcd], []))
        assert code == 1
        (text,) = problems_of(told, "dead-member")
        assert text.startswith("learner without a name (")
        assert "has been added, and has never started" in text


class TestStrangers:
    """What is no etcd has its name, and the cure."""

    def told(self, url: str, folder: Path, extra: str = "") -> str:
        config = folder / "esp.yaml"
        config.write_text(f"shards: [{{name: s, endpoints: ['{url}'], ranges: [{{start: '', end: ''}}]}}]\n{extra}\n")
        code, told = check_json(config)
        assert (code, told["shards"][0]["state"]) == (1, "down")
        return str(told["problems"][0]["text"])

    def test_the_port_of_members(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        told = self.told(etcd.peer_url, tmp_path)
        assert "it is etcd's peer port, which is for members only; name the client URL" in told

    def test_an_http_server(self, tmp_path: Path) -> None:
        with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            told = self.told(f"http://127.0.0.1:{server.server_port}", tmp_path)
            server.shutdown()
        assert "it is an HTTP server (BaseHTTP/" in told
        assert told.endswith("and no etcd; name an etcd's client URL")

    def test_an_etcd_without_tls(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        told = self.told(etcd.endpoint.replace("http:", "https:"), tmp_path)
        assert told == f"cannot be reached: it is an etcd without TLS; write {etcd.endpoint}"


class TestMeasures:
    def test_every_endpoint_has_a_line_with_all_that_it_tells(self, members: list[LocalEtcd], tmp_path: Path) -> None:
        code, out, _ = check("-c", write_config(tmp_path / "three.yaml", [members], []), "-o", "wide")
        assert code == 0
        header, *rows = next(part for part in out.split("\n\n") if "ENDPOINT" in part).splitlines()
        names = "ALARMS|MEMBER|IN USE|QUOTA|TERM|LOG|APPLIED|P50|P99|CLOCK|CERTIFICATE ENDS"
        assert re.split(" {2,}", header.partition("LATENCY")[2].strip()) == names.split("|")
        assert [row.split()[1] for row in rows] == [member.endpoint for member in members]
        for row in rows:
            assert "  2.1 GB  " in row
            assert row.split()[-2:] == ["same", "?"]

    def test_a_clock_that_differs_is_told(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        config = load(write_config(tmp_path / "one.yaml", [etcd], []))
        for seconds, told in ((3600, "behind"), (-3600, "ahead of")):
            health = asyncio.run(examine(config, now=lambda seconds=seconds: time.time() + seconds))  # type: ignore[misc]
            (note,) = [finding.text for finding in health.notes if finding.kind == "clock"]
            assert f" s {told} this machine's" in note

    def test_a_quota_that_is_nearly_used_up(self, start_etcd: Etcds, tmp_path: Path) -> None:
        etcd = start_etcd("--quota-backend-bytes=500000")
        with connect(etcd) as channel:
            kv = rpc_pb2_grpc.KVStub(channel)

            def fill() -> None:
                for number in range(1000):
                    kv.Put(rpc_pb2.PutRequest(key=b"a%d" % number, value=bytes(10_000)))

            with pytest.raises(grpc.RpcError, match="database space exceeded"):
                fill()
        config = write_config(tmp_path / "one.yaml", [etcd], [])
        wait_until(lambda: problems_of(check_json(config)[1], "quota"))  # the size counts when etcd has committed
        code, told = check_json(config)
        assert told["shards"][0]["endpoints"][0]["db_quota"] == 500_000
        assert "of its quota of 500 kB; at 100% it takes no writes" in problems_of(told, "quota")[0]
        assert (code, told["shards"][0]["state"]) == (1, "read-only")

    def test_a_members_certificate_that_ends_soon(self, tmp_path: Path, etcd_binary: Path) -> None:
        authority = Authority()
        cert, key = authority.issue(["127.0.0.1"], life=timedelta(days=3)).write(tmp_path, "server")
        (tmp_path / "ca.crt").write_bytes(authority.cert)
        etcd = LocalEtcd("secured", tmp_path / "etcd", binary=etcd_binary, tls=Files(cert, key))
        etcd.start()
        try:
            wait_ready(etcd)
            plain = TestStrangers().told(etcd.endpoint.replace("https:", "http:"), tmp_path)
            assert plain == f"cannot be reached: it speaks TLS; write {etcd.endpoint}"
            config = write_config(tmp_path / "esp.yaml", [etcd], [], "shard_tls: {ca: ca.crt}")
            code, told = check_json(config)
        finally:
            etcd.kill()
        (endpoint,) = told["shards"][0]["endpoints"]
        assert [one for one in notes_of(told, "certificate") if one.startswith("its certificate ends on ")]
        assert endpoint["certificate_ends"] in notes_of(told, "certificate")[0]
        assert (code, endpoint["db_quota"], endpoint["clock_ahead_seconds"]["low"] < 1) == (0, 2 << 30, True)


class TestLeases:
    def test_a_lease_that_a_shard_lacks(self, empty_shards: list[LocalEtcd], tmp_path: Path) -> None:
        for etcd in empty_shards[:2]:
            with connect(etcd) as channel:
                rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=0xABC, TTL=600))
        config = write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])
        code, told = check_json(config)
        assert (code, [(f["kind"], f["shards"]) for f in told["problems"]]) == (1, [("leases", ["s2"])])
        assert "lacks 1 lease that other shards have, such as 0000000000000abc" in told["problems"][0]["text"]
        with connect(empty_shards[2]) as channel:
            rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=0xABC, TTL=600))
        assert check_json(config)[1]["problems"] == []
