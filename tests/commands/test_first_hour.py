"""What goes wrong for a plain reason is told in one line, whatever the command; never with a traceback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd
from tests.harness import Esps

ESP = [sys.executable, "-m", "esp"]
CONFIG = "shards: [{endpoints: [127.0.0.1:1], ranges: [{start: '', end: ''}]}]\n"


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "esp.yaml").write_text(CONFIG)
    return subprocess.run(
        ["bash", "-c", command.replace("esp ", " ".join(ESP) + " ", 1)],
        cwd=folder,
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


def test_a_data_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("esp serve --local 1 --data-dir file", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "esp: file: file exists; use another --data-dir\n"
    assert "Traceback" not in done.stderr


def test_more_etcds_than_letters(tmp_path: Path) -> None:
    done = run("esp serve --local 27", tmp_path)
    assert done.returncode == 2
    assert "1<=x<=26" in done.stderr


@pytest.mark.parametrize("after", [0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_at_the_start_leaves_no_traceback_of_esp(after: float, tmp_path: Path) -> None:
    (tmp_path / "esp.yaml").write_text(CONFIG)

    def heed() -> None:  # a suite that was started in the background has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [*ESP, "serve"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (0, 1, 130, -signal.SIGINT)  # 1: Python itself, before any code of esp's has run
    assert "esp/c" not in said


def test_a_hangup_drains(etcd: LocalEtcd, start_esp: Esps) -> None:
    esp = start_esp([etcd])
    assert esp.stop(signal.SIGHUP) == 0
    assert "stopping; calls in flight have" in esp.log()
    assert esp.log().endswith("stopped\n")


def test_nohup_keeps_it_running(start_esp: Esps, tmp_path: Path) -> None:
    path = tmp_path / "esp.yaml"
    path.write_text(CONFIG)
    esp = start_esp.launch("-c", path, under=[shutil.which("nohup") or "nohup"])
    esp.wait_ready()
    os.kill(esp.process.pid, signal.SIGHUP)
    time.sleep(0.2)
    assert esp.process.poll() is None
    assert esp.stop(signal.SIGTERM) == 0
