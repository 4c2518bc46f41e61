from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from esp.core.identity import Identity

NAMES = st.lists(st.text(max_size=5), max_size=5)


@given(NAMES)
def test_the_ids_are_what_a_header_can_hold_and_never_0(names: list[str]) -> None:
    identity = Identity.of(names)
    assert 0 < identity.cluster_id < 2**64
    assert 0 < identity.member_id < 2**64
    assert identity.cluster_id != identity.member_id


@given(NAMES)
def test_the_order_of_the_shards_makes_no_difference(names: list[str]) -> None:
    assert Identity.of(names) == Identity.of(reversed(names))


def test_other_shards_have_other_ids() -> None:
    assert len({Identity.of(names).cluster_id for names in (["a"], ["b"], ["a", "b"], ["ab"], ['a", "b'])}) == 5


def test_the_ids_stay_as_they_are_from_release_to_release() -> None:
    # Proxies of two releases run side by side during an upgrade.
    assert Identity.of(["main", "events"]) == Identity(8751145008364963411, 16760577447978184532)
