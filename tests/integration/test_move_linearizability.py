"""Each key is one register for all clients of two proxies, while its range moves between shards, there and back."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

from bench.chaos.linearizability import Kind, Operation, is_linearizable
from esp.core.keys import KeyRange
from esp.core.move import Stage, Told, purge
from tests.harness import Esps, Etcds
from tests.integration.mapped import Mapped
from tests.integration.test_linearizability import KEYS, Clients
from tests.integration.test_move import moved, pairs, reached

ROUND = (
    (KeyRange(b"i", b"r"), "s0"),
    (KeyRange(b"r", b"s"), "s0"),
    (KeyRange(b"i", b"r"), "s2"),
    (KeyRange(b"r", b"s"), "s2"),
    (KeyRange(b"i", b"r"), "s1"),
)
Moves = dict[bytes, list[Operation]]


async def move(mapped: Mapped, range_: KeyRange, target: str, moves: Moves) -> None:
    """Moves a range, and writes down when which key had which value."""
    source = mapped.now.map.owner(range_.start)
    begun = 0.0

    def tell(told: Told) -> None:
        nonlocal begun
        if told.stage is Stage.CUT:
            begun = time.monotonic()

    done = await moved(mapped, range_, target, tell)
    ended = time.monotonic()
    found = {pair.key: pair for pair in pairs(mapped, target, range_, done.opened)}
    for key in KEYS:
        if key >= range_.start and (range_.end is None or key < range_.end):
            pair = found.get(key)
            read, revision = (None, 0) if pair is None else (pair.value.decode(), pair.mod_revision)
            moves[key].append(Operation(Kind.MOVE, begun, ended, done=True, read=read, revision=revision))
    async with reached(mapped) as shards:
        await purge(shards[source], done.map.guards[source], range_, copies=None, rate=1e6, progress=lambda _: None)


def test_the_history_of_each_key_is_linearizable_while_it_moves(
    start_etcd: Etcds, start_esp: Esps, tmp_path: Path
) -> None:
    mapped = Mapped(start_etcd.several(3), ["i", "r"], tmp_path / "esp.yaml")
    proxies = [start_esp.launch("-c", mapped.path, config=mapped.path) for _ in range(2)]
    for proxy in proxies:
        proxy.wait_ready()
    clients = Clients(proxies)
    moves: Moves = {key: [] for key in KEYS}
    with ExitStack() as stack:
        stack.callback(clients.end)
        clients.wait_for_more()
        for range_, target in ROUND:
            asyncio.run(move(mapped, range_, target, moves))
            clients.wait_for_more()
    for key in KEYS:
        history = sorted([*clients.history(key), *moves[key]], key=lambda each: each.called)
        assert is_linearizable(history), "\n".join(map(repr, [key, *history]))
