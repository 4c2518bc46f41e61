"""One etcd cluster as its answers show it: version, revision, limits, and answers that no etcd would give."""

from __future__ import annotations

import logging
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from esp.core import errors
from esp.core.config import Endpoint
from esp.core.pb import rpc_pb2
from esp.core.shard.member import NotAnEtcd, UnfitError
from esp.core.tokens import is_token
from esp.core.wire.status import RpcError

log = logging.getLogger("esp.shard")

HIGHEST_REVISION: Final = 1 << 51
"""The bound on a shard's revision. No etcd gets here by writing; from 2**52 on revisions would look like tokens."""
DEFAULT_TXN_OPS: Final = 128
"""etcd's default of --max-txn-ops."""
NONE_REFUSED: Final = 1 << 62
"""More operations than any transaction has."""
HEADLESS: Final = frozenset((rpc_pb2.AlarmResponse, rpc_pb2.DefragmentResponse))
"""Answers that etcd 3.4 gives without a header (v3rpc/maintenance.go fills it in from 3.5 on)."""

Answer = TypeVar("Answer", bound=Message)


class Cluster:
    """The facts that one etcd cluster has told esp.

    Attributes:
        name: the shard's, as in the config.
        garbled: the number of answers that could not be read.
        repeated: clients' calls that were sent again because they broke.
        joined_reads: clients' reads that went as parts of transactions.
        joined_transactions: these transactions.
        watch_events: events that the shard has sent.
        endpoint: the endpoint in use; None while there is none.
        version: etcd's version, as a member told it last; "" before that.
        storage_version: of the same member's file, since etcd 3.6; else "".
        version_in_use: the version of the member in use; "" until the member has told it.
        db_bytes, db_in_use_bytes: the size of the member's file, and what of it is in use; 0 if not told yet.
        db_quota_bytes: the most that the file may grow to, since etcd 3.6; else 0.
        has_leader: whether a member said last that its cluster has a leader.
        implausible: why esp cannot serve the shard at its revision; "" if it can.
        seen: the highest revision in answers on the connection in use; 0 for none.
        max_txn_ops: the most operations in esp's own transactions for this shard: the default of etcd's --max-txn-ops,
            or less after a refusal.
        allowed_ops: the most operations in a client's transaction that the shard allows, as far as esp knows.
        refused_ops: the fewest entries in one list of a client's transaction with which the shard has refused it for
            their number, on the connection in use; NONE_REFUSED before that.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.garbled = self.repeated = self.joined_reads = self.joined_transactions = self.watch_events = 0
        self.endpoint: Endpoint | None = None
        self.version = ""
        self.storage_version = ""
        self.version_in_use = ""
        self.db_bytes = self.db_in_use_bytes = self.db_quota_bytes = 0
        self.has_leader = True
        self.implausible = ""
        self.seen = 0
        self.max_txn_ops = self.allowed_ops = DEFAULT_TXN_OPS
        self.refused_ops = NONE_REFUSED

    def saw(self, revision: int) -> None:
        """Notes the revision of an answer of the shard."""
        self.seen = max(self.seen, revision)

    def forget_member(self) -> None:
        """Forgets facts that may differ on the next connection.

        Another member may allow fewer operations. And another cluster may answer there, such as a restored one.
        """
        self.seen, self.allowed_ops, self.refused_ops = 0, DEFAULT_TXN_OPS, NONE_REFUSED
        self.version_in_use = ""

    def take_status(self, answer: bytes) -> str:
        """Takes note of a member's answer to Status; the member's version.

        Raises:
            RpcError: `answer` is no StatusResponse.
            UnfitError: the revision is too high to be served, or is an esp's token.
        """
        status = self.parsed(rpc_pb2.StatusResponse, answer)
        self.implausible = ""
        if is_token(status.header.revision):
            raise NotAnEtcd
        if status.header.revision >= HIGHEST_REVISION:
            self.implausible = (
                f"it is at revision {status.header.revision}, and from 2^51 = {HIGHEST_REVISION} on esp cannot tell "
                "revisions from its own tokens; restore it without --bump-revision, or by less"
            )
            raise UnfitError(self.implausible)
        self.has_leader = bool(status.leader)
        if status.version != self.version_in_use:  # joined reads begin anew with another object: another member
            self.version = self.version_in_use = status.version
        self.storage_version = status.storageVersion
        self.db_bytes, self.db_in_use_bytes = status.dbSize, status.dbSizeInUse
        self.db_quota_bytes = status.dbSizeQuota
        self.saw(status.header.revision)
        return status.version

    def parsed(self, answer: type[Answer], message: bytes) -> Answer:
        """The message in a shard's answer, which comes without gRPC prefix.

        Raises:
            RpcError: Internal, with a text that blames the shard: the answer is no such message, or lacks its header.
        """
        try:
            parsed = answer.FromString(message)
        except DecodeError:
            raise self.blamed(f"is no {answer.DESCRIPTOR.name}") from None
        if answer not in HEADLESS and "header" in answer.DESCRIPTOR.fields_by_name and not parsed.HasField("header"):
            raise self.blamed("has no header")
        return parsed

    def blamed(self, fault: str) -> RpcError:
        """The error of a call to which the shard gave an answer that no etcd would give; counted and logged."""
        self.garbled += 1
        level = logging.WARNING if self.garbled.bit_count() == 1 else logging.DEBUG  # the 1st, 2nd, 4th, 8th ...
        log.log(level, "shard %s: an answer of %s %s (%d so far)", self.name, self.endpoint, fault, self.garbled)
        return errors.garbled(self.name, fault).error()
