from __future__ import annotations

import pytest

from esp.core.move import Copies, decode_copies
from esp.core.shared_map import MapFormatError


def test_copies_are_what_was_written() -> None:
    for copies in (Copies("a" * 32), Copies("0" * 32, 7, 2**62, 3, 4, 5)):
        assert decode_copies(copies.encode()) == copies


@pytest.mark.parametrize("data", [b"", b"x", Copies("a" * 31).encode(), Copies("a" * 32).encode() + b" 1"])
def test_bytes_that_are_no_copies_are_refused(data: bytes) -> None:
    with pytest.raises(MapFormatError, match="are not written as esp writes them"):
        decode_copies(data)
