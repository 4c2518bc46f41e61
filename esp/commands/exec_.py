"""`esp exec`: a command such as etcdctl, with the endpoints, TLS and user of one shard in its environment."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from esp.commands.noted import file_at
from esp.commands.output import USAGE, CommandError, complain, note
from esp.core.config import ShardConfig, read_password
from esp.core.wording import shard_called

CANNOT_RUN: Final = 126
NOT_FOUND: Final = 127
"""Exit codes where the command did not run, as those of shells and env(1)."""
_OF_ETCDCTL: Final = (
    "ENDPOINTS",
    "CACERT",
    "CERT",
    "KEY",
    "INSECURE_SKIP_TLS_VERIFY",
    "INSECURE_TRANSPORT",
    "USER",
    "PASSWORD",
    "AUTH_JWT_TOKEN",
    "DISCOVERY_SRV",
)
"""The variables of etcdctl about where it connects and as whom; those of the shard take the place of all."""


def run(config: Path | None, shard: str, command: Sequence[str]) -> NoReturn:
    """Run a command in the place of this process; its exit code is that of the command.

    Raises:
        ConfigError: there is no config, or the config is wrong.
        CommandError: the config has no such shard, or the command cannot be run.
    """
    loaded = file_at(config)
    named = next((each for each in loaded.shards if each.name == shard), None)
    if named is None:
        names = ", ".join(each.name for each in loaded.shards)
        raise CommandError(f'no shard is called "{shard}"; there are {names}', USAGE)
    environment = {name: value for name, value in os.environ.items() if name not in _shadowed()}
    try:
        given = variables(named)
        environment |= given
    except (OSError, ValueError) as error:
        raise CommandError(f'the password of "{shard}": {error}') from None
    if named.tls is not None and named.tls.server_name:
        complain(f'{shard_called(shard)} has the server_name "{named.tls.server_name}", which etcdctl cannot be told')
    for name, value in given.items():
        note(f"{name}={value if 'PASSWORD' not in name else '...'}")
    note(f"runs {shlex.join(command)}")
    sys.stdout.flush()
    try:
        os.execvpe(command[0], list(command), environment)  # noqa: S606 - what the operator typed
    except FileNotFoundError:
        raise CommandError(
            f'"{command[0]}" was not found on PATH; write esp exec SHARD -- etcdctl ...', NOT_FOUND
        ) from None
    except OSError as error:
        raise CommandError(
            f'"{command[0]}" cannot be run: {(error.strerror or str(error)).lower()}', CANNOT_RUN
        ) from None


def _shadowed() -> set[str]:
    return {f"ETCDCTL_{name}" for name in _OF_ETCDCTL}


def variables(shard: ShardConfig) -> Mapping[str, str]:
    """The variables by which etcdctl connects to a shard as esp does.

    Raises:
        ValueError: the file of the password has none.
        OSError: that file cannot be read.
    """
    found = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": ",".join(map(str, shard.endpoints))}
    if shard.tls is not None:
        files = shard.tls.files
        for name, path in (("CACERT", files.ca), ("CERT", files.cert), ("KEY", files.key or files.cert)):
            if path is not None:
                found[f"ETCDCTL_{name}"] = str(path.absolute())
        if not shard.tls.verify:
            found["ETCDCTL_INSECURE_SKIP_TLS_VERIFY"] = "true"
    if shard.user is not None:
        found |= {"ETCDCTL_USER": shard.user.name, "ETCDCTL_PASSWORD": read_password(shard.user.password_file)}
    return found
