"""The content of a request, and the part that goes to the next hop."""

from __future__ import annotations

from hpack import Decoder

from esp.core.wire.divided import COMPOSITE, DividedBlock
from esp.core.wire.hpack import MEMO_BLOCK_BYTES, MEMO_ENTRIES, encode
from esp.core.wire.request import NO_LENGTH, parse_request
from esp.core.wire.request_decoder import RequestDecoder
from esp.core.wire.request_encoder import timeout_field, traced
from tests.core.wire.conversation import ECHO, Fields, call, page


def sent_on(fields: Fields, **options: frozenset[bytes]) -> Fields:
    block = parse_request(fields).encode_metadata(**options)
    return [(bytes(name), bytes(value)) for name, value in Decoder().decode(block, raw=True)]


def test_the_head_of_a_call() -> None:
    head = parse_request(call(ECHO, (b"grpc-encoding", b"gzip"), (b"grpc-timeout", b"1S"), (b"x", b"y")))
    assert (head.method, head.path, head.is_grpc, head.encoding) == (b"POST", ECHO, True, b"gzip")
    assert head.content_length == NO_LENGTH
    assert head.field(b"x") == b"y"
    assert head.field(b"nothing") == b""
    assert head.field(b"grpc-timeout") == b"", "the same head serves calls with other deadlines"


def test_a_get_is_no_call_whatever_it_contains() -> None:
    assert not parse_request(page()).is_grpc
    assert not parse_request([*page(), (b"content-type", b"application/grpc")]).is_grpc


def test_metadata_goes_on_as_it_came() -> None:
    metadata = [
        (b"token", b"secret"),
        (b"x-bin", b"AAEC"),
        (b"x", b"1"),
        (b"user-agent", b"grpc-go/1.80.0"),
        (b"x", b"2"),
        (b"hasleader", b"true"),
        (b"cookie", b"a=b"),
    ]
    assert sent_on(call(ECHO, *metadata))[-7:] == metadata


def test_what_belongs_to_one_hop_stays_there() -> None:
    fields = call(
        ECHO,
        (b"grpc-timeout", b"1S"),
        (b"content-length", b"5"),
        (b"host", b"esp"),
        (b"grpc-accept-encoding", b"gzip"),
        (b"grpc-encoding", b"gzip"),
    )
    assert sent_on(fields) == [(b"grpc-encoding", b"gzip")]
    assert sent_on(fields, dropping=frozenset((b"grpc-encoding",))) == []


def test_a_timeout_for_the_next_hop() -> None:
    assert Decoder().decode(timeout_field(b"1500m"), raw=True) == [(b"grpc-timeout", b"1500m")]


TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_trace_is_of_the_call_and_not_of_the_head() -> None:
    head = parse_request(call(ECHO, (b"traceparent", TRACE), (b"tracestate", b"a=b")))
    assert head.field(b"traceparent") == b"", "the same head serves calls of other traces"
    assert sent_on(call(ECHO, (b"traceparent", TRACE), (b"tracestate", b"a=b"))) == [(b"tracestate", b"a=b")]
    path, block = traced((ECHO, encode([(b"x", b"y")])), TRACE)
    assert path == ECHO
    assert Decoder().decode(block, raw=True) == [(b"x", b"y"), (b"traceparent", TRACE)]
    divided = encode([(b"token", COMPOSITE + b"x")])
    assert isinstance(divided, DividedBlock)
    assert isinstance(traced((ECHO, divided), TRACE)[1], DividedBlock)


def test_what_is_no_trace_goes_on_as_any_field() -> None:
    for values in ([TRACE, TRACE], [TRACE.upper()], [TRACE[:-1]], [b"ff" + TRACE[2:]], [b""]):
        metadata = [(b"traceparent", value) for value in values]
        assert sent_on(call(ECHO, *metadata)) == metadata


def test_a_block_that_differs_in_its_trace_and_deadline_is_not_decoded_again() -> None:
    decoder = RequestDecoder(parse_request, 16_384, 100)
    decoder.settings_acknowledged()
    decoder._decoder.table.maxsize = 0
    for first, second in ((b"grpc-timeout", b"traceparent"), (b"traceparent", b"grpc-timeout")):
        heads = set()
        for number in range(3):
            values = {b"grpc-timeout": b"%dm" % number, b"traceparent": b"00-%032x-%016x-01" % (number, number)}
            block = encode(call(ECHO, (first, values[first]), (b"x", b"y"), (second, values[second]), (b"z", b"")))
            assert (decoder.recall(block) is not None) == (number > 0)
            head, timeout, trace = decoder.decode(block)
            heads.add(head)
            assert (timeout, trace) == (values[b"grpc-timeout"], values[b"traceparent"])
        assert len(heads) == 1


def test_a_client_cannot_make_the_memo_of_traces_grow() -> None:
    decoder = RequestDecoder(parse_request, 16_384, 100)
    decoder.settings_acknowledged()
    decoder._decoder.table.maxsize = 0
    for number in range(3 * MEMO_ENTRIES):
        trace = b"00-%032x-%016x-01" % (number, number)
        deadline = (b"grpc-timeout", b"%dm" % number)
        block = encode(call(ECHO, (b"traceparent", trace), (b"x", b"%d" % number), deadline, (b"y", b"%d" % number)))
        assert decoder.decode(block)[1:] == (deadline[1], trace)
        assert sum(map(len, decoder._fronts.values())) <= MEMO_ENTRIES


def test_a_client_cannot_make_the_memo_of_deadlines_grow() -> None:
    decoder = RequestDecoder(parse_request, 16_384, 100)
    decoder.settings_acknowledged()
    decoder._decoder.table.maxsize = 0
    for number in range(3 * MEMO_ENTRIES):
        front = [(b"x", b"%d" % (number % 7))]
        block = encode(call(ECHO, *front, (b"grpc-timeout", b"%dm" % number), (b"y", b"%d" % number)))
        assert decoder.decode(block)[1] == b"%dm" % number
        assert sum(map(len, decoder._fronts.values())) <= MEMO_ENTRIES
    large = encode(call(ECHO, (b"x", b"y" * MEMO_BLOCK_BYTES), (b"grpc-timeout", b"1S")))
    before = sum(map(len, decoder._fronts.values()))
    decoder.decode(large)
    assert sum(map(len, decoder._fronts.values())) == before
