"""What the Ranges over several shards of a layout have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.services.gate import Gate
from esp.core.services.kv.rows import HEADER_TAG, field
from esp.core.services.revision import merged_header
from esp.core.tokens import Vector

if TYPE_CHECKING:
    from esp.core.services.kv.concat_part import Part
    from esp.core.wire.ended import Observer


class Spans:
    """The shards, and the header that the answers of several of them have together.

    Attributes:
        routing: the shards.
        gate: the places at the shards.
        served: takes the seconds of quick calls; None if nobody wants to know them.
        first_has_all: the last Range with a high limit got all its rows from the shard that was asked first.
    """

    def __init__(self, routing: Routing, gate: Gate, observer: Observer | None = None) -> None:
        self.routing = routing
        self.gate = gate
        self.served = None if observer is None else observer.joined_to("")
        self.first_has_all = False
        # Of the last answer: while nothing is written, the next one has the same header.
        self._told: list[bytes | str] = []
        self._vector = Vector((), ())
        self._revision = 0
        self._field = b""

    def header(self, parts: Sequence[Part], revision: int) -> bytes:
        """The merged header, with tag and length.

        Args:
            parts: the parts, each with its shard's header.
            revision: the token at which they were read; 0 for the token of the revisions in their headers.

        Raises:
            RpcError: a shard's header is none.
        """
        told: list[bytes | str] = []
        for one in parts:
            told += one.name, one.header
        tokens = self.routing.tokens
        if told == self._told:
            number = revision or tokens.mint(self._vector)
            if number == self._revision:
                return self._field
        headers = [_parsed(one) for one in parts]
        reached = {one.name: header.revision for one, header in zip(parts, headers, strict=True)}
        self._vector = self.routing.layout.vector(reached)
        self._told = told
        self._revision = revision or tokens.mint(self._vector)
        header = merged_header(headers, self.routing.identity, self._revision)
        self._field = field(HEADER_TAG, header.SerializeToString())
        return self._field


def _parsed(one: Part) -> rpc_pb2.ResponseHeader:
    try:
        return rpc_pb2.ResponseHeader.FromString(one.header[2:])
    except DecodeError:
        raise one.blamed("is no RangeResponse").error() from None
