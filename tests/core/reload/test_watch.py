"""The looks at the config file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from esp.core.reload import ConfigFile
from esp.core.reload.watch import state_of


class Looks:
    """A config file; what was told is in `told`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[bool] = []
        self.file = ConfigFile(path, self.told.append)

    def look(self, times: int = 1) -> list[bool]:
        """What is told of so many looks."""
        self.told.clear()
        for _ in range(times):
            self.file.look(state_of(self.path))
        return list(self.told)


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    path = tmp_path / "esp.yaml"
    path.write_text("one")
    looks = Looks(path)
    assert looks.look(2) == [True], "it may have changed since it was read"
    return looks


def test_a_file_that_stays_is_told_no_more(looks: Looks) -> None:
    assert looks.look(5) == []


def test_a_change_is_told_once_it_is_complete(looks: Looks) -> None:
    with looks.path.open("a") as file:
        for _ in range(3):
            file.write("half a line")
            file.flush()
            assert looks.look() == []
    assert looks.look(5) == [False]


def test_a_file_that_is_replaced_is_told_even_if_size_and_time_are_the_same(looks: Looks) -> None:
    new = looks.path.with_name("new")
    new.write_text("two")
    os.utime(new, ns=(0, looks.path.stat().st_mtime_ns))
    os.rename(new, looks.path)
    assert looks.look(5) == [False]


def test_kubernetes_swaps_the_folder_behind_the_link(tmp_path: Path) -> None:
    for name in ("..2026_1", "..2026_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "esp.yaml").write_text("same")
    (tmp_path / "..data").symlink_to("..2026_1")
    (tmp_path / "esp.yaml").symlink_to("..data/esp.yaml")
    looks = Looks(tmp_path / "esp.yaml")
    looks.look(2)
    (tmp_path / "..data_tmp").symlink_to("..2026_2")
    os.rename(tmp_path / "..data_tmp", tmp_path / "..data")
    assert looks.look(5) == [False]


def test_a_file_that_is_gone_is_told_once_and_its_return_too(looks: Looks) -> None:
    looks.path.unlink()
    assert looks.look() == [], "an editor may be about to put another in its place"
    assert looks.look(5) == [False]
    looks.path.write_text("back")
    assert looks.look(5) == [False]


def test_it_looks_only_while_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "esp.yaml"
    path.touch()
    asked: list[bool] = []

    def is_wanted() -> bool:
        asked.append(len(asked) >= 3)
        return asked[-1]

    async def run() -> None:
        told = asyncio.Event()
        looking = asyncio.create_task(ConfigFile(path, lambda _: told.set()).run(is_wanted, 0.001))
        async with asyncio.timeout(20):
            await told.wait()
        looking.cancel()

    asyncio.run(run())
    assert asked[:5] == [False] * 3 + [True] * 2
