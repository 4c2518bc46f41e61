"""`esp reload`: has the running proxy take its config anew. Exit code 1 if the reload is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from esp.commands.output import CommandError, Format, complain, note, write, write_json
from esp.core import config as configs
from esp.core.config import ConfigError
from esp.core.control import Client, NoneRunsError, Place, PlaceError, RefusedError, find, looked_at, others_of

ANSWER_SECONDS: Final = 600.0
"""Seconds to wait between two steps of a reload: a new shard may have to get very many leases."""


def run(config: Path | None, control: Path | None, output: Format, *, force: bool, only_check: bool) -> None:
    """Asks the running proxy to reload, and prints what has changed.

    Args:
        config: the config file; None for the usual places.
        control: the control socket; None for that of the config.
        output: format of the output.
        force: reload although keys would get out of sight, or a new shard cannot be reached.
        only_check: change nothing.

    Raises:
        ConfigError: there is no config.
        CommandError: no proxy runs with this config, or the reload is refused.
    """
    path = configs.find(config, os.environ)
    place = _place(path) if control is None else Place(control)
    note(f"config {path.absolute()}")
    note(f"asks the esp that listens at {place.path}")
    try:
        with Client(place.path) as client:
            told = _show_step if output is Format.TABLE and sys.stderr is not None and sys.stderr.isatty() else None
            result = client.ask("reload", seconds=ANSWER_SECONDS, told=told, force=force, check=only_check)
    except (NoneRunsError, RefusedError) as error:
        raise CommandError(str(error)) from None
    if output is Format.JSON:
        write_json({"config": str(path) if control is None else None, **result})
    else:
        _write(result)
    for other in others_of(place):
        complain(f"another esp with this config has the control socket {other}; reload it with --control {other}")
    if result.get("result") == "refused":
        raise CommandError("the reload is refused; nothing has changed")


def _place(path: Path) -> Place:
    """The control socket of the proxy that runs with this config.

    Raises:
        CommandError: none runs.
        ConfigError: the config is wrong, and no proxy with a derived socket runs that could say so.
    """
    fault: ConfigError | None = None
    try:
        control = configs.load(path).control
    except ConfigError as error:
        fault, control = error, "auto"
    if control is None:
        raise CommandError(f"{path} says control: off; send SIGHUP to esp instead")
    try:
        place = find(control, path, os.environ)
    except PlaceError as error:
        raise CommandError(str(error)) from None
    if place is not None:
        return place
    if fault is not None:
        raise fault
    looked = ", ".join(map(str, looked_at(control, path, os.environ)))
    raise CommandError(
        f"no esp of this user runs with the config {path}: nothing listens at {looked}; "
        "run esp reload as the user of esp, with the path of the config that esp was started with"
    )


def _show_step(progress: Mapping[str, Any]) -> None:
    sys.stderr.write(f"{progress.get('step', '')} ...\n")
    sys.stderr.flush()


def _write(result: Mapping[str, Any]) -> None:
    for line in result.get("lines", ()):
        write(str(line))
    epoch = result.get("epoch")
    match result.get("result"):
        case "done":
            write(f"reloaded: layout {epoch} is in force")
        case "possible":
            write("a reload would do this; nothing has changed yet")
        case "unchanged":
            write(f"the config has not changed; layout {epoch} stays in force")
        case _:
            for reason in result.get("reasons", ()):
                complain(str(reason))
