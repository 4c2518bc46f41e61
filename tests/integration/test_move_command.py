"""`esp move` on real etcds: what it refuses, what it prints, and what is left when it is killed at any step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.core.keys import KeyRange
from esp.core.local import tied_to_this_process
from esp.core.pb import rpc_pb2
from esp.core.shared_map import GUARD_KEY, MAP_KEY, NEXT_KEY, SharedMap, decode
from tests.harness import Etcds, connect
from tests.integration.mapped import Mapped
from tests.integration.test_move import pairs, put, same, write
from tests.stubs import rpc_pb2_grpc


@pytest.fixture
def mapped(start_etcd: Etcds, tmp_path: Path) -> Mapped:
    return Mapped(start_etcd.several(3), ["i", "r"], tmp_path / "esp.yaml")


def run_esp(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def move(mapped: Mapped, *arguments: str) -> tuple[int, str]:
    """As it is printed: whoever goes on with a move, or gives it up, does not say again that it is experimental."""
    new = () if {"--resume", "--abort"} & {*arguments} else ("--experimental",)
    return run_esp("move", "-c", mapped.path, *new, "--yes", "--max-pause", "20", *arguments)


def shared(mapped: Mapped, name: str) -> SharedMap:
    """The map that a shard holds, whose guard is the map's, while nothing is under way."""
    [(_, data)] = mapped.read(name, MAP_KEY)
    found = decode(data)
    assert mapped.read(name, GUARD_KEY) == [(GUARD_KEY, found.guards[name].encode())]
    assert mapped.read(found.anchor, NEXT_KEY) == []
    return found


def test_keys_move_with_a_prefix_and_nothing_is_left_of_them(mapped: Mapped) -> None:
    for number in range(30):
        write(mapped, "s0", put(b"b/%02d" % (number * 7 % 30), b"%d" % number))
    before = pairs(mapped, "s0")
    code, text = run_esp("move", "-c", mapped.path, "--prefix", "b/", "--to", "s2")
    assert (code, "--experimental" in text) == (2, True), text
    code, text = run_esp("move", "-c", mapped.path, "--prefix", "b/", "--to", "s2", "--experimental")
    assert (code, "nothing is done without a yes" in text) == (2, True), text
    assert '30 keys in ["b/", "b0") would move from shard s0 to shard s2.' in text
    code, text = move(mapped, "--prefix", "b/", "--to", "s2")
    assert code == 0, text
    assert '["b/", "b0") belongs to shard s2 now (epoch 2).' in text
    assert "shard s0: 30 keys deleted." in text
    same(before, pairs(mapped, "s2"))
    assert pairs(mapped, "s0") == []
    assert shared(mapped, "s1").map.owner(b"b/1") == "s2"
    code, text = move(mapped, "b/", "b0", "--to", "s0", "-o", "json")
    lines = [json.loads(line) for line in text.splitlines()]
    assert code == 0, text
    assert [line["keys"] for line in lines if "move" in line] == [30]
    stages = list(dict.fromkeys(line["stage"] for line in lines if "stage" in line))
    assert stages == [
        "looking", "raising", "listing", "copying", "following", "cut", "open", "comparing", "purging"
    ]  # fmt: skip
    assert [line["moved"] for line in lines if "moved" in line] == [True]
    assert lines[-1] == {"purged": 30, "shard": "s2"}
    same(before, pairs(mapped, "s0"))


def test_the_first_keys_move_and_those_of_esp_stay_where_they_are(mapped: Mapped) -> None:
    """A range without a start begins before `\\0esp/`; this one leaves the anchor, for a shard with a stray."""
    first = KeyRange(b"\x01", b"i")
    for number in range(30):
        write(mapped, "s0", put(b"%02d" % (number * 7 % 30), b"%d" % number))
    before = pairs(mapped, "s0", first)
    write(mapped, "s2", put(b"stray"), put(b"0-stray"))
    code, told = move(mapped, "", "i", "--to", "s2")
    assert (code, "shard s2 has 1 key of" in told) == (1, True), told
    code, told = move(mapped, "", "i", "--to", "s2", "--clear")
    assert code == 0, told
    assert '30 keys in ["", "i") would move' in told
    assert "shard s0: 30 keys deleted." in told
    for name in mapped.etcds:
        assert shared(mapped, name).map.owner(b"0") == "s2"
    same(before, pairs(mapped, "s2", first))
    assert pairs(mapped, "s0", first) == []
    killed_at(mapped, "following", "s0", "", "i")
    code, told = move(mapped, "--abort")
    assert code == 0, told
    assert pairs(mapped, "s0", first) == []
    code, told = move(mapped, "", "i", "--to", "s0", "--keep")
    assert code == 0, told
    code, told = move(mapped, "--resume")
    assert (code, "shard s2: 30 keys deleted." in told) == (0, True), told
    for name in mapped.etcds:
        assert shared(mapped, name).map.owner(b"0") == "s0"
    same(before, pairs(mapped, "s0", first))


def test_what_cannot_move_safely_is_refused(mapped: Mapped) -> None:
    write(mapped, "s0", put(b"b/1"))
    for arguments, text in (
        (("--prefix", "b/", "--to", "s0"), "to shard s0 already"),
        (("--prefix", "b/", "--to", "nope"), "has no shard nope"),
        (("b", "k", "--to", "s2"), "to several shards (s0, s1)"),
        (("--resume",), "no keys move, and none are left of the last move"),
        (("--abort",), "no keys move"),
        (("b", "--to", "s2"), "START needs an END"),
        (("--to", "s2"), "name the keys"),
        (("--prefix", "b/"), "--to names the shard"),
    ):
        code, told = move(mapped, *arguments)
        assert code != 0
        assert text in told
    write(mapped, "s2", put(b"b/stray"))
    code, told = move(mapped, "--prefix", "b/", "--to", "s2")
    assert (code, "shard s2 has 1 key of" in told) == (1, True), told
    code, told = move(mapped, "--prefix", "b/", "--to", "s2", "--clear")
    assert code == 0, told
    assert [pair.key for pair in pairs(mapped, "s2")] == [b"b/1"]


def test_locks_in_use_are_neither_divided_nor_moved_unless_told(mapped: Mapped) -> None:
    for name in mapped.etcds:
        with connect(mapped.etcds[name][0]) as channel:
            for lease in (0x10, 0x90):
                grant = rpc_pb2.LeaseGrantRequest(ID=lease, TTL=600)
                rpc_pb2_grpc.LeaseStub(channel).LeaseGrant(grant)
    write(mapped, "s0", put(b"b/lock/10", b"", 0x10))
    write(mapped, "s0", put(b"b/lock/90", b"", 0x90))
    code, told = move(mapped, "b/lock/5", "c", "--to", "s2")
    assert (code, 'would divide a lock or election in use: "b/lock/"' in told) == (1, True), told
    code, told = move(mapped, "--prefix", "b/", "--to", "s2")
    assert (code, 'locks or elections are in use: "b/lock/"' in told) == (1, True), told
    before = pairs(mapped, "s0")
    code, told = move(mapped, "--prefix", "b/", "--to", "s2", "--with-locks")
    assert code == 0, told
    same(before, pairs(mapped, "s2"))


STAGES = ("raising", "listing", "copying", "following", "cut", "open", "comparing", "purging")


def killed_at(mapped: Mapped, stage: str, target: str, *keys: str) -> None:
    """Ends `esp move` by SIGKILL when it tells of a stage."""
    words = ["move", "-c", str(mapped.path), "--experimental", "--yes", "-o", "json", "--max-pause", "20"]
    words += [*(keys or ("--prefix", "b")), "--to", target]
    process = subprocess.Popen(
        tied_to_this_process([sys.executable, "-m", "esp", *words]), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if json.loads(line).get("stage") == stage:
            break
    else:
        pytest.fail(f"it never came to {stage}: {seen}")
    process.kill()
    process.stdout.close()
    process.wait()


def test_a_mover_that_is_killed_at_any_step_is_resumed(mapped: Mapped) -> None:
    for number in range(100):
        write(mapped, "s0", put(b"b%02d" % (number * 7 % 100), b"%d" % number))
    owner, target = "s0", "s2"
    for number, stage in enumerate(STAGES):
        before = pairs(mapped, owner)
        killed_at(mapped, stage, target)
        code, told = move(mapped, "--resume")
        # From the comparison on it has all it needs, and may be done before the signal reaches it.
        done = "no keys move, and none are left of the last move" in told and stage in ("comparing", "purging")
        assert code == 0 or done, (stage, told)
        now = shared(mapped, "s1")
        assert (now.epoch, now.map.owner(b"b")) == (number + 2, target), stage
        same(before, pairs(mapped, target))
        assert pairs(mapped, owner) == [], stage
        owner, target = target, owner


def test_a_mover_that_is_killed_at_any_step_is_given_up_or_has_moved(mapped: Mapped) -> None:
    for number in range(100):
        write(mapped, "s0", put(b"b%02d" % (number * 7 % 100), b"%d" % number))
    before = pairs(mapped, "s0")
    for stage in STAGES[:5]:
        killed_at(mapped, stage, "s2")
        code, told = run_esp("map", "finish", "-c", mapped.path)
        assert (code, "esp move --resume goes on with it, and esp move --abort gives it up" in told) == (1, True), told
        code, told = run_esp("check", "-c", mapped.path)
        assert (code, "esp move --abort gives it up" in told) == (1, True), told
        write(mapped, "s0", put(b"b-more", stage.encode()))
        code, told = move(mapped, "--abort")
        now = shared(mapped, "s1")
        if now.map.owner(b"b") == "s2":  # it was open when it was killed
            assert stage == "cut"
            assert "The keys have moved" in told
            return
        assert (code, "The keys stay where they were" in told) == (0, True), (stage, told)
        assert shared(mapped, "s0") == shared(mapped, "s2") == now
        assert pairs(mapped, "s2") == []
        assert pairs(mapped, "s0")[1:] == before
