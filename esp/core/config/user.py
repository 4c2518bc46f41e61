"""The user for esp's own calls to shards: a name, and the file with the password."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from esp.core.config.fields import Fields
from esp.core.config.shape import Shape
from esp.core.config.yaml_lines import Place

MAX_PASSWORD_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class User:
    """A user of etcd. The password stays in its file until esp sends it."""

    name: str
    password_file: Path


class UserShape(Shape):
    """The fields of `auth`."""

    user: str = ""
    password_file: str = ""


def user_at(value: dict[str, Any], place: Place, fields: Fields, folder: Path | None) -> User:
    """The user that an `auth` describes; a relative path begins at `folder`.

    Raises:
        LineError: a field is wrong, or the file has no password.
    """
    shape = fields.shaped(value, UserShape, place, '"auth"')
    if not shape.user or not shape.password_file:
        missing = "user" if not shape.user else "password_file"
        fields.fail(place, f'"auth" has no "{missing}"; write auth: {{user: NAME, password_file: PATH}}')
    path = Path(shape.password_file)
    user = User(shape.user, path if folder is None else folder / path)
    try:
        read_password(user.password_file)
    except ValueError as error:
        fields.fail(
            (*place, "password_file"), f'"password_file": {error}; write the password into it, and nothing else'
        )
    except OSError as error:
        text = f'"password_file": {user.password_file} cannot be read: {(error.strerror or str(error)).lower()}'
        fields.fail((*place, "password_file"), text)
    return user


def read_password(path: Path) -> str:
    """The password in a file: its text without line breaks at the end.

    Raises:
        ValueError: the file has no password; the message names the file, and shows nothing of its content.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_PASSWORD_BYTES + 1)
    if len(data) > MAX_PASSWORD_BYTES:
        raise ValueError(f"{path} is larger than a password")
    try:
        text = data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    if not text:
        raise ValueError(f"{path} is empty")
    return text
