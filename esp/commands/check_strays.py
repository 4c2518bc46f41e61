"""`esp check --fix-strays`: moves or deletes stray keys; without `--apply` it only tells what would become of them."""

from __future__ import annotations

import asyncio
from typing import Any

from esp.commands.check_json import json_range, subject_of
from esp.commands.output import CommandError, WideFormat, json_key, write_json
from esp.commands.progress import progress_bar
from esp.core.config import Config
from esp.core.health import (
    Fate,
    How,
    Kind,
    Mended,
    MendError,
    Proxies,
    Standing,
    always_so,
    examine,
    left_in,
    mend,
)
from esp.core.keys import format_key, format_range
from esp.core.wording import counted, shard_called

_FORBID = (Kind.SAME_CLUSTER, Kind.SEVERAL_CLUSTERS, Kind.MAP)
"""Problems with which a stray key of one shard may be a live key of another, or its owner may not have got it yet."""
_REASONS = {
    Fate.LIVE: "its owner has the key, with another value",
    Fate.NO_LEASE: "its owner lacks the key's lease; esp lease-sync --apply grants it",
    Fate.CHANGED: "it was written meanwhile, where it strayed; compare it with its owner's",
    Fate.LEFT: "a move may have left it, and its owner may have deleted it since; --fix-strays delete deletes it here",
}
_COLUMNS = {
    Fate.MOVED: "MOVED",
    Fate.DELETED: "DELETED",
    Fate.LIVE: "LIVE",
    Fate.NO_LEASE: "NO LEASE",
    Fate.CHANGED: "CHANGED",
    Fate.LEFT: "LEFT",
    Fate.GONE: "GONE",
}


def run(loaded: Config, how: How, output: WideFormat, proxies: Proxies | None, *, apply: bool) -> None:
    """Move or delete stray keys, and print what became of them.

    With `proxies`, no key is touched unless all of them have the map of the config, and keep it: else their live keys
    may be strays by the config.

    Raises:
        CommandError: the work failed; or keys are still stray, which has been printed.
    """
    health = asyncio.run(examine(loaded, proxies=proxies))
    for finding in health.problems:
        if finding.kind in _FORBID or finding.kind.startswith("proxy-"):
            raise CommandError(f"no key is touched: {subject_of(finding)}{finding.text}")
    standing = always_so if proxies is None else Standing(loaded, proxies, health.proxies or ()).look
    with progress_bar("keys") as show:
        step = {How.MOVE: "Moving", How.DELETE: "Deleting"}[how] if apply else "Looking"
        try:
            moved = mend(loaded, how, lambda done, total: show(step, done, total), apply=apply, unchanged=standing)
            work = asyncio.run(moved)
        except MendError as error:
            raise CommandError(str(error)) from None
    if output is WideFormat.JSON:
        write_json(_json(loaded, how, work, apply=apply))
    else:
        _write_text(loaded, how, work, apply=apply)
    found = sum(sum(mended.fates.values()) for mended in work)
    if not apply and found:
        raise CommandError(f"{counted(found, 'stray key')}; nothing is changed yet")
    if left := left_in(work):
        raise CommandError(f"{counted(left, 'key')} still stray")


def _write_text(loaded: Config, how: How, work: list[Mended], *, apply: bool) -> None:
    from esp.commands.rendered import Look, Page

    page = Page(Look.of_stdout())
    if not work:
        page.line(f"No stray keys by {loaded.path}, map {loaded.shard_map.fingerprint}.", "green")
        page.show()
        return
    page.line(f"Stray keys by {loaded.path}, map {loaded.shard_map.fingerprint}:")
    page.line()
    fates = [fate for fate in Fate if any(mended.fates[fate] for mended in work)]
    page.table(
        ["SHARD", "OWNER", "RANGE", *(_COLUMNS[fate] for fate in fates)],
        [
            [
                mended.shard,
                mended.stray.owner,
                format_range(mended.stray.range),
                *(str(mended.fates[fate]) for fate in fates),
            ]
            for mended in work
        ],
    )
    if any(mended.kept for mended in work):
        page.line()
        page.line("Kept, for example:", "bold")
        for mended in work:
            for key, fate in mended.kept:
                page.line(f'"{format_key(key)}" on {shard_called(mended.shard)}: {_REASONS[fate]}', indent=2)
    if not apply:
        page.line()
        page.line(f"This is what would be done; nothing is changed yet. To {how}, add --apply.", "yellow")
        page.line("Running proxies must have this map: esp check --proxy URL tells.")
    page.show()


def _json(loaded: Config, how: How, work: list[Mended], *, apply: bool) -> dict[str, Any]:
    """The JSON form: docs/json.md has its fields."""
    return {
        "config": str(loaded.path),
        "map": loaded.shard_map.fingerprint,
        "how": how,
        "applied": apply,
        "left": left_in(work) if apply else sum(sum(mended.fates.values()) for mended in work),
        "ranges": [
            {
                "shard": mended.shard,
                "owner": mended.stray.owner,
                "range": json_range(mended.stray.range),
                "count": mended.stray.count,
                "fates": {fate: mended.fates[fate] for fate in Fate},
                "kept": [{"key": json_key(key), "reason": fate} for key, fate in mended.kept],
            }
            for mended in work
        ],
    }
