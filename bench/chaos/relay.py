"""A bad line between two network devices, as a program: `python -m bench.chaos.relay A B SHAPE_TO_B SHAPE_TO_A SEED`.

Each Ethernet frame that arrives at one device leaves by the other: later, or never (`line`). So the kernels at both
ends see what a bad line does: packets lost, sent once more, acknowledged late. It does without netem, which not every
kernel has.

It says when it has begun, and ends when its input ends; then it prints what it did with the frames of each direction.
"""

from __future__ import annotations

import json
import math
import random
import select
import socket
import sys
from time import monotonic
from typing import Final

from bench.chaos.line import Line, Shape

READY: Final = "ready"
BATCH: Final = 64
"""Frames that are read from one device at a time."""
LARGEST: Final = 1 << 17
_ETH_P_ALL: Final = 3
_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
"""Each frame has a head that tells which checksums its sender has left to the device (linux/virtio_net.h)."""
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 4 << 20


def device(name: str) -> socket.socket:
    """All frames of a network device."""
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    frames.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    frames.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    frames.setblocking(False)
    frames.bind((name, _ETH_P_ALL))
    return frames


def relay(one: socket.socket, other: socket.socket, there: Line, back: Line) -> None:
    """Carries frames between two devices until standard input ends."""
    ways = ((one, there, other), (other, back, one))
    while True:
        due = min(there.due, back.due)
        wait = None if due == math.inf else max(0.0, due - monotonic())
        readable, _, _ = select.select([one, other, sys.stdin], [], [], wait)
        if sys.stdin in readable:
            return
        for source, line, target in ways:
            if source in readable:
                _receive(source, line)
            for frame in line.take(monotonic()):
                try:
                    target.send(frame)
                except OSError:  # its device is away, or its queue is full
                    line.counts["dropped"] += 1


def _receive(source: socket.socket, line: Line) -> None:
    for _ in range(BATCH):
        try:
            frame, (*_, kind, _, _) = source.recvfrom(LARGEST)
        except OSError:  # no more, or the device is away
            return
        if kind != socket.PACKET_OUTGOING:
            line.put(frame, monotonic())


def main() -> None:
    """Runs the command."""
    one, other, there, back, seed = sys.argv[1:]
    chance = random.Random(int(seed))
    lines = [Line(Shape.of(shape), chance) for shape in (there, back)]
    with device(one) as left, device(other) as right:
        print(READY, flush=True)
        relay(left, right, *lines)
    print(json.dumps([line.counts for line in lines]))


if __name__ == "__main__":
    main()
