"""The checks behind the HTTP pages: each shard's status, a local read, and a read that needs a quorum.

Shards are asked only for a page. For any number of pages, a shard is asked at most once a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any, Final

from google.protobuf.message import Message

from esp.core import errors
from esp.core.background import Background, all_of
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, STATUS, Method, Shard, ask_for_esp
from esp.core.wire.status import RpcError, Status

SECONDS: Final = 2.0
"""Seconds that a shard may take for a check."""
FRESH_SECONDS: Final = 1.0
"""Seconds from the beginning of a round in which its outcome serves further pages."""
_KEY: Final = b"health"
"""The key that `etcdctl endpoint health` reads."""
_ALARM: Final = re.compile(r"alarm:(\w+)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one shard's checks.

    Attributes:
        alarms: the names of the raised alarms, such as NOSPACE.
        has_leader, is_learner: as the member says; taken as good if it does not say.
        serializable_read, linearizable_read: why such a read fails; "" if it succeeds.
        silence: why the shard has not told its alarms and the like; "" if it has.
    """

    alarms: tuple[str, ...] = ()
    has_leader: bool = True
    is_learner: bool = False
    serializable_read: str = ""
    linearizable_read: str = ""
    silence: str = ""


def _unread(why: str) -> Verdict:
    return Verdict(serializable_read=why, linearizable_read=why, silence=why)


class Round:
    """One round over all shards.

    Attributes:
        began: the `monotonic` time.
        verdicts: the verdicts known so far, by the shard's name.
    """

    def __init__(self, count: int, background: Background) -> None:
        self.began = monotonic()
        self.verdicts: dict[str, Verdict] = {}
        self._count = count
        self._background = background
        self._looking: list[Look] = []

    @property
    def is_over(self) -> bool:
        """Whether all verdicts are known."""
        return len(self.verdicts) == self._count

    def follow(self, look: Look) -> None:
        """Calls `look` now and after each verdict, until `look` says that it has seen enough."""
        self._background.guard("a page", partial(self._show, look))

    def judge(self, shard: str, verdict: Verdict) -> None:
        """Takes the verdict on a shard."""
        self.verdicts.setdefault(shard, verdict)
        looking, self._looking = self._looking, []
        for look in looking:
            self._background.guard("a page", partial(self._show, look))

    def _show(self, look: Look) -> None:
        if not look(self) and not self.is_over:
            self._looking.append(look)


Look = Callable[[Round], bool]


class Checks:
    """Checks the shards of a layout."""

    def __init__(self, shards: Mapping[str, Shard], background: Background) -> None:
        self._shards = shards
        self._background = background
        self._round: Round | None = None

    def ask(self, look: Look) -> None:
        """Gives `look` the verdicts of the last round if it is open or fresh (`FRESH_SECONDS`); else of a new one."""
        found = self._round
        if found is None or (found.is_over and monotonic() - found.began > FRESH_SECONDS):
            found = self._round = self._begin()
        found.follow(look)

    def _begin(self) -> Round:
        begun = Round(len(self._shards), self._background)
        for name, shard in self._shards.items():
            if not shard.is_ready:
                why = f": {shard.trouble}" if shard.trouble else ""
                begun.judge(name, _unread(f"{errors.NO_CONNECTION.message}{why}"))
                continue
            bug = partial(begun.judge, name, _unread("esp: internal error"))
            self._background.start(_check(begun, shard), on_bug=bug)
        return begun


async def _check(begun: Round, shard: Shard) -> None:
    question = rpc_pb2.RangeRequest(key=_KEY, keys_only=True)
    local = rpc_pb2.RangeRequest(key=_KEY, keys_only=True, serializable=True)
    calls = ((STATUS, rpc_pb2.StatusRequest()), (RANGE, question), (RANGE, local))
    status, linearizable, serializable = await all_of([_outcome(shard, *each) for each in calls])
    verdict = Verdict(
        serializable_read=_failure(serializable), linearizable_read=_failure(linearizable), silence=_failure(status)
    )
    if isinstance(status, rpc_pb2.StatusResponse):
        alarms = tuple(name for error in status.errors for name in _ALARM.findall(error))
        verdict = replace(verdict, alarms=alarms, has_leader=bool(status.leader), is_learner=status.isLearner)
    begun.judge(shard.name, verdict)


async def _outcome(shard: Shard, method: Method[Any], request: Message) -> Message | Status:
    try:
        answer: Message = await ask_for_esp(shard, method, request, seconds=SECONDS)
    except RpcError as error:
        return errors.undecided(error.status)
    return answer


def _failure(outcome: Message | Status) -> str:
    """The reason why a read has failed. A missing permission is no failure: the member reads before it refuses."""
    if not isinstance(outcome, Status) or outcome in (errors.PERMISSION_DENIED, errors.USER_EMPTY):
        return ""
    return outcome.message or f"code {outcome.code}"
