"""The manual pages: one for esp, and one for each command, made of the same words as the help."""

from __future__ import annotations

import re
from typing import Any, Final

from esp import __version__
from esp.commands.described import Described, Option, described

_FILES: Final = (
    ("./esp.yaml, ./.esp/esp.yaml, /etc/esp/esp.yaml", "The config, where neither -c nor ESP_CONFIG names one."),
)
_ENVIRONMENT: Final = (
    ("ESP_CONFIG", "The config, where -c names none."),
    ("ESP_ETCD", "The etcd of esp serve --local."),
    ("NO_COLOR", "If set, no colours."),
    ("XDG_RUNTIME_DIR", "Where the control socket is, if there is no /run/esp."),
)


def pages(app: Any) -> dict[str, str]:
    """The pages, by their file names, such as `esp-route.1`."""
    commands = described(app)
    return {f"{command.title}.1": _page(command, commands) for command in commands}


def _page(command: Described, commands: list[Described]) -> str:
    name, about = command.title, command.about
    first = about[0].rstrip(".")
    lines = [
        f'.TH "{name.upper()}" "1" "" "esp {__version__}" "User commands"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(first[:1].lower() + first[1:])}",
        ".SH SYNOPSIS",
        f".B {_text(command.usage.partition(' [')[0])}",
        _text(command.usage[len(command.usage.partition(" [")[0]) :].strip()),
    ]
    if about[1:] or not command.words:
        lines.append(".SH DESCRIPTION")
        lines.append("\n.PP\n".join(map(_text, about[1:] or about)))
    if command.commands:
        lines.append(".SH COMMANDS")
        for other in commands:
            if other.words[:-1] == command.words and other.words:
                lines += [".TP", f".BR {_text(other.title)} (1)", _text(other.about[0])]
    lines.append(".SH OPTIONS")
    for option in command.options:
        if option.names or option.help:
            lines += [".TP", _option(option), _text(option.help)]
    lines += [".SH EXAMPLES"]
    for example, meaning in command.examples:
        lines += [".TP", f".B {_text(example)}", _text(meaning)]
    lines += [".SH EXIT STATUS"]
    for code, meaning in command.exit_codes.items():
        lines += [".TP", f".B {code}", _text(meaning)]
    if not command.words:
        for title, rows in (("ENVIRONMENT", _ENVIRONMENT), ("FILES", _FILES)):
            lines.append(f".SH {title}")
            for what, meaning in rows:
                lines += [".TP", f".B {_text(what)}", _text(meaning)]
    related = [other.title for other in commands if other.words != command.words and _is_near(command, other)]
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{_text(other)}\\fR(1)" for other in related)]
    return "\n".join(lines) + "\n"


def _is_near(command: Described, other: Described) -> bool:
    """Whether the page of `other` is named on that of `command`: what is around it, in it or beside it."""
    return other.words == command.words[:-1] or other.words[:-1] in (command.words, command.words[:-1])


def _option(option: Option) -> str:
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in option.names)
    value = f"\\fI{_text(option.metavar)}\\fR" if option.metavar else ""
    return " ".join(part for part in (names, value) if part)


def _text(text: str) -> str:
    """A text for roff, in which a dash is a dash, and no line is a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", escaped, flags=re.MULTILINE)
