"""`esp export` and `esp import` on real shards: what goes out comes back, whatever breaks off in between."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.commands import import_
from esp.core import config as configs
from esp.core import connected_shards
from esp.core.export import (
    Etcd,
    Existing,
    Import,
    Output,
    config_of,
    export,
    go_on,
    pages,
    patience,
    read_started,
)
from esp.core.export.granting import OTHER_IDS
from esp.core.keys import KeyRange
from esp.core.local import LocalEtcd
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.wording import cured
from tests.harness import EVERYTHING, Etcds, Server, connect, frozen, wait_until, wipe, write_config
from tests.stubs import rpc_pb2_grpc
from tests.watching import Relay

Run = Callable[..., tuple[int, str, str]]
ALL = KeyRange(b"", None)
MANY = 1320


class Kv:
    """Keys and leases of one etcd."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.kv = rpc_pb2_grpc.KVStub(channel)
        self.lease = rpc_pb2_grpc.LeaseStub(channel)

    def put(self, key: bytes, value: bytes = b"v", lease: int = 0) -> None:
        self.kv.Put(rpc_pb2.PutRequest(key=key, value=value, lease=lease))

    def fill(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        for first in range(0, len(pairs), 100):
            puts = [rpc_pb2.PutRequest(key=key, value=value) for key, value in pairs[first : first + 100]]
            self.kv.Txn(rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_put=put) for put in puts]))

    def grant(self, lease: int, ttl: int = 600) -> None:
        self.lease.LeaseGrant(rpc_pb2.LeaseGrantRequest(ID=lease, TTL=ttl))

    def ttl(self, lease: int) -> tuple[int, int]:
        answer = self.lease.LeaseTimeToLive(rpc_pb2.LeaseTimeToLiveRequest(ID=lease, keys=True))
        return answer.grantedTTL if answer.TTL >= 0 else -1, len(answer.keys)

    def leases(self) -> list[int]:
        return [lease.ID for lease in self.lease.LeaseLeases(rpc_pb2.LeaseLeasesRequest()).leases]

    def rows(self) -> list[kv_pb2.KeyValue]:
        return list(self.kv.Range(rpc_pb2.RangeRequest(**EVERYTHING)).kvs)

    def pairs(self) -> list[tuple[bytes, bytes, int]]:
        return [(kv.key, kv.value, kv.lease) for kv in self.rows()]

    def count(self) -> int:
        return self.kv.Range(rpc_pb2.RangeRequest(**EVERYTHING, count_only=True)).count


@pytest.fixture
def kvs(empty_shards: list[LocalEtcd]) -> Iterator[list[Kv]]:
    channels = [connect(shard) for shard in empty_shards]
    yield [Kv(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.fixture
def other(empty_etcd: LocalEtcd) -> Iterator[Kv]:
    with connect(empty_etcd) as channel:
        yield Kv(channel)


@pytest.fixture
def config(tmp_path: Path, empty_shards: list[LocalEtcd]) -> Path:
    return write_config(tmp_path / "esp.yaml", empty_shards, ["i", "r"])


@pytest.fixture
def run(config: Path) -> Run:
    """A function that runs a command with the config, unless an endpoint is given."""

    def invoke(*arguments: object) -> tuple[int, str, str]:
        named = [str(argument) for argument in arguments]
        if "--endpoint" not in named and "-c" not in named:
            named += ["-c", str(config)]
        result = CliRunner().invoke(app, named)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return invoke


def has_opened(pid: int, path: Path) -> bool:
    """Whether a process has a file open, and a handler for SIGINT."""
    process = Path(f"/proc/{pid}")
    caught = re.search(r"SigCgt:\s*(\w+)", (process / "status").read_text())
    assert caught is not None
    is_open = any(path == link.readlink() for link in (process / "fd").iterdir() if link.is_symlink())
    return is_open and bool(int(caught[1], 16) >> (signal.SIGINT - 1) & 1)


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def spread(count: int) -> list[list[tuple[bytes, bytes]]]:
    """Keys for each of three shards, with values of many sizes, some of them no text."""
    drawn = random.Random(7)
    return [
        [(b"%s/%06d" % (first, number), drawn.randbytes(drawn.choice([0, 3, 40, 400]))) for number in range(count // 3)]
        for first in (b"a", b"k", b"s")
    ]


@pytest.fixture
def many(kvs: list[Kv]) -> list[Kv]:
    for kv, pairs in zip(kvs, spread(MANY), strict=True):
        kv.fill(pairs)
    return kvs


def by_prefix(kvs: Sequence[Kv]) -> list[tuple[bytes, bytes, int]]:
    return [pair for kv in kvs for pair in kv.pairs()]


class TestExport:
    def test_the_lines(self, kvs: list[Kv], run: Run) -> None:
        kvs[1].grant(0x1234)
        kvs[0].put(b"a")
        kvs[0].put(b"a", b"\xff")
        kvs[1].put(b"k\xc3\xbc", "ö\n".encode(), 0x1234)
        kvs[2].put(b"\xff\xfe")
        for kv in (kvs[0], kvs[2]):
            kv.grant(0x99)
        code, out, err = run("export")
        first, *rest, end = lines_of(out)
        assert code == 0
        assert first["esp_export"] == 1
        assert first["moment"] == "snapshot"
        assert first["start"] == ""
        assert "end" not in first
        revisions = {shard["name"]: shard["revision"] for shard in first["shards"]}
        rows = [kv.rows()[0] for kv in kvs]
        assert revisions == {f"s{number}": row.mod_revision for number, row in enumerate(rows)}
        a, grant, k, s, idle = rest
        assert a == {
            "key": "a",
            "value64": "/w==",
            "create": rows[0].create_revision,
            "mod": rows[0].mod_revision,
            "version": 2,
        }
        assert grant == {"grant": "0000000000001234", "ttl": 600, "left": grant["left"]}
        assert (k["key"], k["value"], k["lease"]) == ("kü", "ö\n", "0000000000001234")
        assert s["key64"] == "//4="
        assert idle["grant"] == "0000000000000099"
        assert (end["end"], end["keys"], end["leases"]) == (True, 3, 2)
        assert "exported 3 keys and 2 leases, all of one moment: revision " in err

    def test_each_shard_at_its_own_moment(self, kvs: list[Kv], run: Run) -> None:
        kvs[0].put(b"a")
        code, out, err = run("export", "--each")
        first = lines_of(out)[0]
        assert (code, first["moment"]) == (0, "each")
        assert 0 < first["seconds"] < 60
        assert "each shard at a moment of its own, within " in err

    @pytest.mark.parametrize("redirect", [">/dev/full", ">&-", "| true"])
    def test_an_output_that_cannot_be_written(self, kvs: list[Kv], config: Path, redirect: str) -> None:
        for number in range(3):
            kvs[number].put(b"aks"[number : number + 1], b"v" * 100_000)
        command = f"{sys.executable} -m esp export -c {config} {redirect}"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("esp: the output cannot be written: ")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "wanted"),
        [
            (["a", "--prefix"], ["a", "ab"]),
            (["k", "--from-key"], ["k", "s"]),
            (["ab", "--range-end", "s"], ["ab", "k"]),
            (["", "--range-end", "b"], ["a", "ab"]),
            (["k", "--range-end", ""], ["k", "s"]),
            (["ab"], ["ab"]),
            (["6162", "--hex"], ["ab"]),
        ],
    )
    def test_a_range(self, kvs: list[Kv], run: Run, arguments: list[str], wanted: list[str]) -> None:
        for kv, key in ((0, b"a"), (0, b"ab"), (1, b"k"), (2, b"s")):
            kvs[kv].put(key)
        kvs[0].grant(0x99)
        code, out, _ = run("export", *arguments)
        assert code == 0
        assert [line["key"] for line in lines_of(out)[1:-1]] == wanted  # and no lease that none of these has

    def test_keys_that_a_shard_does_not_own_are_not_there(self, kvs: list[Kv], run: Run) -> None:
        kvs[0].put(b"z")
        assert len(lines_of(run("export")[1])) == 2

    def test_a_namespace(self, kvs: list[Kv], run: Run, tmp_path: Path, empty_shards: list[LocalEtcd]) -> None:
        inside = write_config(tmp_path / "inside.yaml", empty_shards, ["i", "r"], "namespace: team/")
        kvs[2].put(b"team/x", b"1")
        kvs[2].put(b"u", b"not ours")
        run("export", "-c", inside, "--to", tmp_path / "x")
        first, line, _ = lines_of((tmp_path / "x").read_text())
        assert first["namespace"] == "team/"
        assert line["key"] == "x"
        wipe(empty_shards[2])
        assert run("import", tmp_path / "x", "-c", inside)[0] == 0
        assert kvs[2].pairs() == [(b"team/x", b"1", 0)]

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["b", "--range-end", "a"], "the range holds no key"),
            (["a", "--prefix", "--from-key"], "exclude each other"),
            (["--user", "root"], "are for --endpoint"),
            (["--resume", "x", "a"], "leave out KEY"),
            (["--verify", "x", "--to", "y"], "--verify takes everything from its file"),
            (["--verify", "x", "--resume", "x"], "exclude each other"),
            (["--verify", "nowhere"], "cannot be opened: no such file"),
            (["--resume", "nowhere"], "cannot be opened: no such file"),
            (["--endpoint", "http://127.0.0.1:1", "-c", "esp.yaml"], "exclude each other"),
        ],
    )
    def test_wrong_usage(self, run: Run, arguments: list[str], text: str) -> None:
        code, _, err = run("export", *arguments)
        assert code == 2
        assert text in err
        assert err.count("\n") == 1

    def test_an_unreachable_shard(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connected_shards, "CONNECT_SECONDS", 0.2)
        code, _, err = run("export", "--endpoint", "http://127.0.0.1:1", "--to", tmp_path / "x")
        assert code == 1
        assert f'shard "etcd" cannot be reached: http://127.0.0.1:1: {cured("connection refused")}' in err


def stopping_at(number: int) -> Callable[..., None]:
    """A progress that breaks off the work once so many keys are done."""

    def progress(*told: Any) -> None:
        if told[-2] >= number:
            raise KeyboardInterrupt

    return progress


class TestResumedExport:
    def first_part(self, config: Path, path: Path, stop: int) -> bytes:
        with path.open("xb") as file, pytest.raises(KeyboardInterrupt):
            asyncio.run(export(configs.load(config), ALL, Output(file), stopping_at(stop), each_shard=False))
        return path.read_bytes()

    def test_it_has_the_keys_of_the_first_moment(self, many: list[Kv], config: Path, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "x"
        before = by_prefix(many)
        part = self.first_part(config, path, 660)
        assert 660 <= part.count(b"\n") < MANY
        for kv in many:  # what is written meanwhile is not of that moment
            kv.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**EVERYTHING))
        code, out, err = run("export", "--resume", path)
        assert (code, err) == (0, "")
        assert f"{path}: exported {MANY:,} keys and 0 leases" in out
        assert path.read_bytes().startswith(part)
        assert run("import", path)[0] == 0
        assert by_prefix(many) == before

    def test_wherever_it_was_cut(self, kvs: list[Kv], config: Path, run: Run, tmp_path: Path) -> None:
        kvs[0].grant(0x1234)
        for kv, key in ((0, b"a"), (0, b"ab"), (1, b"k"), (2, b"s")):
            kvs[kv].put(key, b"v", 0x1234 if kv == 0 else 0)
        whole = run("export")[1].encode()
        loaded = configs.load(config)
        ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
        for cut in sorted({*ends[:-1], *(end - 3 for end in ends[1:])}):
            first = read_started(io.BytesIO(whole[:cut]), lambda _: None)
            rest = io.BytesIO()
            asyncio.run(go_on(loaded, first, Output(rest, first.digest), lambda *_: None))
            cut_off = whole[: first.size] + rest.getvalue()
            assert [line.get("key") for line in lines_of(cut_off.decode())[1:]] == [
                line.get("key") for line in lines_of(whole.decode())[1:]
            ]
            assert read_started(io.BytesIO(cut_off), lambda _: None).trailer is not None

    def test_a_process_that_was_killed(self, many: list[Kv], config: Path, run: Run, tmp_path: Path) -> None:
        """It is killed while its reader does not read, so it certainly has not ended."""
        path = tmp_path / "x"
        command = [sys.executable, "-m", "esp", "export", "-c", config]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            part = process.stdout.read(60_000)
            process.kill()
        path.write_bytes(part)
        assert run("export", "--resume", path)[0] == 0
        assert [line["key"] for line in lines_of(path.read_text())[1:-1]] == [
            key.decode() for key, _, _ in by_prefix(many)
        ]

    def test_ctrl_c_says_how_to_go_on(self, many: list[Kv], config: Path, run: Run, tmp_path: Path) -> None:
        """SIGINT comes while the file cannot be written: it is a pipe that nobody reads."""
        path = tmp_path / "x"
        part = self.first_part(config, path, 1)
        assert run("export", "--resume", path)[0] == 0
        size = path.stat().st_size
        command = [sys.executable, "-m", "esp", "export", "-c", config]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.read(len(part))
            process.send_signal(signal.SIGINT)
            rest, err = process.communicate()
        assert (process.returncode, err) == (130, b"esp: interrupted\n")
        assert len(part) + len(rest) < size

    @pytest.mark.parametrize("has_begun", [True, False])
    def test_ctrl_c_names_the_file_to_go_on_with(
        self, has_begun: bool, many: list[Kv], empty_shards: list[LocalEtcd], config: Path, run: Run, tmp_path: Path
    ) -> None:
        path = tmp_path / "x"
        command = [sys.executable, "-m", "esp", "export", "-c", config]
        if has_begun:
            self.first_part(config, path, 1)
            command += ["--resume", path]
        else:
            command += ["--to", path]
        with frozen(empty_shards[1]), subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            wait_until(lambda: has_opened(process.pid, path))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=20)
        if has_begun:
            wanted = f"esp: interrupted; to go on: esp export --resume {path}\n"
            assert run("export", "--resume", path)[0] == 0
        else:
            wanted = "esp: interrupted\n"
            assert not path.exists()
        assert (process.returncode, err.decode()) == (130, wanted)

    def test_a_complete_one(self, kvs: list[Kv], run: Run, tmp_path: Path) -> None:
        kvs[0].put(b"a")
        assert run("export", "--to", tmp_path / "x")[0] == 0
        before = (tmp_path / "x").read_bytes()
        assert run("export", "--resume", tmp_path / "x")[:1] == (0,)
        assert (tmp_path / "x").read_bytes() == before
        code, _, err = run("export", "--to", tmp_path / "x")
        assert (code, "--resume" in err) == (2, True)

    def test_a_compacted_revision(self, many: list[Kv], config: Path, run: Run, tmp_path: Path) -> None:
        self.first_part(config, tmp_path / "x", 660)
        many[2].put(b"s")
        revision = many[2].kv.Range(rpc_pb2.RangeRequest(key=b"s")).header.revision
        many[2].kv.Compact(rpc_pb2.CompactionRequest(revision=revision))
        code, _, err = run("export", "--resume", tmp_path / "x")
        assert code == 1
        assert "shard s2 has compacted revision" in err
        assert "begin anew" in err

    def test_another_map(
        self, kvs: list[Kv], run: Run, tmp_path: Path, empty_shards: list[LocalEtcd], empty_etcd: LocalEtcd
    ) -> None:
        kvs[0].put(b"a")
        part = run("export")[1].rsplit("\n", 2)[0] + "\n"
        (tmp_path / "x").write_text(part)
        moved = write_config(tmp_path / "moved.yaml", empty_shards, ["i", "s"])
        code, _, err = run("export", "--resume", tmp_path / "x", "-c", moved)
        assert (code, "the shard map or the namespace is another one" in err) == (1, True)
        replaced = write_config(tmp_path / "replaced.yaml", [empty_etcd, *empty_shards[1:]], ["i", "r"])
        code, _, err = run("export", "--resume", tmp_path / "x", "-c", replaced)
        assert (code, "shard s0 is another cluster now" in err) == (1, True)


class TestVerify:
    def test_nothing_has_changed(self, kvs: list[Kv], run: Run, tmp_path: Path) -> None:
        for kv, key in ((0, b"a"), (1, b"k"), (1, b"q"), (2, b"s")):
            kvs[kv].put(key)
        assert run("export", "k", "--range-end", "q", "--to", tmp_path / "x")[0] == 0
        kvs[0].put(b"a")
        kvs[1].put(b"q")  # outside of the range, on the same shard
        code, out, err = run("export", "--verify", tmp_path / "x")
        assert (code, err) == (0, "")
        assert out == f"{tmp_path / 'x'}: 1 key, and nothing has changed since the export\n"
        told = json.loads(run("export", "--verify", tmp_path / "x", "-o", "json")[1])
        assert told == {"file": str(tmp_path / "x"), "keys": 1, "written": 0, "new": 0, "deleted": 0}

    def test_what_was_written_put_and_deleted_since_is_counted(self, many: list[Kv], run: Run, tmp_path: Path) -> None:
        assert run("export", "--to", tmp_path / "x")[0] == 0
        many[0].put(b"a/000001")
        many[1].kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"k/000001"))
        many[1].kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"k/000002"))
        many[2].put(b"s/new")
        many[2].kv.DeleteRange(rpc_pb2.DeleteRangeRequest(key=b"s/000001"))
        many[2].put(b"s/000001")
        code, out, err = run("export", "--verify", tmp_path / "x", "-o", "json")
        assert (code, json.loads(out)) == (
            1,
            {"file": str(tmp_path / "x"), "keys": MANY - 1, "written": 1, "new": 2, "deleted": 3},
        )
        assert err == (
            "esp: since the export 1 key was written, 2 new keys were put, 3 keys were deleted (the first: "
            '"a/000001"); stop who writes there, and begin anew\n'
        )

    def test_an_export_that_is_not_complete(self, kvs: list[Kv], run: Run, tmp_path: Path) -> None:
        kvs[0].put(b"a")
        assert run("export", "--to", tmp_path / "x")[0] == 0
        whole = (tmp_path / "x").read_bytes()
        (tmp_path / "x").write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
        code, _, err = run("export", "--verify", tmp_path / "x")
        assert (code, "not complete; complete it with --resume" in err) == (1, True)

    def test_another_cluster(self, kvs: list[Kv], run: Run, tmp_path: Path, empty_etcd: LocalEtcd) -> None:
        kvs[0].put(b"a")
        run("export", "--to", tmp_path / "x")
        text = (tmp_path / "x").read_text()
        header = json.loads(text.splitlines()[0])
        header["shards"][0]["cluster_id"] = "77"
        lines = [json.dumps(header), *text.splitlines()[1:-1]]
        digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
        last = json.dumps({"end": True, "keys": 1, "leases": 0, "sha256": digest})
        (tmp_path / "x").write_text("".join(f"{line}\n" for line in [*lines, last]))
        code, _, err = run("export", "--verify", tmp_path / "x")
        assert (code, "shard s0 is another cluster now" in err) == (1, True)


class TestImport:
    def test_the_same_leases(self, kvs: list[Kv], run: Run, tmp_path: Path, empty_shards: list[LocalEtcd]) -> None:
        """As docs/operations.md has it for a range that moves: the leases are on all shards, with other TTLs."""
        for number, kv in enumerate(kvs):
            kv.grant(0x1234, 900 - number)
        kvs[1].grant(0x77, 900)  # has ended on all when its key comes
        for key, lease in ((b"k", 0x1234), (b"l", 0), (b"m", 0x77)):
            kvs[1].put(key, b"1", lease)
        assert run("export", "k", "--range-end", "r", "--to", tmp_path / "x")[0] == 0
        kvs[1].lease.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=0x77))
        moved = write_config(tmp_path / "moved.yaml", empty_shards, ["i", "k"])
        to = ["import", tmp_path / "x", "-c", moved, "--same-leases"]
        kvs[2].lease.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=0x1234))
        code, _, err = run(*to)
        assert code == 1
        assert "shard s2 lacks lease 0000000000001234, which lives on shard s0; esp lease-sync --apply grants it" in err
        kvs[2].grant(0x1234, 800)
        for again in ([], ["--resume"]):
            code, out, _ = run(*to, *again, "-o", "json")
            told = json.loads(out)
            assert (code, told["renamed"], told["leases"], told["left_out"]) == (0, [], 0, 1)
            assert kvs[2].pairs() == [(b"k", b"1", 0x1234), (b"l", b"1", 0)]
        assert kvs[2].leases() == [0x1234]
        assert kvs[2].ttl(0x1234)[0] == 800, "nothing was granted"
        code, _, err = run(*to)
        assert (code, 'the key "k" is on shard s2 already' in err) == (1, True)

    @pytest.fixture
    def exported(self, many: list[Kv], run: Run, tmp_path: Path) -> Path:
        many[0].grant(0x1234, 900)
        many[0].put(b"a/leased", b"1", 0x1234)
        assert run("export", "--to", tmp_path / "x")[0] == 0
        return tmp_path / "x"

    def test_into_an_etcd_and_back(
        self, exported: Path, many: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run, tmp_path: Path
    ) -> None:
        before = by_prefix(many)
        code, out, _ = run("import", exported, "--endpoint", empty_etcd.endpoint, "-o", "json")
        assert code == 0
        assert json.loads(out) == {
            "written": MANY + 1,
            "present": 0,
            "skipped": 0,
            "left_out": 0,
            "leases": 1,
            "renamed": [],
            "lost": [],
        }
        assert other.pairs() == before
        assert other.ttl(0x1234) == (900, 1)
        mods = [row.mod_revision for row in other.rows()]
        assert mods == sorted(mods)  # in the order of the keys
        assert run("export", "--endpoint", empty_etcd.endpoint, "--to", tmp_path / "y")[0] == 0
        for kv in many:
            kv.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**EVERYTHING))
            if kv.ttl(0x1234)[0] > 0:
                kv.lease.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=0x1234))
        assert run("import", tmp_path / "y")[0] == 0
        assert by_prefix(many) == before
        assert [kv.ttl(0x1234) for kv in many] == [(900, 1), (900, 0), (900, 0)]  # a lease lives on all shards

    def test_keys_that_are_there(self, exported: Path, other: Kv, empty_etcd: LocalEtcd, run: Run) -> None:
        to = ["--endpoint", empty_etcd.endpoint]
        other.put(b"s/000100", b"mine")
        code, _, err = run("import", exported, *to)
        assert code == 1
        assert 'the key "s/000100" is on shard etcd already; add --overwrite or --skip-existing' in err
        assert "nothing was written" in err
        assert other.count() == 1
        code, out, _ = run("import", exported, *to, "--skip-existing")
        assert (code, out) == (0, f"wrote {MANY:,} keys, 1 lease, 1 skipped, which was there\n")
        assert (b"s/000100", b"mine", 0) in other.pairs()
        code, _, err = run("import", exported, *to, "--resume")
        assert (code, "with another value or lease than in the export" in err) == (1, True)
        assert run("import", exported, *to, "--overwrite")[0] == 0
        assert (b"s/000100", b"mine", 0) not in other.pairs()

    def test_a_pipe_is_refused_at_the_key(self, exported: Path, other: Kv, empty_etcd: LocalEtcd) -> None:
        other.put(b"s/000100", b"mine")
        command = [sys.executable, "-m", "esp", "import", "-", "--endpoint", empty_etcd.endpoint]
        with exported.open("rb") as file:
            cat = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
            done = subprocess.run(command, stdin=cat.stdout, capture_output=True, text=True, check=False)
            assert cat.stdout is not None
            cat.stdout.close()
            cat.wait()
        assert done.returncode == 1
        assert 'the key "s/000100" is on shard etcd already' in done.stderr
        assert "keys are written, and --resume goes on" in done.stderr

    def test_one_that_was_killed(
        self, exported: Path, many: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run
    ) -> None:
        """It is killed while it waits for the second half of its input."""
        data = exported.read_bytes()
        command = [sys.executable, "-m", "esp", "import", "-", "--endpoint", empty_etcd.endpoint]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(data[: len(data) // 3 * 2])
            process.stdin.flush()
            wait_until(lambda: other.count() > 0)
            process.send_signal(signal.SIGKILL)
            process.stdin.close()
        there = other.count()
        assert there < MANY
        code, out, _ = run("import", exported, "--endpoint", empty_etcd.endpoint, "--resume", "-o", "json")
        told = json.loads(out)
        assert (code, told["present"], told["written"]) == (0, there, MANY + 1 - there)
        assert other.pairs() == by_prefix(many)

    def test_ctrl_c_says_how_to_go_on(
        self, exported: Path, many: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run
    ) -> None:
        """It comes while a thread waits for the second half of the input."""
        data = exported.read_bytes()
        command = [sys.executable, "-m", "esp", "import", "-", "--endpoint", empty_etcd.endpoint]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write(data[: len(data) // 3 * 2])
            process.stdin.flush()
            wait_until(lambda: other.count() > 0)
            process.send_signal(signal.SIGINT)
            code, err = process.wait(20), process.stderr.read().decode()
        there = other.count()
        told = re.fullmatch(r"esp: interrupted; ([\d,]+) keys are written, and --resume goes on\n", err)
        assert (code, told is not None) == (130, True), err
        assert told is not None
        assert int(told[1].replace(",", "")) <= there < MANY
        code, out, _ = run("import", exported, "--endpoint", empty_etcd.endpoint, "--resume", "-o", "json")
        assert (code, json.loads(out)["present"], json.loads(out)["written"]) == (0, there, MANY + 1 - there)
        assert other.pairs() == by_prefix(many)

    @pytest.mark.parametrize(
        ("spoil", "text"),
        [
            (lambda data: data[: len(data) // 2], "truncated"),
            (lambda data: data[: data.rindex(b'{"end"')], "truncated: it ends after 1,321 keys"),
            (lambda data: data[:40], "ends within its first line"),
            (lambda data: data.replace(b'"mod":', b'"mod": ', 1), "checksum"),
            (lambda data: data + data, "comes after the end of the export"),
            (lambda data: data + b"x", "comes after the end of the export"),
            (lambda _: b"", "it is empty"),
            (lambda _: b"a: b\n", "no export of esp"),
        ],
    )
    def test_a_damaged_file_is_not_imported(
        self,
        exported: Path,
        other: Kv,
        empty_etcd: LocalEtcd,
        run: Run,
        spoil: Callable[[bytes], bytes],
        text: str,
    ) -> None:
        exported.write_bytes(spoil(exported.read_bytes()))
        code, _, err = run("import", exported, "--endpoint", empty_etcd.endpoint)
        assert (code, text in err, "nothing was written" in err) == (1, True, True), err
        assert other.count() == 0

    def test_a_shard_that_goes_away_and_comes_back(
        self, exported: Path, many: list[Kv], other: Kv, empty_etcd: LocalEtcd, tmp_path: Path
    ) -> None:
        """Each key that was acknowledged is there, and each is written once, although answers are lost."""
        relay = Losing(empty_etcd, lambda: other.count() > 0)
        try:
            with exported.open("rb") as file:
                work = Import(config_of(Etcd([relay.endpoint])), file, Existing.REFUSE, lambda *_: None)
                asyncio.run(work.run())
        finally:
            relay.close()
        assert relay.lost == 1
        assert work.done.written == MANY + 1
        assert other.pairs() == by_prefix(many)
        assert {row.version for row in other.rows()} == {1}

    def test_an_id_that_is_taken(self, exported: Path, other: Kv, empty_etcd: LocalEtcd, run: Run) -> None:
        other.grant(0x1234, 77)
        other.put(b"theirs", b"1", 0x1234)
        to = ["--endpoint", empty_etcd.endpoint]
        code, out, _ = run("import", exported, *to, "-o", "json")
        assert code == 0
        [renamed] = json.loads(out)["renamed"]
        assert renamed["from"] == "0000000000001234"
        new = int(renamed["to"], 16)
        assert other.ttl(new) == (900, 1)
        assert other.ttl(0x1234) == (77, 1)
        again = json.loads(run("import", exported, *to, "--resume", "-o", "json")[1])
        assert (again["present"], again["renamed"]) == (MANY + 1, [renamed])
        other.lease.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=new))

    def test_several_transactions_at_once(
        self, exported: Path, many: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run
    ) -> None:
        assert run("import", exported, "--endpoint", empty_etcd.endpoint, "--at-once", "8")[0] == 0
        assert other.pairs() == by_prefix(many)

    def test_leases_are_kept_alive_meanwhile(
        self, kvs: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run, tmp_path: Path
    ) -> None:
        """The rest of the file comes when the lease would have ended twice."""
        kvs[0].grant(0x1234, 2)
        kvs[0].put(b"a", b"1", 0x1234)
        kvs[0].put(b"b", b"1", 0x1234)
        lines = run("export")[1].encode().splitlines(keepends=True)

        class Slow(io.BytesIO):
            def read1(self, size: int | None = -1) -> bytes:
                if self.tell() == len(lines[0] + lines[1] + lines[2]):
                    wait_until(lambda: other.count() == 1)
                    time.sleep(4.5)
                return self.readline()

            def seekable(self) -> bool:
                return False

        work = Import(config_of(Etcd([empty_etcd.endpoint])), Slow(b"".join(lines)), Existing.REFUSE, lambda *_: None)
        asyncio.run(work.run())
        assert work.done.written == 2
        assert other.pairs() == [(b"a", b"1", 0x1234), (b"b", b"1", 0x1234)]

    def test_a_shard_that_stands_still_loses_leases_of_its_own_only_and_that_is_told(
        self,
        kvs: list[Kv],
        empty_shards: list[LocalEtcd],
        run: Run,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It stands still for longer than the TTL, between two parts of the file. Meanwhile the others are renewed."""
        for kv, key in zip(kvs, (b"a", b"k", b"s"), strict=True):
            kv.grant(0x1234, 2)
            kv.put(key, b"1", 0x1234)
        kvs[2].put(b"t")
        path = tmp_path / "x"
        path.write_text(run("export")[1])
        lines = path.read_bytes().splitlines(keepends=True)
        for kv in kvs:
            kv.lease.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=0x1234))
            kv.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**EVERYTHING))

        class Halting(io.BytesIO):
            def read1(self, size: int | None = -1) -> bytes:
                line = self.readline()
                if line == lines[-2]:
                    wait_until(lambda: sum(kv.count() for kv in kvs) == 3)
                    with frozen(empty_shards[1]):
                        time.sleep(3)
                    wait_until(lambda: kvs[1].ttl(0x1234)[0] == -1)
                return line

            def seekable(self) -> bool:
                return False

        with monkeypatch.context() as halting:
            halting.setattr(import_, "_opened", lambda _: nullcontext(Halting(b"".join(lines))))
            code, out, err = run("import", path, "-o", "json")
        assert (code, json.loads(out)["lost"]) == (1, [{"shard": "s1", "leases": ["0000000000001234"]}])
        assert "and their keys with them: 1 on shard s1; " in err
        assert "import again with --resume" in err
        assert by_prefix(kvs) == [(b"a", b"1", 0x1234), (b"s", b"1", 0x1234), (b"t", b"v", 0)]
        code, _, err = run("import", path, "--resume")
        assert (code, err) == (0, "")
        assert [kv.pairs()[0] for kv in kvs] == [(key, b"1", 0x1234) for key in (b"a", b"k", b"s")]

    @pytest.mark.parametrize("option", ["--overwrite", "--skip-existing"])
    def test_an_import_into_its_own_keys_uses_the_leases_that_are_there(
        self, kvs: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run, tmp_path: Path, option: str
    ) -> None:
        kvs[0].grant(0x1234, 900)
        kvs[0].put(b"a", b"1", 0x1234)
        assert run("export", "--to", tmp_path / "x")[0] == 0
        to = ["import", tmp_path / "x", "--endpoint", empty_etcd.endpoint]
        assert run(*to)[0] == 0
        for _ in range(3):
            code, out, _ = run(*to, option, "-o", "json")
            assert (code, json.loads(out)["renamed"]) == (0, [])
            assert other.pairs() == [(b"a", b"1", 0x1234)]
            assert other.leases() == [0x1234]

    def test_a_lease_whose_ids_are_taken_again_and_again(
        self, kvs: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run, tmp_path: Path
    ) -> None:
        """The keys are deleted before each import, and the leases stay; a resumed import finds its own, the last."""
        kvs[0].grant(0x1234, 900)
        kvs[0].put(b"a", b"1", 0x1234)
        assert run("export", "--to", tmp_path / "x")[0] == 0
        to = ["import", tmp_path / "x", "--endpoint", empty_etcd.endpoint]
        for number in range(1 + OTHER_IDS):
            other.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**EVERYTHING))
            assert run(*to)[0] == 0
            assert len(other.leases()) == number + 1
            before = other.pairs()
            code, out, _ = run(*to, "--resume")
            assert (code, out.splitlines()[0]) == (0, "wrote 0 keys, 1 lease, 1 was written before")
            assert (other.pairs(), len(other.leases())) == (before, number + 1)
        other.kv.DeleteRange(rpc_pb2.DeleteRangeRequest(**EVERYTHING))
        code, _, err = run(*to)
        assert (code, "its own and 8 others from" in err) == (1, True), err

    def test_without_leases(self, exported: Path, many: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run) -> None:
        to = ["--endpoint", empty_etcd.endpoint, "--no-leases"]
        code, out, _ = run("import", exported, *to)
        assert (code, out) == (0, f"wrote {MANY + 1:,} keys\n")
        assert other.pairs() == [(key, value, 0) for key, value, _ in by_prefix(many)]
        assert other.ttl(0x1234)[0] == -1
        assert "were written before" in run("import", exported, *to, "--resume")[1]

    def test_a_lease_that_has_ended(
        self, kvs: list[Kv], other: Kv, empty_etcd: LocalEtcd, run: Run, tmp_path: Path
    ) -> None:
        kvs[0].grant(0x1234)
        kvs[0].put(b"a", b"1", 0x1234)
        kvs[0].put(b"b")
        lines = run("export")[1].splitlines(keepends=True)
        (tmp_path / "x").write_text("".join(lines[:1]))
        kvs[0].lease.LeaseRevoke(rpc_pb2.LeaseRevokeRequest(ID=0x1234))
        code, out, _ = run("export", "--resume", tmp_path / "x", "-o", "json")
        assert (code, json.loads(out)["keys"], json.loads(out)["ended_leases"]) == (0, 2, 1)
        code, out, _ = run("import", tmp_path / "x", "--endpoint", empty_etcd.endpoint)
        assert (code, out) == (0, "wrote 1 key, 1 left out, whose lease has ended\n")
        assert other.pairs() == [(b"b", b"v", 0)]

    def test_a_shard_that_takes_less(self, many: list[Kv], start_etcd: Etcds, run: Run, tmp_path: Path) -> None:
        small = start_etcd("--max-txn-ops=7", "--max-request-bytes=1500")
        assert run("export", "a", "--prefix", "--to", tmp_path / "x")[0] == 0
        assert run("import", tmp_path / "x", "--endpoint", small.endpoint)[0] == 0
        with connect(small) as channel:
            assert Kv(channel).pairs() == many[0].pairs()


class Losing(Relay):
    """A relay that loses an answer, and all connections, once something is true; then it serves on."""

    def __init__(self, server: Server, when: Callable[[], bool]) -> None:
        self.lost = 0
        self._when = when
        super().__init__(server)

    def _pump(self, source: Any, sink: Any, is_request: bool) -> None:
        try:
            while data := source.recv(65536):
                if not is_request and not self.lost and self._when():
                    self.lost += 1
                    self.cut()
                    return
                sink.sendall(data)
        except OSError:
            pass


def test_a_page_of_too_many_bytes_is_asked_for_again_with_fewer_keys(
    kvs: list[Kv], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small values first, so that the page is large when the large ones come."""
    kvs[0].fill([(b"a/%04d" % number, b"v") for number in range(300)])
    for number in range(20):
        kvs[0].put(b"b/%04d" % number, b"v" * 100_000)
    sizes: list[int] = []

    async def read(*arguments: Any) -> Any:
        answer = await patience.read(*arguments)
        sizes.append(answer.ByteSize())
        return answer

    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 500_000)
    monkeypatch.setattr(pages, "read", read)
    code, out, _ = run("export")
    assert (code, lines_of(out)[-1]["keys"]) == (0, 320)
    assert 300_000 < max(sizes) < 500_000


def test_auth(start_etcd: Etcds, run: Run, tmp_path: Path, etcdctl: Callable[..., Any]) -> None:
    """A user may export and import what its roles let it; the password comes from a file."""
    etcd = start_etcd()
    for line in (
        "user add root:geheim",
        "user grant-role root root",
        "user add reader:geheim",
        "role add reader",
        "role grant-permission reader read a b",
        "user grant-role reader reader",
        "put a/1 v",
        "put c v",
        "auth enable",
    ):
        assert etcdctl(etcd, *line.split()).returncode == 0
    (tmp_path / "password").write_text("geheim\n")
    to = ["--endpoint", etcd.endpoint, "--password-file", tmp_path / "password", "--user"]
    assert run("export", *to, "root", "--to", tmp_path / "x")[0] == 0
    assert run("export", "a", "--prefix", *to, "reader", "--to", tmp_path / "y")[0] == 0
    code, _, err = run("export", *to, "reader", "--to", tmp_path / "z")
    assert (code, "etcdserver: permission denied; name a user who may read" in err) == (1, True), err
    assert run("import", tmp_path / "x", *to, "root", "--resume")[:2] == (0, "wrote 0 keys, 2 were written before\n")
    code, _, err = run("import", tmp_path / "y", *to, "reader", "--overwrite")
    assert (code, "etcdserver: permission denied; name a user who may read" in err) == (1, True), err
    code, _, err = run("export", *to[:2], "--to", tmp_path / "w")
    assert (code, "name a user who may read" in err) == (1, True), err
    short = ["--seconds", "0.2", "--warm-up", "0", "--connections", "2", "--rounds", "1"]
    bench = [etcd.endpoint, *short, *to[2:], "root", "--load", "put", "--load", "keepalive", "--load", "watch"]
    result = CliRunner().invoke(app, ["bench", *map(str, bench)])
    assert result.exit_code == 0, result.output
