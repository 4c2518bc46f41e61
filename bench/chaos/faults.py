"""What breaks: each fault happens to a random part of the rig, lasts for a while and is mended.

At most one fault at a time takes the majority from a shard, so that what the clients do can be told from what they
cannot do; a minority may be away at any time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from bench.chaos.etcdctl import ask_etcdctl, etcdctl
from bench.chaos.line import Shape
from bench.chaos.member import Member
from bench.chaos.network import Link
from bench.chaos.rig import PATIENCE, Proxy, Rig
from bench.processes import BenchError

SLOW_KILOBITS: Final = 400
FULL_BYTES: Final = 1_000_000
BALLAST_ROWS: Final = 100
TRIES: Final = 20
"""How often is tried what fails now and then, on a machine that is busy or stands still."""
LARGE: Final = "x" * 1_000_000


class Status(NamedTuple):
    """What a member says of itself: ids of itself and of its leader, its revision."""

    member: int
    leader: int
    revision: int


class Faults:
    """The faults that can happen to a rig.

    Args:
        rig: what breaks.
        chance: decides to what it happens, and for how long.
        seconds: how long a fault lasts: from, to.

    Attributes:
        counts: faults that have happened, by name.
        packets: what relays did with the packets of bad links (`line`).
    """

    def __init__(self, rig: Rig, chance: random.Random, seconds: tuple[float, float]) -> None:
        self.counts: Counter[str] = Counter()
        self.packets: Counter[str] = Counter()
        self._rig = rig
        self._chance = chance
        self._seconds = seconds

    async def happen(self, name: str) -> None:
        """Lets a fault happen, and mends it.

        Raises:
            BenchError: what was mended does not work again.
        """
        await _ALL[name](self)
        self.counts[name] += 1

    # Members.

    async def member_killed(self) -> None:
        """A member dies at once, and comes back."""
        await self._killed([self._member()])

    async def leader_killed(self) -> None:
        """The leader of a shard dies at once, and comes back."""
        await self._killed([await self._leader(self._shard())])

    async def shard_killed(self) -> None:
        """All members of a shard die at the same moment, and come back."""
        await self._killed(self._shard())

    async def member_stopped(self) -> None:
        """A member freezes, and goes on."""
        await self._stopped([self._member()])

    async def leader_stopped(self) -> None:
        """A leader freezes, and goes on in the belief that it leads."""
        await self._stopped([await self._leader(self._shard())])

    async def member_cut_off(self) -> None:
        """Nothing passes to and from a member."""
        await self._cut([self._member()], ("clients", "peers"))

    async def leader_cut_off(self) -> None:
        """A leader loses its peers, but clients reach it."""
        await self._cut([await self._leader(self._shard())], ("peers",))

    async def member_cut_off_from_clients(self) -> None:
        """No client reaches a member that its peers reach."""
        await self._cut([self._member()], ("clients",))

    async def shard_cut_off(self) -> None:
        """No client reaches any member of a shard."""
        await self._cut(self._shard(), ("clients",))

    async def shard_slow(self) -> None:
        """The links of a shard to its clients carry little."""
        members = self._shard()
        for member in members:
            await asyncio.to_thread(member.host.slow, "clients", SLOW_KILOBITS)
        try:
            await self._last()
        finally:
            for member in members:
                member.host.hurry("clients")

    async def member_slow(self) -> None:
        """The link of one member, which a proxy uses, to its clients takes its time, and carries little."""
        await self._bad(await self._used(self._shard()), "clients", self._slow)

    async def member_lossy(self) -> None:
        """The link of one member, which a proxy uses, to its clients loses packets."""
        await self._bad(await self._used(self._shard()), "clients", self._lossy)

    async def leader_slow_among_peers(self) -> None:
        """The link of a leader to its peers takes its time, and carries little."""
        await self._bad(await self._leader(self._shard()), "peers", self._slow)

    async def leader_lossy_among_peers(self) -> None:
        """The link of a leader to its peers loses packets."""
        await self._bad(await self._leader(self._shard()), "peers", self._lossy)

    async def leader_moved(self) -> None:
        """A leader hands its office to another member."""
        members = self._shard()
        for _ in range(TRIES):
            statuses = await self._statuses(members)
            leaders = [member for member, status in statuses.items() if status.leader == status.member]
            heirs = [status.member for status in statuses.values() if status.leader != status.member]
            if leaders and heirs:
                heir = f"{self._chance.choice(heirs):x}"
                if await asyncio.to_thread(etcdctl, leaders, "move-leader", heir):
                    return
            await asyncio.sleep(1)
        raise BenchError(f"the leader of {members[0].name} and its peers does not hand over")

    async def member_defragmented(self) -> None:
        """A member writes its file anew, and answers nothing meanwhile."""
        member = self._member()
        for _ in range(TRIES):
            if await asyncio.to_thread(etcdctl, [member], "defrag", seconds=30):
                return
            await asyncio.sleep(1)
        raise BenchError(f"{member.name} does not defragment its file")

    async def disk_full(self) -> None:
        """The disk of a member is full: etcd ends. It is started when there is room again."""
        members = self._shard()
        member = self._chance.choice(members)
        others = [other for other in members if other is not member]
        ballast = member.disk / "ballast"
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(FULL_BYTES))
                    file.flush()
            except OSError:
                pass
        try:
            # It has some space in its files; only when it needs more does it notice.
            await self._fill(others, lambda: not member.is_running)
            await self._last()
        finally:
            ballast.unlink()
            member.kill()
            member.start()
        await self._rig.healthy([member])
        await self._make_room(members)

    async def no_space(self) -> None:
        """A database reaches its quota: no more writes until somebody makes room and takes the alarm away."""
        members = self._shard()
        try:
            await self._fill(members, lambda: "NOSPACE" in ask_etcdctl(members, "alarm", "list")[1])
            await self._last()
        finally:
            await self._make_room(members)

    async def _fill(self, members: list[Member], is_full: Callable[[], bool]) -> None:
        """Puts large values until something has happened.

        Raises:
            BenchError: it does not happen.
        """
        for number in range(BALLAST_ROWS):
            key = f"\x01ballast/{number % 2}"  # below all keys of the load, and direct: proxies are not asked
            await asyncio.to_thread(etcdctl, members, "put", key, text=LARGE)
            if await asyncio.to_thread(is_full):
                return
        raise BenchError(f"{members[0].name} and its peers have taken too much")

    async def _make_room(self, members: list[Member]) -> None:
        """Does what etcd's guide says: compact, defragment, disarm.

        Raises:
            BenchError: there is still an alarm.
        """
        # Each step fails while the machine stands still. A write that was on its way raises the alarm anew.
        for _ in range(TRIES):
            await asyncio.to_thread(etcdctl, members, "del", "--prefix", "\x01ballast/")
            statuses = await self._statuses(members)
            revision = max((status.revision for status in statuses.values()), default=0)
            await asyncio.to_thread(etcdctl, members, "compact", str(revision), seconds=30)
            for member in members:
                await asyncio.to_thread(etcdctl, [member], "defrag", seconds=30)
            await asyncio.to_thread(etcdctl, members, "alarm", "disarm")
            await asyncio.sleep(1)
            if all([await asyncio.to_thread(member.is_healthy) for member in members]):
                return
        raise BenchError(f"{members[0].name} and its peers have an alarm that does not go away")

    # Proxies.

    async def proxy_killed(self) -> None:
        """A proxy dies at once, and another takes its place."""
        proxy = self._chance.choice(self._rig.proxies)
        proxy.kill()
        await asyncio.sleep(self._chance.uniform(0, 2))
        proxy.start()
        await self._ready(proxy)

    async def proxy_stopped(self) -> None:
        """A proxy freezes with all its workers, and goes on."""
        proxy = self._chance.choice(self._rig.proxies)
        proxy.send_all(signal.SIGSTOP)
        try:
            await self._last()
        finally:
            proxy.send_all(signal.SIGCONT)

    async def proxies_rolled(self) -> None:
        """One proxy after the other drains, and another takes its place."""
        for proxy in self._rig.proxies:
            proxy.send(signal.SIGTERM)
            await proxy.ended(PATIENCE)
            proxy.start()
            await self._ready(proxy)

    async def proxy_taken_over(self) -> None:
        """A proxy hands all that it has to another process, and ends."""
        proxy = self._chance.choice(self._rig.proxies)
        await proxy.take_over(PATIENCE)
        await self._ready(proxy)

    async def worker_killed(self) -> None:
        """One of a proxy's processes dies at once, and its supervisor begins another."""
        proxy = self._chance.choice(self._rig.proxies)
        if workers := proxy.workers:
            os.kill(self._chance.choice(workers), signal.SIGKILL)
        await self._last()
        proxy.require_running()

    async def config_reloaded(self) -> None:
        """Each proxy reads a config in which the shards have fewer endpoints in another order, and later the first."""
        for proxy in self._rig.proxies:
            before = proxy.config.read_text()
            changed = json.loads(before)
            for shard in changed["shards"]:
                self._chance.shuffle(shard["endpoints"])
                del shard["endpoints"][2:]
            proxy.config.write_text(json.dumps(changed))
            proxy.send(signal.SIGHUP)
            await self._last()
            proxy.require_running()
            proxy.config.write_text(before)
            proxy.send(signal.SIGHUP)

    async def certificates_rotated(self) -> None:
        """All servers, members and proxies, get a new certificate and a new key."""
        self._rig.certificates.rotate()
        await self._last()

    # How.

    async def _ready(self, proxy: Proxy) -> None:
        for _ in range(300):
            if await asyncio.to_thread(proxy.asks_ready):
                return
            await asyncio.sleep(0.1)

    async def _last(self) -> None:
        await asyncio.sleep(self._chance.uniform(*self._seconds))

    def _shard(self) -> list[Member]:
        return self._chance.choice(self._rig.shards)

    def _member(self) -> Member:
        return self._chance.choice(self._rig.members)

    async def _used(self, members: list[Member]) -> Member:
        """One of the members to which a proxy has a connection; any member if there is none."""
        used = [member for member in members if await asyncio.to_thread(member.has_clients)]
        return self._chance.choice(used or members)

    async def _leader(self, members: list[Member]) -> Member:
        """The leader of a shard.

        Raises:
            BenchError: none says that it leads.
        """
        for _ in range(TRIES):
            for member, status in (await self._statuses(members)).items():
                if status.leader == status.member:
                    return member
            await asyncio.sleep(1)
        raise BenchError(f"{members[0].name} and its peers have no leader")

    async def _statuses(self, members: list[Member]) -> dict[Member, Status]:
        found = {}
        for member in members:
            # As a user: etcd 3.7 tells it to nobody else.
            good, text = await asyncio.to_thread(ask_etcdctl, [member], "endpoint", "status", "-w", "json", seconds=5)
            if good:
                status = json.loads(text)[0]["Status"]
                header = status["header"]
                found[member] = Status(header["member_id"], status.get("leader", 0), header["revision"])
        return found

    async def _killed(self, members: list[Member]) -> None:
        for member in members:
            member.kill()
        await self._last()
        for member in members:
            member.start()
        await self._rig.healthy(members)

    async def _stopped(self, members: list[Member]) -> None:
        for member in members:
            member.send(signal.SIGSTOP)
        try:
            await self._last()
        finally:
            for member in members:
                member.send(signal.SIGCONT)

    def _slow(self) -> Shape:
        """A line like one over half the world, at its worst: a round takes up to 0.9 s."""
        chance = self._chance
        return Shape(chance.uniform(0.02, 0.35), chance.uniform(0, 0.1), chance.randrange(200, 4000))

    def _lossy(self) -> Shape:
        """A line that loses packets, sometimes many in a row, so that TCP stands still for seconds."""
        chance = self._chance
        return Shape(0.002, chance.uniform(0, 0.02), loss=chance.uniform(0.03, 0.3), burst=chance.uniform(1, 6))

    async def _bad(self, member: Member, link: Link, shape: Callable[[], Shape]) -> None:
        """Gives each direction a shape of its own, or only one of them."""
        to_host, from_host = shape(), shape()
        good = self._chance.choice(("", "", "to", "from"))
        if good == "to":
            to_host = Shape()
        elif good == "from":
            from_host = Shape()
        await asyncio.to_thread(member.host.roughen, link, to_host, from_host, self._chance.getrandbits(32))
        try:
            await self._last()
        finally:
            for counts in await asyncio.to_thread(member.host.smooth, link):
                self.packets += counts

    async def _cut(self, members: list[Member], links: tuple[Link, ...]) -> None:
        for member in members:
            member.host.cut(links)
        try:
            await self._last()
        finally:
            for member in members:
                member.host.mend(links)


_ALL: Final[Mapping[str, Callable[[Faults], Awaitable[None]]]] = {
    "member killed": Faults.member_killed,
    "leader killed": Faults.leader_killed,
    "shard killed": Faults.shard_killed,
    "member stopped": Faults.member_stopped,
    "leader stopped": Faults.leader_stopped,
    "member cut off": Faults.member_cut_off,
    "leader cut off from its peers": Faults.leader_cut_off,
    "member cut off from clients": Faults.member_cut_off_from_clients,
    "shard cut off": Faults.shard_cut_off,
    "shard slow": Faults.shard_slow,
    "member slow": Faults.member_slow,
    "member lossy": Faults.member_lossy,
    "leader slow among peers": Faults.leader_slow_among_peers,
    "leader lossy among peers": Faults.leader_lossy_among_peers,
    "leader moved": Faults.leader_moved,
    "member defragmented": Faults.member_defragmented,
    "disk full": Faults.disk_full,
    "no space": Faults.no_space,
    "proxy killed": Faults.proxy_killed,
    "proxies rolled": Faults.proxies_rolled,
    "proxy stopped": Faults.proxy_stopped,
    "proxy taken over": Faults.proxy_taken_over,
    "worker killed": Faults.worker_killed,
    "certificates rotated": Faults.certificates_rotated,
    "config reloaded": Faults.config_reloaded,
}
NAMES: Final = tuple(_ALL)
"""The name of every fault."""
