"""A client that notes what it hears, in words that are the same for any two clusters with the same history."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from esp.core.pb import reflection_pb2, rpc_pb2
from esp.core.services.router import METHODS
from tests.harness import Server, connect
from tests.watching import Requests

SECONDS: Final = 30
_REVISIONS: Final = {"revision", "create_revision", "mod_revision", "compact_revision", "rev", "hash_revision"}
_OF_THE_CLUSTER: Final = {
    "cluster_id", "member_id", "raft_term", "raftTerm", "raftIndex", "raftAppliedIndex", "dbSize", "dbSizeInUse",
    "hash", "dbSizeQuota", "storageVersion", "authRevision", "token", "clientURLs", "peerURLs",
}  # fmt: skip
_MEMBERS: Final = {("Member", "ID"), ("Member", "name"), ("StatusResponse", "leader")}
_ANY_ORDER: Final = {"keys", "leases", "users", "roles", "members"}
Heard = list[Any]


class Talk:
    """Calls to one server.

    Attributes:
        heard: the outcomes of the calls that count: an answer, or a code and a text.
        heard_loosely: the same without revisions.
        token: the auth token of all calls; "" for none.
    """

    def __init__(self, server: Server) -> None:
        self.heard: Heard = []
        self.heard_loosely: Heard = []
        self.token = ""
        self._channel = connect(server)
        self._base = 0
        self._base = self.revision()

    def close(self) -> None:
        self._channel.close()

    def ask(self, rpc: str, request: Any) -> Any:
        """A unary call that counts; its answer, or an empty one if it fails."""
        kind = _answer_of(rpc)
        call = self._channel.unary_unary(f"/{rpc}", _bytes, kind.FromString)
        try:
            answer = call(request, timeout=SECONDS, metadata=self._metadata())
        except grpc.RpcError as error:
            self._note(_failure(error))
            return kind()
        self._note(answer)
        return answer

    def quietly(self, rpc: str, request: Any) -> Any:
        """The same for a call that does not count."""
        answer = self.ask(rpc, request)
        self.heard.pop()
        self.heard_loosely.pop()
        return answer

    def revision(self) -> int:
        """The present revision of the owner of `a`."""
        revision: int = self.quietly("etcdserverpb.KV/Range", rpc_pb2.RangeRequest(key=b"a")).header.revision
        return revision

    def alarm(self, **alarm: Any) -> None:
        """Raises an alarm, which counts, and ends it."""
        actions = rpc_pb2.AlarmRequest.ACTIVATE, rpc_pb2.AlarmRequest.DEACTIVATE
        for say, action in zip((self.ask, self.quietly), actions, strict=True):
            say("etcdserverpb.Maintenance/Alarm", rpc_pb2.AlarmRequest(action=action, **alarm))

    def stream(self, rpc: str, request: Any, first: int | None = None) -> None:
        """A call with a stream of answers that counts: its `first` ones, or all, merged to one as clients do."""
        try:
            answers = self._answers(rpc, iter([request]), first)
        except grpc.RpcError as error:
            self._note(_failure(error))
            return
        whole = _answer_of(rpc)()
        for answer in answers:
            whole.MergeFrom(answer)
        self._note(whole)

    def snapshot(self, rpc: str, request: Any) -> None:
        """A snapshot that counts: its form, since the bytes of two clusters differ."""
        try:
            answers = self._answers(rpc, iter([request]))
        except grpc.RpcError as error:
            self._note(_failure(error))
            return
        size = sum(len(answer.blob) for answer in answers)
        self._note({"whole": size % 512 == 32, "left": answers[-1].remaining_bytes})

    def keepalive(self, *leases: int) -> None:
        """Keepalives that count, on one stream, and the answer to each."""
        requests = (rpc_pb2.LeaseKeepAliveRequest(ID=each) for each in leases)
        answers = self._answers("etcdserverpb.Lease/LeaseKeepAlive", requests, len(leases))
        for answer in answers:
            self._note(answer)

    def watch(self, create: Mapping[str, Any], events: int, then: Sequence[bytes] = ()) -> None:
        """A watcher that counts: the reply to the create, so many events, of several shards in any order, and the end.

        When the watcher is there, `then` are put.
        """
        requests = Requests()
        requests.create(**create)
        method = self._channel.stream_stream("/etcdserverpb.Watch/Watch", _bytes, rpc_pb2.WatchResponse.FromString)
        answers = method(iter(requests), timeout=SECONDS, metadata=self._metadata())
        created = next(answers)
        self._note(created)
        for key in then:
            self.quietly("etcdserverpb.KV/Put", rpc_pb2.PutRequest(key=key, value=b"live"))
        got: list[Any] = []
        while len(got) < events:
            answer = next(answers)
            if answer.canceled:
                self._note(["OK", "compacted"] if answer.compact_revision else answer)
                break
            got += answer.events
        else:
            requests.cancel(created.watch_id)
            for each in (*sorted(got, key=lambda event: event.kv.key), next(answers)):
                self._note(each)
        requests.half_close()
        answers.cancel()

    def _answers(self, rpc: str, requests: Iterator[Any], first: int | None = None) -> list[Any]:
        call = self._channel.stream_stream(f"/{rpc}", _bytes, _answer_of(rpc).FromString)
        answers = call(requests, timeout=SECONDS, metadata=self._metadata())
        if first is None:
            return list(answers)
        heard = [next(answers) for _ in range(first)]
        answers.cancel()
        return heard

    def _metadata(self) -> list[tuple[str, str]]:
        return [("token", self.token)] if self.token else []

    def _note(self, outcome: Message | list[str] | dict[str, Any]) -> None:
        is_answer = isinstance(outcome, Message)
        self.heard.append(_plain(outcome, self._base) if is_answer else outcome)
        self.heard_loosely.append(_plain(outcome, None) if is_answer else outcome)


def _plain(message: Message, base: int | None) -> dict[str, Any]:
    """The fields of a message. Revisions count from `base`, and are left out if there is none."""
    plain: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name in _REVISIONS:
            if base is not None:
                plain[field.name] = value - base
        elif field.name in _OF_THE_CLUSTER or (message.DESCRIPTOR.name, field.name) in _MEMBERS:
            plain[field.name] = "set"
        elif field.name == "TTL":
            plain[field.name] = round(value, -1)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and not _is_map(field):
            several = not isinstance(value, Message)
            told = [_plain(each, base) for each in value] if several else _plain(value, base)
            plain[field.name] = sorted(told, key=str) if several and field.name in _ANY_ORDER else told
        else:
            plain[field.name] = sorted(value) if field.name in _ANY_ORDER else str(value)
    return plain


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type.GetOptions().map_entry


def _bytes(request: Message) -> bytes:
    return request.SerializeToString()


def _failure(error: grpc.RpcError) -> list[str]:
    return [error.code().name, error.details()]


def method_of(rpc: str) -> MethodDescriptor:
    """The description of an RPC; that of the newer reflection serves for the older one."""
    if rpc.startswith("grpc.reflection."):
        [service] = reflection_pb2.DESCRIPTOR.services_by_name.values()
        return service.methods_by_name[rpc.partition("/")[2]]
    return METHODS[f"/{rpc}".encode()]


def _answer_of(rpc: str) -> Any:
    return GetMessageClass(method_of(rpc).output_type)
