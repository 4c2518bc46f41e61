"""Messages are counted by their prefixes, however they are cut into DATA."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from esp.core.wire.traffic import MessageCount
from tests.core.wire.conversation import headers, message
from tests.core.wire.test_ended import Observed


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(0, 60), max_size=12))
def test_any_cuts_give_the_same_count(messages: list[bytes], cuts: list[int]) -> None:
    counts: Counter[bytes] = Counter()
    counted = MessageCount(counts, b"/path")
    whole = b"".join(map(message, messages))
    for size in [*cuts, len(whole)]:
        counted.add(whole[:size])
        whole = whole[size:]
    assert counts[b"/path"] == len(messages)
    counted.add(message(b"one more"))
    assert counts[b"/path"] == len(messages) + 1


def test_a_message_counts_when_its_prefix_has_come() -> None:
    counts: Counter[bytes] = Counter()
    counted = MessageCount(counts, b"/path")
    for piece, expected in ((b"\0\0\0", 0), (b"\0\5", 1), (b"abc", 1), (b"de\0", 1), (b"\0\0\0\0", 2)):
        counted.add(piece)
        assert counts[b"/path"] == expected


def test_bytes_are_counted_for_clients_and_for_servers_apart() -> None:
    between = Observed()
    passed = between.observer.lists["a"]
    before = between.context.counters.clients.sent, passed.traffic.sent
    between.client_says(headers(1, [(b":method", b"POST")]))  # malformed: an answer for the client only
    between.client.connection.on_flush = between.etcd.connection.on_flush = lambda data: None
    between.context.flush()
    assert between.context.counters.clients.sent > before[0]
    assert passed.traffic.sent == before[1]
