"""Compact over several shards: each shard at a revision of its own, that of a token or that of a sample.

A plain revision is a revision of one shard. kube-apiserver's compactor takes it from the answer to a transaction on its
key, and writes it into that key before it compacts. So if the key's value is the revision of a Compact, the revision is
one of the shard that owns this key. With `compaction: {revisions_of: KEY}` the config says this of every Compact.
"""

from __future__ import annotations

from collections.abc import Mapping

from esp.core import errors
from esp.core.config import Compaction
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.routing import Routing
from esp.core.samples import Revisions, Samples
from esp.core.services.handlers import CoroutineCall
from esp.core.services.metadata import load_bearing
from esp.core.services.revision import merged_header
from esp.core.shard import COMPACT, RANGE, ask, ask_all
from esp.core.tokens import Position
from esp.core.wire.hpack import encode
from esp.core.wire.status import Code, RpcError, Status

_Outcomes = Mapping[str, rpc_pb2.CompactionResponse | Status]


class Compactions:
    """Compactions over all shards."""

    def __init__(self, routing: Routing, rule: Compaction, samples: Samples | None) -> None:
        """The leading shard of `samples` is the owner of the rule's key. Without such a key `samples` is None."""
        self._routing = routing
        self._rule = rule
        self._samples = samples

    async def at_token(self, call: CoroutineCall, request: rpc_pb2.CompactionRequest, position: Position) -> None:
        """Compacts every shard at its revision of a token, all at once.

        Raises:
            RpcError: a shard's. Other shards may have compacted; to ask again does no harm. "Compacted" only if all
                shards answer that.
        """
        revisions = {name: position.revision(name) for name in self._routing.shards}
        outcomes = await self._compact(call, revisions, request)
        self._answer(call, outcomes, request.revision)

    async def at_plain(self, call: CoroutineCall, request: rpc_pb2.CompactionRequest) -> None:
        """Compacts the leading shard at the request's revision, each other shard at a revision surely reached by then.

        Raises:
            RpcError: the revision may be of another shard, or no sample is older; or as `at_token`.
        """
        samples, number = self._samples, request.revision
        if samples is None or not await self._is_known(call, number):
            raise self._refusal()
        sample = samples.before(number)
        if sample is None or not all(sample.get(name) for name in self._routing.shards):
            raise self._unexplained(number, sample)
        # The leading shard first: if the number is no revision there, no shard has compacted.
        leading = await self._compact(call, {samples.leading: number}, request)
        _raise_first(leading)
        rest = {name: sample[name] for name in self._routing.shards if name != samples.leading}
        outcomes = {**leading, **await self._compact(call, rest, request)}
        own = leading[samples.leading]
        self._answer(call, outcomes, number if isinstance(own, Status) else own.header.revision)

    async def _is_known(self, call: CoroutineCall, number: int) -> bool:
        """Whether a plain revision is known to be one of the leading shard."""
        key = self._rule.key
        if key is None or self._rule.takes_any:
            return key is not None
        asked = rpc_pb2.RangeRequest(key=key)
        metadata = encode(load_bearing(call.stream.head))
        remaining = call.stream.remaining()
        shard = self._routing.owner(key)
        call.asks(shard.name)
        answer = await ask(shard, RANGE, asked, metadata=metadata, seconds=remaining, down=call.stream)
        call.asked(shard.name)
        return any(row.value == str(number).encode() for row in answer.kvs)

    async def _compact(
        self, call: CoroutineCall, revisions: Mapping[str, int], request: rpc_pb2.CompactionRequest
    ) -> _Outcomes:
        return await ask_all(
            [self._routing.shards[name] for name in revisions],
            COMPACT,
            lambda shard: rpc_pb2.CompactionRequest(revision=revisions[shard.name], physical=request.physical),
            metadata=call.metadata,
            seconds=call.stream.remaining(),
            down=call.stream,
            caller=call,
        )

    def _answer(self, call: CoroutineCall, outcomes: _Outcomes, revision: int) -> None:
        _raise_first(outcomes)
        headers = [outcome.header for outcome in outcomes.values() if not isinstance(outcome, Status)]
        if not headers:
            raise errors.COMPACTED.error()
        header = merged_header(headers, self._routing.identity, revision)
        call.stream.respond(rpc_pb2.CompactionResponse(header=header).SerializeToString())

    def _refusal(self) -> RpcError:
        shard_map = self._routing.map
        everything = KeyRange(b"", None)
        names = [segment.shard for segment in shard_map.split(everything)]
        cure = (
            "compact at the revision of an answer over all shards, let each shard compact itself (etcd's "
            "--auto-compaction-retention), or name one in the metadata esp-shard"
        )
        return errors.spans("a compaction", names, shard_map.first_boundary(everything) or b"", cure).error()

    def _unexplained(self, number: int, sample: Revisions | None) -> RpcError:
        assert self._samples is not None
        age = self._samples.age
        if age is None:
            why = "this proxy has not asked the shards for their revisions yet"
        elif sample is None:
            why = f"the first time that this proxy asked the shards for theirs was {age:.0f} s ago, which was later"
        else:
            names = [name for name in self._routing.shards if not sample.get(name)]
            why = f"nothing is known of {', '.join(names)} so far"
        text = f"esp: a compaction at revision {number} has no known place in the other shards: {why}; a later one will"
        return Status(Code.FAILED_PRECONDITION, text).error()


def _raise_first(outcomes: _Outcomes) -> None:
    """Raises the first error among the outcomes. "Already compacted" does not count as an error."""
    for outcome in outcomes.values():
        if isinstance(outcome, Status) and outcome != errors.COMPACTED:
            raise outcome.error()
