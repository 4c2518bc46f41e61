"""The command line of `esp lease-sync`."""

from __future__ import annotations

from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import ConfigOption, OutputOption, flag, number, only_one, option
from esp.commands.output import USAGE, CommandError, Format

commands = typer.Typer()


@commands.command(
    "lease-sync",
    cls=command(
        [
            ("esp lease-sync", "Only show which leases differ."),
            ("esp lease-sync --apply", "Grant what a new shard lacks, before its first key."),
            ("esp lease-sync --prune --only-on b", "Revoke the leases that only shard b has; asks first."),
        ],
        {0: "All shards have the same leases.", 1: "Leases differ, or a shard did not answer."},
    ),
)
def lease_sync(
    apply: Annotated[bool, flag("--apply", about="Grant missing leases, with the rest of their TTL.")] = False,
    prune: Annotated[
        bool, flag("--prune", about="Revoke the leases that only one shard has; needs --only-on.")
    ] = False,
    only_on: Annotated[
        str | None, option("--only-on", metavar="SHARD", about="The shard on which --prune revokes leases.")
    ] = None,
    yes: Annotated[bool, flag("--yes", about="Revoke without asking first.")] = False,
    skew: Annotated[
        int, number("--skew", metavar="SECONDS", min=0, about="Allowed difference between the TTLs of a lease.")
    ] = 5,
    concurrency: Annotated[
        int, number("--concurrency", min=1, max=1000, about="Leases that are read or changed at once.")
    ] = 64,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Compare the leases of all shards, and repair differences.

    Without --apply and --prune the command changes nothing. It exits 1 if leases differ.

    Run --apply for a new shard, before that shard gets its first key. A lease that has ended on a shard looks like a
    lease that the shard never had: --apply grants both, but the keys of an ended lease are gone.
    """
    only_one("--apply and --prune", apply, prune)
    if prune != (only_on is not None):
        raise CommandError("--prune and --only-on go together; give both: --prune --only-on SHARD", USAGE)
    from esp.commands import lease_sync as command

    options = command.Options(
        apply=apply, prune_only_on=only_on, yes=yes, skew=skew, concurrency=concurrency, output=output
    )
    command.run(config, options, lambda question: typer.confirm(question, err=True))
