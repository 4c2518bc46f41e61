"""The path of a config's control socket, and the folders that are not safe."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from esp.core.control import Place, PlaceError, find, others_of, place_of
from esp.core.control import place as module


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short path: pytest's own leaves too little of the bytes that a socket's path may have."""
    with TemporaryDirectory() as folder:
        yield Path(folder).resolve()


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which the folder is $XDG_RUNTIME_DIR/esp."""
    monkeypatch.setattr(module, "SYSTEM_FOLDER", tmp_path / "no such folder")
    (tmp_path / "runtime").mkdir(mode=0o700)
    return {"XDG_RUNTIME_DIR": str(tmp_path / "runtime")}


def live(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


def test_both_ends_find_the_same_path_whatever_the_way_to_the_config(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    config = tmp_path / "real" / "esp.yaml"
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    place = place_of("auto", config, env)
    assert place.path.parent == tmp_path / "runtime" / "esp"
    assert place.path.parent.stat().st_mode & 0o777 == 0o700
    assert find("auto", config, env) is None
    with live(place.path):
        assert find("auto", Path("esp.yaml"), env) == place
        assert find("auto", tmp_path / "link" / "esp.yaml", env) == place
        assert find("auto", tmp_path / "esp.yaml", env) is None
    assert find("auto", config, env) is None, "the socket of a dead process"


def test_a_config_that_is_a_link_keeps_its_path_when_the_link_changes(env: dict[str, str], tmp_path: Path) -> None:
    config = tmp_path / "esp.yaml"
    places = set()
    for target in ("one", "two"):
        (tmp_path / target).touch()
        config.unlink(missing_ok=True)
        config.symlink_to(tmp_path / target)
        places.add(place_of("auto", config, env))
    assert len(places) == 1


def test_the_systems_folder_comes_first_and_is_not_made(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "run"
    monkeypatch.setattr(module, "SYSTEM_FOLDER", system)
    elsewhere = place_of("auto", tmp_path / "esp.yaml", env)
    assert not system.exists()
    system.mkdir(mode=0o755)
    assert place_of("auto", tmp_path / "esp.yaml", env).path.parent == system
    with live(elsewhere.path):
        assert find("auto", tmp_path / "esp.yaml", env) == elsewhere, "begun before the folder was there"


def test_without_a_runtime_folder_it_is_one_of_this_user_in_tmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SYSTEM_FOLDER", tmp_path / "no such folder")
    for env in ({}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "relative"}, {"XDG_RUNTIME_DIR": "/x" * 60}):
        place = place_of("auto", tmp_path / "esp.yaml", env)
        assert place.path.parent == Path(f"/tmp/esp-{os.geteuid()}")
        assert len(str(place.path)) < 60


def test_folders_that_others_may_change_are_not_used(env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "runtime" / "esp"
    folder.mkdir()
    folder.chmod(0o770)
    place = place_of("auto", tmp_path / "esp.yaml", env)
    assert place.path.parent != folder
    with live(folder / place.path.name):
        assert find("auto", tmp_path / "esp.yaml", env) is None
    folder.chmod(0o755)
    assert place_of("auto", tmp_path / "esp.yaml", env).path.parent == folder
    named = tmp_path / "named"
    named.mkdir()
    named.chmod(0o777)
    cure = f"others may write to {named}, and could take the place of esp; chmod go-w {named}"
    for look in (place_of, find):
        with pytest.raises(PlaceError, match=cure):
            look(named / "esp.sock", tmp_path / "esp.yaml", env)


def test_a_derived_folder_that_is_a_link_is_not_used(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "runtime" / "esp").symlink_to(tmp_path / "elsewhere")
    assert place_of("auto", tmp_path / "esp.yaml", env).path.parent == Path(f"/tmp/esp-{os.geteuid()}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folders_of_others_are_not_used(env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runtime" / "esp"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    assert place_of("auto", tmp_path / "esp.yaml", env).path.parent != folder
    with pytest.raises(PlaceError, match="belongs to another user"):
        place_of(folder / "esp.sock", None, env)
    monkeypatch.setattr(module, "SYSTEM_FOLDER", folder)
    assert place_of("auto", tmp_path / "esp.yaml", env).path.parent == folder, "only root can have made /run/esp"


def test_a_named_path_is_taken_as_it_is(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    path = tmp_path / "link" / "esp.sock"
    assert place_of(path, None, env) == Place(path, is_named=True)
    assert find(path, tmp_path / "esp.yaml", env) is None
    with live(path):
        assert find(path, tmp_path / "esp.yaml", env) == Place(path, is_named=True)


def test_paths_that_are_too_long_and_folders_that_are_none_are_told(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="is longer than 100 bytes, the most for a socket; name a shorter path"):
        place_of(tmp_path / ("x" * 100), None, env)
    with pytest.raises(PlaceError, match="no such file or directory"):
        place_of(Path("/gone/esp.sock"), None, env)
    (tmp_path / "file").touch()
    with pytest.raises(PlaceError, match="is no folder"):
        place_of(tmp_path / "file" / "esp.sock", None, env)
    with pytest.raises(PlaceError, match="the config has no file"):
        place_of("auto", None, env)


def test_other_processes_with_the_same_config_are_found(env: dict[str, str], tmp_path: Path) -> None:
    place = place_of("auto", tmp_path / "esp.yaml", env)
    with live(place.path), live(place.beside(7).path) as other:
        assert others_of(place) == [place.beside(7).path]
        other.close()
        assert others_of(place) == []
