"""Every limit of the config with its use and its hits."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from esp.core.metrics.families import Family
from esp.core.metrics.walk import Parts, Walk

WITHOUT_USE: Final = frozenset(
    (
        # On one request, answer or message: nothing of it lasts.
        *("max_header_list_bytes", "max_header_fields", "max_header_block_bytes", "max_continuations"),
        *("max_message_bytes", "max_json_bytes", "max_batched_reads", "max_snapshot_tries", "max_shared_watchers"),
        # Windows, rates, shares.
        *("stream_window_bytes", "connection_window_bytes", "glitch_budget", "glitch_refill_per_second"),
        *("common_share", "costly_share"),
        # Times.
        *("preface_timeout", "header_timeout", "request_timeout", "settings_timeout", "blocked_write_timeout"),
        *("idle_timeout", "connect_timeout", "keepalive_time", "keepalive_timeout", "max_waiting_seconds"),
        *("token_seconds", "sample_seconds", "health_interval", "health_timeout", "worker_timeout"),
        # A ring that is full as soon as it has been used for a while.
        "max_shared_token_bytes",
    )
)
"""Limits of which nothing is in use between two scrapes; they have hits only."""


def uses(parts: Parts, walk: Walk) -> dict[str, float]:
    """What is in use of a limit on something that many share; of a limit on each client or shard the highest use."""
    return {
        "max_connections": parts.context.counters.connections_open,
        "max_concurrent_streams": walk.most_calls,
        "max_call_bytes": parts.context.calls.used,
        "max_buffered_bytes": parts.context.buffers.used,
        "max_output_bytes": walk.most_output,
        "max_output_hard_bytes": walk.most_output,
        "max_watch_buffer_bytes": walk.most_watch_buffer,
        "max_watcher_bytes": parts.watch.watchers.used,
        "max_waiting_requests": max(walk.most_waiting, parts.leases.retry.running),
        "max_parts_per_shard": walk.most_parts,
        "max_keepalive_streams": parts.leases.keepalive.places.used,
        "max_keepalives": parts.leases.keepalive.waiting.used,
        "max_known_leases": len(parts.leases.table),
        "max_lease_repairs": parts.leases.repair.waiting,
        "max_tokens": parts.routing().tokens.most_used,
        "max_resume_positions": len(parts.watch.positions),
        "max_samples": len(parts.samples() or ()),
    }


def families(parts: Parts, walk: Walk) -> list[Family]:
    """The limits, their uses, and how often each was reached since the start."""
    limits = asdict(parts.context.limits)
    hits = parts.context.counters.limits
    return [
        Family(
            "esp_limit",
            "gauge",
            "The value of a limit of the config.",
            ("limit",),
            [((name,), value) for name, value in limits.items()],
            over_processes="max",
        ),
        Family(
            "esp_limit_used",
            "gauge",
            "What is in use of a limit; of a limit on each client or shard, the highest use.",
            ("limit",),
            [((name,), used) for name, used in uses(parts, walk).items()],
            over_processes="max",
        ),
        Family(
            "esp_limit_reached_total",
            "counter",
            "How often a limit was reached.",
            ("limit",),
            [((name,), hits[name]) for name in limits],
        ),
    ]
