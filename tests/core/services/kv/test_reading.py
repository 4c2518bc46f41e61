"""Several shards asked at once."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from esp.core import errors
from esp.core.background import all_of
from esp.core.wire.status import RpcError


class Large:
    """What a shard has answered."""


def test_a_failure_lets_go_at_once_of_what_the_others_have_answered() -> None:
    answers: list[weakref.ref[Large]] = []

    async def answer() -> Large:
        large = Large()
        answers.append(weakref.ref(large))
        return large

    async def fail() -> Large:
        await asyncio.sleep(0.01)
        raise errors.NO_CONNECTION.error()

    async def run() -> None:
        with pytest.raises(RpcError):
            await all_of([answer(), fail(), answer()])
        assert [one() for one in answers] == [None, None]

    gc.collect()
    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()
