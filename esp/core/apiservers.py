"""Finds out whether kube-apiservers use this proxy, and below which prefix: there esp must not divide a resource.

Below an expected prefix an apiserver is recognised by the watchers of its caches: each watches all objects of a
built-in resource, with `prev_kv` and `progress_notify`. An apiserver makes them in its first second, long before it
serves anybody. Below any other prefix an apiserver is recognised by its keys in etcd; a request that looks like an
apiserver's only makes esp look for these keys. An apiserver watches `compact_rev_key`, writes it every five minutes,
and renews a lease object below its prefix every ten seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from esp.core.keys import format_key
from esp.core.kubernetes import COMPACT_KEY, Cut, cuts, is_built_in, objects_of
from esp.core.layout import Layout
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, Shard, ask_for_esp
from esp.core.shard_map import ShardMap
from esp.core.wire.status import RpcError

log = logging.getLogger("esp")

MAX_ROOTS: Final = 8
"""The most prefixes of apiservers: known prefixes, and prefixes that esp looks for at the moment, together."""
LOOK_SECONDS: Final = 1.0
"""Seconds between two looks: longer than the write takes that made esp look."""
RETRY_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 2.0

# The key of a namespace that every apiserver makes when it starts.
_NAMESPACE: Final = b"namespaces/kube-system"
_SIGNS: Final = (b"/masterleases/", b"/leases/kube-system/apiserver-")
_PART_OF_SIGNS: Final = b"leases/"

_CURE: Final = (
    "Kubernetes' resource has to be in one shard: give it {kubernetes: RESOURCE} there, or write across_shards: serve"
)


async def holds(shard: Shard, key: bytes) -> bool:
    """Whether a shard has a key.

    Raises:
        RpcError: the shard does not say.
    """
    answer = await ask_for_esp(shard, RANGE, rpc_pb2.RangeRequest(key=key, count_only=True), seconds=ANSWER_SECONDS)
    return answer.count > 0


def roots_in_question(shard_map: ShardMap) -> list[bytes]:
    """The directories that contain a boundary, the widest first: an apiserver may keep its keys below any of them."""
    parts = {
        boundary[: place + 1]
        for boundary in shard_map.starts[1:]
        for place in range(len(boundary) - 1)
        if boundary[place : place + 1] == b"/"
    }
    return sorted(parts, key=lambda root: (root.count(b"/"), root))


def namespace_key(root: bytes) -> bytes:
    """A key that exists if an apiserver keeps its keys below this directory."""
    return root + _NAMESPACE


class ApiServers:
    """The kube-apiservers that esp knows of.

    Attributes:
        is_known: set once an apiserver is known to be at work.
        roots: the directories of their keys.
        on_found: called when this proxy has recognised one: by which sign, and the directories.
    """

    def __init__(
        self,
        layout: Layout,
        roots: Iterable[bytes],
        *,
        protects: bool,
        compact_key: bytes = COMPACT_KEY,
    ) -> None:
        """`roots` are the expected prefixes; with `protects` a resource that the map divides becomes undivided.

        `compact_key` is `COMPACT_KEY` in the namespace of the proxy.
        """
        self.is_known = asyncio.Event()
        self.roots: set[bytes] = set()
        self.on_found: Callable[[str, Iterable[bytes]], None] = lambda _, __: None
        self._assumed = tuple(roots)
        self._layout = layout
        self._protects = protects
        self._compact_key = compact_key
        self._wanted: dict[bytes, None] = {compact_key: None}
        self._asked = asyncio.Event()
        self._asked.set()

    def expect(self, roots: Iterable[bytes], *, protects: bool) -> None:
        """Other prefixes are expected, and protected or not in the next layout; known apiservers stay known."""
        self._assumed = tuple(roots)
        self._protects = protects

    def install(self, layout: Layout) -> None:
        """Another layout is in force: the known resources are protected in its map."""
        self._layout = layout
        self._asked.set()
        for root in self.roots:
            self._look_for_cuts(root)

    def saw_watcher(self, key: bytes, range_end: bytes, *, is_cache: bool) -> None:
        """Takes note of a Watch create, before the watch begins; `is_cache`: it has the options of a cache."""
        if key == self._compact_key or _PART_OF_SIGNS in key:
            self.saw(key)
        if is_cache:
            for root in self._assumed:
                if root not in self.roots and is_built_in(root, key, range_end):
                    self._recognise(f'"{format_key(key)}" is watched as its cache does it', root)

    def saw(self, key: bytes) -> None:
        """Takes note of a key that a client watches, or changes in a transaction."""
        if key == self._compact_key:
            if not self.is_known.is_set() or not self.roots.issuperset(self._assumed):
                self._look_for(key)
            return
        if _PART_OF_SIGNS not in key:
            return
        for sign in _SIGNS:
            place = key.find(sign)
            if place >= 0 and key[: place + 1] not in self.roots:
                self._look_for(namespace_key(key[: place + 1]))

    def _look_for(self, key: bytes) -> None:
        if len(self.roots) + len(self._wanted) <= MAX_ROOTS and len(key) < 1024:
            self._wanted[key] = None
            self._asked.set()

    async def run(self) -> None:
        """Asks the shards for the noted keys, until cancelled. An apiserver is at work where such a key exists."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            await asyncio.sleep(LOOK_SECONDS)
            if len(self._layout.shards) == 1:
                continue  # one shard divides nothing
            for key in tuple(self._wanted):
                try:
                    is_there = await holds(self._layout.owner(key), key)
                except RpcError as error:
                    log.debug("looking for %s: %s", format_key(key), error.status.message)
                    self._asked.set()
                    continue
                del self._wanted[key]
                if is_there:
                    self._found(key)
            if self._asked.is_set() and self._wanted:
                await asyncio.sleep(RETRY_SECONDS)

    def _found(self, key: bytes) -> None:
        roots = self._assumed if key == self._compact_key else (key.removesuffix(_NAMESPACE),)
        self._recognise(f'the key "{format_key(key)}" is there', *roots)

    def _recognise(self, sign: str, *roots: bytes) -> None:
        if not self.is_known.is_set() or not self.roots.issuperset(roots):
            self.on_found(sign, roots)
        self.learn(sign, roots)

    def learn(self, sign: str, roots: Iterable[bytes]) -> None:
        """An apiserver is at work, here or at another process that serves the same clients."""
        if not self.is_known.is_set():
            self.is_known.set()
            log.info("a kube-apiserver is at work through this proxy: %s", sign)
        for root in roots:
            if root not in self.roots:
                self.roots.add(root)
                self._look_for_cuts(root)

    def _look_for_cuts(self, root: bytes) -> None:
        for cut in cuts(self._layout.map, root):
            self._on_cut(cut)

    def _on_cut(self, cut: Cut) -> None:
        consequence = ""
        if self._protects:
            consequence = "; until then such requests are refused"
            if cut.is_split:
                self._layout.undivided.add(objects_of(cut.resource), _CURE)
            else:
                self._layout.undivided.part(cut.resource, cut.shards, cut.boundary, _CURE)
        log.warning("%s%s", cut.explain(), consequence)
