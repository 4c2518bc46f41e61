"""The documents: links lead somewhere, tests that they name exist, and every decision is in the index."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TEST = re.compile(r"(?<=[`:/])(?:Test[A-Z]\w+|test_\w+)(?=[`:.])")
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
