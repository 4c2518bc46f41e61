"""Changes of the map, decided and carried out on the shards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from esp.core import errors
from esp.core.pb import rpc_pb2
from esp.core.shard import RANGE, TXN, Shard, ask_for_esp
from esp.core.shared_map.change import Kind, Next, Step, advance, decision, look, steps, transaction
from esp.core.shared_map.reading import Held, held_in, held_in_range
from esp.core.shared_map.value import SharedMap
from esp.core.wire.status import RpcError
from esp.core.wording import shard_called

CALL_SECONDS: Final = 10.0
"""Seconds for one call to one shard; longer than the 7 s after which etcd itself gives up."""
_TRIES: Final = 5
"""How often a shard is told the map while others write there."""


class ChangeError(Exception):
    """A change cannot be decided or carried out; the text is a clause for people."""


class How(StrEnum):
    """What became of a step. The names are part of the JSON form."""

    DONE = "done"
    ALREADY = "already"
    """It was done before."""
    WAITS = "waits"
    """The shard is silent; the change is in force all the same."""
    OPEN = "open"
    """The target of a move that was to be given up owns the range already."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step and what became of it. `why` is the reason of a step that waits."""

    step: Step
    how: How
    why: str = ""


async def decide(anchor: Shard, change: Next, held: Held | None = None) -> None:
    """Decides on a change. Also if the same change was decided before, and is not carried out yet.

    Args:
        anchor: the anchor.
        change: the change.
        held: what the anchor holds, if it was restored: an older map, and perhaps a change of long ago.

    Raises:
        ChangeError: the anchor holds another map, or another change is decided there; or it is not known what the
            anchor has done.
    """
    try:
        answer = await ask_for_esp(
            anchor, TXN, decision(change, None if held is None else held.values), seconds=CALL_SECONDS
        )
    except RpcError as error:
        raise ChangeError(
            f"{shard_called(anchor.name)} decides on the map, and does not answer: "
            f"{errors.undecided(error.status).message}; esp map show tells whether the change was decided"
        ) from None
    if answer.succeeded:
        return
    found = _held(answer)
    if found.next == change:
        return
    if held is None and (found.next is not None or found.faults):
        cure = "esp map show tells more" if found.next is None else found.next.cure
        raise ChangeError(f"another change is decided and not carried out yet; {cure}")
    was = "no map" if found.map is None else f"the map of epoch {found.map.epoch}"
    raise ChangeError(f"{shard_called(anchor.name)} holds {was} by now; look again")


async def go_over(anchor: Shard, change: Next, to: Next) -> None:
    """Brings a change that is decided into another phase. Also if it is in that already.

    Raises:
        ChangeError: it is in none of the two; or it is not known what the anchor has done.
    """
    try:
        answer = await ask_for_esp(anchor, TXN, advance(change, to), seconds=CALL_SECONDS)
    except RpcError as error:
        why = errors.undecided(error.status).message
        raise ChangeError(f"{shard_called(anchor.name)} decides on the map, and does not answer: {why}") from None
    if not answer.succeeded and _held(answer).next != to:
        raise ChangeError("somebody else goes on with this change; look again")


async def carry_out(
    change: Next, shards: Mapping[str, Shard], silent: Mapping[str, str] = MappingProxyType({})
) -> AsyncGenerator[Outcome, None]:
    """Carries out a change that is decided, step by step; what is done already is left as it is.

    Args:
        change: the change.
        shards: the shards that can be asked, by name.
        silent: why others of the config cannot be asked, by name.

    A move that is to be given up, and is found to be open, is carried out.

    Raises:
        ChangeError: a step failed. The change can be gone on with later, by anybody. Or only a mover can go on with it.
    """
    if change.is_open:
        raise ChangeError(f"a move of keys is under way; {change.cure}")
    for step in steps(change):
        shard = shards.get(step.shard)
        if shard is not None:
            outcome = await _take(step, change, shard, shards.get(change.after.anchor))
            yield outcome
            if outcome.how is How.OPEN:
                opened = change.opened()
                await go_over(shards[change.after.anchor], change, opened)
                async for each in carry_out(opened, shards, silent):
                    yield each
                return
            continue
        why = silent.get(step.shard, "the config does not name it")
        if not step.can_wait:
            raise ChangeError(f"the change needs {shard_called(step.shard)}, which is not reached: {why}")
        yield Outcome(step, How.WAITS, why)


async def tell(shared: SharedMap, shard: Shard) -> Outcome:
    """Puts the map in force on a shard that has an older one.

    Raises:
        ChangeError: the shard has another guard than the map says.
    """
    outcome = await _take(Step(Kind.TELL, shard.name), Next(None, shared), shard)
    if outcome.how is How.WAITS:
        raise ChangeError(f"{shard_called(shard.name)} {outcome.why}")
    return outcome


async def _take(step: Step, change: Next, shard: Shard, anchor: Shard | None = None) -> Outcome:
    held: bytes | None = b""
    for _ in range(_TRIES):
        try:
            if step.kind is Kind.FENCE:
                seen = await _seen(change, shard, anchor)
                if _is_done(step, change, seen):
                    return Outcome(step, How.ALREADY)
                held = seen.values.guard
            answer = await ask_for_esp(shard, TXN, transaction(change, step, held), seconds=CALL_SECONDS)
        except RpcError as error:
            why = errors.undecided(error.status).message
            if step.can_wait and errors.is_unreachable(errors.undecided(error.status)):
                return Outcome(step, How.WAITS, why)
            raise ChangeError(f"{shard_called(step.shard)}: {why}; {change.cure}") from None
        if answer.succeeded:
            return Outcome(step, How.DONE)
        found = _held(answer)
        if _is_done(step, change, found):
            return Outcome(step, How.ALREADY)
        if step.kind is Kind.GIVE_BACK and found.guard is not None:
            if step.shard == change.taker and found.guard == change.after.guards[step.shard]:
                return Outcome(step, How.OPEN)
            if found.guard in change.guards_of(step.shard):
                held = found.guard.encode()
                continue
        if step.kind is Kind.FENCE:
            continue
        if step.kind is not Kind.TELL:
            break
        if found.guard != change.result.guards[step.shard]:
            # Its data was lost, or restored. That must not hold up a change, else it could never get a new guard.
            return Outcome(step, How.WAITS, _fault(found))
        if not found.map_bytes:
            break
        held = found.map_bytes
    raise ChangeError(f"{shard_called(step.shard)} {_fault(found)}")


async def _seen(change: Next, shard: Shard, anchor: Shard | None) -> Held:
    """What a shard holds that gets a new guard, while the change stands.

    Raises:
        ChangeError: the change is not decided any more; who goes on with it has slept.
        RpcError: a shard's.
    """
    seen = held_in_range(await ask_for_esp(shard, RANGE, look(), seconds=CALL_SECONDS))
    if seen.guard == change.after.guards[shard.name]:
        return seen
    if shard.name not in change.restored:
        assert change.before is not None, "the first map renews no guard"
        if seen.guard != change.before.guards[shard.name]:
            raise ChangeError(f"{shard_called(shard.name)} {_fault(seen)}")
        return seen
    if anchor is None:
        raise ChangeError(f"the change needs {shard_called(change.after.anchor)}, which is not reached")
    if held_in_range(await ask_for_esp(anchor, RANGE, look(), seconds=CALL_SECONDS)).next != change:
        raise ChangeError("somebody else has carried out the change, or another one stands in its place")
    return seen


def _is_done(step: Step, change: Next, found: Held) -> bool:
    after = change.result
    match step.kind:
        case Kind.GIVE_BACK:
            return found.guard == after.guards[step.shard]
        case Kind.ADMIT:
            return found.guard == after.guards[step.shard] and found.map is not None and found.map.epoch >= after.epoch
        case Kind.DISMISS:
            return found.guard is None
        case Kind.TELL:
            return found.guard == after.guards[step.shard] and found.map is not None and found.map.epoch >= after.epoch
        case Kind.FENCE:
            return found.guard == after.guards[step.shard] and found.map is not None and found.map.epoch >= after.epoch
        case Kind.FORGET:
            return not found.map_bytes and found.guard in (None, after.guards[step.shard])
        case Kind.RELEASE:
            return found.guard is None
        case Kind.END:
            return found.is_empty
        case Kind.FINISH:
            return found.next != change and found.map is not None and found.map.epoch >= after.epoch


def _fault(found: Held) -> str:
    if found.faults:
        return f"holds what cannot be read: {found.faults[0]}"
    if found.guard is None:
        return "has no guard: its data was lost, or restored from before the map; it must not be used like that"
    epoch = "no map" if found.map is None else f"the map of epoch {found.map.epoch}"
    return f"holds {epoch} with the guard {found.guard}, which is another one than this change expects"


def _held(answer: rpc_pb2.TxnResponse) -> Held:
    keys = answer.responses[0].response_range.kvs if answer.responses else ()
    return held_in(keys, answer.header)
