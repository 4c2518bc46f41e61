"""The command line: the commands and their options. A command's module is imported only when the command is called.

`esp --help` must be quick, so this module imports nothing but typer. The help, the completion scripts and the manual
pages are made from what is said here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from esp import __version__, build
from esp.commands.config_cli import config_app
from esp.commands.frame import Group, command
from esp.commands.options import CertOption, ConfigOption, KeyOption, OutputOption, path_of
from esp.commands.output import USAGE, CommandError, Format, Load, LogFormat, LogLevel, Strays, WideFormat, manner

app = typer.Typer(
    name="esp",
    cls=Group,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"esp {__version__} ({build()})")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def esp(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Make several etcd clusters look like one etcd v3 endpoint."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(
    cls=command(
        [
            ("esp serve --local 3", "Try it: three etcds, and esp in front of them."),
            ("esp serve -c /etc/esp/esp.yaml", "Run the proxy with this config."),
            ("esp serve --takeover -c /etc/esp/esp.yaml", "Upgrade the running proxy without a pause."),
        ],
        {0: "Stopped by a signal.", 1: "Cannot serve, such as an address in use.", 130: "Ctrl-C before it was ready."},
    )
)
def serve(
    config: ConfigOption = None,
    local: Annotated[
        int | None,
        typer.Option(
            "--local",
            metavar="N",
            min=1,
            max=26,
            help="Start N etcds on this machine as the shards.",
            show_default=False,
        ),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="With --local: throw-away certificates, and TLS everywhere.")
    ] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            metavar="DIR",
            parser=path_of,
            help="Folder for the data and config of --local (.esp).",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="URL",
            help="Listen address, in place of the config's addresses; may be repeated.",
            show_default=False,
        ),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(
            "--log-format",
            metavar="text|json",
            help="Form of the log, in place of the config's log.format.",
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            "--log-level",
            metavar="debug|info|warning|error",
            help="Lowest level that is logged, in place of the config's log.level.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="Processes that serve, in place of the config's number; auto: one a processor.",
            show_default=False,
        ),
    ] = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take over from the running esp with this config, without a pause.")
    ] = False,
) -> None:
    """Run the proxy.

    It serves until SIGTERM or SIGINT; SIGHUP has it read its config again.
    """
    if local is not None and config is not None:
        raise CommandError("--local makes its own config; leave out -c", USAGE)
    if local is None and data_dir is not None:
        raise CommandError("--data-dir is only for --local; add --local 3 or leave it out", USAGE)
    if local is None and tls:
        raise CommandError("--tls is only for --local; TLS of a config is in the config: tls and shard_tls", USAGE)
    if local is not None and workers is not None:
        raise CommandError("--local serves with one process; leave out --workers", USAGE)
    if local is not None and takeover:
        raise CommandError("--local starts its own etcds, so nothing can take over; leave out --takeover", USAGE)
    from esp.commands import serve as command
    from esp.commands.logged import logged

    if local is not None and data_dir is None:
        data_dir = Path(".esp")
    if log_level is None and (manner.verbose or manner.quiet):
        log_level = LogLevel.DEBUG if manner.verbose else LogLevel.WARNING
    with logged(log_format, log_level) as lines:
        command.run(config, local, data_dir, listen or [], lines, workers, tls=tls, takeover=takeover)


@app.command(
    cls=command(
        [
            ("esp route /registry/pods/a", "The shard of a key."),
            ("esp route a k --explain", "The keys from a up to k: why which shard."),
            ("esp route --each -o json a b c", "Keys of their own, for a script."),
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
    prefix: Annotated[bool, typer.Option("--prefix", help="All keys that begin with KEY.")] = False,
    from_key: Annotated[bool, typer.Option("--from-key", help="All keys from KEY on.")] = False,
    range_end: Annotated[
        str | None,
        typer.Option("--range-end", metavar="END", help="The same as END alone.", show_default=False),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Each argument is a key, and none the end of a range.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show the lines of the config, and what is sent to whom.")
    ] = False,
    txn: Annotated[
        str | None,
        typer.Option(
            "--txn",
            metavar="FILE",
            help="A transaction as etcdctl txn reads it, in place of keys; - for stdin.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = Format.TABLE,
    hex_: Annotated[bool, typer.Option("--hex", help="Keys are hexadecimal.")] = False,
    base64: Annotated[bool, typer.Option("--base64", help="Keys are base64.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show which shards own keys, or serve a transaction.

    No shard is asked. KEY and END are those of etcdctl get: END is the first key behind the range. The output also
    shows esp's request to each shard, and whether a Txn over the range is possible. For all keys give "" with --prefix
    or --from-key.
    """
    if prefix + from_key + (range_end is not None) > 1:
        raise CommandError("--prefix, --from-key and --range-end exclude each other; give one", USAGE)
    if hex_ and base64:
        raise CommandError("--hex and --base64 exclude each other; give one", USAGE)
    if txn is not None:
        if keys or prefix or from_key or range_end is not None or each or explain or hex_ or base64:
            raise CommandError("--txn takes the place of keys and of their options; leave those out", USAGE)
        from esp.commands import route_txn

        route_txn.run(txn, output, config)
        return
    if not keys:
        raise CommandError("no key is given; esp route KEY, or - for keys on stdin, or --txn FILE", USAGE)
    from esp.commands import route as command

    encoding = command.KeyEncoding.HEX if hex_ else command.KeyEncoding.BASE64 if base64 else command.KeyEncoding.TEXT
    command.run(
        keys,
        prefix=prefix,
        from_key=from_key,
        range_end=range_end,
        each=each,
        explain=explain,
        encoding=encoding,
        output=output,
        config=config,
    )


@app.command(
    cls=command(
        [
            ("esp check", "All shards of ./esp.yaml."),
            ("esp check --keys --proxy http://10.0.0.5:2379", "Also look for stray keys, and ask a running proxy."),
            ("esp check --fix-strays move", "Show which of them would move to their owners; --apply moves them."),
            ("esp check -o json | jq .problems", "The problems, for a script."),
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
        bool, typer.Option("--keys", help="Also count the keys of each shard, and find keys that it does not own.")
    ] = False,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            "--proxy", metavar="URL", help="Also ask this running proxy; may be repeated.", show_default=False
        ),
    ] = None,
    cacert: Annotated[str, typer.Option("--cacert", metavar="FILE", help="CA of --proxy.", show_default=False)] = "",
    cert: CertOption = "",
    tls_key: KeyOption = "",
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", min=0.1, help="Look again and again, so often.", show_default=False),
    ] = None,
    fix_strays: Annotated[
        Strays | None,
        typer.Option(
            "--fix-strays",
            metavar="move|delete",
            help="Move such keys to the shards that own them, or delete them; only shown without --apply.",
            show_default=False,
        ),
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", "--yes", help="With --fix-strays: do it.")] = False,
) -> None:
    """Ask every endpoint of every shard for problems.

    --fix-strays never touches a live key: a key is moved only if its owner has none, and deleted only as it was read.
    """
    if apply and fix_strays is None:
        raise CommandError("--apply is for --fix-strays; add --fix-strays move or delete, or leave it out", USAGE)
    if fix_strays is not None and watch is not None:
        raise CommandError("--watch and --fix-strays exclude each other; give one", USAGE)
    from esp.commands import check as command

    command.run(config, command.Options(output, keys, proxy or [], cacert, cert, tls_key, watch, fix_strays, apply))


@app.command(
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
    check: Annotated[bool, typer.Option("--check", help="Only show what a reload would change.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Reload although clients lose sight of keys, or a new shard is unreachable."),
    ] = False,
    control: Annotated[
        Path | None,
        typer.Option(
            "--control",
            metavar="FILE",
            parser=path_of,
            help="The control socket of the proxy, in place of the config's.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Have the running proxy read its config again.

    What changes is shown. The new config is put in force whole or not at all. A reload is refused if the file is wrong,
    if a field cannot change while esp runs, or if a range moves away from a shard that still has keys in it.
    """
    from esp.commands import reload as command

    command.run(config, control, output, force=force, only_check=check)


@app.command(
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
    apply: Annotated[bool, typer.Option("--apply", help="Grant missing leases, with the rest of their TTL.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Revoke the leases that only one shard has; needs --only-on.")
    ] = False,
    only_on: Annotated[
        str | None,
        typer.Option(
            "--only-on", metavar="SHARD", help="The shard on which --prune revokes leases.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Revoke without asking first.")] = False,
    skew: Annotated[
        int, typer.Option("--skew", metavar="SECONDS", min=0, help="Allowed difference between the TTLs of a lease.")
    ] = 5,
    concurrency: Annotated[
        int,
        typer.Option("--concurrency", metavar="N", min=1, max=1000, help="Leases that are read or changed at once."),
    ] = 64,
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Compare the leases of all shards, and repair differences.

    Without --apply and --prune the command changes nothing. It exits 1 if leases differ.

    Run --apply for a new shard, before that shard gets its first key. A lease that has ended on a shard looks like a
    lease that the shard never had: --apply grants both, but the keys of an ended lease are gone.
    """
    if apply and prune:
        raise CommandError("--apply and --prune exclude each other; give one", USAGE)
    if prune != (only_on is not None):
        raise CommandError("--prune and --only-on go together; give both: --prune --only-on SHARD", USAGE)
    from esp.commands import lease_sync as command

    options = command.Options(
        apply=apply, prune_only_on=only_on, yes=yes, skew=skew, concurrency=concurrency, output=output
    )
    command.run(config, options, lambda question: typer.confirm(question, err=True))


EndpointOption = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="An etcd in place of the config's shards; may be repeated.",
        show_default=False,
    ),
]
CaOption = Annotated[str, typer.Option("--cacert", metavar="FILE", help="CA of --endpoint.", show_default=False)]
UserOption = Annotated[str, typer.Option("--user", metavar="NAME", help="User of --endpoint.", show_default=False)]
PasswordOption = Annotated[
    str, typer.Option("--password-file", metavar="FILE", help="File with the user's password.", show_default=False)
]


@app.command(
    cls=command(
        [
            ("esp export --to all.jsonl", "All keys of all shards, at one moment."),
            ("esp export --prefix /registry/ | gzip > k.gz", "The keys with a prefix, on stdout."),
            ("esp export --resume all.jsonl", "Complete an export that was cut off."),
        ],
        {1: "A shard did not answer, or the file is not whole.", 130: "Ctrl-C; --resume completes the file."},
    )
)
def export(
    key: Annotated[str, typer.Argument(metavar="[KEY]", show_default=False)] = "",
    prefix: Annotated[bool, typer.Option("--prefix", help="All keys that begin with KEY.")] = False,
    from_key: Annotated[bool, typer.Option("--from-key", help="All keys from KEY on.")] = False,
    range_end: Annotated[
        str | None,
        typer.Option(
            "--range-end", metavar="END", help="The keys from KEY up to END, without END.", show_default=False
        ),
    ] = None,
    hex_: Annotated[bool, typer.Option("--hex", help="KEY and END are hexadecimal.")] = False,
    base64: Annotated[bool, typer.Option("--base64", help="KEY and END are base64.")] = False,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="FILE", parser=path_of, help="Write this file, which must not exist.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="FILE", parser=path_of, help="Complete an export that was cut off.", show_default=False
        ),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="Read each shard at its own moment, some milliseconds apart.")
    ] = False,
    endpoint: EndpointOption = None,
    cacert: CaOption = "",
    cert: CertOption = "",
    tls_key: KeyOption = "",
    user: UserOption = "",
    password_file: PasswordOption = "",
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

    if prefix + from_key + (range_end is not None) > 1:
        raise CommandError("--prefix, --from-key and --range-end exclude each other; give one", USAGE)
    if hex_ and base64:
        raise CommandError("--hex and --base64 exclude each other; give one", USAGE)
    if resume is not None and (key or prefix or from_key or range_end is not None or to is not None or each):
        raise CommandError("--resume takes everything from its file; leave out KEY, --to and the others", USAGE)
    encoding = route.KeyEncoding.HEX if hex_ else route.KeyEncoding.BASE64 if base64 else route.KeyEncoding.TEXT
    keys = KeyRange(b"", None)
    if key or range_end is not None:
        keys = route.range_of(key, prefix=prefix, from_key=from_key, range_end=range_end, encoding=encoding)
    options = command.Options(keys=keys, to=to, resume=resume, each=each, output=output)
    command.run(config, Etcd(endpoint or [], cacert, cert, tls_key, user, password_file), options)


@app.command(
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
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An export; - for stdin.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite keys that are there.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave keys that are there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an import of this file that was cut off.")
    ] = False,
    at_once: Annotated[
        int,
        typer.Option(
            "--at-once", metavar="N", min=1, max=64, help="Transactions at a time in each shard; 1 keeps the order."
        ),
    ] = 1,
    no_leases: Annotated[
        bool, typer.Option("--no-leases", help="Write keys without leases, so that they stay.")
    ] = False,
    endpoint: EndpointOption = None,
    cacert: CaOption = "",
    cert: CertOption = "",
    tls_key: KeyOption = "",
    user: UserOption = "",
    password_file: PasswordOption = "",
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Write the keys and leases of an export into the shards.

    They go by the map of the config, or into an etcd. A key that is there already is refused, unless an option says
    otherwise. Leases keep their ids where these are free.
    """
    if overwrite + skip_existing + resume > 1:
        raise CommandError("--overwrite, --skip-existing and --resume exclude each other; give one", USAGE)
    from esp.commands import import_ as command
    from esp.core.export import Etcd, Existing

    existing = Existing.REFUSE
    if overwrite or skip_existing or resume:
        existing = Existing.OVERWRITE if overwrite else Existing.SKIP if skip_existing else Existing.RESUME
    etcd = Etcd(endpoint or [], cacert, cert, tls_key, user, password_file)
    command.run(config, etcd, command.Options(file, existing, output, at_once, not no_leases))


@app.command(
    cls=command(
        [("esp version", "The version."), ("esp version -o json", "With the versions of what esp runs on.")],
    )
)
def version(output: OutputOption = Format.TABLE) -> None:
    """Print the version of esp."""
    from esp.commands import version as command

    command.run(output)


@app.command(
    "help", cls=command([("esp help", "All commands."), ("esp help route", "One command, as esp route --help.")])
)
def help_(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...", show_default=False)] = None,
) -> None:
    """Show the help of esp, or of one command."""
    here = context.parent
    assert here is not None
    for name in names or ():
        commands = getattr(here.command, "commands", {})
        if name not in commands:
            raise CommandError(f'there is no command "{" ".join(names or ())}"; esp help lists them', USAGE)
        here = type(context)(commands[name], info_name=name, parent=here)
    typer.echo(here.get_help())


@app.command(
    cls=command(
        [
            ("esp bench http://127.0.0.1:2379", "Puts and reads on a proxy."),
            ("esp bench -c esp.yaml --load watch --load txn", "On the proxy of a config, in all its shards."),
            ("esp bench -c esp.yaml --shard a http://a:2379 http://b:2379", "Two targets in turns."),
            ("esp bench http://127.0.0.1:2379 --plot bench.html", "With a drawing of the latencies."),
        ],
        {1: "A target cannot be used, or requests failed.", 130: "Ctrl-C; the keys of the run are deleted."},
    )
)
def bench(
    target: Annotated[list[str] | None, typer.Argument(metavar="[TARGET [TARGET]]", show_default=False)] = None,
    load: Annotated[
        list[Load] | None,
        typer.Option(
            "--load",
            metavar="put|range|txn|watch|keepalive",
            help="The load, by default put and range; may be repeated.",
            show_default=False,
        ),
    ] = None,
    connections: Annotated[int, typer.Option("--connections", metavar="N", min=1, max=10_000, help="Connections.")] = 8,
    streams: Annotated[
        int, typer.Option("--streams", metavar="N", min=1, max=1000, help="Requests open on each connection.")
    ] = 16,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", min=0.1, help="Length of a round.")] = 5.0,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, max=1000, help="Rounds.")] = 3,
    warm_up: Annotated[
        float, typer.Option("--warm-up", metavar="S", min=0.0, help="Seconds that are not counted before the first.")
    ] = 1.0,
    keys: Annotated[int, typer.Option("--keys", metavar="N", min=1, max=1_000_000, help="Keys.")] = 1000,
    value_bytes: Annotated[
        int, typer.Option("--value-bytes", metavar="N", min=0, max=1_000_000, help="Bytes of a value.")
    ] = 256,
    shard: Annotated[
        list[str] | None,
        typer.Option("--shard", metavar="SHARD", help="Keys of this shard only; may be repeated.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", parser=path_of, help="Draw the latencies: .html or .svg.", show_default=False
        ),
    ] = None,
    cacert: CaOption = "",
    cert: CertOption = "",
    tls_key: KeyOption = "",
    user: UserOption = "",
    password_file: PasswordOption = "",
    output: OutputOption = Format.TABLE,
    config: ConfigOption = None,
) -> None:
    """Measure a proxy or an etcd under load, or two in turns.

    The load writes keys of its own, below esp-bench/, and deletes them in the end. With -c they are spread over the
    shards of the config, each below the start of a range of its shard, and the target is by default the first listen
    address there.
    """
    if len(target or []) > 2:
        raise CommandError("there may be two targets; leave out the others", USAGE)
    from esp.commands import bench as module
    from esp.core.export import Etcd
    from esp.core.load import Plan, Workload

    plan = Plan(connections, streams, seconds, warm_up, rounds, keys, value_bytes)
    access = Etcd([], cacert, cert, tls_key, user, password_file)
    loads = [Workload(one) for one in dict.fromkeys(load or [Load.PUT, Load.RANGE])]
    module.run(config, module.Options(target or [], loads, shard or [], access, plan, plot, output))


@app.command(
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
    shard: Annotated[str, typer.Argument(metavar="SHARD", show_default=False)],
    line: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", show_default=False)],
    config: ConfigOption = None,
) -> None:
    """Run etcdctl, or any command, for one shard.

    The endpoints, TLS files and user of the shard are in the environment of the command.

    The variables are those of etcdctl, such as ETCDCTL_ENDPOINTS. Keys in the shard have the prefix of the namespace.
    """
    from esp.commands import exec_ as module

    module.run(config, shard, line)


@app.command(
    cls=command(
        [
            ("esp top", "The proxy of the config, live; q ends it."),
            ("esp top http://10.0.0.1:2379 http://10.0.0.2:2379", "Several proxies, together."),
            ("esp top -n 1 -o json", "What happened within two seconds, for scripts."),
        ],
        {1: "No proxy can be asked."},
    )
)
def top(
    urls: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[URL]...", help="Running proxies; by default the one of the config.", show_default=False
        ),
    ] = None,
    config: ConfigOption = None,
    interval: Annotated[
        float, typer.Option("-i", "--interval", metavar="SECONDS", min=0.2, max=3600, help="Time between two looks.")
    ] = 2.0,
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", metavar="N", min=1, help="Look N times, then end.", show_default=False),
    ] = None,
    cacert: Annotated[
        Path | None,
        typer.Option(
            "--cacert",
            metavar="FILE",
            parser=path_of,
            help="Whom https:// URLs are to be signed by.",
            show_default=False,
        ),
    ] = None,
    cert: Annotated[
        Path | None,
        typer.Option(
            "--cert",
            metavar="FILE",
            parser=path_of,
            help="A certificate of yours, for https:// URLs.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", parser=path_of, help="Its key.", show_default=False)
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show running proxies live, by shard and RPC.

    Reads the status page of each proxy (docs/ui.md). At a terminal q ends it. Otherwise it prints one picture after
    another, with -o json one line each.
    """
    from esp.commands import top as command

    tls = command.Tls(cacert, cert, key)
    command.run(urls or [], config, tls, output, interval=interval, count=count)


app.add_typer(config_app, name="config")


@app.command(
    cls=command(
        [
            ("esp completion bash > /etc/bash_completion.d/esp", "For all users of bash."),
            ("esp completion zsh > ~/.zfunc/_esp", "For zsh, with ~/.zfunc in fpath."),
            ("esp completion fish | source", "For this fish."),
        ],
    )
)
def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", show_default=False)],
) -> None:
    """Print a completion script for a shell.

    Packages install the scripts where shells look for them. Names of shards and boundaries of ranges are completed from
    the config.
    """
    if shell not in ("bash", "zsh", "fish"):
        raise CommandError(f'there is no completion for "{shell}"; there is for bash, zsh and fish', USAGE)
    from esp.commands.completion import script
    from esp.commands.output import write_data

    write_data(script(shell, app).removesuffix("\n"))


def main() -> None:
    """The entry point of `esp`: runs the command line."""
    _leave_out(sys.argv[1:])
    app(prog_name="esp")


def _leave_out(arguments: list[str]) -> None:
    """Leaves out of the app what a command line has no use for: to make all commands takes as long as to load typer."""
    called = arguments[0] if arguments else ""
    commands = [info for info in app.registered_commands if _name(info) == called]
    groups = [info for info in app.registered_groups if info.name == called]
    if called != "completion" and called != "help" and (commands or groups):
        app.registered_commands, app.registered_groups = commands, groups
    elif called in ("", "-h", "--help"):  # only needs the names and the first sentences
        for info in app.registered_commands:
            info.name, info.callback = _name(info), _stub(info.callback)


def _name(info: Any) -> str:
    return str(info.name or info.callback.__name__)


def _stub(callback: Any) -> Callable[[], None]:
    def stub() -> None: ...

    stub.__doc__ = callback.__doc__
    return stub
