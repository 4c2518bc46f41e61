from __future__ import annotations

import pytest

from esp.core import errors
from esp.core.shard.fate import outcome
from esp.core.wire.status import Status

AGAIN = None


@pytest.mark.parametrize(
    ("unprocessed", "reads", "repeatable", "expected"),
    [
        (True, True, True, AGAIN),
        (True, False, True, AGAIN),
        (False, True, True, AGAIN),
        (False, False, True, errors.REQUEST_TIMED_OUT),
        (True, True, False, errors.NO_CONNECTION),
        (True, False, False, errors.NO_CONNECTION),
        (False, True, False, errors.REQUEST_TIMED_OUT),
        (False, False, False, errors.REQUEST_TIMED_OUT),
    ],
)
def test_what_becomes_of_a_broken_call(
    unprocessed: bool, reads: bool, repeatable: bool, expected: Status | None
) -> None:
    assert outcome(unprocessed=unprocessed, reads=reads, repeatable=repeatable) == expected
