"""`esp lease-sync` on real shards: its output, its changes, and the leases that it leaves alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core import errors, lease_survey
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.wording import cured
from tests.harness import Etcds, connect, unknown, write_config
from tests.stubs import rpc_pb2_grpc

Run = Callable[..., tuple[int, str, str]]


class Shard:
    """One shard's leases and keys."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._lease = rpc_pb2_grpc.LeaseStub(channel)
        self._kv = rpc_pb2_grpc.KVStub(channel)

    def grant(self, *ids: int, ttl: int = 600) -> None:
        calls = [self._lease.LeaseGrant.future(rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl)) for lease_id in ids]
        for call in calls:
            call.result()

    def put(self, key: bytes, lease_id: int) -> None:
        self._kv.Put(rpc_pb2.PutRequest(key=key, lease=lease_id))

    def ids(self) -> set[int]:
        return {lease.ID for lease in self._lease.LeaseLeases(rpc_pb2.LeaseLeasesRequest()).leases}

    def ttl(self, lease_id: int) -> int:
        return self._lease.LeaseTimeToLive(rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id)).TTL

    def count(self) -> int:
        return self._kv.Range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)).count


@pytest.fixture
def direct(empty_shards: list[LocalEtcd]) -> Iterator[list[Shard]]:
    channels = [connect(shard) for shard in empty_shards]
    yield [Shard(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.fixture
def config(tmp_path: Path, empty_shards: list[LocalEtcd]) -> Path:
    return write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])


@pytest.fixture
def run(config: Path) -> Run:
    def invoke(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["lease-sync", "-c", str(config), *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return invoke


def ask(run: Run, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run("-o", "json", *arguments)
    return code, json.loads(out)


def everywhere(direct: list[Shard], *ids: int, ttl: int = 600) -> None:
    for shard in direct:
        shard.grant(*ids, ttl=ttl)


class TestDryRun:
    def test_nothing_to_compare_is_in_step(self, run: Run) -> None:
        assert run() == (0, "0 leases in all.\nAll shards have the same leases.\n", "")

    def test_the_same_leases_are_in_step(self, run: Run, direct: list[Shard]) -> None:
        everywhere(direct, 1, -1)
        direct[0].put(b"a", 1)
        direct[0].put(b"b", 1)
        assert run() == (
            0,
            "2 leases in all; s0 2 with 2 keys; s1 2 with 0 keys; s2 2 with 0 keys.\n"
            "All shards have the same leases.\n",
            "",
        )

    def test_the_table_shows_what_differs_and_how(self, run: Run, direct: list[Shard]) -> None:
        everywhere(direct, 1)
        direct[0].grant(2, 3)
        direct[1].grant(2)
        direct[0].put(b"a", 2)
        for shard, ttl in zip(direct, (600, 400, 500), strict=True):
            shard.grant(-1, ttl=ttl)
        code, out, err = run()
        assert (code, err) == (1, "esp: the shards differ in 3 leases\n")
        lines = [line.split("  ") for line in out.splitlines()]
        assert lines[0][0] == "LEASE"
        cells = {line[0]: line[-1].strip() for line in lines[1:4]}
        assert cells["0000000000000002"] == "missing on s2"
        assert cells["0000000000000003"] == "only on s0"
        spread = cells["ffffffffffffffff"]
        assert spread in ("TTLs 200 s apart", "TTLs 199 s apart", "TTLs 201 s apart")
        assert "/600 s, 1 key" in out
        assert "4 leases in all; s0 4 with 1 key; s1 3 with 0 keys; s2 2 with 0 keys." in out
        assert out.endswith(
            "To grant what is missing, add --apply.\n"
            "TTLs are left as they are; a keepalive of the lease's owner renews it everywhere.\n"
        )

    def test_it_changes_nothing(self, run: Run, direct: list[Shard]) -> None:
        direct[0].grant(1)
        run()
        assert [shard.ids() for shard in direct] == [{1}, set(), set()]

    def test_ttls_within_the_skew_are_the_same(self, run: Run, direct: list[Shard]) -> None:
        for shard, ttl in zip(direct, (600, 590, 600), strict=True):
            shard.grant(1, ttl=ttl)
        assert run("--skew", "20")[0] == 0
        assert run("--skew", "2")[0] == 1
        # There is nothing to grant, and nothing is claimed to be.
        code, out, err = run("--skew", "2", "--apply")
        assert (code, err) == (0, "")
        assert out.endswith(".\nTTLs are left as they are; a keepalive of the lease's owner renews it everywhere.\n")

    def test_the_json_form(self, run: Run, direct: list[Shard], config: Path) -> None:
        everywhere(direct, 1)
        direct[1].grant(255, ttl=600)
        direct[1].put(b"j", 255)
        code, answer = ask(run)
        assert code == 1
        here = answer["differences"][0]["shards"]["s1"]
        assert 590 <= here.pop("ttl") <= 600
        assert answer == {
            "in_step": False,
            "config": str(config),
            "leases": 2,
            "shards": [
                {"name": "s0", "leases": 1, "keys": 0},
                {"name": "s1", "leases": 2, "keys": 1},
                {"name": "s2", "leases": 1, "keys": 0},
            ],
            "differences": [
                {
                    "id": "00000000000000ff",
                    "missing": ["s0", "s2"],
                    "only_on": "s1",
                    "ttl_spread": 0,
                    "shards": {"s0": None, "s1": {"granted_ttl": 600, "keys": 1}, "s2": None},
                }
            ],
            "actions": [],
        }

    def test_a_long_table_is_cut_and_says_so(self, run: Run, direct: list[Shard]) -> None:
        direct[0].grant(*range(1, 151))
        code, out, _ = run()
        assert code == 1
        assert out.count("only on s0") == 100
        assert "and 50 more; -o json lists all\n" in out
        assert len(ask(run)[1]["differences"]) == 150


class TestApply:
    def test_what_is_missing_is_granted_with_the_ttl_that_is_left(self, run: Run, direct: list[Shard]) -> None:
        direct[0].grant(1, ttl=600)
        direct[2].grant(2, ttl=100)
        code, out, err = run("--apply")
        assert (code, err) == (0, "")
        assert sorted(line for line in out.splitlines() if line.startswith("granted")) == [
            "granted 0000000000000001 on s1",
            "granted 0000000000000001 on s2",
            "granted 0000000000000002 on s0",
            "granted 0000000000000002 on s1",
        ]
        assert out.endswith("\n4 granted.\n")
        for lease_id in (1, 2):
            left = [shard.ttl(lease_id) for shard in direct]
            assert max(left) - min(left) <= 2
        assert run()[0] == 0

    def test_less_than_was_granted_is_left(self, run: Run, direct: list[Shard]) -> None:
        direct[0].grant(1, ttl=600)
        while direct[0].ttl(1) > 597:
            time.sleep(0.1)
        assert run("--apply")[0] == 0
        assert direct[1].ttl(1) <= 597

    def test_the_actions_are_in_the_json_form(self, run: Run, direct: list[Shard]) -> None:
        everywhere(direct[:2], 16)
        code, answer = ask(run, "--apply")
        assert code == 0
        assert answer["actions"] == [{"id": "0000000000000010", "shard": "s2", "done": "granted", "error": None}]
        assert ask(run) == (0, ask(run)[1])
        assert ask(run)[1]["in_step"] is True

    def test_a_run_that_was_killed_is_simply_repeated(self, run: Run, direct: list[Shard], config: Path) -> None:
        ids = set(random.sample(range(1, 2**62), 2000))
        everywhere(direct[:2], *ids)
        command = [sys.executable, "-m", "esp", "lease-sync", "-c", str(config), "--apply"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(direct[2].ids()) < 100 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        code, answer = ask(run, "--apply", "--concurrency", "200")
        assert code == 0
        assert {action["done"] for action in answer["actions"]} == {"granted"}
        assert direct[2].ids() == ids
        # Two thousand leases take a busy machine seconds on each shard, and their TTLs are as far apart.
        code, answer = ask(run, "--skew", "60")
        assert code == 0, answer["differences"]


class TestPrune:
    def orphans(self, direct: list[Shard]) -> None:
        everywhere(direct, 1)
        direct[1].grant(2, 3)
        direct[0].grant(4)
        direct[1].put(b"j", 1)
        direct[1].put(b"k", 2)
        direct[1].put(b"l", 3)

    def test_only_what_that_one_shard_has_is_revoked(self, run: Run, direct: list[Shard]) -> None:
        self.orphans(direct)
        code, out, err = run("--prune", "--only-on", "s1", "--yes")
        assert (code, err) == (0, "")
        assert "2 leases only on s1.\n" in out
        assert sorted(line for line in out.splitlines() if line.startswith("revoked")) == [
            "revoked 0000000000000002 on s1",
            "revoked 0000000000000003 on s1",
        ]
        assert [shard.ids() for shard in direct] == [{1, 4}, {1}, {1}]
        assert direct[1].count() == 1

    def test_without_yes_and_without_a_terminal_nothing_is_revoked(self, run: Run, direct: list[Shard]) -> None:
        self.orphans(direct)
        code, _, err = run("--prune", "--only-on", "s1")
        assert (code, err) == (
            2,
            "esp: this would delete 2 leases and 2 keys on shard s1; to do so without a question, add --yes\n",
        )
        assert direct[1].ids() == {1, 2, 3}

    @pytest.mark.parametrize(("answer", "left", "code"), [(b"y\n", {1}, 0), (b"n\n", {1, 2, 3}, 1)])
    def test_on_a_terminal_it_shows_its_progress_and_asks(
        self, direct: list[Shard], config: Path, answer: bytes, left: set[int], code: int
    ) -> None:
        self.orphans(direct)
        command = [sys.executable, "-m", "esp", "lease-sync", "-c", str(config), "--prune", "--only-on", "s1"]
        master, terminal = os.openpty()
        env = {**os.environ, "TERM": "xterm"}
        process = subprocess.Popen(command, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, env=env)
        os.close(terminal)
        said = b""
        while b"Delete 2 leases and 2 keys on shard s1?" not in said:
            said += os.read(master, 4096)
        os.write(master, answer)
        out, _ = process.communicate(timeout=60)
        os.close(master)
        assert b"Comparing leases" in said
        assert (process.returncode, out.count(b"revoked 0")) == (code, 2 - 2 * code)
        assert direct[1].ids() == left

    def test_nothing_to_revoke_asks_nothing(self, run: Run, direct: list[Shard]) -> None:
        everywhere(direct, 1)
        code, out, err = run("--prune", "--only-on", "s1")
        assert (code, err) == (0, "")
        assert out.endswith("0 leases only on s1.\n")


def test_no_more_than_its_share_of_leases_is_worked_on_at_once(
    monkeypatch: pytest.MonkeyPatch, run: Run, direct: list[Shard]
) -> None:
    direct[0].grant(*range(1, 41))
    at_once: list[int] = []
    working = 0
    for name in ("time_to_live", "copy"):
        original = getattr(lease_survey, name)

        async def counted(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            nonlocal working
            working += 1
            at_once.append(working)
            try:
                return await original(*args, **kwargs)
            finally:
                working -= 1

        monkeypatch.setattr(lease_survey, name, counted)
    assert run("--apply", "--concurrency", "4")[0] == 0
    assert [len(shard.ids()) for shard in direct] == [40] * 3
    assert max(at_once) == 4


def test_what_a_shard_refuses_is_told_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch, run: Run, direct: list[Shard]
) -> None:
    direct[0].grant(1, 2, 3)
    original = lease_survey.copy

    async def refuses(lease_id: int, *args: Any, **kwargs: Any) -> Any:
        if lease_id == 2:
            raise errors.PERMISSION_DENIED.error()
        return await original(lease_id, *args, **kwargs)

    monkeypatch.setattr(lease_survey, "copy", refuses)
    code, out, err = run("--apply")
    assert (code, err) == (
        1,
        "esp: 2 leases failed, the first with: etcdserver: permission denied; run it again\n",
    )
    assert "FAILED 0000000000000002 on s1: etcdserver: permission denied\n" in out
    assert out.endswith("\n4 granted, 2 failed.\n")
    assert [sorted(shard.ids()) for shard in direct] == [[1, 2, 3], [1, 3], [1, 3]]


def test_an_orphan_that_another_shard_has_meanwhile_is_kept(
    monkeypatch: pytest.MonkeyPatch, run: Run, direct: list[Shard]
) -> None:
    """The proxy, or its client, may be at work while the operator thinks about the question."""
    direct[1].grant(1, 2)
    original = lease_survey.compare

    async def compared(*args: Any) -> Any:
        views = await original(*args)
        direct[0].grant(1)
        return views

    monkeypatch.setattr(lease_survey, "compare", compared)
    code, out, err = run("--prune", "--only-on", "s1", "--yes")
    assert (code, err) == (0, "")
    assert "kept 0000000000000001: it is not only on s1 any more\n" in out
    assert out.endswith("\n1 revoked, 1 kept.\n")
    assert direct[1].ids() == {1}


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            (["--apply", "--prune"], "--apply and --prune exclude each other; give one"),
            (["--prune"], "--prune and --only-on go together; give both: --prune --only-on SHARD"),
            (["--only-on", "s1"], "--prune and --only-on go together; give both: --prune --only-on SHARD"),
            (["--prune", "--only-on", "x"], '--only-on is "x", which is no shard; there are s0, s1, s2'),
        ],
    )
    def test_wrong_usage_is_one_line_and_exit_2(self, run: Run, arguments: list[str], error: str) -> None:
        assert run(*arguments) == (2, "", f"esp: {error}\n")

    def test_a_shard_that_cannot_be_reached_is_named(self, start_etcd: Etcds, tmp_path: Path) -> None:
        etcds = start_etcd.several(2)
        etcds[1].kill()
        path = write_config(tmp_path / "esp.yaml", etcds, ["m"])
        result = CliRunner().invoke(app, ["lease-sync", "-c", str(path)])
        assert (result.exit_code, result.stdout) == (1, "")
        why = f"{etcds[1].endpoint}: {cured('connection refused')}"
        assert result.stderr == f'esp: shard "s1" cannot be reached: {why}\n'

    def test_a_shard_without_a_known_host_is_named(self, etcd: LocalEtcd, tmp_path: Path) -> None:
        path = tmp_path / "esp.yaml"
        path.write_text(
            f"shards:\n- {{name: a, endpoints: [{etcd.endpoint}], ranges: [{{start: '', end: m}}]}}\n"
            "- {name: b, endpoints: [no-such-host.invalid:1, 127.0.0.1:1], ranges: [{start: m, end: ''}]}\n"
        )
        result = CliRunner().invoke(app, ["lease-sync", "-c", str(path)])
        assert (result.exit_code, result.stdout) == (1, "")
        first = f"http://no-such-host.invalid:1: {unknown('no-such-host.invalid')}"
        said = f'esp: shard "b" cannot be reached: {first}; http://127.0.0.1:1: {cured("connection refused")}\n'
        assert re.fullmatch(said, result.stderr)

    def test_an_unknown_host_leaves_the_other_endpoints_to_be_asked(
        self, shards: list[LocalEtcd], tmp_path: Path
    ) -> None:
        path = tmp_path / "esp.yaml"
        path.write_text(
            "shards:\n"
            f"- {{endpoints: [no-such-host.invalid:1, {shards[0].endpoint}], ranges: [{{start: '', end: m}}]}}\n"
            f"- {{endpoints: [{shards[1].endpoint}, nor-this.invalid:1], ranges: [{{start: m, end: ''}}]}}\n"
        )
        result = CliRunner().invoke(app, ["lease-sync", "-c", str(path)])
        assert (result.exit_code, result.stderr) == (0, "")

    @pytest.mark.parametrize("host", ["a..b", "a" * 70])
    def test_a_host_that_cannot_be_one_is_refused_with_its_line(self, host: str, tmp_path: Path) -> None:
        path = tmp_path / "esp.yaml"
        path.write_text(f"shards:\n- {{endpoints: ['http://{host}:2379'], ranges: [{{start: '', end: ''}}]}}\n")
        result = CliRunner().invoke(app, ["lease-sync", "-c", str(path)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f'esp: {path}:2: "shard-0": endpoint "http://a')
        assert result.stderr.endswith("; correct it or use an address\n")

    def test_one_shard_is_always_in_step(self, start_etcd: Etcds, tmp_path: Path) -> None:
        etcd = start_etcd()
        with connect(etcd) as channel:
            Shard(channel).grant(1)
        path = write_config(tmp_path / "esp.yaml", [etcd], [])
        result = CliRunner().invoke(app, ["lease-sync", "-c", str(path)])
        assert result.exit_code == 0
