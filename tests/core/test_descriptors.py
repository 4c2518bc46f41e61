"""The number of clients for which the process has descriptors."""

from __future__ import annotations

import logging
import resource

import pytest

from esp.core.descriptors import RESERVE, RESERVE_PER_SHARD, within_descriptors
from esp.core.wire.limits import Limits


class Process:
    """Stands for the limits of a process, of which a test cannot get its own back once they are lowered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
        self.now = (soft, hard)
        self.refuses = False
        monkeypatch.setattr(resource, "getrlimit", lambda _: self.now)
        monkeypatch.setattr(resource, "setrlimit", self._set)

    def _set(self, _: int, now: tuple[int, int]) -> None:
        if self.refuses:
            raise ValueError("current limit exceeds maximum limit")
        self.now = now


def test_the_soft_limit_is_raised_to_the_hard_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = Process(monkeypatch, 1024, 500_000)
    assert within_descriptors(Limits(), 3) == Limits()
    assert process.now == (500_000, 500_000)
    assert caplog.text == ""


def test_clients_get_what_shards_and_files_leave(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Process(monkeypatch, 100, 1000)
    room = 1000 - RESERVE - 3 * RESERVE_PER_SHARD
    assert within_descriptors(Limits(), 3) == Limits(max_connections=room)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"max_connections is {room} instead of 10000" in record.getMessage()


def test_a_config_that_wants_less_gets_that(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    Process(monkeypatch, 1000, 1000)
    assert within_descriptors(Limits(max_connections=20), 3).max_connections == 20
    assert caplog.text == ""


def test_where_the_system_refuses_to_raise_it_the_soft_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    Process(monkeypatch, 256, resource.RLIM_INFINITY).refuses = True
    assert within_descriptors(Limits(), 1).max_connections == 256 - RESERVE - RESERVE_PER_SHARD


def test_without_a_limit_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    Process(monkeypatch, resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert within_descriptors(Limits(), 1) == Limits()


def test_at_least_one_client_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    Process(monkeypatch, 20, 20)
    assert within_descriptors(Limits(), 26).max_connections == 1
