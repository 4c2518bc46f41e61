"""`esp move`: a range of keys moves to another shard, after a look at all that could go wrong."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esp.commands import interruptible
from esp.commands import move_view as view
from esp.commands.map import loaded, newest_of
from esp.commands.map_deciding import Confirm, now, who
from esp.commands.output import INTERRUPTED, USAGE, CommandError, Format
from esp.commands.route import KeyEncoding, key_of
from esp.core.config import Config
from esp.core.connected_shards import UnreachableError, answering
from esp.core.giving_up import MoveError, give_up
from esp.core.keys import KeyRange, format_range, prefix_end
from esp.core.move import (
    CompactedError,
    GivenUpError,
    Moved,
    Mover,
    announced,
    compared,
    count,
    failures,
    locks_of,
    planned,
    purge,
    taken_over,
)
from esp.core.shard import Shard
from esp.core.shared_map import ChangeError, Held, Next, Phase, SharedMap, Told, carry_out, moves_of, read
from esp.core.wire.status import Status
from esp.core.wording import counted, shard_called

CALL_SECONDS: Final = 10.0
NOT_FINISHED: Final = (
    "esp move is new, and was not tried under all faults yet; docs/move.md says what is safe. To use it all the same, "
    "add --experimental"
)


@dataclass(frozen=True)
class Options:
    """The options of the command line; `keys` is None for `resume` and `abort`, `pause` is in milliseconds."""

    keys: KeyRange | None
    to: str | None
    resume: bool
    abort: bool
    pause: int
    margin: int | None
    purge_rate: int
    keep: bool
    with_locks: bool
    clear: bool
    experimental: bool
    output: Format


def keys_of(start: str | None, end: str | None, prefix: str | None, encoding: KeyEncoding) -> KeyRange | None:
    """The keys that the command line names; None if it names none.

    Raises:
        CommandError: it names them in two ways, or half.
    """
    if prefix is not None:
        if start is not None:
            raise CommandError("give --prefix, or START and END", USAGE)
        first = key_of(prefix, "--prefix", encoding)
        return KeyRange(first, prefix_end(first))
    if start is None:
        return None
    if end is None:
        raise CommandError('START needs an END, "" for all keys behind it; or use --prefix', USAGE)
    return KeyRange(key_of(start, "START", encoding), key_of(end, "END", encoding) or None)


def run(config: Path | None, options: Options, confirm: Confirm) -> None:
    """Move keys, go on with a move, or give it up.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: it cannot be done, the operator does not want it, or it did not come to its end.
    """
    used = loaded(config)
    if options.keys is None and not options.resume and not options.abort:
        raise CommandError("name the keys: --prefix P, or START and END", USAGE)
    if options.keys is not None and options.to is None:
        raise CommandError("--to names the shard that shall own the keys", USAGE)
    if options.keys is not None and not options.experimental:
        raise CommandError(NOT_FINISHED, USAGE)
    try:
        interruptible.run(_run(used, options, confirm))
    except KeyboardInterrupt:
        text = "the move has stopped; esp move --resume goes on with it, and esp move --abort gives it up"
        raise CommandError(text, INTERRUPTED) from None
    except UnreachableError as error:
        raise CommandError(str(error)) from None
    except GivenUpError as error:
        raise CommandError(f"the move was given up, and {error}; try again, or with a longer --max-pause") from None
    except (MoveError, ChangeError) as error:
        raise CommandError(f"the move does not go on: {error}") from None


async def _run(used: Config, options: Options, confirm: Confirm) -> None:
    async with answering(used) as (shards, troubles):
        held: dict[str, Held | Status] = {**troubles, **await read(shards.values(), CALL_SECONDS)}
        told = newest_of(held)
        moving = _Moving(shards, {name: status.message for name, status in troubles.items()}, options, told, held)
        if options.abort:
            await moving.abort(confirm)
        elif options.resume:
            await moving.resume()
        else:
            await moving.begin(confirm)


class _Moving:
    """One call of the command."""

    def __init__(
        self,
        shards: Mapping[str, Shard],
        silent: Mapping[str, str],
        options: Options,
        told: Told,
        held: Mapping[str, Held | Status],
    ) -> None:
        self._shards = shards
        self._silent = silent
        self._options = options
        self._told = told
        self._held = held

    async def begin(self, confirm: Confirm) -> None:
        """Moves keys."""
        options, told = self._options, self._told
        assert options.keys is not None, "they are named"
        assert options.to is not None, "it is named"
        if told.change is not None:
            raise CommandError(f"a change of the map is under way: {told.change.cure}")
        change = planned(told.map, self._held, options.keys, options.to, pause=options.pause, at=now(), by=who())
        assert change.move is not None, "it moves keys"
        source, target = self._reached(change.move.source), self._reached(change.move.target)
        self._reached(told.map.anchor)
        if told.unfenced:
            raise CommandError(f"{', '.join(told.unfenced)}: another guard than the map says; esp map show tells more")
        keys = await self._checked(change, source, target)
        view.write_plan(change, keys, options.output)
        if not confirm("Move them so?"):
            raise CommandError("nothing was done")
        await announced(change, self._shards)
        await self._move(change)

    async def _checked(self, change: Next, source: Shard, target: Shard) -> int:
        """Refuses what would be in the way; the number of keys."""
        assert change.move is not None, "it moves keys"
        options, range_ = self._options, change.move.range
        with failures(target):
            there = (await count(target, range_)).count
        if there and not options.clear:
            raise CommandError(
                f"{shard_called(target.name)} has {counted(there, 'key')} of {format_range(range_)}, and does not "
                "own them: they may be left of a former move, or of an abort; --clear deletes them"
            )
        with view.progress(options.output) as show:
            found = await locks_of(source, range_, lambda keys: show.step("looking", keys, None))
        if found.cut:
            raise CommandError(
                f"the boundary would divide a lock or election in use: {view.keys_text(found.cut)}; move all of it"
            )
        if found.inside and not options.with_locks:
            raise CommandError(
                f"locks or elections are in use: {view.keys_text(found.inside)}; whoever waits there may be let "
                "in at the wrong time. Move them when they are free, or add --with-locks"
            )
        return found.keys

    async def resume(self) -> None:
        """Goes on with a move, or with what is left of the last one."""
        change = self._told.change
        if change is None:
            await self._purge_last()
            return
        if change.move is None:
            raise CommandError(f"no keys move: another change of the map is under way; {change.cure}")
        if change.is_open:
            await self._move(await taken_over(change, self._shards))
            return
        async for _ in carry_out(change, self._shards, self._silent):
            pass
        view.write_result(change.result, change.result is change.after, self._options.output)
        await self._again()
        await self._purge_last()

    async def abort(self, confirm: Confirm) -> None:
        """Gives a move up."""
        change = self._told.change
        if change is None or change.move is None:
            raise CommandError("no keys move")
        if change.move.phase is Phase.OPEN:
            raise CommandError(
                "the keys have moved already, and only the other shards are to be told; esp move --resume"
            )
        view.write_abort(change, self._options.output)
        if not confirm("Leave them where they were?"):
            raise CommandError("nothing was done")
        result = await give_up(change, self._shards, self._silent, by=who())
        view.write_result(result, result == change.after, self._options.output)
        if result != change.after and not self._options.keep:
            await self._purge(result, change.move.target, change.move.range)

    async def _move(self, change: Next) -> None:
        options = self._options
        with view.progress(options.output) as show:
            mover = Mover(change, self._shards, self._silent, show, margin=options.margin, by=who())
            try:
                done = await mover.run()
            except GivenUpError:
                await self._again()
                await self._purge_copies(change)
                raise
        view.write_moved(change, done, options.output)
        assert change.move is not None, "it moves keys"
        if not options.keep:
            await self._compare(change, done)
            await self._purge(done.map, change.move.source, change.move.range)

    async def _purge_copies(self, change: Next) -> None:
        """Deletes what the target has got of a move that was given up."""
        assert change.move is not None, "it moves keys"
        if self._options.keep or self._told.change is not None:
            return
        with suppress(MoveError, CommandError):  # esp check tells what is left; that it was given up matters more
            await self._purge(self._told.map, change.move.target, change.move.range)

    async def _compare(self, change: Next, done: Moved) -> None:
        """Compares what was cut with what was opened, before it is deleted."""
        assert change.move is not None, "it moves keys"
        move = change.move
        try:
            with view.progress(self._options.output) as show:
                here, there = await compared(
                    self._reached(move.source),
                    done.cut,
                    self._reached(move.target),
                    done.opened,
                    move.range,
                    lambda keys: show.step("comparing", keys, None),
                )
        except CompactedError as error:
            raise CommandError(
                f"the keys have moved, but cannot be compared any more, so those on {shard_called(move.source)} are "
                f"left: {error}; esp check --fix-strays deletes them"
            ) from None
        if here != there:
            raise CommandError(
                f"the keys have moved, but {shard_called(move.source)} had {here.keys:,} of them and "
                f"{shard_called(move.target)} {there.keys:,}, or others: nothing is deleted; compare them"
            )

    async def _purge(self, map_: SharedMap, name: str, range_: KeyRange) -> None:
        if any(part.shard == name for part in map_.map.split(range_)):
            raise CommandError(f"the map has changed again, and {shard_called(name)} owns keys of that range")
        shard = self._reached(name)
        with view.progress(self._options.output) as show:
            with failures(shard):
                total = (await count(shard, range_)).count
            gone = await purge(
                shard,
                map_.guards[name],
                range_,
                copies=None,
                rate=self._options.purge_rate,
                progress=lambda keys: show.step("purging", keys, total),
            )
        view.write_purged(name, gone, self._options.output)

    async def _purge_last(self) -> None:
        """Deletes what the source of the last move still has of it."""
        map_ = self._told.map
        last = next((one for one in reversed(moves_of(map_, self._held)) if one.source in self._shards), None)
        if last is None or any(part.shard == last.source for part in map_.map.split(last.range)):
            raise CommandError("no keys move, and none are left of the last move")
        shard = self._reached(last.source)
        with failures(shard):
            left = (await count(shard, last.range)).count
        if not left or self._options.keep:
            raise CommandError("no keys move, and none are left of the last move")
        if last.cut is None or last.opened is None:
            raise CommandError("a shard of the last move does not tell; try again")
        with view.progress(self._options.output) as show:
            here, there = await compared(
                shard,
                last.cut,
                self._reached(last.target),
                last.opened,
                last.range,
                lambda keys: show.step("comparing", keys, None),
            )
        if here != there:
            raise CommandError(
                f"{shard_called(last.source)} had other keys than {shard_called(last.target)}; compare them"
            )
        await self._purge(map_, last.source, last.range)

    async def _again(self) -> None:
        self._held = {**self._held, **await read(self._shards.values(), CALL_SECONDS)}
        self._told = newest_of(self._held)

    def _reached(self, name: str) -> Shard:
        shard = self._shards.get(name)
        if shard is None:
            raise CommandError(
                f"{shard_called(name)} is not reached: {self._silent.get(name, 'the config does not name it')}"
            )
        return shard
