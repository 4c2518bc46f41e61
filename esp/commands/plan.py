"""`esp plan`: where keys, bytes and writes are, and which shard is to own what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from esp.commands import interruptible, plan_json, plan_view
from esp.commands.noted import config_at, hear_clients, note_config
from esp.commands.output import INTERRUPTED, USAGE, CommandError, Format, note
from esp.commands.plan_config import config_text
from esp.commands.progress import progress_bar
from esp.core.config import Config
from esp.core.connected_shards import UnreachableError
from esp.core.export import Etcd, config_of
from esp.core.keys import KeyRange, prefix_end
from esp.core.kubernetes import assumed_roots
from esp.core.load import Target
from esp.core.plan import (
    Measure,
    Plan,
    Survey,
    SurveyError,
    Wish,
    propose,
    source_of,
    sources_of,
    surveyed,
    weights_of,
)
from esp.core.shard_map import ShardMap
from esp.core.wording import counted, shard_called

SHARDS: Final = 3
"""Shards that are planned for where no config says how many there are."""
DEEPEST_RESOURCE: Final = 3
"""The depth of the prefix of a custom resource of Kubernetes: /registry/GROUP/RESOURCE/."""
ALONE: Final = "main"
"""The name of the one shard that `--from` stands for."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line.

    Attributes:
        shards: the number of shards; None for that of the config.
        measure: what is to be even.
        depth: prefixes of this depth stay whole.
        seconds: for which writes are watched.
        separator: the end of prefixes.
        kept: prefixes that stay whole.
        divided: prefixes that may be divided anywhere.
        against: whether to show today's map.
        to: the file for the config; None for none.
        output: format of what is shown.
    """

    shards: int | None
    measure: Measure
    depth: int
    seconds: float
    separator: bytes
    kept: Sequence[bytes]
    divided: Sequence[bytes]
    against: bool
    to: Path | None
    output: Format


def bytes_of(text: str) -> bytes:
    """A key of the command line as bytes."""
    return text.encode("utf-8", "surrogateescape")


def run(config: Path | None, etcd: Etcd, options: Options) -> None:
    """Make a plan, and show it.

    Raises:
        ConfigError: there is no config, or the config or the URL is wrong.
        CommandError: the keys cannot be read, or there is nothing to plan by.
    """
    hear_clients()
    _check(config, etcd, options)
    loaded = None
    if config is not None or not etcd.endpoints:
        loaded = config_at(config)
    today = ShardMap.build([(ALONE, KeyRange(b"", None))], [ALONE]) if loaded is None else loaded.shard_map
    wish = Wish(
        options.shards or (len(today.names) if loaded is not None else SHARDS),
        options.measure,
        options.separator,
        options.depth,
        [*(loaded.whole if loaded is not None else ()), *(KeyRange(one, prefix_end(one)) for one in options.kept)],
        options.divided,
        loaded.apiserver_roots if loaded is not None else assumed_roots(()),
    )
    found = _survey(loaded, etcd, wish, options.seconds, today)
    _must_have_something(found, options)
    proposal = propose(found.counted, wish, today)
    endpoints = {ALONE: etcd.endpoints} if loaded is None else _endpoints(loaded)
    text = config_text(proposal, endpoints)
    if options.to is not None:
        _write(options.to, text)
    plan = Plan(found, wish, proposal, today if options.against else None, weights_of(found.counted, today))
    shown = plan_json.write_plan if options.output is Format.JSON else plan_view.write_plan
    is_in_shards = loaded is not None and loaded.guards is not None
    shown(plan, endpoints, text, is_in_shards)


def _check(config: Path | None, etcd: Etcd, options: Options) -> None:
    if not etcd.endpoints and etcd != Etcd():
        raise CommandError("--cacert, --cert, --key, --user and --password-file are for --from; add it", USAGE)
    if etcd.endpoints and options.against and config is None:
        raise CommandError("--against with --from needs the config whose map is meant; add -c FILE", USAGE)
    if options.measure is Measure.WRITES and not options.seconds:
        raise CommandError("--by writes needs a watch; give --watch some seconds", USAGE)
    if not options.separator:
        raise CommandError('--separator is empty; give the text that ends a prefix, such as "/"', USAGE)
    if options.to is not None and options.to.exists():
        raise CommandError(f"{options.to} exists; give another file, or remove it", USAGE)


def _survey(loaded: Config | None, etcd: Etcd, wish: Wish, seconds: float, today: ShardMap) -> Survey:
    async def main() -> Survey:
        if etcd.endpoints:
            opened = source_of(Target(note_config(config_of(etcd))))
        else:
            assert loaded is not None, "there is a config where there is no URL"
            opened = sources_of(loaded)
        async with opened as sources:
            if seconds:
                note(f"watches writes for {seconds:g} s")
            found = await surveyed(
                sources,
                separator=wish.separator,
                depth=wish.depth,
                told_depth=max(wish.depth, DEEPEST_RESOURCE) + 1,
                marks=today.starts,
                seconds=seconds,
                progress=show,
            )
            _note(found)
            return found

    try:
        with interruptible.by_exception(), progress_bar("") as show:
            return interruptible.run(main())
    except (SurveyError, UnreachableError) as error:
        raise CommandError(str(error)) from None
    except KeyboardInterrupt:
        raise CommandError("interrupted; nothing was changed", INTERRUPTED) from None


def _note(found: Survey) -> None:
    for name, revision in found.revisions.items():
        note(f"{shard_called(name)} was read at revision {revision:,}")
    read = f"{counted(found.counted.curve.total.keys, 'key')} without values, and {counted(found.values, 'value')}"
    seen = f"; saw {counted(found.writes, 'write')}, and looked at {found.sampled:,} of them" if found.seconds else ""
    note(f"read {read}{seen}")


def _must_have_something(found: Survey, options: Options) -> None:
    if not found.counted.curve.total.keys and not found.writes:
        raise CommandError("there are no keys to plan by; plan when clients have written some")
    if not found.counted.curve.total.of(options.measure):
        raise CommandError(
            f"nothing was written in {found.seconds:.1f} s; watch longer (--watch 60), or plan by keys (--by keys)"
        )


def _endpoints(config: Config) -> dict[str, list[str]]:
    return {shard.name: [str(endpoint) for endpoint in shard.endpoints] for shard in config.shards}


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None
