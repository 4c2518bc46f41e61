"""Lines of single calls: which calls have one, and what it says."""

from __future__ import annotations

import json
import logging
import math
import struct
from collections.abc import Iterator

import pytest

from esp.core.config import LogConfig
from esp.core.log import calls
from esp.core.log.calls import LASTING, CallLog
from esp.core.log.floods import AT_ONCE, Floods, of_process
from esp.core.log.lines import AsJson, CallLine, ForFiles, ForPeople, Lines
from esp.core.pb import rpc_pb2
from esp.core.services import reflection
from esp.core.services.router import METHODS, WAITING
from esp.core.wire.ended import EndedCall
from esp.core.wire.status import Code

PUT = b"/etcdserverpb.KV/Put"
_DATA = rpc_pb2.PutRequest(key=b"/registry/\xff" + b"k" * 80, value=b"SECRET").SerializeToString()
MESSAGE = b"\0" + struct.pack(">I", len(_DATA)) + _DATA


def call(
    path: bytes = PUT,
    *,
    took: float = 0.5,
    inside: float | None = None,
    code: int = Code.OK,
    server: str = "",
    message: bytes = b"",
    several: tuple[str, ...] = (),
    waited: tuple[float, ...] = (),
    upstream: float = 0.0,
) -> EndedCall:
    sent = 0.0 if inside is None else 100.0 + inside
    at = 100.0 + took
    return EndedCall(path, "10.0.0.1:5000", code, 100.0, at, server, sent, message, b"", several, waited, upstream)


class Told:
    """The log of a process, in both forms, without the time; no loop runs, so nothing is counted."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.objects: list[str] = []
        self._both = [self._handler(ForFiles(), self.texts, " "), self._handler(AsJson(), self.objects, ",")]

    def _handler(self, formatter: Lines, lines: list[str], behind_time: str) -> Floods:
        def write(line: str, *, soon: bool = False) -> None:
            lines.append(line.split(behind_time, 1)[1])

        handler = Floods(write, lambda seconds, callback: False)
        handler.setFormatter(formatter)
        return handler

    def __enter__(self) -> Told:
        for handler in self._both:
            logging.getLogger().addHandler(handler)
        return self

    def __exit__(self, *exc: object) -> None:
        for handler in self._both:
            logging.getLogger().removeHandler(handler)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    logger = logging.getLogger("esp")
    level = logger.level
    logger.setLevel(logging.INFO)
    with Told() as told:
        # The access log goes to the one log that a process has; here it goes to both.
        monkeypatch.setattr(calls, "of_process", lambda: Both(told._both))
        yield told
    logger.setLevel(level)


class Both:
    def __init__(self, logs: list[Floods]) -> None:
        self.logs = logs

    def tell_call(self, line: CallLine) -> None:
        for log in self.logs:
            log.tell_call(line)


def test_a_slow_call_is_told_with_key_shard_and_where_its_time_went(told: Told) -> None:
    log = CallLog(LogConfig(slow_seconds=1.0))
    assert log.least == 1.0
    log.ended(call(took=1.25, inside=0.01, server="b", message=MESSAGE))
    key = r"/registry/\xff" + "k" * 53 + "..."
    assert told.texts == [
        f'WARNING slow: /etcdserverpb.KV/Put "{key}" of 10.0.0.1:5000 took 1.250 s, '
        "1.240 s at shard b, 0.010 s in esp before: OK"
    ]
    escaped = key.replace("\\", "\\\\")
    assert told.objects[0].endswith(
        '"peer":"10.0.0.1:5000","method":"/etcdserverpb.KV/Put","code":"OK","seconds":1.25,"shard":"b",'
        f'"shard_seconds":1.24,"key":"{escaped}"}}'
    )


def test_a_slow_call_without_one_shard_or_without_its_message_is_told_too(told: Told) -> None:
    log = CallLog(LogConfig(slow_seconds=1.0))
    log.ended(call(took=2, message=MESSAGE[:18]))
    log.ended(call(took=2, server="b", code=Code.DEADLINE_EXCEEDED))
    log.ended(call(b"/etcdserverpb.Maintenance/Defragment", took=2, code=99))
    log.ended(call(took=2, inside=0.5, several=("a", "b"), message=MESSAGE[:18]))
    log.ended(call(took=2, several=tuple("abcdefghij")))
    assert [text.replace("/etcdserverpb.", "").replace(" of 10.0.0.1:5000", "") for text in told.texts] == [
        'WARNING slow: KV/Put "/registry/\\xff..." took 2.000 s, in esp: OK',
        "WARNING slow: KV/Put took 2.000 s, waiting for shard b: DeadlineExceeded",
        "WARNING slow: Maintenance/Defragment took 2.000 s, in esp: Code(99)",
        'WARNING slow: KV/Put "/registry/\\xff..." took 2.000 s, 1.500 s at shards a, b, 0.500 s in esp before: OK',
        "WARNING slow: KV/Put took 2.000 s, waiting for shards a, b, c, d, e and 5 more: OK",
    ]
    assert '"shard_seconds":1.5,' in told.objects[3]
    assert '"shards":["a","b","c","d","e"]' in told.objects[4]


def test_a_slow_call_over_several_shards_is_told_with_the_time_at_shards_the_slowest_of_them_and_the_time_in_esp(
    told: Told,
) -> None:
    log = CallLog(LogConfig(slow_seconds=1.0))
    log.ended(call(took=2, inside=0.1, several=("a", "b", "c"), waited=(0.25, 1.5, 0.5), upstream=1.75))
    log.ended(call(took=2, inside=0.1, several=tuple("abcdefghij"), waited=(0.1,) * 9 + (1.5,), upstream=1.5))
    log.ended(call(took=2, inside=0.1, several=("a",), waited=(1.5,), upstream=1.5))
    assert [text.replace("/etcdserverpb.", "").replace(" of 10.0.0.1:5000", "") for text in told.texts] == [
        "WARNING slow: KV/Put took 2.000 s, 1.750 s at shards a, b, c (most at b: 1.500 s), 0.250 s in esp: OK",
        "WARNING slow: KV/Put took 2.000 s, "
        "1.500 s at shards a, b, c, d, e and 5 more (most at j: 1.500 s), 0.500 s in esp: OK",
        "WARNING slow: KV/Put took 2.000 s, 1.500 s at shard a, 0.500 s in esp: OK",
    ]
    assert '"shard_seconds":1.75,"shards":["a","b","c"],"slowest_shard":"b","slowest_seconds":1.5}' in told.objects[0]


def test_quick_calls_and_calls_that_last_are_not_slow(told: Told) -> None:
    log = CallLog(LogConfig(slow_seconds=1.0))
    log.ended(call(took=0.999))
    for path in LASTING:
        log.ended(call(path, took=1000))
    assert not told.texts


def test_every_rpc_that_streams_to_the_client_or_waits_may_last() -> None:
    streaming = {path for path, method in METHODS.items() if method.server_streaming}
    ends_by_itself = {b"/etcdserverpb.KV/RangeStream"}
    assert (streaming | WAITING | set(reflection.PATHS)) - ends_by_itself == LASTING


def test_slow_calls_can_be_left_out(told: Told) -> None:
    log = CallLog(LogConfig(slow_seconds=None))
    assert log.least == math.inf
    log.ended(call(took=1000))
    assert not told.texts


def test_the_access_log_has_every_call(told: Told) -> None:
    log = CallLog(LogConfig(access=1, slow_seconds=None))
    assert log.least == 0.0
    log.ended(call(took=0.0005, inside=0.0001, server="b", message=MESSAGE))
    log.ended(call(b"/made.up/\n" + b"x" * 500, took=0.1, code=Code.UNIMPLEMENTED))
    first, second = told.texts
    assert first == "INFO 10.0.0.1:5000: /etcdserverpb.KV/Put OK in 0.000500 s, 0.000400 s of that at shard b"
    assert second == r"INFO 10.0.0.1:5000: /made.up/\n" + "x" * 118 + " Unimplemented in 0.100000 s"
    assert told.objects[0].endswith(
        '"peer":"10.0.0.1:5000","method":"/etcdserverpb.KV/Put","code":"OK","seconds":0.0005,"shard":"b",'
        '"shard_seconds":0.0004}'
    )


def test_a_slow_call_is_in_both_logs(told: Told) -> None:
    CallLog(LogConfig(access=1)).ended(call(took=3))
    assert [json.loads("{" + line)["logger"] for line in told.objects] == ["esp.slow", "esp.access"]


def test_a_traced_call_has_the_id_of_its_trace_and_no_other_text_of_its_client(told: Told) -> None:
    log = CallLog(LogConfig(access=1))
    traced = call(took=3)
    traced.trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    log.ended(traced)
    assert [text.rpartition("; ")[2] for text in told.texts] == ["trace 4bf92f3577b34da6a3ce929d0e0e4736"] * 2
    assert all('"trace":"4bf92f3577b34da6a3ce929d0e0e4736"' in line for line in told.objects)
    traced.trace = b"00-my password"
    log.ended(traced)
    assert "password" not in "".join(told.texts + told.objects)


def test_of_sampled_calls_one_of_so_many_is_drawn(told: Told) -> None:
    draws = iter([0.0, 0.0099, 0.01, 0.5, 0.999])
    log = CallLog(LogConfig(access=100), lambda: next(draws))
    for _ in range(5):
        log.ended(call())
    assert len(told.texts) == 2


def test_above_its_level_no_line_is_made(told: Told) -> None:
    logging.getLogger("esp").setLevel(logging.ERROR)
    CallLog(LogConfig(access=1)).ended(call(took=3, message=MESSAGE))
    assert not told.texts


def test_many_slow_calls_are_counted_by_method_and_shard(told: Told) -> None:
    written: list[str] = []
    log = CallLog(LogConfig())
    floods = Floods(lambda line, soon=False: written.append(line), lambda seconds, callback: True)
    floods.setFormatter(ForFiles())
    logging.getLogger("esp").addHandler(floods)
    for number in range(100):
        key = rpc_pb2.PutRequest(key=b"key %c" % (97 + number % 26)).SerializeToString()
        log.ended(call(took=2, inside=0, server="b", message=b"\0" + struct.pack(">I", len(key)) + key))
    logging.getLogger("esp").removeHandler(floods)
    assert len(written) == AT_ONCE
    floods.close()
    assert " WARNING 90 more like this in the last " in written[-1]
    assert 'the last: slow: /etcdserverpb.KV/Put "key v" of' in written[-1]


def test_lines_of_the_access_log_are_not_counted_and_leave_together(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "esp")
    written: list[bool] = []
    floods = Floods(lambda line, soon=False: written.append(soon), lambda seconds, callback: True)
    floods.setFormatter(ForFiles())
    logging.getLogger().addHandler(floods)
    assert of_process() is floods
    log = CallLog(LogConfig(access=1, slow_seconds=None))
    for _ in range(1000):
        log.ended(call())
    logging.getLogger().removeHandler(floods)
    assert written == [True] * 1000
    assert of_process() is None
    log.ended(call())


@pytest.mark.parametrize("form", [ForFiles(3), ForPeople(worker=3), AsJson(3)])
def test_in_a_worker_a_line_has_its_number(form: Lines) -> None:
    line = form.of_call(0.0, CallLine("10.0.0.1:5000", "/a/b", "OK", 1.0, "", None))
    assert ("worker 3: 10.0.0.1:5000: /a/b OK" if not isinstance(form, AsJson) else '"worker":3') in line


CODES = (
    "OK Canceled Unknown InvalidArgument DeadlineExceeded NotFound AlreadyExists PermissionDenied ResourceExhausted "
    "FailedPrecondition Aborted OutOfRange Unimplemented Internal Unavailable DataLoss Unauthenticated"
)


def test_codes_are_spelt_as_in_go(told: Told) -> None:
    for code in Code:
        CallLog(LogConfig(access=1, slow_seconds=None)).ended(call(code=code))
    assert " ".join(text.split()[3] for text in told.texts) == CODES
