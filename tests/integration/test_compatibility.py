"""Every RPC of etcd's client port, at an etcd, through esp over one shard, and over three: docs/compatibility.md.

`scripts/test --etcd 3.4` (3.5, 3.6, 3.7) does this with shards of that version. What was seen is written to
.cache/compatibility/, from where scripts/compatibility takes it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing

import pytest

from esp.core.services.reflection import PATHS
from esp.core.services.router import METHODS
from tests.harness import CACHE, Server, etcd_of, version_of
from tests.integration.rigs import Rig
from tests.integration.rpc_rows import ABSENT, COMPACTED, CURE, EXACT, NOT_ATOMIC, OWN, REFUSED, ROWS, Row
from tests.integration.talk import Heard, Talk

Seen = dict[str, dict[str, dict[str, str]]]
"""By version of etcd, and RPC with case: what one shard and several do."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rig" in metafunc.fixturenames:
        metafunc.parametrize("rig", [metafunc.config.getoption("--etcd") or "3.7"], indirect=True)
        metafunc.parametrize("row", ROWS, ids=[f"{row.rpc} {row.case}".strip() for row in ROWS])


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    """What was seen. Written to the cache if all rows were tried."""
    seen: Seen = defaultdict(dict)
    yield seen
    for version, rows in seen.items():
        if len(rows) == len(ROWS):
            file = CACHE / "compatibility" / f"etcd-{version}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")


def test_an_rpc_does_as_the_document_says(rig: Rig, row: Row, seen: Seen, request: pytest.FixtureRequest) -> None:
    version = ".".join(map(str, version_of(etcd_of(request.node.callspec.params["rig"]))))
    right, one, several = (hear(row, server) for server in (rig.judge, rig.one, rig.several))
    assert one.heard == right.heard
    said = word(row, right.heard_loosely, several.heard_loosely)
    absent = all(is_absent(each) for each in right.heard)
    assert said in ({ABSENT, OWN, row.several} if absent else {row.several}), (several.heard, right.heard)
    seen[version][f"{row.rpc} {row.case}".strip()] = {"one": ABSENT if absent else EXACT, "several": said}


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
    paths = {*METHODS, *(path.encode() for path in PATHS)}
    assert {f"/{row.rpc}".encode() for row in ROWS} == paths
    assert len({(row.rpc, row.case) for row in ROWS}) == len(ROWS)
