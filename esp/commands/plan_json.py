"""`esp plan -o json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esp.commands.output import json_key, write_json
from esp.commands.plan_config import move_line
from esp.commands.plan_notes import notes_of
from esp.commands.plan_view import shown
from esp.core.keys import KeyRange
from esp.core.plan import Plan, Weights
from esp.core.shard_map import ShardMap


def write_plan(plan: Plan, endpoints: Mapping[str, Sequence[str]], config: str, can_move: bool) -> None:
    """Writes a plan as JSON; see `plan_view.write_plan`."""
    proposal, found = plan.proposal, plan.survey
    write_json(
        {
            "by": str(plan.wish.measure),
            "depth": plan.wish.depth,
            "separator": plan.wish.separator.decode("utf-8", "replace"),
            "revisions": [{"name": name, "revision": revision} for name, revision in found.revisions.items()],
            **_weights(plan, plan.total),
            "values_read": found.values,
            "watched_seconds": round(found.seconds, 3),
            "writes_seen": found.writes,
            "untold_share": round(found.counted.bound, 6),
            "prefixes": [
                {
                    "prefix": json_key(row.prefix),
                    "depth": row.depth,
                    **_weights(plan, row.weights),
                    "share": _share(plan, row.weights),
                    "resource": row.resource,
                    "locks": row.locks,
                }
                for row in shown(plan)
            ],
            "today": None if plan.today is None else _shards(plan, plan.today, plan.now, endpoints),
            "stays": proposal.stays,
            "shards": _shards(plan, proposal.map, proposal.weights, endpoints),
            "largest": round(plan.largest(proposal.weights), 4),
            "moves": [
                {
                    **_range(move.range),
                    "resource": move.resource,
                    "from": move.source,
                    "to": move.target,
                    **_weights(plan, move.weights),
                    "command": move_line(move),
                }
                for move in proposal.moves
            ],
            "esp_move": can_move,
            "at_keys": [json_key(one) for one in proposal.at_keys],
            "heaviest": None if proposal.heaviest is None else _range(proposal.heaviest),
            "notes": [{"kind": kind, "text": text} for kind, text in notes_of(plan)],
            "config": config,
        }
    )


def _shards(
    plan: Plan, shard_map: ShardMap, weights: Mapping[str, Weights], endpoints: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "endpoints": list(endpoints.get(name, [])),
            "ranges": [_range(one) for one in shard_map.ranges_of(name)],
            **_weights(plan, weights[name]),
            "share": _share(plan, weights[name]),
        }
        for name in shard_map.names
    ]


def _range(key_range: KeyRange) -> dict[str, Any]:
    return {
        "start": json_key(key_range.start),
        "end": None if key_range.end is None else json_key(key_range.end),
    }


def _weights(plan: Plan, weights: Weights) -> dict[str, Any]:
    rate = plan.rate(weights)
    return {
        "keys": weights.keys,
        "bytes": weights.bytes,
        "writes_per_second": None if rate is None else round(rate, 3),
    }


def _share(plan: Plan, weights: Weights) -> float:
    return round(plan.share(weights), 4)
