"""Hands new clients to the worker that has the fewest.

All workers accept from one queue of the kernel, so a client waits for no particular worker, and least of all for one
that has died. But the kernel wakes the workers in a fixed order, and the first one takes nearly all clients of a burst.
gRPC clients stay for hours, so that would last. Therefore a worker that has two clients more than another gives the new
one away: the descriptor goes through a socket to the other, before any byte is read.

Each worker tells the number of its clients, and the time of its last tick, in memory that all share. A worker that has
not ticked for two seconds is stuck or dead. It gets no clients, and the others take back those on their way to it.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from time import monotonic_ns
from typing import Final

STUCK_MS: Final = 2000
"""Milliseconds without a tick after which a worker is taken for stuck."""
_AT_ONCE: Final = 64
_MS: Final = 1_000_000


class Balance:
    """The numbers of all workers' clients, and the way to each worker. Made before the workers are forked."""

    def __init__(self, count: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, max(mmap.PAGESIZE, 16 * count))).cast("Q")
        self.count = count
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        for pair in self.pairs:
            for end in pair:
                end.setblocking(False)
        self.clients = self._memory[:count]
        self.ticks = self._memory[count : 2 * count]

    @property
    def descriptors(self) -> list[int]:
        """The descriptors that a worker needs."""
        return [end.fileno() for pair in self.pairs for end in pair]

    def close(self) -> None:
        """Closes the sockets of this process."""
        for pair in self.pairs:
            for end in pair:
                end.close()


class Share:
    """One worker's part in the balance.

    Args:
        balance: what all workers share.
        number: the worker's number.
        take: called with a descriptor and the port number for a client that another worker gives away.

    Attributes:
        given, taken: clients that this worker gave to others, and got from others.
    """

    def __init__(self, balance: Balance, number: int, take: Callable[[int, int], object]) -> None:
        self.given = self.taken = 0
        self._balance = balance
        self._number = number
        self._take = take
        self._seen = [0] * balance.count
        self._on_the_way = [0] * balance.count  # given since the other's number was last seen to change
        self._is_open = False

    def open(self) -> None:
        """Begins to take part."""
        self._balance.clients[self._number] = 0
        self._is_open = True
        asyncio.get_running_loop().add_reader(self._balance.pairs[self._number][0], self._receive, self._number)
        self.tick(0.0)

    def close(self) -> None:
        """This worker gives no clients away, and the others give it none; those on their way still come."""
        if self._is_open:
            self._is_open = False
            self._balance.ticks[self._number] = 0

    def end(self) -> list[tuple[int, int]]:
        """Takes no client any more. Returns the last ones, as `take` gets them.

        Those are clients on their way to this worker, and to others that have closed, since all may end at the same
        time: what a worker has given away, it finds here itself if nobody else has.
        """
        self.close()
        loop = asyncio.get_running_loop()
        if not loop.remove_reader(self._balance.pairs[self._number][0]):
            return []
        closed = [number for number, since in enumerate(self._balance.ticks) if not since]
        return [client for number in closed for client in self._received(number)]

    def tell(self, clients: int) -> None:
        """Tells the others how many clients this worker has."""
        self._balance.clients[self._number] = clients

    def tick(self, _: float) -> None:
        """Tells the others that this worker is alive, and takes over the clients on their way to a stuck worker."""
        if not self._is_open:
            return
        now = monotonic_ns() // _MS
        self._balance.ticks[self._number] = now
        for number, since in enumerate(self._balance.ticks):
            if since + STUCK_MS < now:
                self._receive(number)

    def lines(self) -> list[str]:
        """For people: for each worker that has not ticked lately a line, or one line if all have."""
        now = monotonic_ns() // _MS
        stuck = [number for number, since in enumerate(self._balance.ticks) if since + STUCK_MS < now]
        return [f"[-]worker {number} failed: it is stuck, or begins anew\n" for number in stuck] or ["[+]workers ok\n"]

    def give_away(self, descriptor: int, port: int, clients: int) -> bool:
        """Gives a new client to another worker if that one has at least two fewer; True if this is done.

        Args:
            descriptor: the client's socket, which the caller closes then.
            port: the number of the listening socket.
            clients: how many clients this worker has, without this one.
        """
        other = self._fewest(clients)
        if other is None:
            return False
        try:
            socket.send_fds(self._balance.pairs[other][1], [port.to_bytes(2)], [descriptor])
        except OSError:  # the queue is full, or too many descriptors are on their way
            return False
        self._on_the_way[other] += 1
        self.given += 1
        return True

    def _fewest(self, clients: int) -> int | None:
        if not self._is_open:
            return None
        fewest, found = clients, None
        now = monotonic_ns() // _MS
        for number, there in enumerate(self._balance.clients):
            if there != self._seen[number]:
                self._seen[number] = there
                self._on_the_way[number] = 0
            there += self._on_the_way[number]
            if there < fewest and number != self._number and self._balance.ticks[number] + STUCK_MS >= now:
                fewest, found = there, number
        return found

    def _receive(self, number: int) -> None:
        for descriptor, port in islice(self._received(number), _AT_ONCE):
            self._take(descriptor, port)

    def _received(self, number: int) -> Iterator[tuple[int, int]]:
        """The clients on their way to a worker."""
        sock = self._balance.pairs[number][0]
        while True:
            try:
                port, descriptors, _, _ = socket.recv_fds(sock, 2, 1)
            except OSError:  # none is left, or no descriptor is free: then the client is lost, as at any accept
                return
            for descriptor in descriptors:
                self.taken += 1
                with suppress(OSError):
                    os.set_inheritable(descriptor, False)
                yield descriptor, int.from_bytes(port)
