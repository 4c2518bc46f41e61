"""`esp serve --local N --tls`: throw-away certificates, and the lines that it prints, as they are."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from esp.core.local import LocalEtcdError, free_port
from esp.core.local_shards import LocalShards
from esp.core.local_tls import Authority, write_file
from tests.harness import PATIENCE, EspProcess, Esps, program, wait_until

Run = Callable[[str], str]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a line that esp has printed, in the folder in which esp runs, and returns the output."""

    def run(line: str) -> str:
        out = ""
        for command in line.split(";"):
            name, *arguments = shlex.split(command)
            is_etcdctl = name.endswith("etcdctl")
            words = [str(program("etcdctl", "ESP_ETCDCTL"))] if is_etcdctl else [sys.executable, "-m", "esp"]
            done = subprocess.run(
                [*words, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert done.returncode == 0, done.stderr
            out += done.stdout
        return out

    return run


def printed(esp: EspProcess, words: str) -> str:
    """The line with these words. esp is ready before it has printed all of them."""
    wait_until(lambda: any(words in line for line in esp.log().splitlines(keepends=True) if line.endswith("\n")))
    (line,) = [line.strip() for line in esp.log().splitlines() if words in line]
    return line


def test_the_printed_lines_work_and_the_next_run_keeps_certificates_and_keys(
    start_esp: Esps, run: Run, tmp_path: Path
) -> None:
    url = f"https://127.0.0.1:{free_port()}"
    esp = start_esp.launch("--local", "2", "--tls", "--listen", url)
    esp.wait_ready()
    assert f"ready on {url}" in esp.log()
    for pair in ("a 1", "j 2", "z 3"):
        line = printed(esp, f"put {pair}")
        assert f"etcdctl --endpoints {url} --cacert .esp/tls/ca.crt put {pair}" in line
        assert run(line) == "OK\n"
    assert run(printed(esp, "--from-key")).split() == ["a", "1", "j", "2", "z", "3"]
    assert "Healthy: 2 shards, 2 endpoints." in run(printed(esp, "esp check"))
    assert esp.stop() == 0
    certificate = (tmp_path / ".esp" / "tls" / "ca.crt").read_bytes()

    again = start_esp.launch("--local", "2", "--listen", url)
    again.wait_ready()
    assert run(printed(again, "--from-key")).split() == ["a", "1", "j", "2", "z", "3"]
    assert (tmp_path / ".esp" / "tls" / "ca.crt").read_bytes() == certificate
    for key in (tmp_path / ".esp" / "tls").glob("*.key"):
        assert key.stat().st_mode & 0o077 == 0


@pytest.fixture
def folder(tmp_path: Path, etcd_binary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESP_ETCD", str(etcd_binary))
    return tmp_path / ".esp"


def written(folder: Path, *, tls: bool) -> None:
    LocalShards.open(folder, 1, tls=tls).write_config(folder / "esp.yaml", ["https://127.0.0.1:1"] if tls else ["h:1"])


def test_shards_without_tls_do_not_get_it_later(folder: Path) -> None:
    LocalShards.open(folder, 1).write_config(folder / "esp.yaml", ["http://127.0.0.1:1"])
    with pytest.raises(LocalEtcdError) as caught:
        LocalShards.open(folder, 1, tls=True)
    assert str(caught.value) == (f"the shards in {folder} are without TLS: leave out --tls, or use another --data-dir")


@pytest.mark.parametrize("fault", ["ended", "gone", "damaged"])
def test_certificates_that_are_no_good_any_more_are_made_anew(folder: Path, fault: str) -> None:
    written(folder, tls=True)
    path = folder / "tls" / "client.crt"
    good = path.read_bytes()
    assert LocalShards.open(folder, 1).tls
    assert path.read_bytes() == good
    if fault == "ended":
        from datetime import timedelta

        write_file(path, Authority().issue(life=timedelta(days=29)).cert)
    elif fault == "gone":
        path.unlink()
    else:
        write_file(path, good[:100])
    assert LocalShards.open(folder, 1).tls
    assert path.read_bytes() not in (good, good[:100])


def test_without_the_package_that_makes_certificates_nothing_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "esp.core.local_tls")
    monkeypatch.delattr("esp.core.local_tls", raising=False)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(LocalEtcdError, match="with the package cryptography, which is missing: `pip install"):
        LocalShards.open(folder, 1, tls=True)
    assert not folder.exists()
