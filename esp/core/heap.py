"""Gives freed memory back to the system. After a burst of connections the C library by itself keeps most of it.

Objects above 512 bytes come from malloc. glibc gives back only the free end of its heap (mallopt(3), M_TRIM_THRESHOLD),
so a few survivors of a burst keep the whole heap. Smaller objects lie in Python's arenas of 1 MiB, which are freed when
they are empty; tuples and lists that Python keeps for later use hold them, until a full garbage collection.
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
LOOKS: Final = 4
"""Looks in a row, half a second apart, that must find the memory free: memory in constant use is not given back."""


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc, mallinfo(3)."""

    # All of type size_t; `fordblks`, the ninth, is the total free space.
    _fields_ = [(f"field{number}", ctypes.c_size_t) for number in range(10)]


class Heap:
    """The C library's heap. With another library than glibc 2.33 or newer, `tick` does nothing."""

    def __init__(self, garbage: Garbage) -> None:
        self._garbage = garbage
        libc: Any = ctypes.CDLL(None)
        self._mallinfo: Any = getattr(libc, "mallinfo2", None)
        self._trim: Any = getattr(libc, "malloc_trim", None)
        if self._mallinfo is not None:
            self._mallinfo.restype = _Mallinfo2
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
