"""The command line of `esp route`."""

from __future__ import annotations

from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import ConfigOption, FromKeyOption, OutputOption, PrefixOption, flag, only_one, option
from esp.commands.output import USAGE, CommandError, Format

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp route /registry/pods/a", "The shard of a key."),
            ("esp route a k --explain", "The keys from a up to k: why which shard."),
            ("esp route --txn - < txn.txt", "Whether a transaction can run, and where."),
        ],
        {1: "The transaction of --txn cannot run; its error is printed."},
    )
)
def route(
    keys: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY] [END]", help="A key, or both ends of a range; - for keys on stdin."),
    ] = None,
    prefix: PrefixOption = False,
    from_key: FromKeyOption = False,
    range_end: Annotated[str | None, option("--range-end", metavar="END", about="The same as END alone.")] = None,
    each: Annotated[bool, flag("--each", about="Each argument is a key, and none the end of a range.")] = False,
    explain: Annotated[
        bool, flag("--explain", about="Also show the lines of the config, and what is sent to whom.")
    ] = False,
    txn: Annotated[
        str | None,
        option("--txn", metavar="FILE", about="A transaction as etcdctl txn reads it, in place of keys; - for stdin."),
    ] = None,
    output: OutputOption = Format.TABLE,
    hex_: Annotated[bool, flag("--hex", about="Keys are hexadecimal.")] = False,
    base64: Annotated[bool, flag("--base64", about="Keys are base64.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show which shards own keys, or serve a transaction.

    No shard is asked. KEY and END are those of etcdctl get: END is the first key behind the range. The output also
    shows esp's request to each shard, and whether a Txn over the range is possible. For all keys give "" with --prefix
    or --from-key.
    """
    only_one("--prefix, --from-key and --range-end", prefix, from_key, range_end is not None)
    only_one("--hex and --base64", hex_, base64)
    if txn is not None:
        if keys or prefix or from_key or range_end is not None or each or explain or hex_ or base64:
            raise CommandError("--txn takes the place of keys and of their options; leave those out", USAGE)
        from esp.commands import route_txn

        route_txn.run(txn, output, config)
        return
    if not keys:
        raise CommandError("no key is given; esp route KEY, or - for keys on stdin, or --txn FILE", USAGE)
    from esp.commands import route as command

    command.run(
        keys,
        prefix=prefix,
        from_key=from_key,
        range_end=range_end,
        each=each,
        explain=explain,
        encoding=command.KeyEncoding.given(hex_=hex_, base64=base64),
        output=output,
        config=config,
    )
