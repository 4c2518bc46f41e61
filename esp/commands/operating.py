"""The ways in which an operator commands a proxy while it runs: its control socket."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from esp import __version__
from esp.commands.output import CommandError
from esp.core.background import Background
from esp.core.config import Config
from esp.core.control import Call, Command, Control, Place, PlaceError, place_of

log = logging.getLogger("esp")


@asynccontextmanager
async def commanded(
    config: Config, background: Background, commands: Mapping[str, Command], after: asyncio.Event | None = None
) -> AsyncIterator[Control]:
    """Has the control socket of a config open, for as long as the block runs.

    If another process has the socket until `after` is set, then the socket is opened then, and taken from it.

    The command `status` is always there. Without a place for the socket esp runs all the same, unless the config names
    the path.

    Raises:
        CommandError: the socket that the config names cannot be made.
    """
    control = Control(background, {"status": _status, **commands})
    try:
        if config.control is not None and after is not None:
            background.start(_open_after(after, control, place_of(config.control, config.path, os.environ)))
        elif config.control is not None:
            await control.open(place_of(config.control, config.path, os.environ))
    except PlaceError as error:
        if config.control != "auto":
            raise CommandError(f"the control socket cannot be made: {error}") from None
        log.warning("without a control socket, so `esp reload` will not find this process: %s", error)
    try:
        yield control
    finally:
        await control.close()


async def _open_after(after: asyncio.Event, control: Control, place: Place) -> None:
    await after.wait()
    try:
        await control.open(place, take=True)
    except PlaceError as error:
        log.error("without a control socket: %s", error)


async def _status(_: Call) -> Mapping[str, Any]:
    """Who this is."""
    return {"process": os.getpid(), "version": __version__}
