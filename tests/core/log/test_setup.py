"""The log of a process as a whole."""

from __future__ import annotations

import io
import logging
import os
import ssl
import sys
from collections.abc import Iterator

import pytest

from esp.core.log.levels import FORMATS, Format, Level
from esp.core.log.setup import Counts, Log
from esp.core.wire.tls import Tls
from esp.core.wire.tls_faults import TlsFault
from tests.core.wire.certificates import HOST, ClientEnd, load, pair


class Stderr(io.StringIO):
    """A stream over a descriptor, as a shell gives it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"


class Pipe:
    """A pipe in the place of stderr; to be put there in the test itself, because pytest puts its own there before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self._monkeypatch = monkeypatch

    def log(self, form: Format | None = None, level: Level | None = None) -> Log:
        self._monkeypatch.setattr("sys.stderr", Stderr(self.write))
        return Log(form, level)

    def lines(self) -> list[str]:
        """What was written, without the time."""
        try:
            return [line.partition(" ")[2] for line in os.read(self.read, 65536).decode().splitlines()]
        except BlockingIOError:
            return []


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    pipe = Pipe(monkeypatch)
    level = logging.getLogger("esp").level
    yield pipe
    logging.getLogger("esp").setLevel(level)
    os.close(pipe.read)
    os.close(pipe.write)


log = logging.getLogger("esp.test")


def test_the_command_line_goes_before_the_config(pipe: Pipe) -> None:
    lines = pipe.log("json", "error")
    lines.use("text", "debug")
    log.warning("a")
    log.error("b")
    lines.close()
    assert b'"msg":"b"' in os.read(pipe.read, 65536)
    assert lines.form == "json"


@pytest.mark.parametrize(("level", "expected"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_not_written(pipe: Pipe, level: Level, expected: int) -> None:
    lines = pipe.log()
    lines.use("text", level)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    logging.getLogger("another").info("that of other code is not written")
    lines.close()
    log.error("after the end")
    assert len(pipe.lines()) == expected


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_logged_is_counted(pipe: Pipe, form: Format) -> None:
    lines = pipe.log(form)
    assert Log.process is lines
    log.info("a")
    log.info("b")
    log.error("c")
    assert lines.counts == Counts({"info": 2, "error": 1}, 0, 0, 0)
    lines.close()
    assert Log.process is None


def test_a_worker_begins_to_count_anew_and_has_its_number(pipe: Pipe) -> None:
    lines = pipe.log()
    log.info("a")
    lines.fork(2)
    log.info("b")
    assert lines.counts.lines == {"info": 1}
    lines.close()
    assert pipe.lines() == ["INFO a", "INFO worker 2: b"]


def test_without_stderr_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    lines = Log()
    log.error("for nobody")
    lines.close()


def test_an_exception_that_nobody_can_catch_is_a_line_and_a_client_causes_none(pipe: Pipe) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ZeroDivisionError

    before = sys.unraisablehook
    lines = pipe.log()
    Broken()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(context, pair(HOST))
    context.sni_callback = lambda *_: None
    tls = Tls(context)
    tls.receive(ClientEnd().shakes().replace(HOST.encode(), b"\xff" * len(HOST)))
    with pytest.raises(TlsFault, match="whose name is not ASCII"):
        tls.open()
    lines.close()
    (line,) = pipe.lines()
    assert "Broken.__del__: a bug in esp; an exception was ignored; ZeroDivisionError" in line
    assert sys.unraisablehook is before
