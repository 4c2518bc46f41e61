"""The state of an endpoint that metrics and logs read."""

from __future__ import annotations

import pytest

from esp.core.shard import Connectivity, EndpointState


def test_an_endpoint_that_is_connected_to_has_no_trouble_and_keeps_its_count() -> None:
    state = EndpointState()
    assert (state.connectivity, state.trouble, state.failures) == (Connectivity.IDLE, "", 0)
    state.connecting()
    assert state.connectivity == Connectivity.CONNECTING
    state.failed("connection refused")
    assert (state.connectivity, state.trouble) == (Connectivity.TRANSIENT_FAILURE, "connection refused")
    state.connecting()
    assert state.trouble == "connection refused", "until an attempt succeeds"
    state.ready()
    assert (state.connectivity, state.trouble, state.failures) == (Connectivity.READY, "", 1)


def test_round_trips_are_smoothed_as_in_tcp() -> None:
    state = EndpointState()
    assert (state.round_trip, state.smoothed, state.answers) == (None, None, 0)
    state.answered(0.008)
    assert (state.round_trip, state.smoothed) == (0.008, 0.008)
    state.answered(0.016)
    assert state.round_trip == 0.016
    assert state.smoothed == pytest.approx(0.009)
    assert state.answers == 2
