"""Gives freed memory back to the system once it is not used again. The C library alone does too little and too much.

Objects above 512 bytes come from malloc. glibc gives back only the free end of its heap (mallopt(3), M_TRIM_THRESHOLD),
so a few survivors of a burst keep the whole heap. Smaller objects lie in Python's arenas of 1 MiB, which are freed when
they are empty; tuples and lists that Python keeps for later use hold them, until a full garbage collection.

The free end goes back at once, however soon it is needed again, and then the system has to clear all its pages: that
was a quarter of what a Put of 1 MiB cost. So `Heap` has glibc keep KEPT of it, and gives that back itself.
"""

from __future__ import annotations

import ctypes
from time import monotonic
from typing import Any, Final

from esp.core.garbage import Garbage

WORTH_IT: Final = 8_388_608
"""Bytes that must have become free since the last time; to give memory back takes about 0.1 ms for each MB."""
SETTLED: Final = 1_048_576
"""A burst is over when the free bytes change by no more than this between two looks."""
KEPT: Final = 16_777_216
"""Bytes at the heap's end that glibc does not give back by itself. With 8 MiB Puts of 1 MiB, eight in flight, cost a
sixth more CPU time on a busy machine."""
OF_ITS_OWN: Final = 4_194_304
"""Bytes from which on an object gets a mapping of its own, which goes back with the object. Clients' messages are
smaller by default (`max_message_bytes`)."""
LOOKS: Final = 4
"""Looks in a row, half a second apart, that must find the memory free: memory in constant use is not given back."""


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc, mallinfo(3)."""

    # All of type size_t; `fordblks`, the ninth, is the total free space.
    _fields_ = [(f"field{number}", ctypes.c_size_t) for number in range(10)]


class Heap:
    """The C library's heap, of which it keeps more from now on, so that `tick` has to be called.

    With another library than glibc 2.33 or newer, nothing is kept, and `tick` does nothing.
    """

    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage
        libc: Any = ctypes.CDLL(None)
        self._mallinfo: Any = getattr(libc, "mallinfo2", None)
        self._trim: Any = getattr(libc, "malloc_trim", None)
        if self._mallinfo is not None:
            self._mallinfo.restype = _Mallinfo2
        if self.is_known:
            # Both: after either, glibc no longer adapts the other to what the process does.
            libc.mallopt(_TRIM_THRESHOLD, KEPT)
            libc.mallopt(_MMAP_THRESHOLD, OF_ITS_OWN)
        self._given_back = self._before = self._free() if self.is_known else 0
        self._still = 0

    @property
    def is_known(self) -> bool:
        """Whether this C library tells how much of its heap is free."""
        return self._mallinfo is not None and self._trim is not None

    def _free(self) -> int:
        return int(self._mallinfo().field8)

    def tick(self) -> bool:
        """Gives memory back if much has become free and no more becomes free. True if memory was given back."""
        if not self.is_known:
            return False
        # glibc counts memory that was given back as free, until the memory is used again.
        free = self._free()
        self._given_back = min(self._given_back, free)
        self._still = self._still + 1 if abs(free - self._before) < SETTLED else 0
        self._before = free
        if free - self._given_back < WORTH_IT or self._still < LOOKS:
            return False
        self._garbage.collect(monotonic())
        self._trim(0)
        self._given_back = self._free()
        return True
