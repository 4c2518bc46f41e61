"""Freed memory goes back to the system, even if live objects lie behind it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from esp.core import heap
from esp.core.garbage import Garbage
from esp.core.heap import LOOKS, Heap

PAGE = 4096
MB = 1_000_000


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def looks(watched: Heap) -> list[bool]:
    """What each of so many looks does as are needed."""
    return [watched.tick() for _ in range(LOOKS + 1)]


def test_what_is_in_use_all_the_time_is_not_given_back() -> None:
    watched = Heap(Garbage(0.0, lambda seconds: None))
    for _ in range(10):
        burst = [bytearray(2000) for _ in range(20_000)]
        assert not watched.tick()
        del burst
        assert not watched.tick()


def test_a_burst_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[float] = []
    garbage = Garbage(0.0, lambda seconds: None)
    monkeypatch.setattr(garbage, "collect", collected.append)
    watched = Heap(garbage)
    if not watched.is_known:
        pytest.skip("another C library")
    ctypes.CDLL(None).malloc_trim(0)  # or the burst would lie in what other tests have left
    before = resident()
    burst = [bytearray(2000) for _ in range(100_000)]
    survivors = burst[::1000]
    assert resident() - before > 150 * MB
    assert not any(looks(watched)), "nothing is free yet"
    assert not collected
    del burst
    assert looks(watched) == [False] * LOOKS + [True], "more may follow for a while"
    assert resident() - before < 50 * MB
    assert not any(looks(watched)), "once is enough"
    again = [bytearray(2000) for _ in range(100_000)]
    assert not any(looks(watched))
    del again
    assert looks(watched)[-1], "what was taken again is given back again"
    assert len(collected) == 2, "old garbage goes first, each time"
    assert len(survivors) == 100


REUSING = """
import resource, sys
from esp.core.garbage import Garbage
from esp.core.heap import Heap
if sys.argv[1] == "watched":
    heap = Heap(Garbage(0.0, lambda seconds: None))

def messages():
    for _ in range(8):  # as many as are at work at a time
        kept = [[bytes(16384) for _ in range(64)] for _ in range(4)]
        whole = [b"".join(pieces) for pieces in kept]
        del kept, whole

messages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
messages()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system has to provide for messages of a MiB that come and go, in a process of its own."""
    run = subprocess.run([sys.executable, "-c", REUSING, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_messages_that_come_and_go_take_no_new_pages() -> None:
    if not Heap(Garbage(0.0, lambda seconds: None)).is_known:
        pytest.skip("another C library")
    assert faults("watched") < 100
    assert faults("left alone") > 1000, "glibc gives back what is needed again at once"


def test_what_is_kept_at_the_end_of_the_heap_is_given_back() -> None:
    watched = Heap(Garbage(0.0, lambda seconds: None))
    if not watched.is_known:
        pytest.skip("another C library")
    ctypes.CDLL(None).malloc_trim(0)
    before = resident()
    burst = [bytes(16384) for _ in range(900)]  # less than KEPT
    assert resident() - before > 10 * MB
    assert not any(looks(watched)), "nothing is free yet"
    del burst
    assert looks(watched)[-1]
    assert resident() - before < 2 * MB


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    watched = Heap(Garbage(0.0, lambda seconds: None))
    assert not watched.is_known
    assert not watched.tick()
