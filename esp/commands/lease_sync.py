"""`esp lease-sync`: a comparison of the leases of all shards, and their repair. Exit code 1 if leases differ."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from esp.commands.noted import config_at, hear_clients
from esp.commands.output import USAGE, CommandError, Format, note, write, write_json, write_table
from esp.commands.progress import progress_bar
from esp.core import lease_survey
from esp.core.config import Config
from esp.core.connected_shards import UnreachableError
from esp.core.lease_survey import Action, Done, LeaseOnShard, LeaseView
from esp.core.wording import counted, shard_called

MAX_ROWS: Final = 100
"""Rows in the table of leases that differ: a new shard lacks all leases. The JSON form has no limit."""


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    Attributes:
        apply: grant missing leases.
        prune_only_on: the shard whose orphans to revoke, leases that no other shard has; None to revoke nothing.
        yes: revoke without asking first.
        skew: seconds by which the shards' TTLs of one lease may differ.
        concurrency: the number of leases that are read or changed at once.
        output: format of the output.
    """

    apply: bool
    prune_only_on: str | None
    yes: bool
    skew: int
    concurrency: int
    output: Format


def run(config: Path | None, options: Options, confirm: Callable[[str], bool]) -> None:
    """Compare the leases of all shards, and grant or revoke leases as `options` say.

    Args:
        config: the config file; None for the usual places.
        options: the options of the command line.
        confirm: asks the operator a question, and returns the answer.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: an option names no shard, a shard is unreachable, leases differ, or a lease was not granted or
            revoked. Results so far have been printed.
    """
    hear_clients()
    loaded = config_at(config)
    names = [shard.name for shard in loaded.shards]
    prune = options.prune_only_on
    if prune is not None and prune not in names:
        raise CommandError(f'--only-on is "{prune}", which is no shard; there are {", ".join(names)}', USAGE)
    try:
        _run(loaded, names, options, confirm)
    except UnreachableError as error:
        raise CommandError(str(error)) from None


def _run(loaded: Config, names: list[str], options: Options, confirm: Callable[[str], bool]) -> None:
    with progress_bar("leases") as show:
        views = asyncio.run(lease_survey.compare(loaded, options.concurrency, partial(show, "Comparing leases")))
    for name in names:
        held = sum(view.on.get(name) is not None for view in views)
        note(f"{shard_called(name)} has {counted(held, 'lease')} of {len(views):,}")
    differing = [view for view in views if view.differs(options.skew)]
    shown = differing
    actions: list[Action] = []
    if options.prune_only_on is not None:
        shown = [view for view in views if view.only_on == options.prune_only_on]
    if options.output is Format.TABLE:
        _write_leases(names, shown, views, options)
    if options.apply:
        with progress_bar("leases") as show:
            actions = asyncio.run(
                lease_survey.grant_missing(loaded, differing, options.concurrency, partial(show, "Granting leases"))
            )
    elif shown and options.prune_only_on is not None:
        _must_be_wanted(shown, options, confirm)
        with progress_bar("leases") as show:
            actions = asyncio.run(
                lease_survey.revoke_orphans(loaded, shown, options.concurrency, partial(show, "Revoking leases"))
            )
    if options.output is Format.JSON:
        _write_json(loaded, names, views, differing, actions)
    else:
        for action in actions:
            write(_told(action))
        if actions:
            counts = Counter(action.done for action in actions)
            write(", ".join(f"{counts[done]} {done}" for done in Done if done in counts) + ".")
    failed = [action for action in actions if action.done is Done.FAILED]
    if failed:
        raise CommandError(f"{counted(len(failed), 'lease')} failed, the first with: {failed[0].error}; run it again")
    if differing and not options.apply and options.prune_only_on is None:
        raise CommandError(f"the shards differ in {counted(len(differing), 'lease')}")


def _must_be_wanted(orphans: Sequence[LeaseView], options: Options, confirm: Callable[[str], bool]) -> None:
    """Asks the operator before leases are revoked, unless --yes was given.

    Raises:
        CommandError: the operator says no, or stdin is no terminal.
    """
    if options.yes:
        return
    assert options.prune_only_on is not None, "only then there is a question"
    keys = sum(here.keys for view in orphans for here in view.on.values() if here is not None)
    what = f"{counted(len(orphans), 'lease')} and {counted(keys, 'key')} on {shard_called(options.prune_only_on)}"
    if not sys.stdin.isatty():
        raise CommandError(f"this would delete {what}; to do so without a question, add --yes", USAGE)
    if not confirm(f"Delete {what}?"):
        raise CommandError("nothing was revoked")


def _write_leases(
    names: Sequence[str], shown: Sequence[LeaseView], views: Sequence[LeaseView], options: Options
) -> None:
    if shown:
        rows = [
            [_hex(view.id), *(_cell(view.on[name]) for name in names), _difference(view, options.skew)]
            for view in shown[:MAX_ROWS]
        ]
        write_table(["LEASE", *names, "DIFFERENCE"], rows)
        if len(shown) > MAX_ROWS:
            write(f"and {len(shown) - MAX_ROWS} more; -o json lists all")
        write("")
    totals = []
    for name in names if views else ():
        found = [here for view in views if (here := view.on[name]) is not None]
        totals.append(f"{name} {len(found)} with {counted(sum(here.keys for here in found), 'key')}")
    write("; ".join([f"{counted(len(views), 'lease')} in all", *totals]) + ".")
    if options.prune_only_on is not None:
        write(f"{counted(len(shown), 'lease')} only on {options.prune_only_on}.")
        return
    if not shown:
        write("All shards have the same leases.")
    if not options.apply and any(view.missing for view in shown):
        write("To grant what is missing, add --apply.")
    if any(view.ttl_spread > options.skew for view in shown):
        write("TTLs are left as they are; a keepalive of the lease's owner renews it everywhere.")


def _cell(here: LeaseOnShard | None) -> str:
    """The seconds left, the seconds granted, and the number of keys of a lease on one shard."""
    return "-" if here is None else f"{here.ttl}/{here.granted_ttl} s, {counted(here.keys, 'key')}"


def _difference(view: LeaseView, skew: int) -> str:
    found = []
    if view.only_on is not None:
        found.append(f"only on {view.only_on}")
    elif view.missing:
        found.append("missing on " + ", ".join(view.missing))
    if view.ttl_spread > skew:
        found.append(f"TTLs {view.ttl_spread} s apart")
    return "; ".join(found)


def _told(action: Action) -> str:
    lease, shard = _hex(action.lease), action.shard
    return {
        Done.GRANTED: f"granted {lease} on {shard}",
        Done.PRESENT: f"left {lease} as it is: it is on {shard} meanwhile",
        Done.GONE: f"left {lease} out: it has ended meanwhile",
        Done.REVOKED: f"revoked {lease} on {shard}",
        Done.KEPT: f"kept {lease}: it is not only on {shard} any more",
        Done.FAILED: f"FAILED {lease} on {shard}: {action.error}",
    }[action.done]


def _write_json(
    loaded: Config,
    names: Sequence[str],
    views: Sequence[LeaseView],
    differing: Sequence[LeaseView],
    actions: Sequence[Action],
) -> None:
    """The JSON form.

    `in_step` is true if no lease differed at the comparison. Ids are hexadecimal text, as etcdctl shows them.
    `differences` has the leases that a shard lacks (`missing` names the shards), or whose TTLs are further apart than
    --skew (`ttl_spread` in seconds); in its `shards`, null stands for a shard that lacks the lease. `actions` has the
    grants or revocations: `done` is a member of `esp.core.lease_survey.Done`, `error` is null unless that is "failed".
    """
    write_json(
        {
            "in_step": not differing,
            "config": str(loaded.path),
            "leases": len(views),
            "shards": [
                {
                    "name": name,
                    "leases": sum(view.on[name] is not None for view in views),
                    "keys": sum(here.keys for view in views if (here := view.on[name]) is not None),
                }
                for name in names
            ],
            "differences": [_json_view(view) for view in differing],
            "actions": [
                {
                    "id": _hex(action.lease),
                    "shard": action.shard,
                    "done": action.done,
                    "error": action.error if action.done is Done.FAILED else None,
                }
                for action in actions
            ],
        }
    )


def _json_view(view: LeaseView) -> dict[str, Any]:
    return {
        "id": _hex(view.id),
        "missing": view.missing,
        "only_on": view.only_on,
        "ttl_spread": view.ttl_spread,
        "shards": {
            name: None if here is None else {"ttl": here.ttl, "granted_ttl": here.granted_ttl, "keys": here.keys}
            for name, here in view.on.items()
        },
    }


def _hex(lease_id: int) -> str:
    return f"{lease_id & (1 << 64) - 1:016x}"
