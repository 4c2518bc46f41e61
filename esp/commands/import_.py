"""`esp import`: the keys and leases of an export into the shards of a config, or into one etcd."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from esp.commands import interruptible
from esp.commands.export import config_at
from esp.commands.output import INTERRUPTED, USAGE, CommandError, Format, write, write_json
from esp.commands.progress import progress_bar
from esp.core.connected_shards import UnreachableError
from esp.core.export import Etcd, Existing, ExportError, Import, Imported, Source
from esp.core.wording import counted, shard_called, was


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line.

    Attributes:
        file: the export; "-" for stdin.
        existing: what becomes of keys that are there already.
        output: format of the summary.
        at_once: transactions at a time in each shard.
        leases: whether keys get their leases.
        same_leases: the leases are there under the same ids.
    """

    file: str
    existing: Existing
    output: Format
    at_once: int = 1
    leases: bool = True
    same_leases: bool = False


def run(config: Path | None, etcd: Etcd, options: Options) -> None:
    """Import keys.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: not all keys were imported; the text says how many, and how to go on.
    """
    loaded = config_at(config, etcd)
    with _opened(options.file) as file, progress_bar("keys") as show:
        work = Import(
            loaded,
            file,
            options.existing,
            show,
            at_once=options.at_once,
            leases=options.leases,
            same_leases=options.same_leases,
        )
        try:
            with interruptible.by_exception():
                interruptible.run(work.run())
        except (ExportError, UnreachableError) as error:
            raise CommandError(f"{error}{_so_far(work)}") from None
        except OSError as error:
            text = f"{options.file} cannot be read: {(error.strerror or str(error)).lower()}"
            raise CommandError(f"{text}{_so_far(work)}") from None
        except KeyboardInterrupt:
            raise CommandError(f"interrupted{_so_far(work)}", INTERRUPTED) from None
    _summarise(work.done, options.output)
    if work.done.lost:
        raise CommandError(_told_of_lost(work.done.lost))


@contextmanager
def _opened(name: str) -> Iterator[Source]:
    if name == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise CommandError("stdin is a terminal; name a file, or pipe an export into esp import -", USAGE)
        # Not that of sys.stdin: Python would close it at the end, and abort if a thread still waits there for input.
        yield open(sys.stdin.fileno(), "rb", closefd=False)  # noqa: SIM115
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise CommandError(f"{name} cannot be read: {(error.strerror or str(error)).lower()}", USAGE) from None
    with file:
        yield file


def _so_far(work: Import) -> str:
    """What was written before a failure; a transaction that was under way may have been written as well."""
    if not work.has_begun:
        return "; nothing was written"
    written = work.done.written + work.done.present
    return f"; {counted(written, 'key')} {'is' if written == 1 else 'are'} written, and --resume goes on"


def _told_of_lost(lost: dict[str, set[int]]) -> str:
    places = ", ".join(f"{len(leases)} on {shard_called(name)}" for name, leases in lost.items())
    return (
        f"leases have ended while the import ran, and their keys with them: {places}; a shard that stands "
        "still for longer than the TTL ends them, or somebody has revoked them; import again with --resume, which "
        "grants and writes what is gone"
    )


def _summarise(done: Imported, output: Format) -> None:
    if output is Format.JSON:
        write_json(
            {
                "written": done.written,
                "present": done.present,
                "skipped": done.skipped,
                "left_out": done.left_out,
                "leases": done.leases,
                "renamed": [
                    {"from": _hex(before), "to": _hex(after)} for before, after in sorted(done.renamed.items())
                ],
                "lost": [
                    {"shard": name, "leases": [_hex(lease) for lease in sorted(leases)]}
                    for name, leases in done.lost.items()
                ],
            }
        )
        return
    counts = [
        f"wrote {counted(done.written, 'key')}",
        counted(done.leases, "lease") if done.leases else "",
        f"{done.present:,} {was(done.present)} written before" if done.present else "",
        f"{done.skipped:,} skipped, which {was(done.skipped)} there" if done.skipped else "",
        f"{done.left_out:,} left out, whose {'lease has' if done.left_out == 1 else 'leases have'} ended"
        if done.left_out
        else "",
    ]
    write(", ".join(filter(None, counts)))
    for before, after in sorted(done.renamed.items()):
        write(f"lease {_hex(before)} is {_hex(after)} here: its id was taken")


def _hex(lease: int) -> str:
    return f"{lease & (1 << 64) - 1:016x}"
