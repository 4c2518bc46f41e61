"""The command lines of `esp export` and `esp import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esp.cli.frame import command
from esp.cli.options import (
    Access,
    ConfigOption,
    EndpointOption,
    FromKeyOption,
    OutputOption,
    PrefixOption,
    argument,
    flag,
    number,
    only_one,
    option,
    path_option,
    takes_access,
)
from esp.commands.output import USAGE, CommandError, Format

commands = typer.Typer()


@commands.command(
    cls=command(
        [
            ("esp export --to all.jsonl", "All keys of all shards, at one moment."),
            ("esp export --prefix /registry/ | gzip > k.gz", "The keys with a prefix, on stdout."),
            ("esp export --resume all.jsonl", "Complete an export that was cut off."),
        ],
        {
            1: "A shard did not answer, the file is not whole, or keys have changed (--verify).",
            130: "Ctrl-C; --resume completes the file.",
        },
    )
)
@takes_access
def export(
    key: Annotated[str, argument("[KEY]")] = "",
    prefix: PrefixOption = False,
    from_key: FromKeyOption = False,
    range_end: Annotated[
        str | None,
        option("--range-end", metavar="END", about="The keys from KEY up to END, without END; '' for no end."),
    ] = None,
    hex_: Annotated[bool, flag("--hex", about="KEY and END are hexadecimal.")] = False,
    base64: Annotated[bool, flag("--base64", about="KEY and END are base64.")] = False,
    to: Annotated[Path | None, path_option("--to", about="Write this file, which must not exist.")] = None,
    resume: Annotated[Path | None, path_option("--resume", about="Complete an export that was cut off.")] = None,
    verify: Annotated[Path | None, path_option("--verify", about="Tell what has changed since an export.")] = None,
    each: Annotated[bool, flag("--each", about="Read each shard at its own moment, some milliseconds apart.")] = False,
    endpoint: EndpointOption = None,
    *,
    access: Access,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Write all keys at one moment over all shards as JSON lines.

    With KEY, those of a range. The shards are asked directly, as the proxy asks them. Leases and revisions are written
    as well.
    """
    from esp.commands import export as command
    from esp.commands import route
    from esp.core.export import Etcd
    from esp.core.keys import KeyRange

    only_one("--prefix, --from-key and --range-end", prefix, from_key, range_end is not None)
    only_one("--hex and --base64", hex_, base64)
    only_one("--resume and --verify", resume is not None, verify is not None)
    named = "--resume" if verify is None else "--verify"
    others = key or prefix or from_key or range_end is not None or to is not None or each
    if (resume is not None or verify is not None) and others:
        raise CommandError(f"{named} takes everything from its file; leave out KEY, --to and the others", USAGE)
    keys = KeyRange(b"", None)
    if key or range_end is not None:
        encoding = route.KeyEncoding.given(hex_=hex_, base64=base64)
        keys = route.range_of(key, prefix=prefix, from_key=from_key, range_end=range_end, encoding=encoding)
    options = command.Options(keys=keys, to=to, resume=resume, each=each, output=output, verify=verify)
    command.run(config, Etcd(endpoint or [], *access), options)


@commands.command(
    "import",
    cls=command(
        [
            ("esp import all.jsonl", "Write the keys of an export; none may be there yet."),
            ("esp import all.jsonl --resume", "Go on with an import that was cut off."),
            ("esp import all.jsonl --endpoint http://127.0.0.1:2379", "Into an etcd in place of the shards."),
        ],
        {
            1: "Keys are there already, the file is not whole, or a shard did not answer.",
            130: "Ctrl-C; --resume goes on.",
        },
    ),
)
@takes_access
def import_(
    file: Annotated[str, argument("FILE", "An export; - for stdin.")],
    overwrite: Annotated[bool, flag("--overwrite", about="Overwrite keys that are there.")] = False,
    skip_existing: Annotated[bool, flag("--skip-existing", about="Leave keys that are there.")] = False,
    resume: Annotated[bool, flag("--resume", about="Go on with an import of this file that was cut off.")] = False,
    at_once: Annotated[
        int, number("--at-once", min=1, max=64, about="Transactions at a time in each shard; 1 keeps the order.")
    ] = 1,
    no_leases: Annotated[bool, flag("--no-leases", about="Write keys without leases, so that they stay.")] = False,
    same_leases: Annotated[
        bool, flag("--same-leases", about="The leases are there, by the same ids: grant none.")
    ] = False,
    endpoint: EndpointOption = None,
    *,
    access: Access,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Write the keys and leases of an export into the shards.

    They go by the map of the config, or into an etcd. A key that is there already is refused, unless an option says
    otherwise. Leases keep their ids where these are free.
    """
    only_one("--overwrite, --skip-existing and --resume", overwrite, skip_existing, resume)
    only_one("--no-leases and --same-leases", no_leases, same_leases)
    from esp.commands import import_ as command
    from esp.core.export import Etcd, Existing

    existing = Existing.REFUSE
    if overwrite or skip_existing or resume:
        existing = Existing.OVERWRITE if overwrite else Existing.SKIP if skip_existing else Existing.RESUME
    etcd = Etcd(endpoint or [], *access)
    command.run(config, etcd, command.Options(file, existing, output, at_once, not no_leases, same_leases))
