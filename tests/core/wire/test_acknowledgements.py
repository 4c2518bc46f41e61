"""Acknowledgements of SETTINGS and of PINGs; streams that were reset lately; the update of the header table."""

from __future__ import annotations

from esp.core.wire.frames import END_HEADERS, END_STREAM, HEADERS, frame, ping
from esp.core.wire.held_ack import HELD_ACK_BYTES, HeldAck
from esp.core.wire.recent_resets import RECENTLY_RESET, RecentResets
from esp.core.wire.settings_acks import SettingsAcks
from esp.core.wire.table_update import with_table_update

ACK = ping(b"12345678", ack=True)


class TestSettings:
    """SETTINGS that the peer has not acknowledged."""

    def test_the_time_is_reached(self) -> None:
        acks = SettingsAcks()
        assert acks.is_none_due
        assert not acks.are_late(30, 1e9)
        acks.sent(100.0)
        assert not acks.are_late(30, 130.0)
        assert acks.are_late(30, 130.1)

    def test_later_settings_do_not_make_the_first_ones_less_late(self) -> None:
        acks = SettingsAcks()
        acks.sent(100.0)
        acks.sent(120.0)
        assert acks.are_late(30, 131.0)
        assert acks.came(131.0)
        assert not acks.is_none_due
        assert not acks.are_late(30, 161.0), "for the second the time begins with the answer to the first"
        assert acks.are_late(30, 161.1)
        assert acks.came(162.0)
        assert acks.is_none_due
        assert not acks.are_late(30, 1e9)

    def test_an_acknowledgement_of_nothing_is_told(self) -> None:
        acks = SettingsAcks()
        assert not acks.came(100.0)
        acks.sent(100.0)
        assert acks.came(101.0)
        assert not acks.came(102.0)

    def test_time_in_which_esp_did_not_read_does_not_count(self) -> None:
        acks = SettingsAcks()
        acks.sent(100.0)
        acks.excuse(150.0)
        assert not acks.are_late(30, 180.0)
        assert acks.are_late(30, 180.1)


class TestHeldAck:
    """The answer to a PING that measures bandwidth."""

    def test_enough_other_output_lets_it_go(self) -> None:
        held = HeldAck(ACK)
        assert not held.is_due(HELD_ACK_BYTES)
        assert held.is_due(1)
        assert held.frames == ACK

    def test_a_second_ping_lets_both_go(self) -> None:
        held = HeldAck(ACK)
        assert not held.is_due(17)
        held.add(ACK)
        assert held.is_due(17)
        assert held.frames == ACK + ACK


class TestResets:
    """Streams that were reset lately."""

    def test_no_more_than_the_bound_are_remembered_one_by_one(self) -> None:
        resets = RecentResets()
        for stream_id in range(1, 2 * RECENTLY_RESET + 1, 2):
            resets.add(stream_id)
        assert len(resets) == RECENTLY_RESET
        assert 1 in resets
        assert 2 not in resets, "it was not reset, and none above it is forgotten"
        resets.add(5001)
        assert len(resets) == RECENTLY_RESET
        assert 1 in resets, "ids up to the forgotten one count as reset"

    def test_ids_up_to_the_highest_that_is_forgotten_count_as_reset(self) -> None:
        resets = RecentResets()
        resets.add(501)
        resets.add(7)
        assert 9 not in resets
        for stream_id in range(1001, 1001 + 2 * RECENTLY_RESET, 2):
            resets.add(stream_id)
        assert 9 in resets
        assert 501 in resets
        assert 503 not in resets


class TestTableUpdate:
    """The word that esp uses no header table."""

    def test_it_stands_at_the_start_of_the_first_block_behind_any_other_frames(self) -> None:
        block = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88")
        more = frame(HEADERS, END_HEADERS, 3, b"\x88")
        updated = frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x20\x88")
        assert with_table_update(ACK + block + more) == ACK + updated + more

    def test_without_a_block_there_is_no_place_for_it(self) -> None:
        assert with_table_update(ACK) is None
        assert with_table_update(b"") is None

    def test_a_full_block_spills_into_a_continuation(self) -> None:
        full = frame(HEADERS, END_HEADERS, 1, bytes(16384))
        assert with_table_update(full) == frame(HEADERS, 0, 1, b"\x20" + bytes(16383)) + frame(9, 4, 1, bytes(1))
