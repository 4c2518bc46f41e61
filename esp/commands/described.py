"""The command line as data: what completion scripts and manual pages are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Option(NamedTuple):
    """An option, or an argument, which has no names.

    Attributes:
        names: such as `-c` and `--config`.
        help: what it does.
        metavar: what it takes; "" if it takes no value.
        repeatable: it may be given several times.
    """

    names: tuple[str, ...]
    help: str
    metavar: str
    repeatable: bool

    @property
    def choices(self) -> list[str]:
        """The words that it takes, if these are few."""
        return self.metavar.split("|") if "|" in self.metavar else []


class Described(NamedTuple):
    """A command.

    Attributes:
        words: how it is called, without `esp`; none for esp itself.
        about: paragraphs; the first is one sentence.
        options: with the arguments.
        usage: such as `esp route [OPTIONS] [KEY] [END]`.
        examples, exit_codes: as in its help.
        commands: the names of the commands in it.
    """

    words: tuple[str, ...]
    about: list[str]
    options: list[Option]
    usage: str
    examples: Sequence[tuple[str, str]]
    exit_codes: dict[int, str]
    commands: list[str]

    @property
    def title(self) -> str:
        """The name of its manual page."""
        return "-".join(("esp", *self.words))


HELP = Option(("-h", "--help"), "Show the help and exit.", "", False)


def described(app: Any) -> list[Described]:
    """Esp itself, then every command, those of a group behind it."""
    import typer.main

    group: Any = typer.main.get_command(app)
    return list(_walk(group, None, ()))


def _walk(command: Any, parent: Any, words: tuple[str, ...]) -> Iterator[Described]:
    from typer import Context

    context = Context(command, info_name=words[-1] if words else "esp", parent=parent)
    commands = getattr(command, "commands", {})
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    yield Described(
        words,
        paragraphs,
        [*(_option(param, context) for param in command.params if not getattr(param, "hidden", False)), HELP],
        command.get_usage(context).removeprefix("Usage: "),
        command.examples,
        dict(command.exit_codes),
        list(commands),
    )
    for name, one in commands.items():
        yield from _walk(one, context, (*words, name))


def _option(param: Any, context: Any) -> Option:
    if param.param_type_name == "argument":
        return Option((), param.help or "", param.make_metavar(context, usage=True).strip("{}"), param.nargs == -1)
    return Option(tuple(param.opts), param.help or "", "" if param.is_flag else param.metavar or "", param.multiple)
