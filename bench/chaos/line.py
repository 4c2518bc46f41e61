"""One direction of a bad line: how long each packet takes, which ones are lost, how many wait.

Only numbers and a queue: the caller tells the time, and carries the packets.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

QUEUE_BYTES: Final = 100_000
"""The most bytes that wait for their turn where the rate is limited, as in a router; more are lost."""
WAITING_BYTES: Final = 8_000_000
"""The most bytes on their way; more are lost."""


@dataclass(frozen=True)
class Shape:
    """What a line does to packets. The default does nothing.

    Attributes:
        delay: seconds that each packet takes.
        jitter: further seconds that it takes at most. No packet overtakes another.
        kilobits: the rate, a second; 0 for any.
        loss: the share of packets that are lost.
        burst: the mean number of packets that are lost one after the other.
    """

    delay: float = 0.0
    jitter: float = 0.0
    kilobits: int = 0
    loss: float = 0.0
    burst: float = 1.0

    def text(self) -> str:
        """The shape as a program's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Shape:
        """The shape that `text` came of."""
        return cls(**json.loads(text))


class Line:
    """Packets on their way.

    Attributes:
        counts: packets that were "passed", "lost" for the shape's loss, and "dropped" because too many wait.
    """

    def __init__(self, shape: Shape, chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._shape = shape
        self._chance = chance
        self._is_losing = False
        self._free = 0.0  # when the last packet's last bit has been sent
        self._last = 0.0  # when the last packet arrives
        self._packets: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    @property
    def due(self) -> float:
        """When the next packet arrives; infinity for none."""
        return self._packets[0][0] if self._packets else math.inf

    def put(self, packet: bytes, now: float) -> None:
        """Sends a packet on its way, or loses it."""
        shape = self._shape
        if self._loses():
            self.counts["lost"] += 1
            return
        begin = max(now, self._free)
        rate = shape.kilobits * 125  # bytes a second
        if self._bytes + len(packet) > WAITING_BYTES or (begin - now) * rate + len(packet) > QUEUE_BYTES:
            self.counts["dropped"] += 1
            return
        self._free = begin + (len(packet) / rate if rate else 0.0)
        self._last = max(self._last, self._free + shape.delay + self._chance.uniform(0, shape.jitter))
        self._packets.append((self._last, packet))
        self._bytes += len(packet)

    def take(self, now: float) -> Iterator[bytes]:
        """The packets that have arrived."""
        while self._packets and self._packets[0][0] <= now:
            _, packet = self._packets.popleft()
            self._bytes -= len(packet)
            self.counts["passed"] += 1
            yield packet

    def _loses(self) -> bool:
        """Whether the next packet is lost: two states, as lines lose packets in bursts (Gilbert's model)."""
        shape = self._shape
        if not shape.loss:
            return False
        ends = 1 / shape.burst
        if self._is_losing:
            self._is_losing = self._chance.random() >= ends
        else:
            self._is_losing = self._chance.random() < ends * shape.loss / (1 - shape.loss)
        return self._is_losing
