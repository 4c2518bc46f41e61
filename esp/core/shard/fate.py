"""The fate of a unary call whose stream broke before the answer was whole: the table, for all ways of calling a shard.

| the shard has surely not acted | the call only reads | it may be repeated | outcome |
|---|---|---|---|
| yes | yes or no | yes | esp sends the call again |
| no | yes | yes | esp sends the call again |
| yes | yes or no | no | `NO_CONNECTION`, with the text that makes clients try again |
| no | yes or no | no | `REQUEST_TIMED_OUT`: nobody knows whether the call was applied, and the caller must decide |
| no | no | yes | `REQUEST_TIMED_OUT`, too |

A call may be repeated once, and only while its request is at hand and no byte of an answer has gone to the client.
"""

from __future__ import annotations

from esp.core import errors
from esp.core.wire.status import Status


def outcome(*, unprocessed: bool, reads: bool, repeatable: bool) -> Status | None:
    """The status of a broken call; None for a call that is sent again.

    Args:
        unprocessed: the shard has surely not acted on the call (`ClientStream.surely_unprocessed`).
        reads: the call changes nothing, so it does no harm if the shard acts on it twice.
        repeatable: the call was not repeated before, its request is at hand, and no answer has begun.
    """
    return None if repeatable and (unprocessed or reads) else failure(unprocessed)


def failure(unprocessed: bool) -> Status:
    """The status of a broken call that is not sent again."""
    return errors.NO_CONNECTION if unprocessed else errors.REQUEST_TIMED_OUT
