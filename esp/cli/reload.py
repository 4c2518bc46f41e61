"""The command line of `esp reload`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import ConfigOption, OutputOption, flag, path_option
from esp.commands.output import Format

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp reload --check", "Only show what would change."),
            ("esp reload -c /etc/esp/esp.yaml", "Have the esp that runs with this config read it again."),
        ],
        {0: "Done, or nothing to do.", 1: "Refused, and nothing has changed; or no esp runs with this config."},
    )
)
def reload(
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
    check: Annotated[bool, flag("--check", about="Only show what a reload would change.")] = False,
    force: Annotated[
        bool, flag("--force", about="Reload although clients lose sight of keys, or a new shard is unreachable.")
    ] = False,
    control: Annotated[
        Path | None, path_option("--control", about="The control socket of the proxy, in place of the config's.")
    ] = None,
) -> None:
    """Have the running proxy read its config again.

    What changes is shown. The new config is put in force whole or not at all. A reload is refused if the file is wrong,
    if a field cannot change while esp runs, or if a range moves away from a shard that still has keys in it.
    """
    from esp.commands import reload as command

    command.run(config, control, output, force=force, only_check=check)
