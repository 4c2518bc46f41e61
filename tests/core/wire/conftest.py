"""The clock of the wire, held by hand."""

from __future__ import annotations

import pytest

from esp.core.wire import admission, client, connection, frame_reader, handler, server, server_stream


class Clock:
    """Stands still until told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> float:
        """Lets time pass; what it is then."""
        self.now += seconds
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (admission, client, connection, frame_reader, handler, server, server_stream):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock
