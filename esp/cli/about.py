"""The command lines of `esp version`, `esp help` and `esp completion`."""

from __future__ import annotations

from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import OutputOption, argument
from esp.commands.output import USAGE, CommandError, Format

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp completion bash > /etc/bash_completion.d/esp", "For all users of bash."),
            ("esp completion zsh > ~/.zfunc/_esp", "For zsh, with ~/.zfunc in fpath."),
            ("esp completion fish | source", "For this fish."),
        ],
    )
)
def completion(shell: Annotated[str, argument("bash|zsh|fish")]) -> None:
    """Print a completion script for a shell.

    Packages install the scripts where shells look for them. Names of shards and boundaries of ranges are completed from
    the config.
    """
    if shell not in ("bash", "zsh", "fish"):
        raise CommandError(f'there is no completion for "{shell}"; there is for bash, zsh and fish', USAGE)
    from esp.cli.whole import app
    from esp.commands.completion import script
    from esp.commands.output import write_data

    write_data(script(shell, app).removesuffix("\n"))


@commands.command(
    "help", cls=command([("esp help", "All commands."), ("esp help route", "One command, as esp route --help.")])
)
def help_(context: typer.Context, names: Annotated[list[str] | None, argument("[COMMAND]...")] = None) -> None:
    """Show the help of esp, or of one command."""
    here = context.parent
    assert here is not None
    for name in names or ():
        commands = getattr(here.command, "commands", {})
        if name not in commands:
            raise CommandError(f'there is no command "{" ".join(names or ())}"; esp help lists them', USAGE)
        here = type(context)(commands[name], info_name=name, parent=here)
    typer.echo(here.get_help())


@commands.command(
    cls=command(
        [("esp version", "The version."), ("esp version -o json", "With the versions of what esp runs on.")],
    )
)
def version(output: OutputOption = Format.TABLE) -> None:
    """Print the version of esp."""
    from esp.commands import version as command

    command.run(output)
