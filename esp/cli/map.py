"""The command line of `esp map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp.cli.frame import command, group
from esp.cli.options import ConfigOption, OutputOption, argument, flag, path_of
from esp.commands.output import Format

NAME = "map"
commands = typer.Typer(
    cls=group(
        [
            ("esp map init", "Put the map of the config on its shards."),
            ("esp map show", "The map, and how each shard stands to it."),
            ("esp map apply new.yaml", "Add or leave out shards that own nothing."),
        ],
        "Refused, or a shard does not hold the map, or a step failed; each command's help says more.",
    ),
    rich_markup_mode=None,
)

YesOption = Annotated[bool, flag("--yes", about="Do it without asking first.")]
_DONE_BY = {1: "Refused, or not confirmed, and nothing was done; or a step failed, and esp map finish goes on."}


@commands.callback(invoke_without_command=True)
def map_(context: typer.Context) -> None:
    """Keep one map for all proxies on the shards.

    Proxies serve by it that have "map: shards" in their config.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@commands.command(
    cls=command(
        [
            ("esp map init", "Show what would be done, and ask."),
            ("esp map init --yes -c esp.yaml", "For a script; done again, it changes nothing."),
        ],
        _DONE_BY,
    )
)
def init(yes: YesOption = False, output: OutputOption = Format.TABLE, config: ConfigOption = None) -> None:
    """Put the first map on the shards: the ranges of the config.

    All shards must answer, and hold no keys that begin with a zero byte: these become esp's own. Where auth is on, each
    role gets the right to read one key of these, the guard. Then write "map: shards" into the config of each proxy, and
    start it anew.
    """
    from esp.commands import map_change as module

    module.init(config, output, module.confirming(yes))


@commands.command(
    cls=command(
        [
            ("esp map show", "As the shards of ./esp.yaml hold it."),
            ("esp map show -o json | jq .epoch", "For a script."),
        ],
        {0: "All shards hold this map.", 1: "There is no map, or a shard does not hold it; the output says more."},
    )
)
def show(output: OutputOption = Format.TABLE, config: ConfigOption = None) -> None:
    """Show the map that the shards hold, and how each stands to it."""
    from esp.commands import map as module

    module.show(config, output)


@commands.command(
    cls=command(
        [
            ("esp map history", "When, by whom, and what."),
            ("esp map history -o json | jq '.changes[-1]'", "The last change."),
        ],
        {1: "There is no map, or no shard tells."},
    )
)
def history(output: OutputOption = Format.TABLE, config: ConfigOption = None) -> None:
    """Show the last changes of the map that the shards hold."""
    from esp.commands import map as module

    module.history(config, output)


@commands.command(
    cls=command(
        [
            ("esp map apply new.yaml", "Show what would change, and ask."),
            ("esp map apply --yes new.yaml", "For a script; done again, it changes nothing."),
        ],
        _DONE_BY,
    )
)
def apply(
    file: Annotated[Path, argument("FILE", "A config with the shards as they shall be.", parser=path_of)],
    yes: YesOption = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Add shards to the map, or leave out shards that own nothing.

    Ranges stay where they are. With map: shards in FILE, its shards need no ranges.
    """
    from esp.commands import map_change as module

    module.apply(file, output, module.confirming(yes))


@commands.command(
    cls=command(
        [
            ("esp map finish", "Go on with what somebody has left half done."),
            ("esp map finish -o json", "Each step, for a script."),
        ],
        {0: "All shards hold this map.", 1: "A step failed, or a shard is silent; run it again."},
    )
)
def finish(output: OutputOption = Format.TABLE, config: ConfigOption = None) -> None:
    """Carry out a change that init or apply has left half done."""
    from esp.commands import map as module

    module.finish(config, output)
