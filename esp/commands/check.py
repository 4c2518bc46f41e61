"""`esp check`: one verdict for each shard, the findings about all, and what every endpoint tells.

Exit code 1 if there are problems.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic

from esp.commands.check_json import json_of
from esp.commands.noted import config_at
from esp.commands.output import INTERRUPTED, USAGE, CommandError, Strays, WideFormat, note, write_json
from esp.core import config as configs
from esp.core.config import Config
from esp.core.health import Health, How, Proxies, examine
from esp.core.tls_files import check_files
from esp.core.tls_paths import Files, TlsFileError
from esp.core.wording import counted, shard_called


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command.

    Attributes:
        output: the format.
        keys: have the shards count their keys.
        proxies: the URLs of running proxies to ask.
        cacert, cert, key: files of TLS for https:// proxies.
        watch: look again after so many seconds, for ever; None to look once.
        fix_strays: what becomes of stray keys; None if nothing.
        apply: do that; else only show it.
    """

    output: WideFormat = WideFormat.TABLE
    keys: bool = False
    proxies: Sequence[str] = ()
    cacert: str = ""
    cert: str = ""
    key: str = ""
    watch: float | None = None
    fix_strays: Strays | None = None
    apply: bool = False


def run(config: Path | None, options: Options) -> None:
    """Print the verdicts and the findings on all shards.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: there are problems; they have been printed.
    """
    # The output has everything that the shards' clients log here.
    logging.getLogger("esp").addHandler(logging.NullHandler())
    loaded = config_at(config)
    if options.fix_strays is not None:
        from esp.commands import check_strays

        check_strays.run(loaded, How(options.fix_strays), options.output, _proxies(options), apply=options.apply)
        return
    proxies = _proxies(options)

    def look() -> Health:
        began = monotonic()
        health = asyncio.run(examine(loaded, keys=options.keys, proxies=proxies))
        _note(health, monotonic() - began)
        return health

    health = _shown(loaded, options, look)
    if health is None:
        raise CommandError("interrupted", INTERRUPTED)
    if health.problems:
        raise CommandError(f"not healthy: {counted(len(health.problems), 'problem')}")


def _note(health: Health, seconds: float) -> None:
    """With -v: who was asked, and what has answered."""
    for shard in health.shards:
        for each in shard.endpoints:
            told = "no answer" if each.refusal is None else each.refusal.message
            if each.member is not None:
                took = "" if each.latency is None else f", in {each.latency * 1000:.1f} ms"
                told = f"etcd {each.member.version}, member {each.member.member_id:x}{took}"
            note(f"asked {shard_called(shard.name)}, {each.endpoint}: {told}")
    for proxy in health.proxies or ():
        took = "" if proxy.latency is None else f", in {proxy.latency * 1000:.1f} ms"
        reads = counted(len(proxy.samples), "read")
        told = proxy.error or f"esp {proxy.esp or '?'}, map {proxy.map or '?'}, {reads}{took}"
        note(f"asked proxy {proxy.endpoint}: {told}")
    note(f"all was asked within {seconds:.1f} s")


def _shown(loaded: Config, options: Options, look: Callable[[], Health]) -> Health | None:
    """Prints what `look` finds, once or again and again; the last health, None if there is none."""
    if options.output is WideFormat.JSON:
        if options.watch:
            from esp.commands.check_watch import watch_json

            return watch_json(options.watch, look, partial(json_of, loaded))
        health = look()
        write_json(json_of(loaded, health))
        return health
    # rich takes a tenth of a second: what fails before this line is told without.
    from esp.commands.check_text import page_of
    from esp.commands.rendered import Look

    show = partial(page_of, loaded, wide=options.output is WideFormat.WIDE)
    if options.watch:
        from esp.commands.check_watch import watch

        return watch(options.watch, look, show)
    health = look()
    show(health, Look.of_stdout()).show()
    return health


def _proxies(options: Options) -> Proxies | None:
    """The proxies that the options name; None without any.

    Raises:
        CommandError: a URL is none, or a file of TLS cannot be used.
    """
    files = Files(
        *(Path(name) if name else None for name in (options.cert, options.key, options.cacert)),
    )
    if not options.proxies:
        if files.paths():
            raise CommandError("--cacert, --cert and --key are for --proxy; add it, or leave them out", USAGE)
        return None
    try:
        check_files(files)
        return Proxies(tuple(configs.endpoint_at(url, "proxy") for url in options.proxies), files)
    except (ValueError, TlsFileError) as error:
        raise CommandError(str(error), USAGE) from None
