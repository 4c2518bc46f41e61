from __future__ import annotations

import pytest

from esp.core import errors
from esp.core.identity import Identity
from esp.core.keys import KeyRange
from esp.core.pb import rpc_pb2
from esp.core.services.kv.translate import translate_txn
from esp.core.services.kv.txn_look import look
from esp.core.services.revision import merged_header, on_shard, position_of, read_at
from esp.core.shard_map import ShardMap
from esp.core.tokens import Position, Tokens, Vector
from esp.core.wire.context import WireContext
from esp.core.wire.limits import Limits
from esp.core.wire.status import RpcError
from tests.core.services.kv.test_txn import steps_taken

MAP = ShardMap.build([("b", KeyRange(b"", None))], ["b"])
Header = rpc_pb2.ResponseHeader
Range = rpc_pb2.RangeRequest
Compare = rpc_pb2.Compare
Op = rpc_pb2.RequestOp
HEADERS = [
    Header(cluster_id=1, member_id=2, revision=9, raft_term=3),
    Header(cluster_id=3, member_id=4, revision=7, raft_term=5),
    Header(cluster_id=5, member_id=6, revision=8, raft_term=4),
]


def vector(*revisions: int) -> Vector:
    return Vector(("a", "b", "c")[: len(revisions)], revisions)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(WireContext(Limits()), instance=1)


def test_the_header_of_several_shards_has_esps_ids_the_token_and_the_highest_term() -> None:
    expected = Header(cluster_id=2**64 - 1, member_id=11, revision=1 << 52, raft_term=5)
    assert merged_header(HEADERS, Identity(2**64 - 1, 11), 1 << 52) == expected


def test_without_a_token_the_lowest_revision_stands_for_all() -> None:
    assert merged_header(HEADERS, Identity(1, 1)).revision == 7


def test_a_number_means_itself_and_a_token_what_it_stands_for(tokens: Tokens) -> None:
    token = tokens.mint(vector(4, 0, 6))
    for number in (-3, 0, 1, 4000, 2**63 - 1):
        assert on_shard(tokens, number, "a") == number
        assert position_of(tokens, number) is None
    assert (on_shard(tokens, token, "a"), on_shard(tokens, token + 1, "c")) == (4, 7)


def translate(tokens: Tokens, request: rpc_pb2.TxnRequest, shard: str) -> rpc_pb2.TxnRequest:
    message = request.SerializeToString()
    found = steps_taken(look(message, 0, MAP))[0]
    written, steps = steps_taken(translate_txn(tokens, message, found, shard))
    assert steps == 1, "so few are one step"
    assert len(written) == len(message)
    return rpc_pb2.TxnRequest.FromString(written)


def test_many_tokens_are_translated_in_steps(tokens: Tokens) -> None:
    asked = Op(request_range=Range(key=b"a", revision=tokens.mint(vector(4, 5))))
    message = rpc_pb2.TxnRequest(success=[asked] * 1_000).SerializeToString()
    _, steps = steps_taken(translate_txn(tokens, message, steps_taken(look(message, 0, MAP))[0], "b"))
    assert steps == 11


def test_what_cannot_be_told_of_a_shard_is_compacted(tokens: Tokens) -> None:
    token = tokens.mint(vector(4, 0, 6))
    for number, shard in ((token, "b"), (token + 1, "b"), (token + 4, "a"), (token, "joined later")):
        with pytest.raises(RpcError) as caught:
            on_shard(tokens, number, shard)
        assert caught.value.status == errors.COMPACTED


def test_behind_a_position_there_is_nothing_to_read() -> None:
    assert read_at(Position(vector(4, 5), 0), "b") == 5
    with pytest.raises(RpcError):
        read_at(Position(vector(4, 5), 1), "b")


def test_behind_a_position_there_is_nothing_to_read_in_a_transaction_either(tokens: Tokens) -> None:
    asked = Op(request_range=Range(key=b"a", revision=tokens.mint(vector(4, 5, 6)) + 1))
    with pytest.raises(RpcError) as caught:
        translate(tokens, rpc_pb2.TxnRequest(success=[asked]), "b")
    assert caught.value.status == errors.COMPACTED


def test_every_revision_in_a_transaction_is_translated_also_in_those_inside_it(tokens: Tokens) -> None:
    token = tokens.mint(vector(4, 5, 6))
    asked = Op(request_range=Range(key=b"a", revision=token, min_mod_revision=token + 1, max_create_revision=9))
    compares = [
        Compare(key=b"a", target=Compare.MOD, result=Compare.LESS, mod_revision=token + 1),
        Compare(key=b"a", target=Compare.CREATE, result=Compare.EQUAL, create_revision=token),
        Compare(key=b"a", target=Compare.VERSION, result=Compare.EQUAL, version=token),
        Compare(key=b"a", target=Compare.LEASE, result=Compare.EQUAL, lease=token),
        Compare(key=b"a", target=Compare.MOD, result=Compare.EQUAL),
    ]
    inner = rpc_pb2.TxnRequest(compare=compares, failure=[asked])
    request = rpc_pb2.TxnRequest(compare=compares, success=[asked, Op(request_txn=inner)])
    request = translate(tokens, request, "b")
    for txn, branch in (
        (request, request.success),
        (request.success[1].request_txn, request.success[1].request_txn.failure),
    ):
        assert branch[0].request_range == Range(key=b"a", revision=5, min_mod_revision=6, max_create_revision=9)
        assert [compare.mod_revision for compare in txn.compare] == [6, 0, 0, 0, 0]
        assert txn.compare[1].create_revision == 5
        assert (txn.compare[2].version, txn.compare[3].lease) == (token, token), "no revisions, whatever they look like"
