"""Questions to shards that may be away for a while: asked again, for as long as a member takes to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, TypeVar

from google.protobuf.message import Message

from esp.core import errors
from esp.core.shard import Method, Shard, ask_for_esp
from esp.core.wire.call import Reader
from esp.core.wire.status import Code, RpcError, Status
from esp.core.wording import shard_called

PATIENCE_SECONDS: Final = 60.0
"""Seconds for which a shard that does not answer is asked again."""
PAUSE_SECONDS: Final = 0.5
CALL_SECONDS: Final = 20.0

Answer = TypeVar("Answer", bound=Message)


def may_pass(status: Status) -> bool:
    """Whether a shard may answer later that answers now with `status`; the call may have been served."""
    if status == errors.MAP_CHANGED:
        return False
    return status.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED) or status.message in _PASSING


_PASSING: Final = {errors.TOO_MANY_REQUESTS.message, errors.NOT_PRIMARY.message}


async def read(
    shard: Shard, method: Method[Answer], request: Message, reader: Callable[[], Reader[bytes]] | None = None
) -> Answer:
    """A shard's answer to a question that changes nothing.

    Raises:
        RpcError: the shard's; or the last one, if the shard has not answered for PATIENCE_SECONDS.
    """
    until = monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await ask_for_esp(shard, method, request, seconds=CALL_SECONDS, reader=reader)
        except RpcError as error:
            if not may_pass(error.status) or monotonic() > until:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


def told(shard: Shard, status: Status) -> str:
    """The error of a shard, for people."""
    if status == errors.MAP_CHANGED:
        return f"{errors.MAP_CHANGED_MEANWHILE}, and {shard_called(shard.name)} has refused what goes by the one before"
    cure = ""
    if status == errors.PERMISSION_DENIED or status in errors.STALE_TOKEN:
        cure = "; name a user who may read and write all of these keys (auth in the config, or --user)"
    elif status == errors.NO_SPACE:
        cure = "; give it space (compact, defragment, disarm the alarm), then go on with --resume"
    return f"{shard_called(shard.name)}: {status.message}{cure}"
