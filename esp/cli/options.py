"""The options that several commands have, and the forms of all options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from esp.commands.output import USAGE, CommandError, Format


def path_of(text: str) -> Path:
    """The path as given. The commands check later whether the path can be used, and say why if it cannot.

    Raises:
        CommandError: the text is empty, as after an unset variable of a shell; as a path "" would mean the current
            folder.
    """
    if not text:
        raise CommandError(
            'a path is empty ("" is given to -c or --data-dir); name one, or leave the option out', USAGE
        )
    return Path(text)


def flag(*names: str, about: str) -> Any:
    """An option without a value; `about` is its help."""
    return typer.Option(*names, help=about)


def number(*names: str, metavar: str = "N", about: str, **bounds: float) -> Any:
    """An option with a number within bounds; its help tells the default."""
    return typer.Option(*names, metavar=metavar, help=about, **bounds)  # type: ignore[call-overload]


def option(*names: str, metavar: str, about: str, **more: Any) -> Any:
    """An option with a value; its help does not tell the default."""
    return typer.Option(*names, metavar=metavar, help=about, show_default=False, **more)


def path_option(*names: str, metavar: str = "FILE", about: str) -> Any:
    """An option whose value is a path."""
    return option(*names, metavar=metavar, about=about, parser=path_of)


def argument(metavar: str, about: str | None = None, **more: Any) -> Any:
    """An argument; its help does not tell the default."""
    return typer.Argument(metavar=metavar, help=about, show_default=False, **more)


def only_one(options: str, *given: bool) -> None:
    """Refuses options that exclude each other; `options` names them, `given` says which are there.

    Raises:
        CommandError: more than one is there.
    """
    if sum(given) > 1:
        raise CommandError(f"{options} exclude each other; give one", USAGE)


ConfigOption = Annotated[
    Path | None,
    path_option(
        "-c", "--config", about="Config file; else ESP_CONFIG, ./esp.yaml, ./.esp/esp.yaml or /etc/esp/esp.yaml."
    ),
]
OutputOption = Annotated[Format, option("-o", "--output", metavar="table|json", about="Output format.")]
PrefixOption = Annotated[bool, flag("--prefix", about="All keys that begin with KEY.")]
FromKeyOption = Annotated[bool, flag("--from-key", about="All keys from KEY on.")]
# The client's side of TLS.
CertOption = Annotated[str, option("--cert", metavar="FILE", about="Client certificate.")]
KeyOption = Annotated[str, option("--key", metavar="FILE", about="Its key.")]
# An etcd in place of the config's shards.
EndpointOption = Annotated[
    list[str] | None,
    option("--endpoint", metavar="URL", about="An etcd in place of the config's shards; may be repeated."),
]


class Access(NamedTuple):
    """How to speak to what a URL of the command line names, in the order of `esp.core.export.Etcd`; "" for none.

    Each field is an option of the commands that `takes_access` is around.
    """

    cacert: Annotated[str, option("--cacert", metavar="FILE", about="CA of the server's certificate.")]
    cert: CertOption
    tls_key: KeyOption
    user: Annotated[str, option("--user", metavar="NAME", about="User to log in as.")]
    password_file: Annotated[str, option("--password-file", metavar="FILE", about="File with the user's password.")]


def takes_access(command: Callable[..., None]) -> Callable[..., None]:
    """The command for typer, with the options of `Access` in the place of its keyword `access`."""
    signature = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=annotation)
        for name, annotation in get_type_hints(Access, include_extras=True).items()
    ]
    parameters: list[inspect.Parameter] = []
    for one in signature.parameters.values():
        parameters.extend(options if one.name == "access" else [one])

    @functools.wraps(command)
    def called(**given: Any) -> None:
        command(access=Access(*[given.pop(one.name) for one in options]), **given)

    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called
