"""`esp export`: all keys, or those of a range, at one moment over all shards, as JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from esp.commands import interruptible, noted
from esp.commands.output import INTERRUPTED, USAGE, CommandError, Format, complain, manner, unwritten, write, write_json
from esp.commands.progress import progress_bar
from esp.core.config import Config
from esp.core.connected_shards import UnreachableError
from esp.core.export import (
    Etcd,
    Exported,
    ExportError,
    Output,
    changes_since,
    config_of,
    export,
    go_on,
    read_started,
)
from esp.core.keys import KeyRange, format_key
from esp.core.wording import counted, was


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line.

    Attributes:
        keys: the range as clients see it.
        to: the file to write; None for stdout.
        resume: the file to go on with, in place of `keys` and `to`.
        verify: the file to compare the shards with, in place of `keys` and `to`.
        each: read each shard at a moment of its own.
        output: format of the summary, which is printed where the lines go to a file.
    """

    keys: KeyRange
    to: Path | None
    resume: Path | None
    each: bool
    output: Format
    verify: Path | None = None


def config_at(config: Path | None, etcd: Etcd) -> Config:
    """The config with the shards: that of one etcd, where one is named, else the config file.

    Raises:
        ConfigError: there is no config, or the config or the etcd is wrong.
        CommandError: both are given.
    """
    noted.hear_clients()
    if not etcd.endpoints:
        if etcd != Etcd():
            raise CommandError("--cacert, --cert, --key, --user and --password-file are for --endpoint; add it", USAGE)
        return noted.config_at(config)
    if config is not None:
        raise CommandError("-c and --endpoint exclude each other; give one", USAGE)
    found = config_of(etcd)
    noted.note_config(found)
    return found


def run(config: Path | None, etcd: Etcd, options: Options) -> None:
    """Export keys.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: the export failed; the text says how to go on.
    """
    loaded = config_at(config, etcd)
    if options.verify is not None:
        _verify(loaded, options.verify, options.output)
        return
    if options.resume is not None:
        _resume(loaded, options.resume, options.output)
        return
    if options.keys.is_empty():
        raise CommandError("the range holds no key: its end is not above its start", USAGE)
    if options.to is None:
        if sys.stdout.isatty() and options.output is Format.JSON:
            raise CommandError("-o json is for the summary, and stdout has the keys; add --to FILE", USAGE)
        with _failures(None), progress_bar("keys") as show:
            sys.stdout.flush()
            out = Output(sys.stdout.buffer)
            done = interruptible.run(
                export(loaded, options.keys, out, lambda n, total: show("Exporting", n, total), each_shard=options.each)
            )
        if not manner.quiet:
            complain(_told(done))
        return
    try:
        file = options.to.open("xb")
    except FileExistsError:
        raise CommandError(f"{options.to} exists; go on with it (--resume {options.to}), or remove it", USAGE) from None
    except OSError as error:
        raise CommandError(f"{options.to} cannot be written: {(error.strerror or str(error)).lower()}") from None
    with file, _no_empty_file(options.to), _failures(options.to), progress_bar("keys") as show:
        out = Output(file, durable=True)
        done = interruptible.run(
            export(loaded, options.keys, out, lambda n, total: show("Exporting", n, total), each_shard=options.each)
        )
    _summarise(done, options.to, options.output)


def _verify(loaded: Config, path: Path, output: Format) -> None:
    with _opened(path, "rb") as file, _failures(None), progress_bar("keys") as show:
        first = read_started(file, lambda keys: show("Reading", keys, None))
        work = changes_since(loaded, first, lambda done, total: show("Comparing", done, total))
        found = interruptible.run(work)
    parts = [
        f"{counted(number, what)} {was(number)} {done}"
        for number, what, done in (
            (found.written, "key", "written"),
            (found.new, "new key", "put"),
            (found.deleted, "key", "deleted"),
        )
        if number
    ]
    if output is Format.JSON:
        write_json(
            {
                "file": str(path),
                "keys": found.keys,
                "written": found.written,
                "new": found.new,
                "deleted": found.deleted,
            }
        )
    elif not parts:
        write(f"{path}: {counted(found.keys, 'key')}, and nothing has changed since the export")
    if parts:
        first_key = f' (the first: "{format_key(found.first)}")' if found.first else ""
        raise CommandError(f"since the export {', '.join(parts)}{first_key}; stop who writes there, and begin anew")


def _opened(path: Path, mode: str) -> BinaryIO:
    try:
        return cast("BinaryIO", path.open(mode))
    except OSError as error:
        raise CommandError(f"{path} cannot be opened: {(error.strerror or str(error)).lower()}", USAGE) from None


def _resume(loaded: Config, path: Path, output: Format) -> None:
    with _opened(path, "r+b") as file, _failures(path), progress_bar("keys") as show:
        done = _go_on(loaded, file, show)
    _summarise(done, path, output)


def _go_on(loaded: Config, file: BinaryIO, show: Any) -> Exported:
    """Completes the export in a file.

    Raises:
        ExportError: as `go_on`.
    """
    first = read_started(file, lambda keys: show("Reading", keys, None))
    if first.trailer is not None:
        return Exported(first.header, first.keys, len(first.leases), sum(ttl is None for ttl in first.leases.values()))
    file.seek(first.size)
    file.truncate()
    out = Output(file, first.digest, durable=True)
    return interruptible.run(go_on(loaded, first, out, lambda done, total: show("Exporting", done, total)))


@contextmanager
def _no_empty_file(path: Path) -> Iterator[None]:
    """Removes a file of this export to which it has written nothing: there is nothing to go on with."""
    try:
        yield
    except CommandError:
        if not path.stat().st_size:
            path.unlink()
        raise


@contextmanager
def _failures(path: Path | None) -> Iterator[None]:
    """Turns failures of an export into one line that says how to go on."""

    def cure() -> str:
        return f"; to go on: esp export --resume {path}" if path is not None and path.stat().st_size else ""

    try:
        with interruptible.by_exception():
            yield
    except UnreachableError as error:
        raise CommandError(f"{error}{cure()}") from None
    except ExportError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        if path is None:
            raise unwritten(error, is_whole=True) from None
        raise CommandError(f"the export cannot be written: {(error.strerror or str(error)).lower()}{cure()}") from None
    except KeyboardInterrupt:
        raise CommandError(f"interrupted{cure()}", INTERRUPTED) from None


def _told(done: Exported) -> str:
    text = f"exported {counted(done.keys, 'key')} and {counted(done.leases, 'lease')}"
    if done.ended:
        text += f", {done.ended} of which ended meanwhile"
    header = done.header
    at = "revision " + ", ".join(f"{shard.revision} of {shard.name}" for shard in header.shards)
    if header.moment == "each":
        return f"{text}; each shard at a moment of its own, within {header.seconds * 1000:.1f} ms: {at}"
    return f"{text}, all of one moment: {at}"


def _summarise(done: Exported, path: Path, output: Format) -> None:
    header = done.header
    if output is Format.TABLE:
        write(f"{path}: {_told(done)}")
        return
    write_json(
        {
            "file": str(path),
            "keys": done.keys,
            "leases": done.leases,
            "ended_leases": done.ended,
            "moment": header.moment,
            "seconds": header.seconds,
            "shards": [{"name": shard.name, "revision": shard.revision} for shard in header.shards],
        }
    )
