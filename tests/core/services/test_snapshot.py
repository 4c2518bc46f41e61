"""Snapshots of shards that the test plays itself, with writes between any two reads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from esp.core.services import snapshot as module
from esp.core.services.reading import Parts
from esp.core.services.snapshot import snapshot
from esp.core.wire.status import RpcError
from tests.core.services.watch.world import World

State = dict[bytes, int]
"""The mod revision of each key that is there."""
Write = tuple[bytes, bool]
"""A key, and whether it is put or deleted."""
KEYS = (b"a", b"b", b"y", b"z")


def owner(key: bytes) -> int:
    return int(key >= b"m")


class Shards:
    """Two shards, "m" between them; before each read of one of them the next of `writes` are made.

    Attributes:
        history: the state at each revision, for each shard.
        moments: the states of both that were at the same time, since it was first read.
    """

    def __init__(self, before: Sequence[Write], writes: Sequence[Sequence[Write]]) -> None:
        self.history: list[list[State]] = [[{}, {}], [{}, {}]]
        self.moments: list[tuple[State, State]] = []
        for write in before:
            self._write(*write)
        self._writes = iter(writes)
        self.moments = [self._now()]

    def _now(self) -> tuple[State, State]:
        one, other = (states[-1] for states in self.history)
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
        self, call: object, routing: object, parts: Mapping[int, Sequence[rpc_pb2.RangeRequest]]
    ) -> dict[int, Parts]:
        answers = {}
        for shard in sorted(parts):
            for write in next(self._writes, ()):
                self._write(*write)
            revision = len(self.history[shard]) - 1
            header = rpc_pb2.ResponseHeader(revision=revision)
            answers[shard] = Parts(header, [self._range(shard, asked) for asked in parts[shard]])
        return answers

    def _range(self, shard: int, asked: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        keys = KeyRange.of_request(asked.key, asked.range_end)
        state = self.history[shard][asked.revision or -1]
        here = {key: mod for key, mod in state.items() if keys.intersect(KeyRange(key, key + b"\0"))}
        response = rpc_pb2.RangeResponse(count=len(here))
        if not asked.count_only:
            rows = [kv_pb2.KeyValue(key=key) for key, mod in here.items() if mod >= asked.min_mod_revision]
            response.kvs.extend(rows[: asked.limit or None])
        return response

    def snapshot(
        self, monkeypatch: pytest.MonkeyPatch, *, tries: int = 3, reads: bool = False
    ) -> tuple[State, State] | None:
        """What a snapshot of all keys shows; None when there was none."""
        monkeypatch.setattr(module, "read_all", self.read_all)
        routing = World(b"m").routing
        connection = SimpleNamespace(context=routing.tokens._context)
        call: Any = SimpleNamespace(stream=SimpleNamespace(connection=connection, release=lambda size: None))
        parts = module.counting({0: [KeyRange(b"\0", b"m")], 1: [KeyRange(b"m", None)]})
        if reads:
            for asked in parts.values():
                asked[0].count_only = False
        try:
            found = asyncio.run(snapshot(call, routing, parts, tries))
        except RpcError:
            return None
        vector = routing.tokens.vector(found.revision)
        assert vector is not None
        one, other = (states[revision] for states, revision in zip(self.history, vector, strict=True))
        if found.answers is not None:
            read = [[kv.key for kv in found.answers[shard].responses[0].kvs] for shard in (0, 1)]
            assert not reads or read == [list(one), list(other)]
            assert [found.answers[shard].header.revision for shard in (0, 1)] == list(vector)
        return one, other


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
    st.booleans(),
)
def test_what_a_snapshot_shows_was_so_at_one_moment(
    before: list[Write], writes: list[list[Write]], reads: bool
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shards = Shards(before, writes)
        seen = shards.snapshot(monkeypatch, tries=5, reads=reads)
    assert seen is None or seen in shards.moments


def test_one_shard_that_never_rests_does_not_keep_it_from_being_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is; two are too many."""
    for hot in (b"a", b"z"):
        shards = Shards([(b"b", True), (b"y", True)], [[(hot, True)]] * 20)
        assert shards.snapshot(monkeypatch, tries=2) in shards.moments
    shards = Shards([], [[(b"a", True), (b"z", True)]] * 20)
    assert shards.snapshot(monkeypatch, tries=5) is None


def test_it_is_found_where_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Revisions that change nothing in the range do not matter, whatever they change elsewhere."""
    shards = Shards([(b"a", True), (b"z", True)], [[], [], [], [(b"a", True)], []])
    assert shards.snapshot(monkeypatch) in shards.moments
