"""What `esp plan` shows to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from esp.commands.output import write, write_prose, write_table
from esp.commands.plan_config import move_line
from esp.commands.plan_notes import notes_of
from esp.core.keys import format_key
from esp.core.plan import Plan, Prefix, Weights
from esp.core.wording import counted, few, size_of

LEAST: Final = 0.02
"""Prefixes with a lesser share of keys, bytes and writes have no row."""
MOST_ROWS: Final = 40
BAR: Final = 20


class Row(NamedTuple):
    """A prefix that is shown.

    Attributes:
        prefix: the bytes.
        depth: its number of separators.
        weights: what lies below it.
        resource: the name of a resource of Kubernetes, if its objects lie below it.
        locks: whether keys of locks or elections lie directly below it.
    """

    prefix: bytes
    depth: int
    weights: Weights
    resource: str | None
    locks: bool


def shown(plan: Plan) -> list[Row]:
    """The heaviest prefixes, in key order; of those with the same keys the longest, and none inside a resource."""
    resources = {one.range.start + b"/": one.name for cluster in plan.proposal.clusters for one in cluster.resources}
    rows = []
    around = b""  # the last prefix that was looked at, unless that lies in a resource
    for one, following in pairwise([*plan.survey.counted.prefixes, None]):
        assert one is not None, "only the last has nothing behind it"
        if around in resources and one.prefix.startswith(around):
            continue
        around = one.prefix
        if one.prefix and one.weights.share(plan.total) >= LEAST:
            resource = resources.get(one.prefix)
            if resource is not None or not _is_the_same(one, following):
                rows.append(Row(one.prefix, one.depth, one.weights, resource, one.locks))
    rows.sort(key=lambda row: -row.weights.share(plan.total))
    return sorted(rows[:MOST_ROWS])


def _is_the_same(one: Prefix, following: Prefix | None) -> bool:
    """Whether all keys below a prefix lie below a longer one; the parent of that comes right before it."""
    return following is not None and following.prefix.startswith(one.prefix) and following.weights == one.weights


def write_plan(plan: Plan, endpoints: Mapping[str, Sequence[str]], config: str, can_move: bool) -> None:
    """Writes a plan for people; `can_move` is whether the shards hold the map, which `esp move` needs."""
    proposal, measure = plan.proposal, plan.wish.measure
    write_prose(_about(plan))
    write("")
    _write_tree(plan)
    if plan.today is not None:
        write("")
        write_prose(
            f"Today's map: the largest shard has {plan.largest(plan.now):.2f} of a fair share of the {measure}."
        )
        _write_shards(plan, plan.today.names, plan.now, endpoints)
    write("")
    if proposal.stays:
        write_prose(
            f"Today's map is as even by {measure} as it can be, or nearly: the largest shard has "
            f"{plan.largest(proposal.weights):.2f} of a fair share. Nothing has to move."
        )
    else:
        write_prose(
            f"Proposed for {counted(len(proposal.map.names), 'shard')}: the largest has "
            f"{plan.largest(proposal.weights):.2f} of a fair share of the {measure}."
        )
        _write_shards(plan, proposal.map.names, proposal.weights, endpoints)
    for _, text in notes_of(plan):
        write("")
        write_prose(f"Note: {text}")
    if proposal.moves:
        write("")
        write_prose(_how_to_move([name for name in proposal.map.names if name not in endpoints], can_move))
        for move in proposal.moves:
            told = f"{counted(move.weights.keys, 'key')}, {size_of(move.weights.bytes)}, from {move.source}"
            write(f"  {'' if can_move else '# '}{move_line(move)}  # {told}")
        write("")
        write("As a config:")
        write("")
        write(config.rstrip("\n"))


def _how_to_move(new: Sequence[str], can_move: bool) -> str:
    """What comes before the lines of `esp move`."""
    if not can_move:
        return (
            "To move, in this order. These lines are comments: esp move needs the map in the shards (map: shards in "
            "the config, docs/map.md). Without it move each range by hand, as docs/operations.md says (Move a range to "
            "another shard)."
        )
    if new:
        return f"To move, in this order, once esp map apply has added {few(new)} (docs/map.md):"
    return "To move, in this order:"


def _about(plan: Plan) -> str:
    found, total = plan.survey, plan.total
    rate = plan.rate(total)
    writes = "writes not watched"
    if rate is not None:
        writes = f"{_rate_text(rate)} writes a second in {round(found.seconds, 1):g} s"
    at = few([f"{name} at revision {revision}" for name, revision in found.revisions.items()])
    about = f"{counted(total.keys, 'key')}, {size_of(total.bytes)} (from {counted(found.values, 'value')} read)"
    return f"{about}, {writes}; {at}."


def _write_tree(plan: Plan) -> None:
    """Writes the prefixes as a tree, each with its share as a bar."""
    listed = shown(plan)
    rows = [["(all keys)", *_figures(plan, plan.total)]]
    _add_below(plan, None, listed, rows)
    _write_figures(plan, "PREFIX", rows)


def _add_below(plan: Plan, around: Row | None, listed: Sequence[Row], rows: list[list[str]], deep: int = 0) -> None:
    """Adds the rows of the prefixes below one, and what they leave, if that is as much as a row needs."""
    rest = plan.total if around is None else around.weights
    skip = 0 if around is None else len(around.prefix)
    inside: list[Row] = []
    for row, following in pairwise([*listed, None]):
        assert row is not None, "only the last has nothing behind it"
        inside.append(row)
        top = inside[0]
        if following is not None and following.prefix.startswith(top.prefix):
            continue
        rows.append(["  " * deep + format_key(top.prefix[skip:]) + _marks(top), *_figures(plan, top.weights)])
        _add_below(plan, top, inside[1:], rows, deep + 1)
        rest = rest.less(top.weights)
        inside = []
    if listed and rest.share(plan.total) >= LEAST:
        rows.append(["  " * deep + "(others)", *_figures(plan, rest)])


def _marks(row: Row) -> str:
    """What is known of a prefix beside its name."""
    mark = " (locks)" if row.locks else ""
    if row.resource and not row.prefix.endswith(f"/{row.resource}/".encode()):
        mark += f" ({row.resource})"
    return mark


def _write_shards(
    plan: Plan, names: Sequence[str], weights: Mapping[str, Weights], endpoints: Mapping[str, Sequence[str]]
) -> None:
    rows = [[name if name in endpoints else f"{name} (new)", *_figures(plan, weights[name])] for name in names]
    _write_figures(plan, "SHARD", rows)


def _write_figures(plan: Plan, what: str, rows: list[list[str]]) -> None:
    """Writes a table with numbers at the right of their columns."""
    headers = [what, "KEYS", "SIZE", "WRITES/S", f"OF {plan.wish.measure.upper()}", ""]
    for column in range(1, 5):
        width = max(len(row[column]) for row in [headers, *rows])
        for row in [headers, *rows]:
            row[column] = row[column].rjust(width)
    write_table(headers, rows)


def _figures(plan: Plan, weights: Weights) -> list[str]:
    """The cells of a row: keys, size, writes, share, and that as a bar."""
    rate, share = plan.rate(weights), plan.share(weights)
    filled = round(min(1.0, share) * BAR)
    return [
        f"{weights.keys:,}",
        size_of(weights.bytes),
        "-" if rate is None else _rate_text(rate),
        f"{share:.0%}",
        "#" * filled + "." * (BAR - filled),
    ]


def _rate_text(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}"
