"""`esp reload`, SIGHUP and `watch_config` on a running esp: the output, the log and the exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from esp.cli.whole import app
from esp.commands.reloading import answer_of
from esp.core import config as configs
from esp.core.control import MAX_ANSWER_BYTES, Place, size_of
from esp.core.local import LocalEtcd
from esp.core.pb import rpc_pb2
from esp.core.reload import Difference, Outcome, Result
from tests.harness import EspProcess, Esps, connect, free_port, wait_until, write_config
from tests.stubs import rpc_pb2_grpc

LISTED = {"result", "config", "epoch", "changes", "reasons", "warnings", "notes", "lines"}


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """`esp reload`: exit code, output, and what is on stderr.

    Without lines on what earlier tests have left in the shards: their revisions, and leases.
    """
    result = CliRunner().invoke(app, ["reload", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    lines = result.stdout.splitlines(keepends=True)
    told = [line for line in lines if " is at revision " not in line and not line.endswith(" leases\n")]
    return result.exit_code, "".join(told), result.stderr


@pytest.fixture
def shards(empty_shards: list[LocalEtcd]) -> list[LocalEtcd]:
    return empty_shards


def put(esp: EspProcess, key: bytes) -> None:
    with connect(esp) as channel:
        rpc_pb2_grpc.KVStub(channel).Put(rpc_pb2.PutRequest(key=key), timeout=20)


@pytest.fixture
def esp(shards: list[LocalEtcd], start_esp: Esps) -> EspProcess:
    return start_esp(shards[:2], ["m"])


def config_of(esp: EspProcess) -> Path:
    assert esp.config
    return esp.config


def test_a_reload_prints_and_logs_what_changes(esp: EspProcess, shards: list[LocalEtcd]) -> None:
    path = config_of(esp)
    write_config(path, shards, ["m", "t"], "limits: {max_tokens: 9}")
    changes = (
        f'shard s2 is new: {shards[2].endpoint}\nkeys ["t", end) move from s1 to s2\nlimit max_tokens: 200000 -> 9\n'
    )
    assert run("-c", path, "--check") == (0, changes + "a reload would do this; nothing has changed yet\n", "")
    assert "reload (" not in esp.log()
    assert run("-c", path) == (0, changes + "reloaded: layout 2 is in force\n", "")
    for line in changes.splitlines():
        assert f"INFO reload (esp reload): {line}\n" in esp.log()
    assert "layout 2 is in force: shards s0, s1, s2; map " in esp.log()
    assert run("-c", path) == (0, "the config has not changed; layout 2 stays in force\n", "")
    put(esp, b"y")
    write_config(path, shards[:2], ["m"])
    code, out, err = run("-c", path)
    assert code == 1
    assert out.startswith("shard s2 is removed\n")
    assert err == (
        'esp: shard s2 holds 1 key of ["t", end), which no client would see any more: the range moves to s1, which '
        "holds 0 keys there; copy them there before\n"
        "esp: the reload is refused; nothing has changed\n"
    )
    assert 'ERROR reload (esp reload): refused, nothing has changed: shard s2 holds 1 key of ["t", end)' in esp.log()
    code, out, _ = run("-c", path, "--force")
    assert code == 0
    assert 'warning: shard s2 holds 1 key of ["t", end)' in out
    code, out, _ = run("-c", path, "-o", "json")
    told = json.loads(out)
    assert (code, told["result"], told["epoch"], told["config"]) == (0, "unchanged", 3, str(path))
    assert set(told) == LISTED


def test_a_wrong_file_and_a_field_that_is_fixed_are_refused(esp: EspProcess, shards: list[LocalEtcd]) -> None:
    path = config_of(esp)
    good = path.read_text()
    path.write_text(good + "limits: {max_token: 9}\n")
    code, out, err = run("-c", path, "-o", "json")
    told: dict[str, Any] = json.loads(out)
    assert (code, told["result"], told["changes"]) == (1, "refused", None)
    assert told["reasons"] == [
        f'{path}:{good.count(chr(10)) + 1}: limits: unknown field "max_token"; did you mean "max_tokens"?'
    ]
    assert err == "esp: the reload is refused; nothing has changed\n"
    path.write_text(good + "namespace: x/\n")
    assert run("-c", path, "--force") == (
        1,
        "",
        'esp: namespace: none -> "x/" cannot change while esp runs; run esp serve --takeover, or restart esp\n'
        "esp: the reload is refused; nothing has changed\n",
    )
    path.write_text(good + "control: off\n")
    assert run("-c", path) == (1, "", f"esp: {path} says control: off; send SIGHUP to esp instead\n")
    put(esp, b"a")
    # The command line's addresses stay: the file's, which are others, are no change.
    path.write_text(good + "listen: [http://127.0.0.1:1]\n")
    assert run("-c", path) == (0, "the config has not changed; layout 1 stays in force\n", "")


def test_sighup_reloads(esp: EspProcess, shards: list[LocalEtcd]) -> None:
    path = config_of(esp)
    write_config(path, shards[:2], ["n"], "log: {level: debug}")
    esp.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reload (SIGHUP): log.level" in esp.log())
    assert "layout 2 is in force" in esp.log()
    assert 'INFO reload (SIGHUP): keys ["m", "n") move from s1 to s0\n' in esp.log()
    assert "INFO reload (SIGHUP): log.level: info -> debug\n" in esp.log()
    path.write_text("shards: [")
    esp.process.send_signal(signal.SIGHUP)
    wait_until(lambda: f"ERROR reload (SIGHUP): refused, nothing has changed: {path}:1: not YAML" in esp.log())
    put(esp, b"a")


def test_a_file_that_changes_is_read_if_the_config_says_so(start_esp: Esps, shards: list[LocalEtcd]) -> None:
    esp = start_esp(shards[:2], ["m"], extra="watch_config: true")
    path = config_of(esp)
    new = write_config(path.with_name("new.yaml"), shards[:2], ["n"], "watch_config: true")
    os.rename(new, path)
    wait_until(lambda: "reload (the file has changed)" in esp.log())
    assert 'INFO reload (the file has changed): keys ["m", "n") move from s1 to s0\n' in esp.log()


def test_all_workers_take_the_config_or_none_and_so_do_those_that_begin_later(
    start_esp: Esps, shards: list[LocalEtcd]
) -> None:
    esp = start_esp(shards[:2], ["m"], "--workers", "2")
    path = config_of(esp)

    def processes() -> list[int]:
        found = subprocess.run(["pgrep", "-P", str(esp.process.pid)], capture_output=True, text=True, check=True)
        return sorted(map(int, found.stdout.split()))

    path.write_text("shards: [")
    code, _, err = run("-c", path)
    assert (code, "not YAML" in err) == (1, True)
    write_config(path, shards[:2], ["m"], "namespace: x/")
    assert run("-c", path)[0] == 1
    write_config(path, shards, ["m", "t"])
    assert run("-c", path, "--check")[1].endswith("a reload would do this; nothing has changed yet\n")
    code, out, _ = run("-c", path)
    assert code == 0
    assert out.startswith(f'shard s2 is new: {shards[2].endpoint}\nkeys ["t", end) move from s1 to s2\n')
    assert out.endswith("reloaded: layout 2 is in force\n")
    assert esp.log().count("layout 2 is in force") == 2
    assert esp.log().count("reload (esp reload): shard s2 is new") == 1
    before = processes()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(after := processes()) == 2 and after != before)

    def all_go_to_the_new_shard() -> bool:
        for number in range(8):
            try:
                put(esp, b"y%d" % number)
            except grpc.RpcError:
                return False
        return True

    wait_until(all_go_to_the_new_shard)
    with connect(shards[1]) as channel:
        asked = rpc_pb2.RangeRequest(key=b"y", range_end=b"z", count_only=True)
        assert rpc_pb2_grpc.KVStub(channel).Range(asked, timeout=20).count == 0
    write_config(path, shards, ["n", "t"])

    def is_reloaded() -> bool:
        esp.process.send_signal(signal.SIGHUP)
        return 'reload (SIGHUP): keys ["m", "n") move from s1 to s0' in esp.log()

    wait_until(is_reloaded)  # not before the new worker serves


def test_a_second_esp_with_the_same_config_is_told(esp: EspProcess, start_esp: Esps) -> None:
    path = config_of(esp)
    second = start_esp.launch("-c", path)
    second.wait_ready()
    wait_until(lambda: "another esp has the control socket" in second.log())
    _, _, rest = second.log().partition("that of this process is ")
    other = Path(rest.partition("\n")[0])
    code, _, err = run("-c", path)
    assert code == 0
    assert (
        err == f"esp: another esp with this config has the control socket {other}; reload it with --control {other}\n"
    )
    assert run("--control", other, "-c", path)[0] == 0
    assert "reload (esp reload): the config has not changed" in second.log()


def test_without_a_running_esp_the_places_are_named(tmp_path: Path, etcd: LocalEtcd) -> None:
    path = write_config(tmp_path / "esp.yaml", [etcd], [])
    code, out, err = run("-c", path)
    assert (code, out) == (1, "")
    assert err.startswith(f"esp: no esp of this user runs with the config {path}: nothing listens at /run/esp/")
    assert run("--control", tmp_path / "x.sock", "-c", path)[::2] == (
        1,
        f"esp: no esp listens at {tmp_path}/x.sock: no such file or directory\n",
    )
    path.write_text("shards: [")
    code, _, err = run("-c", path)
    assert code == 2
    assert err.startswith(f"esp: {path}:1: not YAML")


def test_a_terminal_that_is_closed_ends_it(etcd: LocalEtcd, tmp_path: Path) -> None:
    path = write_config(tmp_path / "esp.yaml", [etcd], [])
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # not as nohup may have left it for the suite
        listen = f"http://127.0.0.1:{free_port()}"
        os.execv(sys.executable, [sys.executable, "-m", "esp", "serve", "-c", str(path), "--listen", listen])
    said = b""
    while b"ready on" not in said:
        said += os.read(terminal, 4096)
    os.kill(pid, signal.SIGHUP)
    while b"reload (SIGHUP): the config has not changed" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_an_answer_that_would_be_too_long_is_cut(tmp_path: Path) -> None:
    """As long as the lists of an answer are, the keys in them may be."""
    key = "k" * 30_000
    outer = "- {name: a, endpoints: [h:1], ranges: [{start: '', end: ''}]}\n"
    texts = [
        f"shards:\n{outer}- {{name: b, endpoints: [h:2], ranges: [{{prefix: {key}{number}}}]}}\n"
        for number in range(20)
    ]
    loaded = [configs.parse(text, tmp_path) for text in texts]
    moved = [move for one in loaded[1:] for move in Difference.of(loaded[0], one).moved]
    difference = Difference((), (), (), tuple(moved), (), (), ())
    assert len(moved) == 38
    answer = answer_of(Outcome(Result.DONE, 2, difference))
    assert size_of(answer) <= MAX_ANSWER_BYTES
    assert answer["lines"][-1].startswith("and ")
    assert answer["changes"]["left_out"] > 0
    assert Place(tmp_path / "x.sock").beside(3).path.name == "x-3.sock"


def test_calls_go_on_while_the_config_is_read(esp: EspProcess, shards: list[LocalEtcd]) -> None:
    """A config of a thousand shards takes a second to read; nobody waits for that."""
    path = config_of(esp)
    many = "".join(
        f"- {{name: n{n}, endpoints: [127.0.0.1:{n + 1}], ranges: [{{prefix: /{n:05}/}}]}}\n" for n in range(2000)
    )
    path.write_text(path.read_text().replace("shards:\n", "shards:\n" + many.replace("- ", "  - ")) + "namespace: x/\n")
    with connect(esp) as channel:
        kv = rpc_pb2_grpc.KVStub(channel)
        esp.process.send_signal(signal.SIGHUP)
        calls = 0
        while "reload (SIGHUP): refused" not in esp.log():
            kv.Put(rpc_pb2.PutRequest(key=b"a"), timeout=20)
            calls += 1
        assert calls > 20
