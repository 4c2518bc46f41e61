from __future__ import annotations

from dataclasses import replace

from esp.core.giving_up import Hanging
from esp.core.shared_map import Held, Next, Phase
from tests.core.shared_map.test_moving import moving


def held(change: Next, *, is_cut: bool) -> dict[str, Held]:
    shared = change.after if is_cut else change.before
    assert shared is not None
    return {"a": Held(shared.guards["a"], shared, change)}


def test_a_move_is_due_when_the_source_was_cut_for_longer_than_the_pause() -> None:
    change, hanging = moving(Phase.CUT), Hanging()  # of 1 s
    assert not hanging.is_due(change, held(change, is_cut=False), 0)
    assert not hanging.is_due(change, held(change, is_cut=False), 99)
    assert not hanging.is_due(change, held(change, is_cut=True), 100)
    assert not hanging.is_due(change, held(change, is_cut=True), 102.9)
    assert hanging.is_due(change, held(change, is_cut=True), 103)
    assert not hanging.is_due(change, held(change, is_cut=True), 104)
    assert hanging.is_due(change, held(change, is_cut=True), 106)


def test_a_move_that_somebody_goes_on_with_is_not_due() -> None:
    change, hanging = moving(Phase.CUT), Hanging()
    assert not hanging.is_due(change, held(change, is_cut=True), 0)
    assert change.move is not None
    other = change.with_move(replace(change.move, mover="f" * 32))
    assert not hanging.is_due(other, held(other, is_cut=True), 3)
    assert not hanging.is_due(None, {}, 4)
    assert not hanging.is_due(other, held(other, is_cut=True), 5)
    assert not hanging.is_due(other, {}, 9)


def test_what_is_decided_is_due_however_the_source_is() -> None:
    for phase in (Phase.ABORT, Phase.OPEN):
        change, hanging = moving(phase), Hanging()
        assert not hanging.is_due(change, {}, 0)
        assert hanging.is_due(change, {}, 3)


def test_copies_may_take_as_long_as_they_like() -> None:
    change, hanging = moving(Phase.COPY), Hanging()
    assert not hanging.is_due(change, held(change, is_cut=False), 0)
    assert not hanging.is_due(change, held(change, is_cut=False), 1e6)
