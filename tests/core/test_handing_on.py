"""Tokens that a proxy hands on while it drains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from esp.core.fleet import Registered
from esp.core.together import Together
from esp.core.tokens import Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits

HEIR = Registered(number=3, urls=(), peers=("http://3",), version="1", epoch=1)


def vector(number: int) -> Vector:
    return Vector(("a",), (number,))


@pytest.mark.parametrize("mints_before", [True, False])
def test_what_is_minted_during_the_drain_is_handed_on_though_a_token_of_others_is_newer(mints_before: bool) -> None:
    here = Tokens(WireContext(Limits()), instance=1)
    ahead = Tokens(WireContext(Limits()), instance=2, now=lambda: time.time() + 60)
    own = [here.mint(vector(1))] if mints_before else []
    newer = ahead.mint(vector(2))
    here.adopt(newer, vector(2))
    given: list[list[int]] = []

    async def hand_on(_: Registered, tokens: Sequence[tuple[int, Vector]]) -> None:
        given.append([token for token, _ in tokens])

    together: Any = SimpleNamespace(_tokens=here, _given=0, fellows=SimpleNamespace(hand_on=hand_on))
    asyncio.run(Together._give(together, HEIR))
    late = here.mint(vector(3))
    assert late < newer
    asyncio.run(Together._give(together, HEIR))
    asyncio.run(Together._give(together, HEIR))
    assert given == [[*own, newer], [late]]
