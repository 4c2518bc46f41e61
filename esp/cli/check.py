"""The command line of `esp check`."""

from __future__ import annotations

from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import CertOption, ConfigOption, KeyOption, flag, only_one, option
from esp.commands.output import USAGE, CommandError, Strays, WideFormat

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp check", "All shards of ./esp.yaml."),
            ("esp check --keys --proxy http://10.0.0.5:2379", "Also look for stray keys, and ask a running proxy."),
            ("esp check --fix-strays move", "Show which of them would move to their owners; --apply moves them."),
        ],
        {0: "Healthy.", 1: "There are problems, or stray keys; they are printed."},
    )
)
def check(
    config: ConfigOption = None,
    output: Annotated[
        WideFormat,
        typer.Option(
            "--output", "-o", metavar="table|wide|json", help="Output format; wide: all that each endpoint tells."
        ),
    ] = WideFormat.TABLE,
    keys: Annotated[
        bool, flag("--keys", about="Also count the keys of each shard, and find keys that it does not own.")
    ] = False,
    proxy: Annotated[
        list[str] | None, option("--proxy", metavar="URL", about="Also ask this running proxy; may be repeated.")
    ] = None,
    cacert: Annotated[str, option("--cacert", metavar="FILE", about="CA of --proxy.")] = "",
    cert: CertOption = "",
    tls_key: KeyOption = "",
    watch: Annotated[
        float | None, option("--watch", metavar="SECONDS", min=0.1, about="Look again and again, so often.")
    ] = None,
    fix_strays: Annotated[
        Strays | None,
        option(
            "--fix-strays",
            metavar="move|delete",
            about="Move such keys to the shards that own them, or delete them; only shown without --apply.",
        ),
    ] = None,
    apply: Annotated[bool, flag("--apply", "--yes", about="With --fix-strays: do it.")] = False,
) -> None:
    """Ask every endpoint of every shard for problems.

    --fix-strays never touches a live key: a key is moved only if its owner has none, and deleted only as it was read.
    """
    if apply and fix_strays is None:
        raise CommandError("--apply is for --fix-strays; add --fix-strays move or delete, or leave it out", USAGE)
    only_one("--watch and --fix-strays", watch is not None, fix_strays is not None)
    from esp.commands import check as command

    command.run(config, command.Options(output, keys, proxy or [], cacert, cert, tls_key, watch, fix_strays, apply))
