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
            ("esp map fence b", "Shard b was restored from a backup."),
            ("esp map fence --yes a b c", "All were restored; for a script."),
        ],
        _DONE_BY,
    )
)
def fence(
    shards: Annotated[list[str], argument("SHARD...", "Shards that were restored from a backup, or lost their data.")],
    yes: YesOption = False,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Give new guards to shards that were restored.

    Until then such a shard refuses all calls, or, if its guard has not changed since the backup, takes those of
    proxies that know nothing of the restore. Run it before any proxy reaches the shard. If the shard that decides on
    changes was restored, all shards have to answer, and all get new guards.
    """
    from esp.commands import map_fence as module

    module.fence(shards, config, output, module.confirming(yes))


@commands.command(
    cls=command(
        [
            ("esp map remove", "Show what would be done, and ask."),
            ("esp map remove --yes -c esp.yaml", "For a script."),
        ],
        _DONE_BY,
    )
)
def remove(
    yes: YesOption = False,
    while_served: Annotated[bool, flag("--while-served", about="Do it although proxies are registered.")] = False,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Take the map from the shards, back to a map in each proxy's file.

    All shards must answer. Proxies that serve by the map refuse all calls from then on: stop them first.
    """
    from esp.commands import map_remove as module

    module.remove(config, output, module.confirming(yes), while_served=while_served)


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
