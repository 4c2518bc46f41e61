"""The control socket of a config: where it is, and what happens when it cannot be made."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from esp import __version__
from esp.commands.operating import commanded
from esp.commands.output import CommandError
from esp.core.background import Background
from esp.core.config import Config, parse
from esp.core.control import Client, find, place

TEXT = "shards: [{endpoints: [h:1], ranges: [{start: '', end: ''}]}]\n"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(place, "SYSTEM_FOLDER", tmp_path / "no such folder")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return parse(TEXT, tmp_path / "esp.yaml")


def while_commanded(config: Config, look: Callable[[], None]) -> None:
    async def run() -> None:
        async with Background() as background, commanded(config, background, {}):
            await asyncio.to_thread(look)
        assert not background.failures

    asyncio.run(run())


def test_whoever_knows_the_config_finds_the_process(config: Config) -> None:
    def look() -> None:
        assert config.path is not None
        found = find("auto", config.path, os.environ)
        assert found is not None
        with Client(found.path) as client:
            assert client.ask("status", seconds=20) == {"process": os.getpid(), "version": __version__}

    while_commanded(config, look)


def test_a_named_socket_that_cannot_be_made_is_an_error_and_a_derived_one_a_warning(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CommandError, match="the control socket cannot be made: /gone: no such file or directory"):
        while_commanded(replace(config, control=Path("/gone/esp.sock")), lambda: None)
    monkeypatch.setattr(place, "_folders", lambda env: [Path("/gone/esp")])
    while_commanded(config, lambda: None)
    assert "without a control socket, so `esp reload` will not find this process: /gone/esp: no such" in caplog.text


def test_no_socket_is_made_if_there_is_to_be_none(config: Config, tmp_path: Path) -> None:
    while_commanded(replace(config, control=None), lambda: None)
    assert list(tmp_path.iterdir()) == []
