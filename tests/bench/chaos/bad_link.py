"""A host with a bad link, and what TCP sees there, as a program in a network namespace of its own (`test_relay`).

It prints, for each shape: whether what came back is what was sent, what the relay did with the packets, the time of a
round and how many segments this end and the host have sent again, as the kernels tell.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import subprocess
import sys
import threading
from typing import Any, Final

from bench.chaos.line import Shape
from bench.chaos.network import Host, Network

PORT: Final = 4000
DATA: Final = hashlib.shake_256(b"data").digest(400_000)
SHAPES: Final = {
    "good": (Shape(), Shape()),
    "slow": (Shape(delay=0.05), Shape(delay=0.1)),
    "slow to the host": (Shape(delay=0.1), Shape()),
    "lossy": (Shape(loss=0.05, burst=1.5), Shape(loss=0.05, burst=1.5)),
    "lossy from the host": (Shape(), Shape(loss=0.1)),
    "narrow": (Shape(kilobits=4_000), Shape(kilobits=4_000)),
}
ECHO: Final = f"""
import socket
with socket.create_server(("0.0.0.0", {PORT})) as server:
    print("listens", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            connection.sendall(info[100:104])
"""


def trial(host: Host, shape: tuple[Shape, Shape], seed: int) -> dict[str, Any]:
    """Sends data to the host and back. The connection is there before the link gets bad."""
    with socket.create_connection((host.address("clients"), PORT)) as connection:
        host.roughen("clients", *shape, seed)
        sender = threading.Thread(target=_send, args=(connection,))
        sender.start()
        came = b""
        while data := connection.recv(1 << 16):
            came += data
        sender.join()
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 152)
    to_host, from_host = host.smooth("clients")
    (sent_again,) = struct.unpack_from("=I", info, 100)  # tcpi_total_retrans of linux/tcp.h
    (by_host,) = struct.unpack("=I", came[-4:])
    (round_us,) = struct.unpack_from("=I", info, 68)  # tcpi_rtt
    return {
        "same": came[:-4] == DATA,
        "sent again": sent_again,
        "sent again by the host": by_host,
        "round": round_us / 1e6,
        "to host": to_host,
        "from host": from_host,
    }


def _send(connection: socket.socket) -> None:
    connection.sendall(DATA)
    connection.shutdown(socket.SHUT_WR)


def main() -> None:
    """Runs all trials."""
    network = Network()
    host = network.host(1)
    with subprocess.Popen(host.command(sys.executable, "-c", ECHO), stdout=subprocess.PIPE) as echo:
        assert echo.stdout is not None
        echo.stdout.readline()
        seen = {name: trial(host, shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
        sys.stdout.write(json.dumps(seen))
        echo.kill()
    network.close()


if __name__ == "__main__":
    main()
