"""Snapshots of shards that the test plays itself, with writes between any two reads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services.kv import snapshot as module
from esp.core.services.kv.reading import Parts
from esp.core.services.kv.rows import COUNT, Rows
from esp.core.services.kv.snapshot import snapshot
from esp.core.services.row_order import parse_row
from esp.core.wire.status import RpcError
from tests.core.services.watch.world import World
from tests.examples import tries

State = dict[bytes, int]
"""The mod revision of each key that is there."""
Write = tuple[bytes, bool]
"""A key, and whether it is put or deleted."""
KEYS = (b"a", b"b", b"y", b"z")


NAMES = ("s0", "s1")


def owner(key: bytes) -> str:
    return NAMES[int(key >= b"m")]


class Shards:
    """Two shards, "m" between them; before each read of one of them the next of `writes` are made.

    Attributes:
        history: the state at each revision, for each shard.
        moments: the states of both that were at the same time, since it was first read.
        held: how many answers are held.
        asked: how many questions were asked.
    """

    def __init__(self, before: Sequence[Write], writes: Sequence[Sequence[Write]]) -> None:
        self.history: dict[str, list[State]] = {name: [{}, {}] for name in NAMES}
        self.moments: list[tuple[State, State]] = []
        for write in before:
            self._write(*write)
        self.held = self.asked = 0
        self._writes = iter(writes)
        self.moments = [self._now()]

    def _now(self) -> tuple[State, State]:
        one, other = (states[-1] for states in self.history.values())
        return one, other

    def _write(self, key: bytes, is_put: bool) -> None:
        states = self.history[owner(key)]
        if not is_put and key not in states[-1]:
            return
        state = dict(states[-1])
        if is_put:
            state[key] = len(states)
        else:
            del state[key]
        states.append(state)
        self.moments.append(self._now())

    async def read_all(
        self, call: object, routing: object, parts: Mapping[str, Sequence[rpc_pb2.RangeRequest]]
    ) -> dict[str, Parts]:
        answers = {}
        for shard in sorted(parts):
            for write in next(self._writes, ()):
                self._write(*write)
            revision = len(self.history[shard]) - 1
            header = rpc_pb2.ResponseHeader(revision=revision)
            answers[shard] = Parts(header, [self._range(shard, asked) for asked in parts[shard]], held=1)
            self.held += 1
            self.asked += 1
        return answers

    def _range(self, shard: str, asked: rpc_pb2.RangeRequest) -> Rows:
        keys = KeyRange.of_request(asked.key, asked.range_end)
        state = self.history[shard][asked.revision or -1]
        here = {key: mod for key, mod in state.items() if keys.intersect(KeyRange(key, key + b"\0"))}
        rows = Rows()
        rows.numbers[COUNT] = len(here)
        if not asked.count_only:
            kvs = [kv_pb2.KeyValue(key=key, mod_revision=mod) for key, mod in sorted(here.items())]
            kvs = [kv for kv in kvs if kv.mod_revision >= asked.min_mod_revision][: asked.limit or None]
            rows.kvs = [rpc_pb2.RangeResponse(kvs=[kv]).SerializeToString() for kv in kvs]
        return rows

    def snapshot(
        self,
        monkeypatch: pytest.MonkeyPatch,
        form: str = "counts",
        *,
        tries: int = 3,
        seen: tuple[int, int] = (0, 0),
        rereads: bool = True,
    ) -> tuple[State, State] | None:
        """What a snapshot of all keys shows; None when there was none.

        `form` is what it reads; `seen` what is known of the shards' revisions before.
        """
        monkeypatch.setattr(module, "read_all", self.read_all)
        monkeypatch.setattr(module, "MOST_REREAD", 1000 if rereads else -1)
        self.held = 0
        routing = World(b"m").routing
        for shard, revision in zip(routing.shards.values(), seen, strict=True):
            shard.saw(revision)
        connection = SimpleNamespace(context=routing.tokens._context)
        stream = SimpleNamespace(connection=connection, release=self._release)
        call: Any = SimpleNamespace(stream=stream, leave=lambda shard: None, enter_anew=lambda shards: None)
        parts = module.counting({"s0": [KeyRange(b"\0", b"m")], "s1": [KeyRange(b"m", None)]})
        if form == "ranges":
            for asked in parts.values():
                asked[0].count_only = False
        elif form == "keys":
            parts = {shard: [rpc_pb2.RangeRequest(key=key) for key in KEYS if owner(key) == shard] for shard in NAMES}
        try:
            found = asyncio.run(snapshot(call, routing, parts, tries))
        except RpcError:
            return None
        assert self.held == len(found.answers or ()), "what is not given is not held"
        vector = routing.tokens.vector(found.revision)
        assert vector is not None
        one, other = (
            states[revision] for states, revision in zip(self.history.values(), vector.revisions, strict=True)
        )
        if found.answers is not None and form != "counts":
            for shard, state in zip(NAMES, (one, other), strict=True):
                rows = [
                    parse_row(row) for rows in found.answers[shard].responses[: len(parts[shard])] for row in rows.kvs
                ]
                assert {row.key: row.mod_revision for row in rows} == state
        return one, other

    def _release(self, size: int) -> None:
        self.held -= size


def test_a_key_that_comes_and_goes_between_the_rounds_is_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of `a` and `z` is there at any moment; at each read it is the other one."""
    to_a = [(b"a", True), (b"z", False)]
    to_z = [(b"z", True), (b"a", False)]
    shards = Shards([(b"z", True)], [[], to_a, to_z, to_a, to_z, to_a, to_z, to_a])
    seen = shards.snapshot(monkeypatch)
    assert seen is None or seen in shards.moments


@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), max_size=4),
    st.lists(st.lists(st.tuples(st.sampled_from(KEYS), st.booleans()), max_size=4), max_size=14),
    st.sampled_from(("counts", "ranges", "keys")),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.booleans(),
)
@settings(max_examples=tries(300))
def test_what_a_snapshot_shows_was_so_at_one_moment(
    before: list[Write], writes: list[list[Write]], form: str, ago: tuple[int, int], rereads: bool
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shards = Shards(before, writes)
        one, other = (max(0, len(states) - 1 - back) for states, back in zip(shards.history.values(), ago, strict=True))
        seen = shards.snapshot(monkeypatch, form, tries=5, seen=(one, other), rereads=rereads)
    assert seen is None or seen in shards.moments


def test_what_has_not_changed_since_an_earlier_answer_takes_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are there show it, whatever else is written; ranges where the revision is the same."""
    before = [(b"a", True), (b"b", True), (b"y", True), (b"z", True)]
    shards = Shards(before, [])
    for form in ("keys", "ranges"):
        asked = shards.asked
        assert shards.snapshot(monkeypatch, form, seen=(3, 3)) in shards.moments
        assert shards.asked - asked == 2
    more = [(b"a", True), (b"a", True), (b"z", True)]  # mod revisions 4, 5 and 4
    for form, seen, rounds in (("keys", (5, 4), 1), ("keys", (4, 4), 2), ("ranges", (4, 4), 2)):
        shards = Shards(before + more, [])
        assert shards.snapshot(monkeypatch, form, seen=seen) in shards.moments
        assert shards.asked == 2 * rounds


def test_a_key_that_came_and_went_since_an_earlier_answer_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """`a` was there while the first shard was asked, at the revision known, and then was not while `z` was."""
    shards = Shards([(b"b", True), (b"z", True), (b"a", True)], [[(b"a", False)], [(b"z", False)]])
    assert shards.snapshot(monkeypatch, "ranges", seen=(2, 2)) in shards.moments
    assert shards.asked > 2


def test_one_shard_that_never_rests_does_not_keep_it_from_being_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is; two are too many."""
    for form in ("counts", "ranges", "keys"):
        for hot in (b"a", b"z"):
            before = [(key, True) for key in KEYS]
            shards = Shards(before, [[(hot, True)]] * 20)
            assert shards.snapshot(monkeypatch, form, tries=2) in shards.moments
    shards = Shards([], [[(b"a", True), (b"z", True)]] * 20)
    assert shards.snapshot(monkeypatch, tries=5) is None


def test_it_is_found_where_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Revisions that change nothing in the range do not matter, whatever they change elsewhere."""
    shards = Shards([(b"a", True), (b"z", True)], [[], [], [], [(b"a", True)], []])
    assert shards.snapshot(monkeypatch) in shards.moments
