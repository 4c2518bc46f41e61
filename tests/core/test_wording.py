"""Names, numbers and sizes in sentences."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator

import pytest

from esp.core.log.lines import AsJson, ForFiles, ForPeople
from esp.core.log.recent import Recent
from esp.core.wording import (
    all_cured,
    both_called,
    counted,
    cured,
    few,
    shard_called,
    shard_quoted,
    shards_called,
    shards_quoted,
    size_of,
)
from tests.test_layers import MODULES, tree_of


def test_a_shard_whose_name_says_shard_is_not_called_a_shard_again() -> None:
    assert [shard_called(name) for name in ("b", "shard-1", "Shard2")] == ["shard b", "shard-1", "Shard2"]
    assert [shard_quoted(name) for name in ("b", "shard-1")] == ['shard "b"', '"shard-1"']


@pytest.mark.parametrize(
    ("names", "called", "quoted"),
    [
        (["b"], "shard b", 'shard "b"'),
        (["shard-1"], "shard-1", '"shard-1"'),
        (["a", "b"], "shards a, b", 'shards "a", "b"'),
        (["shard-1", "Shard2"], "shard-1, Shard2", '"shard-1", "Shard2"'),
        (["shard-1", "b"], "shards shard-1, b", 'shards "shard-1", "b"'),
    ],
)
def test_several_shards(names: list[str], called: str, quoted: str) -> None:
    assert (shards_called(names), shards_quoted(names)) == (called, quoted)


def test_two_shards() -> None:
    assert both_called("a", "b") == "shards a and b"
    assert both_called("shard-1", "shard-2") == "shard-1 and shard-2"
    assert both_called("a", "shard-2") == "shards a and shard-2"


def test_a_cure_is_told_once_behind_all_reasons() -> None:
    why = cured("Connection refused")
    assert why.startswith("Connection refused; nothing listens there: start it, or ")
    assert cured("no answer") == "no answer"
    reasons = {"http://a:1": "no answer", "http://b:1": "connection refused", "http://c:1": "connection refused"}
    cure = why.partition("; ")[2]
    told = "http://a:1: no answer; http://b:1: connection refused; http://c:1: connection refused"
    assert all_cured(reasons) == f"{told}; {cure}"
    assert all_cured({"http://a:1": "no answer"}) == "http://a:1: no answer"


def test_many_shards_are_told_by_their_number() -> None:
    names = [f"shard-{number}" for number in range(1000)]
    assert shards_called(names, 2) == "shard-0, shard-1 and 998 more"
    assert shards_called(["a", *names], 1, "the shards") == "the shards a and 1,000 more"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, ""),
        (1, "s0"),
        (6, "s0, s1, s2, s3, s4, s5"),
        (7, "s0, s1, s2, s3, s4 and 2 more"),
        (2001, "s0, s1, s2, s3, s4 and 1,996 more"),
    ],
)
def test_of_many_names_a_line_has_the_first_and_the_number_of_the_rest(number: int, text: str) -> None:
    assert few([f"s{place}" for place in range(number)]) == text


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "key", "0 keys"),
        (1, "key", "1 key"),
        (1000, "lease", "1,000 leases"),
        (2, "proxy", "2 proxies"),
        (2, "day", "2 days"),
        (1, "more line", "1 more line"),
        (2, "more line", "2 more lines"),
    ],
)
def test_one_thing_is_no_plural(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (20_480, "20 kB"), (2_147_483_648, "2.1 GB"), (5e15, "5000 TB")],
)
def test_sizes_are_those_of_etcdctl(size: float, text: str) -> None:
    assert size_of(size) == text


@pytest.mark.parametrize(("name", "text"), [("b", "shard b: gone"), ("shard-1", "shard-1: gone")])
def test_log_lines_name_a_shard_as_all_sentences_do(name: str, text: str) -> None:
    record = logging.LogRecord("esp", logging.INFO, "", 0, "shard %s: %s", (name, "gone"), None)
    for lines in (ForPeople(), ForFiles()):
        assert lines.format(record).endswith(f" {text}")
    assert f'"msg":"{text}"' in AsJson().format(record)
    assert f'"shard":"{name}"' in AsJson().format(record)
    recent = Recent()
    recent.emit(record)
    assert [(line.shard, line.text) for line in recent.lines] == [(name, text)]


# A count and a plural right behind it, unless it says "N of M" or the number cannot be 1. The last word of each is what
# the number counts.
_NUMBERED = re.compile(
    r" (?:more )?(?:keys|leases|shards|requests|endpoints|members|problems|times|rows|workers|lines)\b(?!/s)"
)


def sentences(module: str) -> Iterator[tuple[int, str, ast.FormattedValue, str]]:
    """Each value in an f-string: its line, the text before and after it."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.JoinedStr):
            texts = [str(part.value) if isinstance(part, ast.Constant) else "" for part in node.values]
            for number, part in enumerate(node.values):
                if isinstance(part, ast.FormattedValue):
                    before = texts[number - 1] if number else ""
                    yield part.lineno, before, part, (*texts, "")[number + 1]


def test_shards_are_named_by_these_functions_alone() -> None:
    """In f-strings; log lines have `shard %s` in front, and nowhere else."""
    own = ("esp.core.wording",)
    found = [
        f"{module}:{line}"
        for module in MODULES
        if module not in own
        for line, before, value, _ in sentences(module)
        if re.search(r'\bshards? "?$', before) and "index" not in ast.unparse(value)
    ]
    found += [
        f"{module}:{node.lineno}"
        for module in MODULES
        if module not in own
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(r"(?<!^)\bshards? %s", node.value)
        and "\n" not in node.value
    ]
    assert found == []


def test_numbers_of_things_are_told_by_counted() -> None:
    found = [
        f"{module}:{line}"
        for module in MODULES
        for line, before, value, after in sentences(module)
        if _NUMBERED.match(after)
        and not before.endswith(" of ")
        and not ast.unparse(value).startswith(("MAX_", "MOST_"))
    ]
    assert found == []
