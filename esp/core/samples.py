"""Samples of the revisions of all shards. A sample says which revision each shard had reached before a plain revision.

A revision R of one shard, the *leading* shard, says nothing about the other shards by itself. But a sample that is
older than R does: each shard had reached its revision in the sample before R existed. For a sample, all other shards
answer first, and the leading shard is asked last, with a linearizable read. If the leading shard answers with a
revision below R, then R did not exist when it was asked, and the other shards had answered before that.
docs/consistency.md, "Compaction", has the argument in full.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Final

from esp.core.layout import Layout
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, Shard, answers_of, ask_all_for_esp, failures_of
from esp.core.wire.context import WireContext

log = logging.getLogger("esp")

ANSWER_SECONDS: Final = 2.0
"""Seconds that a shard has to answer; a silent shard counts with its last answer."""

_ASKED: Final = rpc_pb2.RangeRequest(key=b"\0", count_only=True)

Revisions = Mapping[str, int]
"""The revision of each shard, by name; 0 for a shard that has never answered."""


class Samples:
    """Samples of the shards' revisions, the newest `max_samples`, oldest first.

    Attributes:
        leading: the name of the shard that is asked last; samples are found by its revisions.
    """

    def __init__(self, layout: Layout, key: bytes, context: WireContext, now: Callable[[], float] = monotonic) -> None:
        """`key` is a key of the leading shard."""
        self.leading = layout.map.owner(key)
        self._key = key
        self._layout = layout
        self._context = context
        self._now = now
        self._found: list[Revisions] = []
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._found)

    @property
    def age(self) -> float | None:
        """The age of the oldest sample in seconds; None if there is no sample."""
        return self._now() - self._times[0] if self._times else None

    def before(self, revision: int) -> Revisions | None:
        """The newest sample that was taken before the leading shard reached `revision`; None if there is none.

        A shard that has never answered has revision 0 in the sample.
        """
        place = bisect_left(self._found, revision, key=lambda found: found[self.leading])
        return self._found[place - 1] if place else None

    def add(self, revisions: Revisions) -> None:
        """Keeps a sample, by the shards' names; 0 stands for a shard that did not answer.

        If the leading shard's revision is the same as in the last sample, the new sample replaces the last: it says
        more.
        """
        last = self._found[-1] if self._found else {}
        if any(0 < revision < last.get(shard, 0) for shard, revision in revisions.items()):
            log.warning("a shard's revisions have gone back: what is known of earlier ones is of another history")
            self._found.clear()
            self._times.clear()
            last = {}
        sample = {shard: revision or last.get(shard, 0) for shard, revision in revisions.items()}
        if self._found and sample[self.leading] == last[self.leading]:
            self._found[-1] = sample
            return
        self._found.append(sample)
        self._times.append(self._now())
        if len(self._found) > self._context.limits.max_samples:
            self._context.reached("max_samples")
            del self._found[0], self._times[0]

    def install(self, layout: Layout) -> None:
        """Another layout is in force. If it has another leading shard, all samples are dropped: none could be found."""
        self._layout = layout
        leading = layout.map.owner(self._key)
        if leading != self.leading:
            self.leading = leading
            self._found.clear()
            self._times.clear()

    async def take(self) -> None:
        """Takes a sample, unless the leading shard does not answer or is the only shard."""
        layout = self._layout
        if len(layout.shards) == 1:
            return
        last = layout.owner(self._key)
        found = await self._ask([shard for shard in layout.shards.values() if shard is not last])
        found |= await self._ask([last])
        if found[last.name] and layout is self._layout:
            self.add(found)

    async def _ask(self, shards: Iterable[Shard]) -> dict[str, int]:
        """The revision of each of these shards, by linearizable reads at once; 0 for a shard that does not answer."""
        outcomes = await ask_all_for_esp(shards, RANGE, _ASKED, seconds=ANSWER_SECONDS)
        for name, failure in failures_of(outcomes).items():
            log.debug("shard %s: no revision: %s", name, failure.message)
        return dict.fromkeys(outcomes, 0) | {
            name: int(answer.header.revision) for name, answer in answers_of(outcomes).items()
        }

    async def run(self) -> None:
        """Takes a sample every `sample_seconds`, for ever."""
        while True:
            await self.take()
            await asyncio.sleep(self._context.limits.sample_seconds)
