"""gRPC server reflection: each request has its answer, and little waits for a client that does not read."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from hpack import Decoder

from esp.core.pb import reflection_pb2
from esp.core.services import reflection
from esp.core.services.reflection import MAX_REQUEST_BYTES, PATHS
from esp.core.wire import frames
from esp.core.wire.status import Code
from tests.core.wire.conversation import body, call, data, headers, meet, message, window

Request = reflection_pb2.ServerReflectionRequest
Response = reflection_pb2.ServerReflectionResponse
SERVICES = [
    "etcdserverpb.Auth",
    "etcdserverpb.Cluster",
    "etcdserverpb.KV",
    "etcdserverpb.Lease",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Watch",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "v3electionpb.Election",
    "v3lockpb.Lock",
]


class World:
    """A client that asks on stream 1."""

    def __init__(self, path: bytes = PATHS[0], window_size: int = 1 << 20) -> None:
        handlers = reflection.handlers()
        self.client, self.server = meet(
            find=lambda head: handlers[head.path],
            client_settings={frames.SETTINGS_INITIAL_WINDOW_SIZE: window_size},
        )
        self.client.sends(window(0, 1 << 24), headers(1, call(path)))
        self.heard = b""
        self.ending: dict[bytes, bytes] = {}

    def asks(self, *requests: Request | bytes, end: bool = False) -> list[Response]:
        said = b"".join(message(each if isinstance(each, bytes) else each.SerializeToString()) for each in requests)
        pieces = [said[start : start + 16_384] for start in range(0, len(said), 16_384)] or [b""]
        for number, piece in enumerate(pieces, 1):
            self.client.sends(data(1, piece, end=end and number == len(pieces)))
        return self.hears()

    def hears(self) -> list[Response]:
        self.server.flush()
        said = self.server.frames()
        self.heard += body(said, 1)
        for frame in said:
            if frame.stream == 1 and frame.kind == frames.HEADERS and frame.flags & 1:
                self.ending = status_of(frame.payload)
        answers = []
        while len(self.heard) >= 5 and len(self.heard) >= (end := 5 + int.from_bytes(self.heard[1:5], "big")):
            answers.append(Response.FromString(self.heard[5:end]))
            self.heard = self.heard[end:]
        return answers


def status_of(block: bytes) -> dict[bytes, bytes]:
    return {bytes(name): bytes(value) for name, value in Decoder().decode(block, raw=True)}


def files(answer: Response) -> list[FileDescriptorProto]:
    return [FileDescriptorProto.FromString(each) for each in answer.file_descriptor_response.file_descriptor_proto]


@pytest.mark.parametrize("path", PATHS)
def test_the_services_are_listed_in_both_versions(path: bytes) -> None:
    world = World(path)
    request = Request(host="h", list_services="*")
    [answer] = world.asks(request)
    assert [each.name for each in answer.list_services_response.service] == SERVICES
    assert (answer.valid_host, answer.original_request) == ("h", request)
    assert world.asks(end=True) == []
    assert world.ending[b"grpc-status"] == b"0"


@pytest.mark.parametrize(
    "symbol",
    [
        *SERVICES,
        "etcdserverpb.KV.Range",
        "etcdserverpb.RangeRequest",
        "mvccpb.KeyValue",
        "etcdserverpb.RangeRequest.SortOrder",
    ],
)
def test_the_files_of_a_symbol_make_a_whole_schema(symbol: str) -> None:
    [answer] = World().asks(Request(file_containing_symbol=symbol))
    pool = DescriptorPool()
    for file in reversed(files(answer)):
        pool.Add(file)
    if symbol == "etcdserverpb.KV.Range":  # a pool does not look for methods
        symbol = "etcdserverpb.KV"
    assert pool.FindFileContainingSymbol(symbol).name == files(answer)[0].name


def test_a_file_that_the_client_has_is_sent_again_only_when_asked_for() -> None:
    world = World()
    [first, second] = world.asks(
        Request(file_containing_symbol="etcdserverpb.KV"), Request(file_containing_symbol="v3lockpb.Lock")
    )
    assert [file.name.rpartition("/")[2] for file in files(first)] == ["rpc.proto", "kv.proto", "auth.proto"]
    assert [file.name.rpartition("/")[2] for file in files(second)] == ["v3lock.proto"]
    [third] = world.asks(Request(file_by_filename=files(first)[1].name))
    assert files(third) == [files(first)[1]]


@pytest.mark.parametrize(
    "request_",
    [
        Request(file_by_filename="nothing.proto"),
        Request(file_containing_symbol="etcdserverpb.Nothing"),
        Request(file_containing_symbol=""),
        Request(file_containing_symbol="google.protobuf.FileDescriptorProto"),
        Request(all_extension_numbers_of_type="etcdserverpb.Nothing"),
        Request(file_containing_extension=reflection_pb2.ExtensionRequest(containing_type="x", extension_number=1)),
    ],
)
def test_what_is_not_there_is_said_in_the_answer_and_the_call_goes_on(request_: Request) -> None:
    world = World()
    answers = world.asks(request_, Request(list_services=""))
    assert [answer.error_response.error_code for answer in answers] == [Code.NOT_FOUND, 0]
    assert answers[0].error_response.error_message == "proto: not found"


def test_a_type_has_no_extensions() -> None:
    [answer] = World().asks(Request(all_extension_numbers_of_type="etcdserverpb.RangeRequest"))
    assert answer.all_extension_numbers_response.base_type_name == "etcdserverpb.RangeRequest"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (Request(), Code.INVALID_ARGUMENT),
        (b"\xff", Code.INTERNAL),
        (bytes(MAX_REQUEST_BYTES + 1), Code.RESOURCE_EXHAUSTED),
    ],
)
def test_nonsense_ends_the_call(said: Request | bytes, code: Code) -> None:
    world = World()
    assert world.asks(said) == []
    assert world.ending[b"grpc-status"] == b"%d" % code


def test_half_a_request_at_the_end_is_an_error() -> None:
    world = World()
    world.client.sends(data(1, b"\0\0\0\0\x09abc", end=True))
    world.hears()
    assert world.ending[b"grpc-status"] == b"%d" % Code.INTERNAL


def test_a_client_that_does_not_read_has_one_answer_waiting_and_a_windowful_of_requests() -> None:
    world = World(window_size=0)
    request = Request(file_containing_symbol="etcdserverpb.KV")
    many = 60_000 // len(message(request.SerializeToString()))
    assert world.asks(*[request] * many) == []
    held = world.server.context.buffers.used
    assert held < 60_000 + 70_000
    [one] = World().asks(request)
    answers = []
    for _ in range(many + 1):
        world.client.sends(window(1, len(one.SerializeToString()) + 5), window(0, 100_000))
        answers += world.hears()
    assert len(answers) == many
    assert len(files(answers[0])) == 3
    assert world.server.context.buffers.used == 0


def test_a_client_that_goes_leaves_nothing() -> None:
    world = World(window_size=0)
    world.asks(*[Request(list_services="")] * 100)
    world.server.connection.lost("gone")
    assert world.server.context.buffers.used == 0
