"""A plain failure of any command is one line, never a traceback."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esp.core import config
from tests.harness import Esps, free_port, is_listening, wait_until

ESP = [sys.executable, "-m", "esp"]
CONFIG = "shards: [{endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]\n"


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "esp.yaml").write_text(CONFIG)
    return subprocess.run(
        ["bash", "-c", command.replace("esp ", " ".join(ESP) + " ", 1)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},  # as for most users
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", ["esp route a", "esp route a -o json", "esp check", "esp check -o json"])
@pytest.mark.parametrize(
    ("output", "reason"), [(">/dev/full", "no space left on device"), (">&-", "standard output is closed")]
)
def test_an_output_that_cannot_be_written(command: str, output: str, reason: str, tmp_path: Path) -> None:
    done = run(f"{command} {output}", tmp_path)
    assert done.returncode == 1
    assert f"esp: the output cannot be written: {reason}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("command", ["", "--help", "--version", "check -h", "completion bash"])
@pytest.mark.parametrize(
    ("output", "reason"), [(">/dev/full", "no space left on device"), (">&-", "standard output is closed")]
)
def test_a_help_that_cannot_be_written(command: str, output: str, reason: str, tmp_path: Path) -> None:
    done = run(f"esp {command} {output}", tmp_path)
    assert done.stderr == f"esp: the output cannot be written: {reason}\n"
    assert done.returncode == 1


@pytest.mark.parametrize(
    "command",
    [
        *("--help", "check -h", "config example", "config schema", "completion bash", "route a -o json", "check"),
        "check -o json",
    ],
)
def test_a_reader_that_has_gone_is_not_told_of(command: str, tmp_path: Path) -> None:
    """As `head` is, when it has read enough."""
    (tmp_path / "esp.yaml").write_text(CONFIG)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*ESP, *command.split()], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_reader_that_has_gone_ends_a_watch(tmp_path: Path) -> None:
    done = run("esp check --watch 0.1 | head -1; echo ${PIPESTATUS[0]}", tmp_path)
    assert (done.stdout.splitlines()[1:], done.stderr) == (["141"], "")
    done = run("esp check --watch 0.1 -o json | head -1; echo ${PIPESTATUS[0]}", tmp_path)
    assert (done.stdout.splitlines()[1:], done.stderr) == (["141"], "")


@pytest.mark.parametrize("command", ["check -c", "serve -c", "serve --local 1 --data-dir"])
def test_a_path_that_is_empty(command: str, tmp_path: Path) -> None:
    done = run(f"esp {command} ''", tmp_path)
    text = 'a path is empty ("" is given to -c or --data-dir); name one, or leave the option out'
    assert (done.returncode, done.stderr) == (2, f"esp: {text}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["esp.yaml"]


@pytest.mark.parametrize("command", ["check -c", "serve -c", "serve --local 1 --data-dir"])
def test_a_path_with_a_line_break_takes_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "one\ntwo").touch()
    command = command.replace("--local 1", f"--local 1 --listen http://127.0.0.1:{free_port()}")
    done = run(f"esp {command} $'one\\ntwo'", tmp_path)
    assert done.returncode != 0
    assert done.stderr.startswith("esp: one\\ntwo")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_a_failure_that_can_be_told_to_nobody_has_its_exit_code(closed: str, tmp_path: Path) -> None:
    assert run(f"esp check -c none.yaml {closed}", tmp_path).returncode == 2


@pytest.mark.parametrize("closed", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_a_log_that_can_be_told_to_nobody_keeps_nobody_from_being_served(closed: str, tmp_path: Path) -> None:
    (tmp_path / "esp.yaml").write_text(CONFIG)
    address = f"127.0.0.1:{free_port()}"
    command = f"exec {' '.join(ESP)} serve --listen http://{address} {closed}"
    with subprocess.Popen(["bash", "-c", command], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: is_listening(address))
        files = {descriptor: os.readlink(f"/proc/{process.pid}/fd/{descriptor}") for descriptor in (0, 1, 2)}
        assert not any("socket" in file or "anon" in file for file in files.values())
        time.sleep(0.1)
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("output", "reason"), [(">/dev/full", "no space left on device"), (">&-", "standard output is closed")]
)
def test_local_etcds_are_served_though_the_welcome_cannot_be_written(output: str, reason: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = f"exec {' '.join(ESP)} serve --local 1 --listen http://127.0.0.1:{free_port()} {output} 2>log"
    with subprocess.Popen(["bash", "-c", command], cwd=tmp_path) as process:
        wait_until(lambda: log.exists() and f"the output cannot be written: {reason}\n" in log.read_text())
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0
    assert "Traceback" not in log.read_text()


def test_a_data_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(f"esp serve --local 1 --listen http://127.0.0.1:{free_port()} --data-dir file", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "esp: file: it is a file; use another --data-dir\n"


def as_nobody(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs esp as a user who may do nothing, where the tests run as root; paths are relative to `folder`."""
    (folder / "esp.yaml").write_text(CONFIG)
    folder.chmod(0o755)
    return subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *command.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


AS_NOBODY = """
import os, sys
# That user may not be allowed to read the folder of this Python.
import encodings.idna, uvloop, esp.cli.serve, esp.commands.serve, esp.__main__
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
esp.__main__.main()
"""


def test_a_data_dir_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir(mode=0o555)
    done = as_nobody(f"serve --local 1 --listen http://127.0.0.1:{free_port()} --data-dir dir/new", tmp_path)
    assert (done.returncode, done.stderr) == (1, "esp: dir/new: permission denied; use another --data-dir\n")


def test_a_data_dir_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "esp.yaml"
    path.parent.mkdir()
    path.write_text(f"listen: ['http://127.0.0.1:{free_port()}']\n" + CONFIG.replace(":1]", f":{free_port()}]"))
    (path.parent / "shard-0.log").touch(mode=0o444)
    done = as_nobody(f"serve --local 1 --listen http://127.0.0.1:{free_port()} --data-dir dir", tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "esp: dir/shard-0.log: permission denied; use another --data-dir\n",
    )


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text(CONFIG)
    path.chmod(0)
    for command in ("check -c secret.yaml", "route a -c secret.yaml", "serve -c secret.yaml"):
        done = as_nobody(command, tmp_path)
        assert (done.returncode, done.stderr) == (2, "esp: secret.yaml: cannot be read: permission denied\n")


def test_a_port_that_takes_a_privilege(tmp_path: Path) -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first < 3:
        pytest.skip("every port is free to use here")
    done = as_nobody("serve --listen http://127.0.0.1:2", tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        f"esp: cannot listen on http://127.0.0.1:2: permission denied; use a port from {first} "
        "(net.ipv4.ip_unprivileged_port_start) on, or give esp CAP_NET_BIND_SERVICE\n",
    )


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("no program", ": etcd cannot be run: exec format error"),
        ("#!/no/such\n", ": etcd cannot be run: no such file or directory"),
        ("#!/bin/sh\nexit 3\n", " with exit code 3"),
        ("#!/bin/sh\nkill -9 $$\n", " by signal 9"),
    ],
)
def test_an_etcd_that_does_not_run(program: str, reason: str, tmp_path: Path) -> None:
    etcd = tmp_path / "etcd"
    etcd.write_text(program)
    etcd.chmod(0o755)
    done = run(f"ESP_ETCD=./etcd esp serve --local 1 --listen http://127.0.0.1:{free_port()}", tmp_path)
    told = f"esp: etcd shard-1 ended{reason}; its log is .esp/shard-1.log\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_more_etcds_than_letters(tmp_path: Path) -> None:
    done = run("esp serve --local 27", tmp_path)
    assert done.returncode == 2
    assert "1<=x<=26" in done.stderr


def heed() -> None:
    """Undoes in a child that SIGINT is ignored, as it is in a suite that was started in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_nothing_is_imported_before_ctrl_c_is_seen_to() -> None:
    program = "import os, sys; known = set(sys.modules); import esp.__main__; print(sorted(set(sys.modules) - known))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-S", "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "['esp', 'esp.__main__']\n"


@pytest.mark.parametrize("after", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_at_the_start_leaves_no_traceback_of_esp(after: float, tmp_path: Path) -> None:
    (tmp_path / "esp.yaml").write_text(CONFIG)

    command = [*ESP, "serve"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (0, 1, 130, -signal.SIGINT)  # 1: Python itself, before any code of esp's has run
    assert not re.search(r'File "[^"]*/esp/', said), said


def test_ctrl_c_while_etcds_start_is_no_success(tmp_path: Path) -> None:
    etcd = tmp_path / "etcd"
    etcd.write_text("#!/bin/sh\necho starts\nsleep 600\n")
    etcd.chmod(0o755)
    command = [*ESP, "serve", "--local", "1", "--listen", f"http://127.0.0.1:{free_port()}"]
    env = os.environ | {"ESP_ETCD": "./etcd"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as process:
        log = tmp_path / ".esp" / "shard-1.log"
        wait_until(lambda: log.exists() and "starts" in log.read_text())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "esp: interrupted before it was ready\n")


def test_ctrl_c_before_the_shards_are_there_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "esp.yaml").write_text(CONFIG)
    address = f"127.0.0.1:{free_port()}"
    command = [*ESP, "serve", "--listen", f"http://{address}"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        wait_until(lambda: is_listening(address))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("esp: interrupted before it was ready\n")


def test_a_terminal_that_is_closed_takes_esp_and_its_etcds_along(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        os.chdir(tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # not as nohup may have left it for the suite
        os.execv(ESP[0], [*ESP, "serve", "--local", "2", "--listen", f"http://127.0.0.1:{free_port()}"])
    said = b""
    while b"Ctrl-C stops all of it" not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    for log in (tmp_path / ".esp").glob("shard-*.log"):
        assert "closed etcd server" in log.read_text()
    endpoints = [shard.endpoints[0] for shard in config.load(tmp_path / ".esp" / "esp.yaml").shards]
    assert not any(is_listening(f"{endpoint.host}:{endpoint.port}") for endpoint in endpoints)


def test_nohup_keeps_it_running(start_esp: Esps, tmp_path: Path) -> None:
    path = tmp_path / "esp.yaml"
    path.write_text(CONFIG)
    esp = start_esp.launch("-c", path, under=[shutil.which("nohup") or "nohup"])
    esp.wait_ready()
    os.kill(esp.process.pid, signal.SIGHUP)
    time.sleep(0.2)
    assert esp.process.poll() is None
    assert esp.stop(signal.SIGTERM) == 0
