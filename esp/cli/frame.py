"""What all commands have: the app around them, help with examples and exit codes, the same options, errors.

An expected failure becomes one line on stderr. So does a bug, with the place in the code; `-v` shows its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Annotated, Any, ClassVar, Final

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from esp import __version__, build
from esp.commands.output import (
    BUG,
    DONE,
    UNREAD,
    USAGE,
    CommandError,
    complain,
    end_of,
    flush,
    manner,
    note,
    unwritten,
    write,
)

COLORS: Final = ("auto", "always", "never")
_EXIT_CODES: Final = {DONE: "Done.", USAGE: "Wrong usage, or a wrong config; nothing was done."}


class Command(TyperCommand):
    """A command with its examples and exit codes.

    Attributes:
        examples: whole command lines, each with what it does.
        exit_codes: the meaning of each.
    """

    examples: ClassVar[Sequence[tuple[str, str]]] = ()
    exit_codes: ClassVar[Mapping[int, str]] = _EXIT_CODES

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += _options_of_all()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of typer; an error names the command also where typer leaves it out."""
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]
            raise

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the examples and the exit codes into the help."""
        _format_end(formatter, self.examples, self.exit_codes)


def command(examples: Sequence[tuple[str, str]], exit_codes: Mapping[int, str] | None = None) -> type[Command]:
    """The class of a command with these examples, and with these exit codes besides 0 and 2."""
    codes = dict(sorted({**_EXIT_CODES, **(exit_codes or {})}.items()))
    return type("Command", (Command,), {"examples": tuple(examples), "exit_codes": codes})


def group(examples: Sequence[tuple[str, str]], failed: str) -> type[Group]:
    """The class of a group of commands with these examples; `failed` is what exit code 1 of any of them means."""
    codes = dict(sorted({**_EXIT_CODES, 1: failed}.items()))
    return type("Group", (Group,), {"examples": tuple(examples), "exit_codes": codes})


class Group(TyperGroup):
    """The group of commands. The end of a command, good or bad, is the process's exit code."""

    examples: ClassVar[Sequence[tuple[str, str]]] = (
        ("esp serve --local 3", "Try esp with three etcds of its own."),
        ("esp serve -c esp.yaml", "Run the proxy."),
        ("esp help route", "More about one command."),
    )
    exit_codes: ClassVar[Mapping[int, str]] = {
        DONE: "Good.",
        1: "Findings, or the work could not be done; each command's help says more.",
        USAGE: "Wrong usage, or a wrong config; nothing was done.",
        BUG: "A bug in esp.",
        130: "Ended by Ctrl-C.",
        UNREAD: "What read the output through a pipe, such as head, has gone.",
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.params += _options_of_all()

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Writes the examples and the exit codes into the help."""
        _format_end(formatter, self.examples, self.exit_codes)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command line; ends with SystemExit."""
        manner.reset()
        began = monotonic()
        code = self._ended(args, {**extra, "standalone_mode": False})
        note(f"took {monotonic() - began:.3f} s, exit code {code}")
        sys.exit(code)

    def _ended(self, args: Sequence[Any], extra: dict[str, Any]) -> int:
        try:
            try:
                code = super().main(*args, **extra)
            except SystemExit as error:  # typer ends so when the reader of a help has gone
                if isinstance(error.__context__, BrokenPipeError):
                    raise unwritten(error.__context__) from None
                raise
            except OSError:  # perhaps from writing a help, which does not pass through `write`
                write("")
                flush()
                raise
            finally:
                flush()  # here, where a failure can be reported, and not when Python ends
            return code if isinstance(code, int) else DONE
        except CommandError as error:
            return end_of(error)
        except typer.Abort:
            complain("not confirmed; nothing was done")
            return 1
        except Exception as error:
            return told(error)


def main_app() -> typer.Typer:
    """The app, with no command yet."""
    app = typer.Typer(
        name="esp",
        cls=Group,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_esp)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"esp {__version__} ({build()})")
        raise typer.Exit()


def _esp(
    context: typer.Context,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Make several etcd clusters look like one etcd v3 endpoint."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def told(error: Exception) -> int:
    """Writes one line about the failure, and returns the exit code."""
    # A ConfigError means that its module is imported already; otherwise the import would only cost time.
    config = sys.modules.get("esp.core.config")
    if config is not None and isinstance(error, config.ConfigError):
        complain(str(error))
        return USAGE
    if isinstance(error, typer.TyperException) and hasattr(error, "format_message"):
        complain(_usage(error))
        return USAGE
    if manner.verbose:
        sys.excepthook(type(error), error, error.__traceback__)
    complain(_bug(error))
    return BUG


def _usage(error: Any) -> str:
    text = str(error.format_message()).rstrip(".").replace(". Did you", "; did you")
    context = getattr(error, "ctx", None)
    path = "esp" if context is None else context.command_path
    return f"{text[:1].lower()}{text[1:]}{' See' if text.endswith('?') else '; see'} {path} --help"


def _bug(error: Exception) -> str:
    where = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "/esp/" in code.co_filename:
            where = f" in esp/{code.co_filename.rpartition('/esp/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    how = "please report it with what is above" if manner.verbose else "run it once more with -v, and please report it"
    return f"a bug in esp: {type(error).__name__}: {error}{where}; {how}"


def _format_end(formatter: Any, examples: Sequence[tuple[str, str]], exit_codes: Mapping[int, str]) -> None:
    if examples:
        with formatter.section("Examples"):
            formatter.write_dl(examples, col_max=42)
    with formatter.section("Exit codes"):
        formatter.write_dl([(str(code), text) for code, text in exit_codes.items()])


def _options_of_all() -> list[TyperOption]:
    """The options that the group and every command have. Those of a command are added to those before its name."""
    return [
        TyperOption(
            param_decls=["_verbose", "-v", "--verbose"],
            is_flag=True,
            default=False,
            expose_value=False,
            callback=_set_verbose,
            help="Tell on stderr what is done.",
        ),
        TyperOption(
            param_decls=["_quiet", "-q", "--quiet"],
            is_flag=True,
            default=False,
            expose_value=False,
            callback=_set_quiet,
            help="Print only errors, and what -o json asks for.",
        ),
        TyperOption(
            param_decls=["_color", "--color"],
            metavar="|".join(COLORS),
            expose_value=False,
            callback=_set_color,
            help="When to colour; auto: on a terminal, without NO_COLOR.",
        ),
    ]


def _set_verbose(_context: Any, _param: Any, value: bool) -> None:
    manner.verbose |= bool(value)


def _set_quiet(_context: Any, _param: Any, value: bool) -> None:
    manner.quiet |= bool(value)


def _set_color(_context: Any, _param: Any, value: str | None) -> None:
    if value is not None and value not in COLORS:
        raise CommandError(f"--color is {value!r}; write {', '.join(COLORS[:-1])} or {COLORS[-1]}", USAGE)
    if value is not None:
        manner.color = value
