"""Every RPC of etcd's client port, at an etcd, through esp over one shard, and over three: docs/compatibility.md.

`scripts/test --etcd 3.4` (3.5, 3.6, 3.7) does this with shards of that version. What was seen is written to
.cache/compatibility/, from where scripts/compatibility takes it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest

from esp.core.services.reflection import PATHS
from esp.core.services.router import METHODS
from tests.harness import Server
from tests.integration.rigs import Rig, write_record
from tests.integration.rpc_rows import ABSENT, COMPACTED, CURE, EXACT, NOT_ATOMIC, OWN, REFUSED, ROWS, Row
from tests.integration.talk import Heard, Talk

ROOT = Path(__file__).parent.parent.parent
CLIENTS = {name: metadata.version(name) for name in ("grpcio", "etcd3", "aetcd")}
Seen = dict[str, dict[str, dict[str, str]]]
"""By version of etcd, and RPC with case: what one shard and several do."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" in metafunc.fixturenames:
        metafunc.parametrize("rig", [metafunc.config.getoption("--etcd") or "3.7"], indirect=True)
        metafunc.parametrize("row", ROWS, ids=[row.title for row in ROWS])


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    """What was seen. Written to the cache if all rows were tried."""
    seen: Seen = defaultdict(dict)
    yield seen
    for version, rows in seen.items():
        if len(rows) == len(ROWS):
            write_record(f"etcd-{version}", {"etcd": version, "clients": CLIENTS, "rpcs": rows})


def test_an_rpc_does_as_the_document_says(rig: Rig, row: Row, seen: Seen) -> None:
    right, one, several = (hear(row, server) for server in (rig.judge, rig.one, rig.several))
    if row.one:
        assert word(row, right.heard_loosely, one.heard_loosely) == row.one
    else:
        assert one.heard == right.heard
    said = word(row, right.heard_loosely, several.heard_loosely)
    absent = all(is_absent(each) for each in right.heard)
    assert said in ({ABSENT, OWN, row.several} if absent else {row.several}), (several.heard, right.heard)
    seen[rig.version][row.title] = {"one": row.one or (ABSENT if absent else EXACT), "several": said}


def hear(row: Row, server: Server) -> Talk:
    with closing(Talk(server)) as talk:
        row.calls(talk)
        return talk


def word(row: Row, right: Heard, said: Heard) -> str:
    """What was said, in a word of the document; `right` is what an etcd says."""
    if said == right:
        if all(map(is_absent, right)):
            return ABSENT
        # That an answer is about the proxy, or made at several moments, does not show here.
        return row.several if row.several in (OWN, NOT_ATOMIC) else EXACT
    for meaning, code in ((CURE, "UNIMPLEMENTED"), (REFUSED, "FAILED_PRECONDITION")):
        if all(isinstance(each, list) and each[0] == code and each[1].startswith("esp: ") for each in said):
            return meaning
    if said[-1] == ["OK", "compacted"]:
        return COMPACTED
    return OWN if all(isinstance(each, dict) for each in said) else "different"


def is_absent(outcome: object) -> bool:
    return isinstance(outcome, list) and outcome[0] == "UNIMPLEMENTED"


def test_the_table_has_every_rpc() -> None:
    paths = {*METHODS, *PATHS}
    assert {f"/{row.rpc}".encode() for row in ROWS} == paths
    assert len({(row.rpc, row.case) for row in ROWS}) == len(ROWS)


def test_the_document_has_every_rpc_with_what_it_does_at_each_etcd() -> None:
    records = [json.loads(file.read_text()) for file in (ROOT / "tests" / "compatibility").glob("etcd-*.json")]
    assert {record["etcd"].rpartition(".")[0] for record in records} >= {"3.4", "3.5", "3.7"}
    for record in records:
        seen = record["rpcs"]
        assert set(seen) == {row.title for row in ROWS}, record["etcd"]
        for row in ROWS:
            assert seen[row.title]["one"] in ((row.one,) if row.one else (EXACT, ABSENT))
            assert seen[row.title]["several"] in (
                row.several,
                *((ABSENT, OWN) if seen[row.title]["one"] == ABSENT else ()),
            )
    document = (ROOT / "docs" / "compatibility.md").read_text()
    for row in ROWS:
        assert f"\n| {row.rpc.partition('/')[2]}{', ' + row.case if row.case else ''} | " in document
