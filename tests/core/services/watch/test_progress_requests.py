"""Progress requests of one call to a shard: one is under way at a time."""

from __future__ import annotations

from unittest.mock import patch

from esp.core.services.watch import progress_requests
from esp.core.services.watch.progress_requests import PATIENCE, ProgressRequests


def sent(requests: ProgressRequests[str], asker: str) -> bool:
    """Asks, and sends a request if one is to be sent for that."""
    if requests.add(asker):
        requests.on_sent()
        return True
    return False


def test_whoever_asks_while_one_is_out_waits_for_the_next() -> None:
    requests = ProgressRequests[str]()
    assert not requests.is_wanted
    assert sent(requests, "a")
    assert not sent(requests, "b")
    assert not sent(requests, "b")
    assert not sent(requests, "a")
    assert requests.on_answer() == {"a": 1}
    assert requests.is_wanted
    requests.on_sent()
    assert requests.on_answer() == {"b": 2, "a": 1}
    assert not requests.is_wanted
    assert sent(requests, "c")


def test_one_that_is_not_answered_keeps_others_waiting_for_a_while_only() -> None:
    requests = ProgressRequests[str]()
    now = 100.0
    with patch.object(progress_requests, "monotonic", lambda: now):
        assert sent(requests, "a")
        now += PATIENCE * 0.99
        assert not sent(requests, "b")
        now += PATIENCE * 0.02
        assert sent(requests, "c")
    assert requests.on_answer() == {"a": 1, "c": 1}
    assert requests.on_answer() == {"b": 1}


def test_after_a_break_one_request_asks_for_all() -> None:
    requests = ProgressRequests[str]()
    sent(requests, "a")
    sent(requests, "a")
    sent(requests, "b")
    requests.on_break()
    requests.on_open()
    assert requests.is_wanted
    requests.on_sent()
    assert requests.on_answer() == {"a": 2, "b": 1}
    assert not requests.is_wanted


def test_whoever_is_forgotten_is_not_told() -> None:
    requests = ProgressRequests[str]()
    sent(requests, "a")
    sent(requests, "b")
    requests.forget("a")
    requests.forget("b")
    assert requests.on_answer() == {}
    sent(requests, "a")
    sent(requests, "b")
    requests.clear()
    assert not requests.is_wanted
    assert sent(requests, "a")
