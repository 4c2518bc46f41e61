from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.commands.check_json import subject_of
from esp.commands.check_text import page_of
from esp.commands.rendered import UNBOUNDED, Look
from esp.core.config import load, parse
from esp.core.health.facts import Alarm, EndpointHealth, Finding, Health, Kind, Member, ShardHealth
from esp.core.local import LocalEtcd, free_port
from esp.core.local_tls import Authority
from esp.core.pb import rpc_pb2
from esp.core.wording import cured
from tests.harness import Etcds, connect, etcd34, peer, unknown, wait_until, write_config
from tests.stubs import rpc_pb2_grpc


def check(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def check_json(config: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = check("-c", config, "-o", "json", *arguments)
    return code, json.loads(out)


def still(text: str, *etcds: LocalEtcd) -> str:
    """The output without what differs from run to run: addresses become E0, E1..., numbers N, column widths go."""
    for number, etcd in enumerate(etcds):
        text = text.replace(etcd.endpoint, f"E{number}")
    text = re.sub(r"\b\d+\.\d+\.\d+\b", "VERSION", text)
    text = re.sub(r"\b[\d.]+ (kB|MB|ms)", r"N \1", text)
    text = re.sub(r"\b[0-9a-f]{14,16}\b", "ID", text)
    text = re.sub(r"\n  shards? [^\n]*, which may lose acknowledged writes [^\n]*", "", text)  # the tests' own etcd
    return re.sub(r"(?<=\S) {2,}", "  ", text)


def leaders(out: str) -> list[str]:
    """The column LEADER, of one shard."""
    return [line.split()[2] for line in out.splitlines() if line.startswith("s0 ") and "http" in line]


def json_kinds(findings: list[dict[str, Any]]) -> list[tuple[str, list[str], str | None]]:
    return [(finding["kind"], finding["shards"], finding["endpoint"]) for finding in findings]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESP_CONFIG", raising=False)


@pytest.fixture(scope="module")
def members(module_etcds: Etcds) -> list[LocalEtcd]:
    return module_etcds.members(3)


class TestHealthy:
    @pytest.mark.parametrize("generation", ["etcd", "etcd37", "etcd34"])
    def test_every_endpoint_is_listed_and_the_map(
        self, start_etcd: Etcds, tmp_path: Path, etcd_binary: Path, generation: str
    ) -> None:
        binary = {"etcd": lambda: etcd_binary, "etcd37": lambda: peer("etcd"), "etcd34": etcd34}[generation]()
        shards = start_etcd.several(3, binary=binary)
        config = write_config(tmp_path / "esp.yaml", shards, ["i", "r"])
        code, out, err = check()
        assert config.name == "esp.yaml"
        assert (code, err) == (0, "")
        expected = """\
shard s0 up: keys ["", "i") can be read and written
shard s1 up: keys ["i", "r") can be read and written
shard s2 up: keys ["r", end) can be read and written

Notes:
  shards "s0", "s1", "s2": have one endpoint each: while that is down, so are its keys

SHARD  ENDPOINT  LEADER  VERSION  DB SIZE  REVISION  LATENCY
s0  E0  yes  VERSION  N kB  1  N ms
s1  E1  yes  VERSION  N kB  1  N ms
s2  E2  yes  VERSION  N kB  1  N ms

Healthy: 3 shards, 3 endpoints.
"""
        assert still(out, *shards) == expected

    def test_json_tells_exactly_what_the_member_tells(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        code, told = check_json(write_config(tmp_path / "one.yaml", [etcd], []))
        with connect(etcd) as channel:
            status = rpc_pb2_grpc.MaintenanceStub(channel).Status(rpc_pb2.StatusRequest())
        (shard,) = told.pop("shards")
        (endpoint,) = shard.pop("endpoints")
        assert endpoint.pop("latency_seconds") > 0
        assert endpoint["round_trips"].pop("p50_seconds") <= endpoint["round_trips"].pop("p99_seconds")
        assert endpoint["round_trips"].pop("count") >= 1
        assert 0 < endpoint.pop("raft_applied_index") <= endpoint.pop("raft_index") <= status.raftIndex
        clock = endpoint.pop("clock_ahead_seconds")
        assert clock["low"] < 0 < clock["high"]
        assert endpoint == {
            "endpoint": etcd.endpoint,
            "reachable": True,
            "error": None,
            "cluster_id": f"{status.header.cluster_id:x}",
            "member_id": f"{status.header.member_id:x}",
            "leader_id": f"{status.leader:x}",
            "is_leader": True,
            "is_learner": False,
            "version": status.version,
            "db_size": status.dbSize,
            "revision": status.header.revision,
            "alarms": [],
            "errors": [],
            "db_size_in_use": status.dbSizeInUse,
            "db_quota": 2 << 30,
            "raft_term": status.raftTerm,
            "round_trips": {},
            "certificate_ends": None,
        }
        assert shard == {
            "name": "s0",
            "state": "up",
            "verdict": 'keys ["", end) can be read and written',
            "ranges": [{"start": {"text": "", "base64": ""}, "end": None}],
            "unlisted_members": [],
            "keys": None,
        }
        notes = json_kinds(told.pop("notes"))
        assert notes[0] == ("single-endpoint", ["s0"], None)
        assert {kind for kind, _, _ in notes[1:]} <= {"lossy-version"}
        assert told == {
            "healthy": True,
            "config": str(tmp_path / "one.yaml"),
            "namespace": None,
            "map": load(tmp_path / "one.yaml").shard_map.fingerprint,
            "proxies": None,
            "problems": [],
        }
        assert code == 0

    def test_a_shard_that_owns_several_ranges_is_shown_with_each(self, shards: list[LocalEtcd], tmp_path: Path) -> None:
        config = tmp_path / "carved.yaml"
        config.write_text(
            "shards:\n"
            f"  - {{name: all, endpoints: [{shards[0].endpoint}], ranges: [{{start: '', end: ''}}]}}\n"
            f"  - {{name: events, endpoints: [{shards[1].endpoint}], ranges: [{{prefix: /events/}}]}}\n"
        )
        _, out, _ = check("-c", config)
        assert out.startswith(
            'shard all up: keys ["", "/events/") and ["/events0", end) can be read and written\n'
            'shard events up: keys ["/events/", "/events0") can be read and written\n\n'
        )
        _, out, _ = check("-c", config, "-o", "wide")
        assert (
            'SHARD  KEYS\nall  ["", "/events/")\nevents  ["/events/", "/events0")\nall  ["/events0", end)\n\n'
            in still(out)
        )
        _, told = check_json(config)
        assert [len(shard["ranges"]) for shard in told["shards"]] == [2, 1]


class TestMembers:
    def test_a_namespace_is_shown_with_the_shards_that_own_its_keys(
        self, shards: list[LocalEtcd], tmp_path: Path
    ) -> None:
        config = write_config(tmp_path / "esp.yaml", shards, ["i", "ns/k"], "namespace: ns/")
        code, out, _ = check("-c", config)
        assert code == 0
        assert (
            'Namespace: clients see the keys ["ns/\\x00", "ns0"), without "ns/".\nThe shards of these keys: s1, s2.\n\n'
            in out
        )
        code, told = check_json(config)
        assert told["namespace"] == {"prefix": {"text": "ns/", "base64": "bnMv"}, "shards": ["s1", "s2"]}

    def test_of_three_members_one_leads_and_the_others_do_not(self, members: list[LocalEtcd], tmp_path: Path) -> None:
        config = write_config(tmp_path / "three.yaml", [members], [])
        code, told = check_json(config)
        endpoints = told["shards"][0]["endpoints"]
        (leader,) = [endpoint for endpoint in endpoints if endpoint["is_leader"]]
        assert {endpoint["leader_id"] for endpoint in endpoints} == {leader["member_id"]}
        assert len({endpoint["cluster_id"] for endpoint in endpoints}) == 1
        assert (code, told["problems"]) == (0, [])
        _, out, _ = check("-c", config)
        assert leaders(out) == ["yes" if endpoint["is_leader"] else "no" for endpoint in endpoints]

    def test_a_leader_that_is_not_an_endpoint_is_named_by_its_id(
        self, members: list[LocalEtcd], tmp_path: Path
    ) -> None:
        _, told = check_json(write_config(tmp_path / "three.yaml", [members], []))
        followers = [
            member
            for member, endpoint in zip(members, told["shards"][0]["endpoints"], strict=True)
            if not endpoint["is_leader"]
        ]
        _, out, _ = check("-c", write_config(tmp_path / "followers.yaml", [followers], []))
        leader_id = told["shards"][0]["endpoints"][0]["leader_id"]
        assert leaders(out) == [leader_id] * 2

    def test_endpoints_of_two_clusters_in_one_shard(
        self, members: list[LocalEtcd], etcd: LocalEtcd, tmp_path: Path
    ) -> None:
        config = write_config(tmp_path / "mixed.yaml", [[members[0], etcd]], [])
        code, told = check_json(config)
        assert code == 1
        assert json_kinds(told["problems"]) == [("several-clusters", ["s0"], None)]
        for endpoint in told["shards"][0]["endpoints"]:
            assert f"{endpoint['cluster_id']}: {endpoint['endpoint']}" in told["problems"][0]["text"]


class TestShape:
    """Rows fit into a terminal of 80 columns where names are no longer than usual."""

    CONFIG = """
shards:
  - name: shard-1
    endpoints: [http://10.0.0.11:2379, http://10.0.0.12:2379, http://10.0.0.13:2379]
    ranges: [{start: '', end: m}]
  - name: shard-2
    endpoints: [http://10.0.0.21:2379, http://10.0.0.22:2379, http://10.0.0.23:2379]
    ranges: [{start: m, end: ''}]
"""

    def rows(self, alarms: tuple[Alarm, ...] | None = (), leader: int = 0) -> list[str]:
        """The table of endpoints where shard-1 has `alarms` and its last member is of its own mind of who leads."""
        config = parse(self.CONFIG, None)
        shards = []
        for number, shard in enumerate(config.shards):
            endpoints = []
            for place, endpoint in enumerate(shard.endpoints):
                leads = leader if leader and (number, place) == (0, 2) else 0xA00
                member = Member(number, 0xA00 + place, leads, False, "3.5.17", 1_234_567_890, 123_456_789)
                told = alarms if number == 0 else ()
                endpoints.append(EndpointHealth(endpoint, True, 0.0123, member, told))
            shards.append(ShardHealth(shard.name, (), tuple(endpoints)))
        shards[1] = replace(shards[1], endpoints=(*shards[1].endpoints[:2], EndpointHealth(endpoint, False)))
        page = page_of(config, Health(tuple(shards), (), ()), Look(UNBOUNDED, colour=False))
        return page.text().split("\n\n")[1].splitlines()

    def test_usual_names_take_a_line_each_on_80_columns(self) -> None:
        assert self.rows() == [
            "SHARD    ENDPOINT               LEADER  VERSION  DB SIZE  REVISION   LATENCY",
            "shard-1  http://10.0.0.11:2379  yes     3.5.17   1.2 GB   123456789  12.3 ms",
            "shard-1  http://10.0.0.12:2379  no      3.5.17   1.2 GB   123456789  12.3 ms",
            "shard-1  http://10.0.0.13:2379  no      3.5.17   1.2 GB   123456789  12.3 ms",
            "shard-2  http://10.0.0.21:2379  yes     3.5.17   1.2 GB   123456789  12.3 ms",
            "shard-2  http://10.0.0.22:2379  no      3.5.17   1.2 GB   123456789  12.3 ms",
            "shard-2  http://10.0.0.23:2379  ?       ?        ?        ?          down",
        ]

    @pytest.mark.parametrize(("alarms", "shown"), [((Alarm(0xA01, "NOSPACE"),), "NOSPACE"), (None, "?")])
    def test_alarms_have_a_column_where_there_are_some_or_may_be(
        self, alarms: tuple[Alarm, ...] | None, shown: str
    ) -> None:
        headers, *rows = self.rows(alarms)
        assert headers.endswith("LATENCY  ALARMS")
        assert rows[1].endswith(f"12.3 ms  {shown}")
        assert rows[3].endswith("12.3 ms  none")
        assert rows[5].endswith("down     ?")

    @pytest.mark.parametrize(("leader", "shown"), [(0xA01, "http://10.0.0.12:2379"), (0xB00, "b00"), (0xA02, "yes")])
    def test_a_member_of_its_own_mind_names_its_leader(self, leader: int, shown: str) -> None:
        rows = self.rows(leader=leader)
        assert [row.split()[2] for row in rows[1:4]] == ["yes", "no", shown]


class TestNotHealthy:
    def test_a_dead_endpoint(self, start_etcd: Etcds, etcd: LocalEtcd, tmp_path: Path) -> None:
        dead = start_etcd()
        dead.kill()
        code, out, err = check("-c", write_config(tmp_path / "esp.yaml", [etcd, dead], ["m"]))
        expected = f"""\
shard s0 up: keys ["", "m") can be read and written
shard s1 down: keys ["m", end) cannot be read or written: its endpoint cannot be reached

Problems:
  shard "s1", E1: cannot be reached: {cured("connection refused")}

Notes:
"""
        assert still(out, etcd, dead).startswith(expected)
        assert still(out, etcd, dead).endswith("s1  E1  ?  ?  ?  ?  down\n")
        assert (code, err) == (1, "esp: not healthy: 1 problem\n")

    def test_a_host_that_takes_connections_but_says_nothing(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            config = tmp_path / "esp.yaml"
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            shard = f"{{endpoints: [{url}], ranges: [{{start: '', end: ''}}]}}"
            config.write_text(f"limits: {{connect_timeout: 0.2}}\nshards: [{shard}]\n")
            code, told = check_json(config)
        assert code == 1
        assert json_kinds(told["problems"]) == [("unreachable", ["shard-0"], url)]
        assert told["problems"][0]["text"] == (
            "cannot be reached: it accepts connections, but says nothing within 0.2 s; "
            "it is frozen (stopped, swapping, a dead disk), or no etcd"
        )

    def test_an_unknown_host_is_unreachable(self, tmp_path: Path) -> None:
        config = tmp_path / "esp.yaml"
        config.write_text("shards: [{endpoints: [no-such-host.invalid:1], ranges: [{start: '', end: ''}]}]\n")
        code, told = check_json(config)
        assert code == 1
        assert json_kinds(told["problems"]) == [("unreachable", ["shard-0"], "http://no-such-host.invalid:1")]
        assert re.fullmatch(f"cannot be reached: {unknown('no-such-host.invalid')}", told["problems"][0]["text"])

    def test_an_unknown_host_leaves_the_other_endpoints_to_be_looked_at(
        self, shards: list[LocalEtcd], tmp_path: Path
    ) -> None:
        config = tmp_path / "esp.yaml"
        config.write_text(
            "shards:\n"
            f"- {{endpoints: [no-such-host.invalid:1, {shards[0].endpoint}], ranges: [{{start: '', end: m}}]}}\n"
            f"- {{endpoints: [{shards[1].endpoint}], ranges: [{{start: m, end: ''}}]}}\n"
        )
        code, told = check_json(config)
        assert code == 1
        assert [[one["reachable"] for one in shard["endpoints"]] for shard in told["shards"]] == [[False, True], [True]]
        assert json_kinds(told["problems"]) == [("unreachable", ["shard-0"], "http://no-such-host.invalid:1")]

    @pytest.mark.parametrize("host", ["a..b", "a" * 70])
    def test_a_host_that_cannot_be_one_is_refused_with_its_line(self, host: str, tmp_path: Path) -> None:
        (tmp_path / "esp.yaml").write_text(
            f"shards:\n- {{endpoints: ['http://{host}:2379'], ranges: [{{start: '', end: ''}}]}}\n"
        )
        code, out, err = check()
        assert (code, out) == (2, "")
        assert err.startswith('esp: esp.yaml:2: "shard-0": endpoint "http://a')
        assert err.endswith("; correct it or use an address\n")

    def test_one_cluster_as_two_shards(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        config = tmp_path / "esp.yaml"
        config.write_text(
            "shards:\n"
            f"  - {{name: low, endpoints: [{etcd.endpoint}], ranges: [{{start: '', end: m}}]}}\n"
            f"  - {{name: high, endpoints: ['localhost:{etcd.client_port}'], ranges: [{{start: m, end: ''}}]}}\n"
        )
        code, out, err = check("-c", config)
        problems = still(out, etcd).partition("Problems:\n")[2].partition("\n\n")[0] + "\n"
        assert problems == (
            '  shards "low", "high": have the same cluster id ID: they are one etcd cluster under several names, or '
            "were started with the same --initial-cluster and --initial-cluster-token; "
            "give each shard a cluster of its own\n"
        )
        assert (code, err) == (1, "esp: not healthy: 1 problem\n")

    def test_an_alarm_is_told_once_with_the_cure(self, start_etcd: Etcds, tmp_path: Path) -> None:
        etcd = start_etcd()
        config = write_config(tmp_path / "esp.yaml", [etcd], [])
        with connect(etcd) as channel:
            maintenance = rpc_pb2_grpc.MaintenanceStub(channel)
            member = maintenance.Status(rpc_pb2.StatusRequest()).header.member_id
            maintenance.Alarm(
                rpc_pb2.AlarmRequest(
                    action=rpc_pb2.AlarmRequest.ACTIVATE, memberID=member, alarm=rpc_pb2.AlarmType.NOSPACE
                )
            )
        code, out, err = check("-c", config)
        assert still(out, etcd).startswith(
            'shard s0 read-only: keys ["", end) can be read, but not written: alarm NOSPACE\n\nProblems:\n'
            '  shard "s0", E0: alarm NOSPACE: it takes no writes; compact, defragment, then `etcdctl alarm disarm`\n'
        )
        assert still(out, etcd).endswith("N ms  NOSPACE\n")
        assert (code, err) == (1, "esp: not healthy: 1 problem\n")
        _, told = check_json(config)
        assert told["shards"][0]["endpoints"][0]["alarms"] == ["NOSPACE"]

    def test_a_member_that_lost_its_quorum_has_no_leader(self, start_etcd: Etcds, tmp_path: Path) -> None:
        members = start_etcd.members(3)
        config = write_config(tmp_path / "esp.yaml", [members], [])
        members[1].kill()
        members[2].kill()

        def kinds() -> list[str]:
            return [finding["kind"] for finding in check_json(config)[1]["problems"]]

        wait_until(lambda: kinds() == ["no-leader", "unreachable", "unreachable"])
        assert check("-c", config)[1].count("none  ") == 1

    def test_a_member_that_asks_for_a_user_is_reachable_and_no_problem(
        self, secured: LocalEtcd, tmp_path: Path
    ) -> None:
        code, told = check_json(write_config(tmp_path / "esp.yaml", [secured], []))
        (endpoint,) = told["shards"][0]["endpoints"]
        assert endpoint["reachable"]
        assert endpoint["error"] == "etcdserver: user name is empty"
        assert (endpoint["version"], endpoint["alarms"]) == (None, None)
        assert json_kinds(told["notes"]) == [("auth", ["s0"], secured.endpoint), ("single-endpoint", ["s0"], None)]
        assert (code, told["problems"]) == (0, [])

    @pytest.fixture
    def secured(self, etcd37: LocalEtcd) -> Iterator[LocalEtcd]:
        """An etcd that tells nothing without a user; older ones do tell their status."""
        with connect(etcd37) as channel:
            auth = rpc_pb2_grpc.AuthStub(channel)
            auth.UserAdd(rpc_pb2.AuthUserAddRequest(name="root", password="secret"))
            auth.RoleAdd(rpc_pb2.AuthRoleAddRequest(name="root"))
            auth.UserGrantRole(rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"))
            auth.AuthEnable(rpc_pb2.AuthEnableRequest())
            try:
                yield etcd37
            finally:
                request = rpc_pb2.AuthenticateRequest(name="root", password="secret")
                token = [("token", auth.Authenticate(request).token)]
                auth.AuthDisable(rpc_pb2.AuthDisableRequest(), metadata=token)
                auth.UserDelete(rpc_pb2.AuthUserDeleteRequest(name="root"))
                auth.RoleDelete(rpc_pb2.AuthRoleDeleteRequest(role="root"))

    def test_a_grpc_server_that_is_no_etcd(self, tmp_path: Path) -> None:
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_insecure_port(f"127.0.0.1:{free_port()}")
        server.start()
        try:
            config = tmp_path / "esp.yaml"
            config.write_text(f"shards: [{{endpoints: ['127.0.0.1:{port}'], ranges: [{{start: '', end: ''}}]}}]\n")
            code, told = check_json(config)
        finally:
            server.stop(None).wait()
        assert code == 1
        assert json_kinds(told["problems"]) == [("no-answer", ["shard-0"], f"http://127.0.0.1:{port}")]
        assert told["shards"][0]["endpoints"][0]["reachable"]


class TestUsage:
    def test_a_bad_config_is_told_with_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("shards:\n  - {name: a, endpoint: x}\n")
        code, out, err = check("-c", "bad.yaml")
        assert (code, out) == (2, "")
        assert err.startswith('esp: bad.yaml:2: shard "a": unknown field "endpoint"')

    def test_an_unknown_form_is_wrong_usage(self, tmp_path: Path) -> None:
        assert check("-o", "xml")[0] == 2


def test_a_certificate_of_the_listeners_that_has_ended_is_a_problem(etcd: LocalEtcd, tmp_path: Path) -> None:
    cert, key = Authority().issue(["esp.example"], life=timedelta(days=-1)).write(tmp_path, "server")
    tls = f"listen: [https://127.0.0.1:2379]\ntls: {{cert: {cert}, key: {key}}}"
    config = write_config(tmp_path / "esp.yaml", [etcd], [], tls)
    code, out, _ = check("-c", config)
    assert code == 1
    assert re.search(rf"^Problems:\n  listeners: {cert} has ended on .* UTC; renew it$", out, re.MULTILINE)
    code, told = check_json(config)
    assert json_kinds(told["problems"]) == [("certificate", [], None)]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["b"], 'shard "b": '),
        (["shard-1"], '"shard-1": '),
        (["shard-1", "Shard2"], '"shard-1", "Shard2": '),
        (["shard-1", "b"], 'shards "shard-1", "b": '),
    ],
)
def test_a_shard_that_is_called_so_is_not_called_a_shard_again(names: list[str], text: str) -> None:
    assert subject_of(Finding(Kind.UNREACHABLE, tuple(names), None, "is away")) == text
