"""Every key of every RPC gets the prefix in a request and loses it in an answer, in whatever pieces it comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from esp.core.namespace import Namespace
from esp.core.pb import kv_pb2, rpc_pb2, v3election_pb2, v3lock_pb2
from esp.core.services.namespace import HOLDS_ALL, KEYS, NO_KEYS
from esp.core.services.namespace.answer import AnswerReader, Remembered, WatchReader
from esp.core.services.namespace.fields import holds_keys
from esp.core.services.namespace.forms import Forms, Malformed, Outside
from esp.core.services.namespace.rewrite import MOST_DEPTH, Rewriter, rewritten, steps
from esp.core.services.router import METHODS
from esp.core.varint import varint
from esp.core.wire.message import PREFIX_SIZE, prefix
from tests.examples import tries

NAMESPACE = Namespace.of(b"team/")
REQUESTS = Forms.of_requests(NAMESPACE)
ANSWERS = Forms.of_answers(NAMESPACE)
TRANSLATED = [method for method in METHODS.values() if holds_keys(method.input_type) or holds_keys(method.output_type)]


def reachable(message: Descriptor) -> Iterator[FieldDescriptor]:
    """All fields of the message and of those inside it."""
    seen, waiting = {message.full_name}, [message]
    while waiting:
        for field in waiting.pop().fields:
            yield field
            inner = field.message_type
            if inner is not None and inner.full_name not in seen:
                seen.add(inner.full_name)
                waiting.append(inner)


class TestTheTables:
    @pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.full_name)
    def test_each_field_of_bytes_is_a_key_or_is_none_for_a_reason(self, method: MethodDescriptor) -> None:
        for message in (method.input_type, method.output_type):
            for field in reachable(message):
                if field.type == FieldDescriptor.TYPE_BYTES:
                    assert (field.full_name in KEYS) != bool(NO_KEYS.get(field.full_name)), field.full_name

    def test_no_entry_is_left_over(self) -> None:
        fields = {
            field.full_name
            for method in METHODS.values()
            for message in (method.input_type, method.output_type)
            for field in reachable(message)
        }
        known = {name for name in NO_KEYS if not name.startswith("authpb.User")}
        assert set(KEYS) <= fields
        assert known <= fields
        assert METHODS.keys() >= HOLDS_ALL

    def test_text_never_holds_keys(self) -> None:
        """Names of users, members and versions; a reason why a watch ended, which may name boundaries of shards."""
        texts = {
            field.name
            for method in TRANSLATED
            for message in (method.input_type, method.output_type)
            for field in reachable(message)
            if field.type == FieldDescriptor.TYPE_STRING
        }
        assert texts == {"cancel_reason"}


# Messages of any content.

CONTENT = st.sampled_from([b"", b"\0", b"a", b"team/", b"\xff", b"x" * 200])
NUMBERS = st.sampled_from([0, 1, 2**52, 127, 128])


def messages(message: Descriptor, depth: int = 0, *, real: bool = False) -> st.SearchStrategy[Message]:
    """Messages with any of their fields; with `real` every key is one of the namespace."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Message:
        made = GetMessageClass(message)()
        for field in message.fields:
            if draw(st.integers(0, 3)) == 0 or (depth > 3 and field.message_type is not None):
                continue
            value: st.SearchStrategy[Any]
            if field.message_type is not None:
                value = messages(field.message_type, depth + 1, real=real)
            elif field.type == FieldDescriptor.TYPE_BYTES:
                is_key = real and is_one(field)
                value = CONTENT.map(lambda key: b"team/" + (key or b"k")) if is_key else CONTENT
            elif field.type == FieldDescriptor.TYPE_STRING:
                value = st.just("text")
            elif field.type == FieldDescriptor.TYPE_BOOL:
                value = st.booleans()
            elif field.enum_type is not None:
                value = st.sampled_from([value.number for value in field.enum_type.values])
            else:
                value = NUMBERS
            if field.is_repeated:
                getattr(made, field.name).extend(draw(st.lists(value, max_size=3)))
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(draw(value))
            else:
                setattr(made, field.name, draw(value))
        return made

    return drawn()


def is_one(field: FieldDescriptor) -> bool:
    """By the names of the fields, not by the table under test."""
    return field.type == FieldDescriptor.TYPE_BYTES and field.name in ("key", "keys", "name", "range_end")


def with_prefix(message: Message) -> None:
    """What becomes of a request, made field by field."""
    is_watch = message.DESCRIPTOR.name == "WatchCreateRequest"
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            for inner in inside(message, field):
                with_prefix(inner)
        elif is_one(field):
            value = getattr(message, field.name)
            if field.name == "range_end" and value == b"\0":
                setattr(message, field.name, b"team0")
            elif value or field.name == "name":
                setattr(message, field.name, b"team/" + value)
            elif field.name == "key" and is_watch:
                message.key = b"team/\0"  # type: ignore[attr-defined]


def without_prefix(message: Message) -> None:
    """What becomes of an answer with keys of the namespace."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            for inner in inside(message, field):
                without_prefix(inner)
        elif is_one(field):
            if field.is_repeated:
                keys = [key[5:] for key in getattr(message, field.name)]
                message.ClearField(field.name)
                getattr(message, field.name).extend(keys)
            else:
                setattr(message, field.name, getattr(message, field.name)[5:])


def inside(message: Message, field: FieldDescriptor) -> list[Message]:
    if field.is_repeated:
        return list(getattr(message, field.name))
    return [getattr(message, field.name)] if message.HasField(field.name) else []


def in_pieces(form: Any, content: bytes, cuts: list[int]) -> bytes:
    rewriter = Rewriter(form, len(content))
    places = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        rewriter.take(content[start:end])
    assert rewriter.is_whole
    assert rewriter.size == sum(map(len, rewriter.pieces))
    return b"".join(rewriter.pieces)


CUTS = st.lists(st.integers(0, 2000), max_size=6)


@pytest.mark.parametrize("method", TRANSLATED, ids=lambda method: method.full_name)
class TestAnyMessage:
    def test_a_request_gets_the_prefix(self, method: MethodDescriptor) -> None:
        form, parse = REQUESTS.form(method.input_type), GetMessageClass(method.input_type).FromString

        @settings(max_examples=tries(16), deadline=None)
        @given(messages(method.input_type), CUTS)
        def check(request: Message, cuts: list[int]) -> None:
            content = request.SerializeToString()
            new = rewritten(form, content)
            assert in_pieces(form, content, cuts) == new[PREFIX_SIZE:]
            assert [*steps(form, content, 0)][-1] == new
            with_prefix(request)
            assert parse(new[PREFIX_SIZE:]) == request
            assert new == prefix(new[PREFIX_SIZE:])

        check()

    def test_an_answer_loses_it(self, method: MethodDescriptor) -> None:
        form, parse = ANSWERS.form(method.output_type), GetMessageClass(method.output_type).FromString

        @settings(max_examples=tries(16), deadline=None)
        @given(messages(method.output_type, real=True), CUTS)
        def check(answer: Message, cuts: list[int]) -> None:
            content = answer.SerializeToString()
            new = rewritten(form, content)
            assert in_pieces(form, content, cuts) == new[PREFIX_SIZE:]
            without_prefix(answer)
            assert parse(new[PREFIX_SIZE:]) == answer
            assert new[PREFIX_SIZE:] == answer.SerializeToString() or b"team/" in content  # a name that is left empty

        check()

    def test_a_key_of_others_is_in_no_answer(self, method: MethodDescriptor) -> None:
        """Whatever a shard sends: the answer is refused, or the key is left out."""
        form, parse = ANSWERS.form(method.output_type), GetMessageClass(method.output_type).FromString

        @settings(max_examples=tries(16), deadline=None)
        @given(messages(method.output_type, real=True))
        def check(answer: Message) -> None:
            keys = [
                (inner, field)
                for inner in all_of(answer)
                for field in inner.DESCRIPTOR.fields
                if is_one(field) and getattr(inner, field.name)
            ]
            if not keys:
                return
            inner, field = keys[0]
            if field.is_repeated:
                getattr(inner, field.name).append(b"theirs")
            else:
                setattr(inner, field.name, b"theirs")
            try:
                new = rewritten(form, answer.SerializeToString())
            except Outside:
                return
            assert b"theirs" not in new
            parse(new[PREFIX_SIZE:])

        check()

    def test_garbage_is_found_to_be_some(self, method: MethodDescriptor) -> None:
        """Nothing else is raised, and what is not refused means the same to protobuf as before."""

        @settings(max_examples=tries(30), deadline=None)
        @given(st.data())
        def check(drawn: st.DataObject) -> None:
            content = garbled(drawn, messages(method.input_type))
            answer = garbled(drawn, messages(method.output_type, real=True))
            with suppress(Malformed, Outside):
                rewritten(ANSWERS.form(method.output_type), answer)
            form, kind = REQUESTS.form(method.input_type), GetMessageClass(method.input_type)
            try:
                new = rewritten(form, content)
            except Malformed:
                return
            try:
                request = kind.FromString(content)
            except DecodeError:
                return  # in the bytes that are copied; whoever gets them finds out
            request.DiscardUnknownFields()
            with_prefix(request)
            parsed = kind.FromString(new[PREFIX_SIZE:])
            parsed.DiscardUnknownFields()
            assert parsed == request

        check()


def garbled(drawn: st.DataObject, sound: st.SearchStrategy[Message]) -> bytes:
    content = bytearray(drawn.draw(sound).SerializeToString())
    for _ in range(drawn.draw(st.integers(0, 3))):
        if content:
            content[drawn.draw(st.integers(0, len(content) - 1))] = drawn.draw(st.integers(0, 255))
    return bytes(content)


def all_of(message: Message) -> Iterator[Message]:
    yield message
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            for inner in inside(message, field):
                yield from all_of(inner)


class TestRequests:
    @pytest.mark.parametrize(
        ("asked", "sent"),
        [
            ({"key": b"a"}, {"key": b"team/a"}),
            ({"key": b"a", "range_end": b"b"}, {"key": b"team/a", "range_end": b"team/b"}),
            ({"key": b"a", "range_end": b"\0"}, {"key": b"team/a", "range_end": b"team0"}),
            ({"key": b"\0", "range_end": b"\0"}, {"key": b"team/\0", "range_end": b"team0"}),
            ({"key": b"b", "range_end": b"a"}, {"key": b"team/b", "range_end": b"team/a"}),
            ({"key": b"a", "range_end": b"\0\0"}, {"key": b"team/a", "range_end": b"team/\0\0"}),
            ({"range_end": b"\0"}, {"range_end": b"team0"}),
            ({}, {}),
        ],
    )
    def test_ranges(self, asked: dict[str, bytes], sent: dict[str, bytes]) -> None:
        """An empty key stays empty: etcd refuses it."""
        new = rewritten(
            REQUESTS.form(rpc_pb2.RangeRequest.DESCRIPTOR), rpc_pb2.RangeRequest(**asked).SerializeToString()
        )
        assert rpc_pb2.RangeRequest.FromString(new[PREFIX_SIZE:]) == rpc_pb2.RangeRequest(**sent)

    @pytest.mark.parametrize("watched", [{}, {"key": b"\0"}])
    def test_a_watch_without_a_key_is_one_of_the_first_key(self, watched: dict[str, bytes]) -> None:
        request = rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(**watched))
        new = rewritten(REQUESTS.form(rpc_pb2.WatchRequest.DESCRIPTOR), request.SerializeToString())
        assert rpc_pb2.WatchRequest.FromString(new[PREFIX_SIZE:]).create_request.key == b"team/\0"

    def test_a_lock_without_a_name_is_in_the_namespace(self) -> None:
        new = rewritten(REQUESTS.form(v3lock_pb2.LockRequest.DESCRIPTOR), b"")
        assert v3lock_pb2.LockRequest.FromString(new[PREFIX_SIZE:]).name == b"team/"

    def test_a_leader_without_a_name_is_in_the_namespace(self) -> None:
        request = v3election_pb2.ProclaimRequest(leader=v3election_pb2.LeaderKey(key=b"k"))
        form = REQUESTS.form(v3election_pb2.ProclaimRequest.DESCRIPTOR)
        new = v3election_pb2.ProclaimRequest.FromString(rewritten(form, request.SerializeToString())[PREFIX_SIZE:])
        assert (new.leader.name, new.leader.key) == (b"team/", b"team/k")

    def test_messages_inside_each_other_have_a_bound(self) -> None:
        body = b""
        for _ in range(MOST_DEPTH + 1):
            body = b"\x12" + varint(len(body)) + body
            body = b"\x22" + varint(len(body)) + body
        with pytest.raises(Malformed):
            rewritten(REQUESTS.form(rpc_pb2.TxnRequest.DESCRIPTOR), b"\x12" + varint(len(body)) + body)

    @pytest.mark.parametrize(
        "body",
        [b"\x0a", b"\x0a\x05a", b"\x0b", b"\x0c", b"\x00\x00", b"\x12\x03\x0a\x05a", b"\x18" + b"\xff" * 10 + b"\x01"],
    )
    def test_what_is_cut_short_or_no_message(self, body: bytes) -> None:
        with pytest.raises(Malformed):
            rewritten(REQUESTS.form(rpc_pb2.TxnRequest.DESCRIPTOR), body)

    def test_fields_of_a_later_etcd_are_left_out(self) -> None:
        """They may hold keys; etcd ignores those that it does not know."""
        body = rpc_pb2.PutRequest(key=b"k", value=b"v").SerializeToString() + b"\xfa\x01\x03key"
        new = rewritten(REQUESTS.form(rpc_pb2.PutRequest.DESCRIPTOR), body)
        assert new[PREFIX_SIZE:] == rpc_pb2.PutRequest(key=b"team/k", value=b"v").SerializeToString()


class TestAnswers:
    def test_fields_of_a_later_etcd_are_left_out(self) -> None:
        row = kv_pb2.KeyValue(key=b"team/k", value=b"v", lease=3)
        plain = rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"k", value=b"v", lease=3)]).SerializeToString()
        for extra in (b"\xfa\x01\x06theirs", b"\x3a\x06theirs", b"\x0a\x06team/k"):
            content = row.SerializeToString() + extra
            new = rewritten(ANSWERS.form(rpc_pb2.RangeResponse.DESCRIPTOR), b"\x12" + varint(len(content)) + content)
            assert new[PREFIX_SIZE:] == plain

    def test_keys_of_a_lease_that_are_of_others_are_left_out(self) -> None:
        answer = rpc_pb2.LeaseTimeToLiveResponse(ID=5, keys=[b"team/a", b"theirs", b"team/", b"team", b"team/b"])
        new = rewritten(ANSWERS.form(answer.DESCRIPTOR), answer.SerializeToString())
        assert rpc_pb2.LeaseTimeToLiveResponse.FromString(new[PREFIX_SIZE:]) == rpc_pb2.LeaseTimeToLiveResponse(
            ID=5, keys=[b"a", b"b"]
        )

    def test_the_key_that_is_the_prefix_is_in_no_answer(self) -> None:
        answer = rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(key=b"team/", value=b"v")])
        with pytest.raises(Outside):
            rewritten(ANSWERS.form(answer.DESCRIPTOR), answer.SerializeToString())

    def test_what_is_held_grows_with_the_answer_and_not_with_its_rows(self) -> None:
        rows = [kv_pb2.KeyValue(key=b"team/%d" % number) for number in range(3000)]
        content = rpc_pb2.RangeResponse(kvs=rows).SerializeToString()
        rewriter = Rewriter(ANSWERS.form(rpc_pb2.RangeResponse.DESCRIPTOR), len(content))
        for start in range(0, len(content), 1000):
            rewriter.take(content[start : start + 1000])
            assert len(rewriter.pieces) <= start // 1000 + 1
        assert len(content) < rewriter.held < 1.2 * len(content)


class TestReader:
    FORM = ANSWERS.form(rpc_pb2.WatchResponse.DESCRIPTOR)

    @staticmethod
    def told(watch_id: int, *keys: bytes, size: int = 1) -> rpc_pb2.WatchResponse:
        header = rpc_pb2.ResponseHeader(revision=7)
        events = [kv_pb2.Event(kv=kv_pb2.KeyValue(key=key, value=b"v" * size)) for key in keys]
        return rpc_pb2.WatchResponse(header=header, watch_id=watch_id, events=events)

    @settings(max_examples=tries(60), deadline=None)
    @given(st.lists(st.integers(0, 400), max_size=4), CUTS)
    def test_messages_come_in_any_pieces(self, sizes: list[int], cuts: list[int]) -> None:
        before = b"".join(
            prefix(self.told(n, b"team/a", b"team/b", size=size).SerializeToString()) for n, size in enumerate(sizes)
        )
        after = b"".join(
            prefix(self.told(n, b"a", b"b", size=size).SerializeToString()) for n, size in enumerate(sizes)
        )
        places = sorted({0, len(before), *(cut % (len(before) + 1) for cut in cuts)})
        for reader in (AnswerReader(self.FORM), WatchReader(self.FORM, Remembered())):
            got = b""
            for start, end in pairwise(places):
                got += b"".join(reader.feed(before[start:end]))
            assert got == after
            assert reader.is_between
            assert not reader.held

    def test_events_for_many_watchers_are_rewritten_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        remembered, done = Remembered(), []
        monkeypatch.setattr(
            "esp.core.services.namespace.answer.rewritten", lambda *args: done.append(1) or rewritten(*args)
        )
        for watch_id in (0, 1, 300):
            reader = WatchReader(self.FORM, remembered)
            [new] = reader.feed(prefix(self.told(watch_id, b"team/a").SerializeToString()))
            assert new == prefix(self.told(watch_id, b"a").SerializeToString())
        assert len(done) == 1
        WatchReader(self.FORM, remembered).feed(prefix(self.told(0, b"team/b").SerializeToString()))
        assert len(done) == 2

    def test_a_message_that_is_compressed_is_none(self) -> None:
        with pytest.raises(Malformed):
            AnswerReader(self.FORM).feed(b"\1\0\0\0\0")
