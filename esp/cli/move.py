"""The command line of `esp move`."""

from __future__ import annotations

from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import ConfigOption, OutputOption, argument, flag, number, only_one, option
from esp.commands.output import Format

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp move --prefix a/ --to b --experimental", "Show what would be done, and ask."),
            ("esp move --resume", "Go on with a move that has stopped."),
            ("esp move --abort", "Leave the keys where they were."),
        ],
        {
            1: "Refused, or given up, and the keys stay where they were; or stopped, and --resume goes on.",
            130: "Ctrl-C; --resume goes on, and --abort gives up.",
        },
    )
)
def move(
    start: Annotated[str | None, argument("[START]")] = None,
    end: Annotated[str | None, argument("[END]", 'The keys from START up to END; "" for all behind it.')] = None,
    prefix: Annotated[str | None, option("--prefix", metavar="P", about="The keys that begin with P.")] = None,
    to: Annotated[str | None, option("--to", metavar="SHARD", about="The shard that shall own them.")] = None,
    resume: Annotated[bool, flag("--resume", about="Go on with the move that has stopped.")] = False,
    abort: Annotated[bool, flag("--abort", about="Give the move up.")] = False,
    hex_: Annotated[bool, flag("--hex", about="Keys are hexadecimal.")] = False,
    base64: Annotated[bool, flag("--base64", about="Keys are base64.")] = False,
    max_pause: Annotated[
        float,
        number("--max-pause", metavar="SECONDS", about="Give up if clients would wait for longer.", min=0.05, max=60),
    ] = 1.0,
    margin: Annotated[
        int | None, option("--margin", metavar="N", about="Revisions by which SHARD's counter is raised.", min=0)
    ] = None,
    purge_rate: Annotated[
        int, number("--purge-rate", about="Keys that are deleted in a second where they were.", min=1)
    ] = 2000,
    keep: Annotated[bool, flag("--keep", about="Delete nothing; a later --resume does.")] = False,
    with_locks: Annotated[bool, flag("--with-locks", about="Also if locks or elections are in use there.")] = False,
    clear: Annotated[bool, flag("--clear", about="Delete what SHARD has of these keys, and does not own.")] = False,
    experimental: Annotated[bool, flag("--experimental", about="To begin a move: it is new; docs/move.md.")] = False,
    yes: Annotated[bool, flag("--yes", about="Do it without asking first.")] = False,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Move keys to another shard while clients use them.

    The shards must hold the map. Keys are copied, then followed, then the shard that has them is cut off, and the other
    one opened: for that moment calls for these keys wait. Leases, and the order of revisions, stay.
    """
    from esp.commands import map_deciding
    from esp.commands import move as module
    from esp.commands.route import KeyEncoding

    only_one("--resume, --abort and keys", resume, abort, start is not None or prefix is not None)
    only_one("--hex and --base64", hex_, base64)
    options = module.Options(
        keys=module.keys_of(start, end, prefix, KeyEncoding.given(hex_=hex_, base64=base64)),
        to=to,
        resume=resume,
        abort=abort,
        pause=round(max_pause * 1000),
        margin=margin,
        purge_rate=purge_rate,
        keep=keep,
        with_locks=with_locks,
        clear=clear,
        experimental=experimental,
        output=output,
    )
    module.run(config, options, map_deciding.confirming(yes))
