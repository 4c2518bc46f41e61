"""Command lines that scripts and shells give by the thousand, answered without typer, which takes long to load.

These are the help of esp, `esp route` with plain options, the version, and what completion scripts ask for. A command
line that is anything else, or wrong, is left to typer (esp/cli), so that there is one parser for what people type.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

_HELP_COLUMNS: Final = 80
_FLAGS: Final = {"--prefix": "prefix", "--from-key": "from_key", "--each": "each"}
_VALUES: Final = {"-c": "config", "--config": "config", "-o": "output", "--output": "output"}


def answers(arguments: list[str]) -> bool:
    """Answers a command line, all of it written; False if it is for typer, and nothing has been done.

    Raises:
        SystemExit: with the exit code, if that is not 0.
    """
    match arguments:
        case [] | ["-h"] | ["--help"] | ["help"] if _is_wide():
            return _ended(_help)
        case ["version"] | ["--version"]:
            from esp import __version__, build
            from esp.commands.output import write

            return _ended(lambda: write(f"esp {__version__} ({build()})"))
        case ["route", *words]:
            options = route_options(words)
            if options is None:
                return False
            return _ended(lambda: _route(options))
        case ["complete", what, current, *config] if len(config) < 2:
            return _ended(lambda: _complete(what, current, config))
    return False


def route_options(words: list[str]) -> dict[str, Any] | None:
    """The keys and options of `esp route`; None if typer has to look at them."""
    keys: list[str] = []
    options: dict[str, Any] = {"keys": keys}
    waiting = iter(words)
    for word in waiting:
        if word in _FLAGS:
            options[_FLAGS[word]] = True
        elif word in _VALUES:
            value = next(waiting, None)
            if not value or (_VALUES[word] == "output" and value not in ("table", "json")):
                return None
            options[_VALUES[word]] = value
        elif word.startswith("-") and word != "-":
            return None
        else:
            keys.append(word)
    if not keys or (options.get("prefix") and options.get("from_key")):
        return None
    return options


def _help() -> None:
    """Prints the help as typer makes it for 80 columns or more; scripts/completions writes it down."""
    from pathlib import Path

    from esp.commands.output import write

    write(Path(__file__).with_name("help.txt").read_text("utf-8").removesuffix("\n"))


def _is_wide() -> bool:
    """Whether the terminal has 80 columns, or there is none, as `shutil` finds out, which takes longer to load."""
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns <= 0:
        try:
            columns = os.get_terminal_size().columns
        except OSError:
            columns = 0
    return columns == 0 or columns >= _HELP_COLUMNS


def _route(options: dict[str, Any]) -> None:
    from pathlib import Path

    from esp.commands import route
    from esp.commands.output import Format

    if "config" in options:
        options["config"] = Path(options["config"])
    if "output" in options:
        options["output"] = Format(options["output"])
    route.run(options.pop("keys"), **options)


def _ended(command: Any) -> bool:
    """True, when the command has ended well; else ends the process, as typer's way does."""
    from esp.commands.output import CommandError, end_of, flush

    try:
        command()
        flush()
    except CommandError as error:
        sys.exit(end_of(error))
    except Exception as error:
        from esp.cli.frame import told

        sys.exit(told(error))
    return True


def _complete(what: str, current: str, config: list[str]) -> None:
    """Prints what may stand in the place of `current`, a line each; nothing at all if anything is wrong."""
    from pathlib import Path

    from esp.commands.output import write_data
    from esp.core import config as configs

    try:
        loaded = configs.load(configs.find(Path(config[0]).expanduser() if config else None, os.environ))
    except configs.ConfigError:
        return
    found = [shard.name for shard in loaded.shards]
    if what == "keys":
        namespace = loaded.namespace
        starts = loaded.shard_map.starts
        keys = [start if namespace is None else namespace.stripped(start) for start in starts]
        found = [key.decode("utf-8", "replace") for key in keys if key]
        found = [key for key in found if key.isprintable() and not set(key) & set(" '\"\\$`\ufffd")]
    found = [one for one in dict.fromkeys(found) if one.startswith(current)]
    if found:
        write_data("\n".join(found))
