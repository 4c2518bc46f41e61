"""Shards that are about to get the guards of the map in force, while calls for them wait."""

from __future__ import annotations

from dataclasses import replace

from esp.core.shared_map import Held, Next, Phase, SharedMap
from esp.core.shared_map.reading import opening
from esp.core.wire.status import Code, Status
from tests.core.shared_map.test_moving import moving

SILENT = Status(Code.UNAVAILABLE, "etcdserver: no leader")


def hold(shared: SharedMap, name: str, change: Next | None = None) -> Held:
    return Held(shared.guards[name], shared, change)


def test_between_the_cut_and_the_opening_the_target_is_about_to_open() -> None:
    change = moving(Phase.CUT)
    before, after = change.before, change.after
    assert before is not None
    found: dict[str, Held | Status] = {"a": hold(after, "a", change), "b": hold(before, "b"), "c": hold(before, "c")}
    assert opening(after.guards, "a", found) == {"c"}
    assert opening(before.guards, "a", found) == set(), "the proxy has not the map of the cut yet"
    found["c"] = hold(after, "c")
    assert opening(after.guards, "a", found) == set()


def test_another_guard_than_that_of_the_change_is_another_matter() -> None:
    change = moving(Phase.CUT)
    before, after = change.before, change.after
    assert before is not None
    other = replace(hold(before, "c"), guard="1-" + "0" * 32)
    assert opening(after.guards, "a", {"a": hold(after, "a", change), "c": other}) == set()
    assert opening(after.guards, "a", {"a": hold(after, "a"), "c": hold(before, "c")}) == set(), "no change goes on"
    assert opening(after.guards, "a", {"a": SILENT, "c": other}) == {"c"}, "nobody knows"


def test_a_move_that_is_given_up_gives_both_shards_new_guards() -> None:
    change = moving(Phase.ABORT)
    back = change.result
    assert change.before is not None
    found: dict[str, Held | Status] = {"a": hold(change.after, "a", change), "c": hold(back, "c")}
    assert opening(back.guards, "a", found) == {"a"}
    assert opening(change.after.guards, "a", found) == {"c"}, "until the map of before is in force again"
