"""Where the control socket of a config is. Both ends derive the same path from the config's, without further words.

Whoever can put a socket at that path is taken for the proxy. So both ends look at the folder first: only root and the
folder's owner may change it, and the owner is this user. root trusts /run/esp whoever owns that, since only root can
make it.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

MAX_PATH_BYTES: Final = 100
"""The longest path of a socket; the kernel takes 107 bytes, and esp appends a few while it makes the socket."""
SYSTEM_FOLDER: Final = Path("/run/esp")
"""Made by systemd (`RuntimeDirectory=esp`) or by an administrator; esp does not make it."""


class PlaceError(Exception):
    """No control socket can be here; the text is a clause with the reason and, where there is one, the cure."""


@dataclass(frozen=True, slots=True)
class Place:
    """The path of a control socket.

    Attributes:
        is_named: the config names the path; else esp derives it.
    """

    path: Path
    is_named: bool = False

    def beside(self, process: int) -> Place:
        """The path for another process with the same config."""
        return Place(self.path.with_name(f"{self.path.stem}-{process}{self.path.suffix}"), self.is_named)


def place_of(control: Path | Literal["auto"], config: Path | None, env: Mapping[str, str]) -> Place:
    """The place at which a proxy makes its socket; derived folders are made if they are missing.

    Args:
        control: the field `control` of the config.
        config: the config's file.
        env: the environment.

    Raises:
        PlaceError: there is no such place, or others than this user may change its folder.
    """
    if control != "auto":
        _check_length(control)
        check_folder(control.parent, follows=True)
        return Place(control, is_named=True)
    if config is None:
        raise PlaceError("the config has no file")
    reasons = []
    for folder in _folders(env):
        try:
            _make(folder)
            check_folder(folder, follows=folder == SYSTEM_FOLDER)
            if not os.access(folder, os.W_OK):
                raise PlaceError(f"{folder} is not writable")
            path = folder / _name(config)
            _check_length(path)
        except PlaceError as error:
            reasons.append(str(error))
        else:
            return Place(path)
    raise PlaceError("; ".join(reasons))


def find(control: Path | Literal["auto"], config: Path, env: Mapping[str, str]) -> Place | None:
    """The place at which a proxy with this config listens; None if none does.

    Raises:
        PlaceError: the config names a path whose folder others may change.
    """
    if control != "auto":
        check_folder(control.parent, follows=True)
        return Place(control, is_named=True) if is_live(control) else None
    for folder in _folders(env):
        try:
            check_folder(folder, follows=folder == SYSTEM_FOLDER)
        except PlaceError:
            continue
        if is_live(path := folder / _name(config)):
            return Place(path)
    return None


def looked_at(control: Path | Literal["auto"], config: Path, env: Mapping[str, str]) -> list[Path]:
    """The paths at which `find` looks."""
    return [control] if control != "auto" else [folder / _name(config) for folder in _folders(env)]


def others_of(place: Place) -> list[Path]:
    """The sockets of further live processes with the same config."""
    pattern = f"{place.path.stem}-*{place.path.suffix}"
    return sorted(path for path in place.path.parent.glob(pattern) if is_live(path))


def is_live(path: Path) -> bool:
    """Whether a process listens on the socket; False for a file that a dead process has left."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full backlog is a live process too
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def check_folder(folder: Path, *, follows: bool) -> None:
    """Refuses a folder in which others than this user and root could put a socket of theirs.

    Args:
        folder: the folder.
        follows: the folder may be a symbolic link. In /tmp, others could turn one elsewhere.

    Raises:
        PlaceError: the folder is missing, or not safe.
    """
    try:
        found = folder.stat() if follows else folder.lstat()
    except OSError as error:
        raise PlaceError(f"{folder}: {(error.strerror or str(error)).lower()}") from None
    user = os.geteuid()
    if not stat.S_ISDIR(found.st_mode):
        raise PlaceError(f"{folder} is no folder")
    if found.st_uid not in (0, user) and not (user == 0 and folder == SYSTEM_FOLDER):
        raise PlaceError(f"{folder} belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PlaceError(f"others may write to {folder}, and could take the place of esp; chmod go-w {folder}")


def _folders(env: Mapping[str, str]) -> list[Path]:
    folders = [SYSTEM_FOLDER]
    runtime = env.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        folders.append(Path(runtime) / "esp")
    return [*folders, Path(f"/tmp/esp-{os.geteuid()}")]  # noqa: S108 - made with mode 0700, and checked


def _make(folder: Path) -> None:
    if folder != SYSTEM_FOLDER:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PlaceError(f"{folder}: {(error.strerror or str(error)).lower()}") from None


def _name(config: Path) -> str:
    # The folder's links are resolved, and those of the file are not: Kubernetes changes them with each new config.
    path = os.path.join(os.path.realpath(config.parent), config.name)
    return sha256(os.fsencode(path)).hexdigest()[:16] + ".sock"


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise PlaceError(f"{path} is longer than {MAX_PATH_BYTES} bytes, the most for a socket; name a shorter path")
