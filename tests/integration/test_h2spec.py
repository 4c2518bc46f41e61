"""esp as an HTTP/2 server before an outside judge: every case of h2spec, strict ones included."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.harness import EspProcess, peer


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_every_case_of_h2spec_passes(esp: EspProcess, tmp_path: Path, strict: bool) -> None:
    report = tmp_path / "h2spec.xml"
    command = [peer("h2spec"), "--host", "127.0.0.1", "--port", str(esp.port), "--junit-report", report]
    options = ["--strict"] if strict else []
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
    assert len(cases) - len(skipped) >= (146 if strict else 145)
