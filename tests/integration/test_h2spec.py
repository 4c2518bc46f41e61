"""esp as an HTTP/2 server before an outside judge: every case of h2spec, strict ones included."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from esp.core.local import LocalEtcd, free_port
from esp.core.local_tls import Authority
from tests.harness import Esps, peer


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@pytest.mark.parametrize("limited", [False, True], ids=["", "limited"])
def test_every_case_of_h2spec_passes(
    shards: list[LocalEtcd], start_esp: Esps, tmp_path: Path, strict: bool, limited: bool
) -> None:
    """All of them where there is a limit on streams; without one, the one case about it has nothing to try."""
    esp = start_esp(shards, ["i", "r"], extra="limits: {max_concurrent_streams: 1000}" if limited else "")
    judge(esp.port, tmp_path, (146 if strict else 145) - (not limited), *(["--strict"] if strict else []))


def test_every_case_of_h2spec_passes_over_tls(shards: list[LocalEtcd], start_esp: Esps, tmp_path: Path) -> None:
    cert, key = Authority().issue(["127.0.0.1"]).write(tmp_path, "server")
    port = free_port()
    start_esp(
        shards,
        ["i", "r"],
        "--listen",
        f"https://127.0.0.1:{port}",
        extra=f"tls: {{cert: {cert}, key: {key}, alpn: [h2]}}",
    )
    judge(port, tmp_path, 144, "--tls", "--insecure")


def judge(port: int, folder: Path, least: int, *options: str) -> None:
    """Asserts that h2spec has at least so many cases, and that all pass."""
    report = folder / "h2spec.xml"
    command = [peer("h2spec"), "--host", "127.0.0.1", "--port", str(port), "--junit-report", report]
    done = subprocess.run(
        [*command, *options, "generic", "http2", "hpack"], capture_output=True, text=True, timeout=100, check=False
    )
    cases = ET.parse(report).getroot().findall(".//testcase")
    failed = [
        f"{case.get('package')}: {case.get('classname')}: {''.join(case.itertext()).strip()}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = [case for case in cases if case.find("skipped") is not None]
    assert failed == [], done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(cases) - len(skipped) >= least
