"""Requests to a JSON gateway, which tests send to etcd and to esp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.integration.json_talk import Body, post


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        raw: the whole request as bytes, if not of method, path, headers and body.
        one_shard: over several shards the answer is another.
        masked: members of the body whose values each server chooses.
        is_alone: not on a connection of many requests.
    """

    name: str
    path: str = ""
    body: Body = None
    method: str = "POST"
    headers: Mapping[str, str] | None = None
    raw: bytes | None = None
    one_shard: bool = False
    masked: tuple[str, ...] = ()
    is_alone: bool = False

    def request(self) -> bytes:
        return self.raw or post(self.path, self.body, self.headers, self.method)


def listed(text: str) -> list[str]:
    """The parts of a text with broken bars between them."""
    return text.split(" ¦ ")
