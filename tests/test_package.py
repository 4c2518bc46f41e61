"""The package: what is in the wheel, and what an index would show."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatch_fancy_pypi_readme")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_it_has_all_modules_the_completion_scripts_and_the_manual_pages(wheel: zipfile.ZipFile) -> None:
    names = {re.sub(r"^etcd_sharding_proxy-[^/]+\.data/data/", "", name) for name in wheel.namelist()}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "esp").rglob("*.py")}
    assert modules <= names
    assert {"esp/core/config/example.yaml", "esp/help.txt", "esp/py.typed"} <= names
    assert {
        "share/bash-completion/completions/esp",
        "share/zsh/site-functions/_esp",
        "share/fish/vendor_completions.d/esp.fish",
    } <= names
    assert {f"share/man/man1/{path.name}" for path in (ROOT / "man").glob("*.1")} <= names


def test_its_description_has_no_link_into_the_repository(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    told = email.message_from_bytes(wheel.read(name))
    links = re.findall(r"\]\(([^)]+)\)", str(told.get_payload()))
    assert [link for link in links if not link.startswith(("#", "https://", "http://"))] == []
    assert told["Description-Content-Type"] == "text/markdown"
    assert told["Author"]
    assert "Topic :: Database" in (told.get_all("Classifier") or [])
    # None of esp's own, as long as it has no address; the day it has one, Homepage and Issues have to be there.
    assert [url.partition(",")[0] for url in told.get_all("Project-URL") or []] == ["The idea: another project"]
