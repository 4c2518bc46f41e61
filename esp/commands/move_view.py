"""What `esp move` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

from esp.commands.output import Format, json_key, write, write_json_line
from esp.commands.progress import Show, progress_bar
from esp.core.keys import KeyRange, format_key, format_range
from esp.core.move import Moved, Stage, Told
from esp.core.shared_map import Next, SharedMap
from esp.core.wording import counted, shard_called, size_of

LINE_SECONDS: Final = 1.0
"""Seconds between two lines about progress, for programs."""
_STEPS: Final = {
    Stage.CLEARING: "Clearing",
    Stage.RAISING: "Raising the counter",
    Stage.LISTING: "Listing",
    Stage.COPYING: "Copying",
    Stage.FOLLOWING: "Following",
    Stage.CUT: "Cutting",
    Stage.OPEN: "Open",
}


class Progress:
    """Shows how far a mover is, and what comes before and after it."""

    def __init__(self, show: Show, output: Format) -> None:
        self._show = show
        self._output = output
        self._told = 0.0
        self._stage = ""

    def __call__(self, told: Told) -> None:
        """What a mover tells."""
        more = f"{size_of(told.bytes)}, lag {told.lag:,}" if told.bytes else ""
        self._tell(_STEPS[told.stage], told.stage, told.done, told.total, more, bytes=told.bytes, lag=told.lag)

    def step(self, stage: str, done: int, total: int | None) -> None:
        """Another step."""
        self._tell(stage.capitalize(), stage, done, total, "", bytes=0, lag=0)

    def _tell(self, step: str, stage: str, done: int, total: int | None, more: str, **numbers: int) -> None:
        if self._output is Format.TABLE:
            self._show(step, done, total, more)
            return
        now = monotonic()
        if stage != self._stage or now - self._told >= LINE_SECONDS:
            self._stage, self._told = stage, now
            write_json_line({"stage": stage, "done": done, "total": total, **numbers})


@contextmanager
def progress(output: Format) -> Iterator[Progress]:
    """Progress while the block runs: a bar, or lines for programs."""
    with progress_bar("keys") as show:
        yield Progress(show, output)


def keys_text(keys: Sequence[bytes]) -> str:
    """Some keys for people."""
    return ", ".join(f'"{format_key(key)}"' for key in keys)


def write_plan(change: Next, keys: int, output: Format) -> None:
    """Writes what a move would do, before anybody is asked."""
    move = change.move
    assert move is not None, "it moves keys"
    if output is Format.JSON:
        write_json_line(
            {
                "move": move.id,
                **_range(move.range),
                "source": move.source,
                "target": move.target,
                "keys": keys,
                "max_pause": move.pause / 1000,
                "epoch": change.after.epoch,
            }
        )
        return
    write(
        f"{counted(keys, 'key')} in {format_range(move.range)} would move from {shard_called(move.source)} to "
        f"{shard_called(move.target)}."
    )
    write(f"Calls for them wait at the end, for {move.pause / 1000:g} s at most; else the move is given up.")


def write_abort(change: Next, output: Format) -> None:
    """Writes what an abort would do, before anybody is asked."""
    move = change.move
    if output is Format.TABLE and move is not None:
        write(
            f"{format_range(move.range)} would stay with {shard_called(move.source)}, and not move to "
            f"{shard_called(move.target)}."
        )


def write_moved(change: Next, done: Moved, output: Format) -> None:
    """Writes that a move is carried out."""
    move = change.move
    assert move is not None, "it moved keys"
    if output is Format.JSON:
        write_json_line(
            {
                "moved": True,
                "epoch": done.map.epoch,
                "map": done.map.map.fingerprint,
                "cut": done.cut,
                "opened": done.opened,
                "writes": done.keys,
                "bytes": done.bytes,
                "pause": None if done.pause is None else round(done.pause, 6),
            }
        )
        return
    waited = "" if done.pause is None else f" Calls for it waited for {done.pause:.3f} s."
    write(f"{format_range(move.range)} belongs to {shard_called(move.target)} now (epoch {done.map.epoch}).{waited}")


def write_result(map_: SharedMap, is_moved: bool, output: Format) -> None:
    """Writes what became of a move that others began."""
    if output is Format.JSON:
        write_json_line({"moved": is_moved, "epoch": map_.epoch, "map": map_.map.fingerprint})
    else:
        what = "The keys have moved" if is_moved else "The keys stay where they were"
        write(f"{what} (epoch {map_.epoch}).")


def write_purged(name: str, keys: int, output: Format) -> None:
    """Writes what was deleted."""
    if output is Format.JSON:
        write_json_line({"purged": keys, "shard": name})
    else:
        write(f"{shard_called(name)}: {counted(keys, 'key')} deleted.")


def _range(range_: KeyRange) -> dict[str, Any]:
    return {"start": json_key(range_.start), "end": None if range_.end is None else json_key(range_.end)}
