"""Network namespaces: each host has one link for clients and one for its peers, and each can be cut, slowed, made bad.

All hosts hang on two bridges in the namespace of the calling process, which must be one of its own (`own_namespace`).
A namespace lives as long as the process that holds it, and what is mounted there is seen nowhere else, so nothing is
left behind, however the process ends.

A link that is bad (`roughen`) leaves its bridge, and a relay carries its frames there and back:

    host -- clients | c7 -- relay -- rc7 | qc7 -- br-clients
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

from bench.chaos.line import Shape
from bench.chaos.relay import READY
from bench.processes import BenchError

Link = Literal["clients", "peers"]
NETWORKS: Final[dict[Link, str]] = {"clients": "10.77", "peers": "10.78"}
HERE: Final = "10.77.255.1"
"""The address of this process in the hosts' network for clients."""
SEGMENTS: Final = ("gso_max_segs", "1")
"""Each packet is a frame of its own, so that relays and queues see what a real line carries."""
VETH: Final = (*SEGMENTS, "type", "veth")
_OWN: Final = "ESP_CHAOS_NAMESPACE"


def own_namespace() -> None:
    """Runs this very command again in namespaces of its own for network and mounts, unless it runs in such already.

    Raises:
        BenchError: the command lacks root, or a program that it needs.
    """
    if os.environ.get(_OWN):
        return
    if missing := [program for program in ("unshare", "nsenter", "ip", "ss", "tc") if shutil.which(program) is None]:
        raise BenchError(f"{', '.join(missing)} missing: install util-linux and iproute2")
    if os.geteuid() != 0:
        raise BenchError("network namespaces need root: run it as root")
    os.environ[_OWN] = "1"
    module = sys.modules["__main__"].__spec__
    assert module is not None
    name = module.name.removesuffix(".__main__")
    os.execvp("unshare", ["unshare", "--net", "--mount", "--", sys.executable, "-m", name, *sys.argv[1:]])


def run(*command: str) -> None:
    """Runs a program.

    Raises:
        BenchError: the program fails.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")


class Network:
    """The bridges, and the hosts on them."""

    def __init__(self) -> None:
        """Makes the bridges.

        Raises:
            BenchError: this namespace is not one of our own, or the kernel has no bridges.
        """
        run("ip", "link", "set", "lo", "up")
        for number, (link, network) in enumerate(NETWORKS.items()):
            run("ip", "link", "add", "name", f"br-{link}", "type", "bridge")
            # Else it has the address of one of its ports, and that port takes frames that a relay is to carry.
            run("ip", "link", "set", "dev", f"br-{link}", "address", f"02:00:00:00:ff:{number:02x}", "up")
            run("ip", "addr", "add", f"{network}.255.1/16", "dev", f"br-{link}")
        self.hosts: list[Host] = []

    def host(self, place: int) -> Host:
        """A new host; `place` is its number from 1 to 60,000."""
        self.hosts.append(Host(place))
        return self.hosts[-1]

    def close(self) -> None:
        """Ends all namespaces."""
        for host in self.hosts:
            host.close()


class Host:
    """A network namespace with two links."""

    def __init__(self, place: int) -> None:
        self.place = place
        self._relays: dict[Link, subprocess.Popen[str]] = {}
        # It holds the namespace. Its end of the pipe is closed when this process ends, however that ends.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()  # it is in its namespace now
        self.inside("ip", "link", "set", "lo", "up")
        for link, network in NETWORKS.items():
            out = self._device(link)
            run(
                "ip", "link", "add", "name", out, *VETH, "peer", "name", link, *SEGMENTS, "netns", str(self._holder.pid)
            )
            run("ip", "link", "set", out, "master", f"br-{link}", "arp", "off", "up")
            self.inside("ip", "addr", "add", f"{network}.{place >> 8}.{place & 255}/16", "dev", link)
            self.inside("ip", "link", "set", link, "up")

    def address(self, link: Link) -> str:
        """The host's address on one of its links."""
        return f"{NETWORKS[link]}.{self.place >> 8}.{self.place & 255}"

    def command(self, *command: str) -> list[str]:
        """A command line that runs `command` on the host, in the same process."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *command]

    def inside(self, *command: str) -> None:
        """Runs a program on the host."""
        run(*self.command(*command))

    def cut(self, links: Sequence[Link] = ("clients", "peers")) -> None:
        """Cuts links: nothing passes, and nobody is told."""
        for link in links:
            run("ip", "link", "set", self._device(link), "down")

    def mend(self, links: Sequence[Link] = ("clients", "peers")) -> None:
        """Mends links that were cut."""
        for link in links:
            run("ip", "link", "set", self._device(link), "up")

    def slow(self, link: Link, kilobits: int) -> None:
        """Lets so many kilobits a second pass in each direction, with a queue before that."""
        limit = ("parent", "1:", "classid", "1:1", "htb", "rate", f"{kilobits}kbit")
        for device, runs in ((self._device(link), run), (link, self.inside)):
            runs("tc", "qdisc", "replace", "dev", device, "root", "handle", "1:", "htb", "default", "1", "r2q", "1")
            runs("tc", "class", "replace", "dev", device, *limit)

    def hurry(self, link: Link) -> None:
        """Takes the limit of `slow` away."""
        run("tc", "qdisc", "del", "dev", self._device(link), "root")
        self.inside("tc", "qdisc", "del", "dev", link, "root")

    def roughen(self, link: Link, to_host: Shape, from_host: Shape, seed: int) -> None:
        """Puts a relay into a link, which loses and delays packets. `smooth` takes it away.

        Raises:
            BenchError: the relay does not begin.
        """
        port, near, far = self._device(link), f"r{self._device(link)}", f"q{self._device(link)}"
        run("ip", "link", "add", "name", near, *VETH, "peer", "name", far, *SEGMENTS)
        for device in (near, far):
            run("ip", "link", "set", device, "arp", "off", "up")
        relay = [sys.executable, "-m", "bench.chaos.relay", near, port, to_host.text(), from_host.text(), str(seed)]
        self._relays[link] = subprocess.Popen(relay, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._first_line(link) != READY:
            raise BenchError(f"no relay in the link {port}")
        run("ip", "link", "set", port, "nomaster")
        run("ip", "link", "set", far, "master", f"br-{link}")

    def smooth(self, link: Link) -> tuple[Counter[str], Counter[str]]:
        """Takes a relay away; what it did with the packets to the host, and with those from it (`Line.counts`)."""
        relay = self._relays.pop(link)
        told, _ = relay.communicate()
        run("ip", "link", "del", f"r{self._device(link)}")
        run("ip", "link", "set", self._device(link), "master", f"br-{link}")
        to_host, from_host = json.loads(told)
        return Counter(to_host), Counter(from_host)

    def close(self) -> None:
        """Ends the namespace."""
        for relay in self._relays.values():
            relay.kill()
            relay.communicate()
        self._holder.kill()
        self._holder.communicate()

    def _first_line(self, link: Link) -> str:
        """What the relay of a link says when it has begun."""
        told = self._relays[link].stdout
        assert told is not None
        return told.readline().strip()

    def _device(self, link: Link) -> str:
        return f"{link[0]}{self.place}"
