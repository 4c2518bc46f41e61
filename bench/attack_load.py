"""The process that attacks: `python -m bench.attack_load ADDRESS NAME` sends what `attack_shapes` says, at a rate.

All connections share one rate. A connection that the server ends is opened again, as often as the attack says. In
the end one line of JSON on stdout: bytes sent, things sent, connections opened, connections that the server ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator

from bench.attack_shapes import ATTACKS, Attack, Chunk
from bench.tls_client import TlsClient

_TURN = 0.005  # seconds
_MOST_IN_THE_FIRST_SECOND = 3_000


class _Connection:
    """One attacking connection: a socket, the shape's generator, and what the kernel has not taken yet."""

    def __init__(self, address: tuple[str, int], attack: Attack) -> None:
        self.seal: Callable[[bytes], bytes] | None = None
        if attack.seals:
            client = TlsClient(address)
            self.socket = client.socket
            self.seal = getattr(client, attack.seals)
        else:
            self.socket = socket.socket()
            if attack.small_buffer:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            self.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self.socket.connect(address)
        self.chunks: Iterator[Chunk] = attack.shape()
        self.left = b""
        self.idle = self.finished = False

    def send(self) -> tuple[int, int]:
        """Sends what can be sent at once, a chunk at most; bytes and things that went."""
        things = 0
        if not self.left:
            chunk = next(self.chunks, None)
            self.idle = chunk is None
            self.finished = chunk is None and not _endless(self.chunks)
            if chunk is None:
                return 0, 0
            self.left, things = chunk
            if self.seal is not None:
                self.left = self.seal(self.left)
        try:
            sent = self.socket.send(self.left)
        except BlockingIOError:
            return 0, things
        self.left = self.left[sent:]
        return sent, things

    def discard(self) -> bool:
        """Reads what there is; False once the server has ended the connection."""
        try:
            for _ in range(16):
                if not self.socket.recv(1 << 18):
                    return False
        except BlockingIOError:
            pass
        return True


def _endless(chunks: Iterator[Chunk]) -> bool:
    return getattr(chunks, "gi_frame", None) is not None


class Load:
    """A number of connections, driven for a time."""

    def __init__(self, address: tuple[str, int], attack: Attack, connections: int, rate: float) -> None:
        self._address = address
        self._attack = attack
        self._wanted = attack.connections or connections
        self._rate = rate
        self._selector = selectors.DefaultSelector()
        self._open: list[_Connection] = []
        self.bytes = self.things = self.opened = self.ended = 0

    def run(self, seconds: float) -> None:
        """Attacks until the time is over, with new connections."""
        began = time.monotonic()
        credit, last, turn, before = 0.0, began, 0, self.opened
        while (now := time.monotonic()) < began + seconds:
            credit = min(credit + (now - last) * self._rate, max(self._rate * 0.1, 16_384.0))
            last = now
            allowed = _MOST_IN_THE_FIRST_SECOND + self._attack.opens_per_second * (now - began)
            while len(self._open) < self._wanted and self.opened - before < allowed:
                self._connect()
            turn += 1
            sent_any = True
            while credit > 0 and sent_any:
                sent_any = False
                for at in range(len(self._open)):
                    if credit <= 0:
                        break
                    connection = self._open[(at + turn) % len(self._open)]
                    try:
                        sent, things = connection.send()
                    except OSError:
                        continue  # what is read next tells that it has ended
                    credit -= sent
                    self.bytes += sent
                    self.things += things
                    sent_any = sent_any or sent > 0
                turn += 1
            for connection in [one for one in self._open if one.finished]:
                self._close(connection)
            for key, _ in self._selector.select(0):
                connection = key.data
                try:
                    alive = connection.discard()
                except OSError:
                    alive = False
                if not alive:
                    self.ended += 1
                    self._close(connection)
            time.sleep(_TURN)
        for connection in list(self._open):
            self._close(connection)

    def _connect(self) -> None:
        connection = _Connection(self._address, self._attack)
        self._open.append(connection)
        self.opened += 1
        if self._attack.reads:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def _close(self, connection: _Connection) -> None:
        if self._attack.reads:
            self._selector.unregister(connection.socket)
        connection.socket.close()
        self._open.remove(connection)


def spells(seconds: float, again: float) -> Iterator[float]:
    """How long each of several attacks lasts of which a new one begins every `again` seconds, `seconds` in all."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        yield left if left < 1.5 * again else again


def parser_of(description: str | None, names: Iterable[str]) -> argparse.ArgumentParser:
    """The command line of a process that attacks, or makes another load beside the neighbour."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port")
    parser.add_argument("name", choices=list(names))
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=9.0)
    parser.add_argument("--again", type=float, default=3.0, help="after so many seconds it begins anew")
    return parser


def main() -> None:
    parser = parser_of(__doc__, ATTACKS)
    parser.add_argument("--times", type=float, default=1.0, help="of the attack's own rate")
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    host, _, port = args.address.rpartition(":")
    attack = ATTACKS[args.name]
    load = Load((host, int(port)), attack, args.connections, attack.rate * args.times)
    for seconds in spells(args.seconds, args.again):
        load.run(seconds)
    seen = {"bytes": load.bytes, "things": load.things, "opened": load.opened, "ended": load.ended}
    print(json.dumps({**seen, "cpu_seconds": time.process_time(), "errors": []}))


if __name__ == "__main__":
    main()
