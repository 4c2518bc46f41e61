"""The command line of `esp exec`."""

from __future__ import annotations

from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import ConfigOption, argument

commands = typer.Typer()


@commands.command(
    "exec",
    cls=command(
        [
            ("esp exec a -- etcdctl endpoint status -w table", "The members of shard a."),
            ("esp exec b -- etcdctl defrag --cluster", "With the TLS files and the user of the config."),
            ("esp exec a -- etcdctl snapshot save a.db", "What concerns one etcd cluster."),
        ],
        {
            126: "The command cannot be run.",
            127: "The command was not found. All others: the exit code of the command.",
        },
    ),
)
def exec_(
    shard: Annotated[str, argument("SHARD")],
    line: Annotated[list[str], argument("-- COMMAND...")],
    config: ConfigOption = None,
) -> None:
    """Run etcdctl, or any command, for one shard.

    The endpoints, TLS files and user of the shard are in the environment of the command.

    The variables are those of etcdctl, such as ETCDCTL_ENDPOINTS. Keys in the shard have the prefix of the namespace.
    """
    from esp.commands import exec_ as module

    module.run(config, shard, line)
