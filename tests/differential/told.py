"""Watchers, and the messages of a Watch call that tell them something."""

from __future__ import annotations

from dataclasses import dataclass

from esp.core.keys import KeyRange
from esp.core.pb import kv_pb2, rpc_pb2
from tests.differential import programs as p
from tests.differential.clusters import Talk

Response = rpc_pb2.WatchResponse
Event = kv_pb2.Event
NO_ID = -1
"""The watch id of progress that is about all watchers."""


@dataclass
class Watcher:
    """A watcher that both sides have.

    Attributes:
        step: the create.
        keys: the watched keys.
        shards: the owners of these keys.
        begins: for each shard, the first revision whose events esp sends.
        begins_alone: the first revision whose events the single etcd sends.
        now: the single etcd's revision at the create.
        is_live: the watcher does not begin in the past.
        ended: the watcher was canceled as compacted.
        ignored: the events of the single etcd are not compared, because esp has ended the watcher.
        last_token: the token of the last message with events that was checked.
        checked: the messages with events that were checked.
        progress: the revision of esp's last progress; 0 without one.
    """

    id: int
    step: p.Watch
    keys: KeyRange
    shards: set[int]
    begins: dict[int, int]
    begins_alone: int
    now: int
    is_live: bool
    ended: bool = False
    ignored: bool = False
    last_token: int = 0
    checked: int = 0
    progress: int = 0


def is_reply(message: Response) -> bool:
    """Whether the message is the reply to a create or a cancel."""
    return message.created or (message.canceled and not is_end(message))


def is_end(message: Response) -> bool:
    """Whether the message is the unasked end of a watcher: compacted."""
    return message.canceled and not message.created and message.compact_revision != 0


def events_of(talk: Talk, watch_id: int) -> list[Response]:
    """The messages with events for the last watcher with this id."""
    kept: list[Response] = []
    for message in talk.messages():
        if message.watch_id == watch_id:
            if message.created and not message.canceled:
                kept = []
            elif message.events:
                kept.append(message)
    return kept


def name(event: Event) -> tuple[int, bytes, int]:
    return event.kv.mod_revision, event.kv.key, event.type


def progress_of(talk: Talk, watch_id: int) -> list[Response]:
    """The progress under this id."""
    plain = [message for message in talk.messages() if not (message.created or message.canceled or message.events)]
    return [message for message in plain if message.watch_id == watch_id]
