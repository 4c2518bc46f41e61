"""The documents: links and named tests exist; defaults, modules, kinds of findings and decisions are complete."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from esp.core.health import Kind
from esp.core.wire.limits import Limits

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TEST = re.compile(r"(?<=[`:/])(?:Test[A-Z]\w+|test_\w+)(?=[`:.])")
_TEST_FILE = re.compile(r"`((?:\w+/)+test_\w+\.py)((?:::\w+)*)`")
_LIMIT = re.compile(r"^\| `(\w+)` \| ([\d.]+|none) \|", re.MULTILINE)
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


def anchor(heading: str) -> str:
    """The fragment under which a heading is found, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_its_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in _LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, fragment = link.partition("#")
        target = document.parent / name if name else document
        headings = map(anchor, _HEADING.findall(target.read_text())) if fragment and target.exists() else [fragment]
        if not target.exists() or fragment not in headings:
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tests_that_it_names_exist(document: Path) -> None:
    """Whatever stands in backticks and reads like a class or a function of the tests."""
    missing = [name for name in _TEST.findall(document.read_text()) if name not in _known_tests()]
    assert not missing


@functools.cache
def _known_tests() -> frozenset[str]:
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"^ *(?:async )?(?:class|def) (\w+)", text, re.MULTILINE)}
    return frozenset(names | {path.stem for path in (ROOT / "tests").rglob("*.py")})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_of_tests_that_it_names_exist(document: Path) -> None:
    missing = []
    for file, names in _TEST_FILE.findall(document.read_text()):
        path = ROOT / "tests" / file.removeprefix("tests/")
        text = path.read_text() if path.exists() else ""
        if not all(re.search(rf"(def|class) {name}\b", text) for name in names.split("::")[1:]) or not text:
            missing.append(file + names)
    assert not missing


def test_the_page_on_the_config_has_every_limit_with_its_default() -> None:
    documented = dict(_LIMIT.findall((ROOT / "docs" / "config.md").read_text()))
    unlimited = {"max_concurrent_streams"}
    for field in fields(Limits):
        told = documented.pop(field.name, "not documented")
        assert told == "none" if field.name in unlimited else float(told) == getattr(Limits(), field.name), field.name
    assert not documented


def test_every_page_is_on_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r"[\w./-]+\.md", json.dumps(site["nav"]))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(set(listed)) == len(listed)
    apart = {page for page in pages if page.startswith("decisions/2")}  # their own index lists them
    from_elsewhere = {"index.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "measuring.md"}
    assert pages - apart == set(listed) - from_elsewhere


def test_the_page_on_json_has_every_kind_of_finding() -> None:
    kinds = set(re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "json.md").read_text(), re.MULTILINE))
    assert set(Kind) <= kinds


def test_the_index_has_every_decision_with_its_title_date_and_status() -> None:
    folder = ROOT / "docs" / "decisions"
    rows = []
    for path in sorted(folder.glob("2*.md")):
        found = re.match(r"# (.+)\n\n(\d{4}-\d\d-\d\d)\. Status: (.+)\.\n", path.read_text())
        assert found, f"{path.name} does not begin with a title, a date and a status"
        title, date, status = found.groups()
        rows.append(f"| {date} | [{title}]({path.name}) | {status} |")
    index = (folder / "README.md").read_text()
    assert sorted(line for line in index.splitlines() if line.startswith("| 2")) == sorted(rows)


DESIGN = (ROOT / "docs" / "design.md").read_text()


def first_column(heading: str) -> set[str]:
    """What stands in backticks in the first column of the table with this heading."""
    _, _, table = DESIGN.partition(f"| {heading} | job |\n")
    rows = itertools.takewhile(lambda line: line.startswith("|"), table.splitlines())
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def packages() -> list[Path]:
    """The folders of the core that hold modules of their own; generated ones are not described one by one."""
    folders = [path.parent for path in (ROOT / "esp" / "core").rglob("__init__.py")]
    return sorted(folder for folder in folders if folder.name not in ("core", "pb"))


@pytest.mark.parametrize("folder", packages(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_the_map_of_the_code_has_every_module(folder: Path) -> None:
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert first_column(f"`{folder.relative_to(ROOT)}/`") == modules


def test_the_map_of_the_code_has_every_layer() -> None:
    core = [
        path for path in (ROOT / "esp" / "core").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    layers = {f"{path.relative_to(ROOT)}{'/' if path.is_dir() else ''}" for path in core} - {"esp/core/__init__.py"}
    assert first_column("layer, from the top") == layers | {"esp/quick.py", "esp/cli/", "esp/commands/"}


@pytest.mark.parametrize("name", ["config", "health", "log", "services/kv", "services/lease", "shard"])
def test_a_folder_lists_its_files(name: str) -> None:
    folder = ROOT / "esp" / "core" / name
    listed = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    names = {word for line in re.findall(r"(?m)^ +(\w+(?:, \w+)*) ", listed) for word in line.split(", ")}
    assert names == {path.stem for path in folder.glob("*.py")} - {"__init__"}


def test_the_tests_of_the_core_have_its_folders() -> None:
    tests = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests" / "core").rglob("test_*.py")}
    code = {path.parent.relative_to(ROOT / "esp") for path in (ROOT / "esp" / "core").rglob("*.py")}
    assert tests <= code


def _pattern(line: str) -> str:
    """A line with one sign for each part that differs from time to time: `%s` in the code, a word in capitals here."""
    line = re.sub(r"%[-.\d]*[sdgrxf]|\b[A-Z]+\b", "*", line)
    return re.sub(r"\*[:* ]*", "*", line)


def _logged() -> dict[str, str]:
    """The templates of all lines that esp logs above debug, and where.

    Lines about bugs have one row together, and lines without a word of their own have none.
    """
    found = {}
    for path in sorted((ROOT / "esp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                on, method = ast.unparse(node.func.value), node.func.attr
                is_log = on in ("log", "slow") and method in ("info", "warning", "error", "exception", "log")
                if is_log or method == "say":
                    template = node.args[method == "log"]
                    text = template.value if isinstance(template, ast.Constant) else ""
                    if re.search("[a-z]{3}", text) and "a bug in esp" not in text:
                        found[text] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def test_the_page_on_the_log_has_every_line() -> None:
    """A line that is not there needs a row in docs/logs.md: with words in capitals in place of the template's `%s`."""
    page = (ROOT / "docs" / "logs.md").read_text()
    rows = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    explained = {_pattern(span[0] or span[1]) for span in re.findall(r"``(.+?)``|`([^`]+)`", rows)}
    beginnings = tuple(span.removesuffix("...") for span in explained if span.endswith("..."))
    missing = {
        template: place
        for template, place in _logged().items()
        if _pattern(template) not in explained and not _pattern(template).startswith(beginnings)
    }
    assert missing == {}, "docs/logs.md lacks these"
    assert len(_logged()) > 50
