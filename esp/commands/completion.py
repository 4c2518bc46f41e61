"""`esp completion`: the scripts with which bash, zsh and fish complete command lines of esp.

The scripts hold every word themselves, so that completing starts no Python. Only for what the config decides, names of
shards and boundaries of ranges, they ask `esp complete`, which answers without typer.

What an option takes is read from its metavar: FILE and DIR complete paths, a|b completes the words, SHARD completes
names, KEY and END complete boundaries.
"""

from __future__ import annotations

from typing import Any, Final

from esp.commands.described import Described, Option, described

LIVE: Final = {"SHARD": "shards", "KEY": "keys", "END": "keys"}
"""By metavar, what `esp complete` is asked for."""


def script(shell: str, app: Any) -> str:
    """The script for `bash`, `zsh` or `fish`."""
    commands = described(app)
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


def _live(metavar: str) -> str:
    """What to ask `esp complete` for; "" if nothing."""
    return LIVE.get(metavar.strip("[].").partition("]")[0], "")


def _argument(command: Described) -> Option | None:
    """The first argument of a command that can be completed."""
    return next((one for one in command.options if not one.names), None)


def _bash(commands: list[Described]) -> str:
    lines = [
        "# bash completion for esp; made by esp completion bash",
        "",
        "_esp_paths() {",
        "    compopt -o filenames 2>/dev/null",
        '    mapfile -t COMPREPLY < <(compgen "$1" -- "$current")',
        "}",
        "",
        "_esp_words() {",
        '    mapfile -t COMPREPLY < <(compgen -W "$1" -- "$current")',
        "}",
        "",
        "# What the config decides. $1: shards or keys.",
        "_esp_live() {",
        "    local config= number",
        "    for ((number = 1; number < COMP_CWORD; number++)); do",
        "        case ${COMP_WORDS[number]} in -c | --config) config=${COMP_WORDS[number + 1]} ;; esac",
        "    done",
        '    mapfile -t COMPREPLY < <(esp complete "$1" "$current" ${config:+"$config"} 2>/dev/null)',
        "}",
        "",
        "_esp() {",
        "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command= word",
        "    COMPREPLY=()",
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        "        case $command/$word in",
    ]
    for command in commands[1:]:
        before = " ".join(command.words[:-1])
        lines.append(f'            "{before}/{command.words[-1]}") command="{" ".join(command.words)}" ;;')
    lines += ["        esac", "    done", '    case "$command $previous" in']
    for command in commands:
        name = " ".join(command.words)
        for option in command.options:
            if option.names and option.metavar:
                patterns = " | ".join(f'"{name} {one}"' for one in option.names)
                lines.append(f"        {patterns}) {_bash_value(option)}; return ;;")
    lines += ["    esac", "    case $command in"]
    for command in commands:
        words = " ".join([*command.commands, *(one for option in command.options for one in option.names)])
        argument = _argument(command)
        value = "" if argument is None else _bash_value(argument)
        action = f"_esp_words '{words}'"
        if value and value != ":":
            action = f"case $current in -*) {action} ;; *) {value} ;; esac"
        lines.append(f"        '{' '.join(command.words)}') {action} ;;")
    lines += ["    esac", "}", "", "complete -F _esp esp"]
    return "\n".join(lines) + "\n"


def _bash_value(option: Option) -> str:
    if option.choices:
        return f"_esp_words '{' '.join(option.choices)}'"
    if live := _live(option.metavar):
        return f"_esp_live {live}"
    return {"FILE": "_esp_paths -f", "[FILE]": "_esp_paths -f", "DIR": "_esp_paths -d"}.get(option.metavar, ":")


def _zsh(commands: list[Described]) -> str:
    lines = [
        "#compdef esp",
        "# zsh completion for esp; made by esp completion zsh",
        "",
        "# What the config decides. The last argument: shards or keys; those before it are for compadd.",
        "_esp_live() {",
        "    local -a found",
        "    local config=${opt_args[-c]:-${opt_args[--config]}}",
        '    found=("${(@f)$(esp complete $argv[-1] "$PREFIX" ${config:+"${(Q)config}"} 2>/dev/null)}")',
        '    compadd "${(@)argv[1,-2]}" -Q -- ${(@)found:#}',
        "}",
        "",
    ]
    for command in reversed(commands):
        function = _function(command.words)
        lines += [f"{function}() {{", "    local context state state_descr line", "    typeset -A opt_args"]
        specs = [spec for option in command.options if (spec := _zsh_spec(option))]
        if command.commands:
            lines.append("    local -a commands=(")
            for name in command.commands:
                about = next(one.about[0] for one in commands if one.words == (*command.words, name))
                lines.append(f"        {_quoted(f'{name}:{about}')}")
            lines += ["    )", "    _arguments -C \\"]
            lines += [f"        {spec} \\" for spec in specs]
            lines += ["        '1: :->command' '*:: :->argument' && return", "    case $state in"]
            lines += ["        command) _describe command commands ;;", "        argument)"]
            lines += ["            case $line[1] in"]
            lines += [f"                {name}) {_function((*command.words, name))} ;;" for name in command.commands]
            lines += ["            esac", "            ;;", "    esac"]
        else:
            lines.append("    _arguments \\")
            lines += [f"        {spec} \\" for spec in specs]
            lines[-1] = lines[-1].removesuffix(" \\")
        lines += ["}", ""]
    lines.append('_esp "$@"')
    return "\n".join(lines) + "\n"


def _function(words: tuple[str, ...]) -> str:
    return "_".join(("_esp", *(word.replace("-", "_") for word in words))) + ("_" if words else "")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_spec(option: Option) -> str:
    """The words for _arguments: (these exclude each other){-a,--all}'[help]:value:action'."""
    if not option.names:
        action = _zsh_action(option)
        count = "*" if option.repeatable or " " in option.metavar else "1"
        name = option.metavar.strip("[].").partition("]")[0].replace("|", " ")
        return f"'{count}:{name}:{action}'" if action.strip() else ""
    value = f":{option.metavar.replace(':', '')}:{_zsh_action(option)}" if option.metavar else ""
    help_ = option.help.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:").replace("'", "'\\''")
    exclude = "*" if option.repeatable else f"({' '.join(option.names)})"
    names = "{" + ",".join(option.names) + "}" if len(option.names) > 1 else option.names[0]
    return f"'{exclude}'{names}'[{help_}]{value}'"


def _zsh_action(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    if live := _live(option.metavar):
        return f"_esp_live {live}"
    return {"FILE": "_files", "[FILE]": "_files", "DIR": "_files -/"}.get(option.metavar, " ")


def _fish(commands: list[Described]) -> str:
    names = sorted({name for command in commands for name in command.commands})
    lines = [
        "# fish completion for esp; made by esp completion fish",
        "",
        "# Whether the words of the command so far are $argv, options left out.",
        "function __esp_is",
        "    set -l found",
        "    for word in (commandline -opc)[2..]",
        f"        if contains -- $word {' '.join(names)}",
        "            set -a found $word",
        "        end",
        "    end",
        '    test "$found" = "$argv"',
        "end",
        "",
        "# What the config decides. $argv: shards or keys.",
        "function __esp_live",
        "    set -l words (commandline -opc)",
        "    set -l config",
        "    for number in (seq (count $words))",
        "        if contains -- $words[$number] -c --config",
        "            set config $words[(math $number + 1)]",
        "        end",
        "    end",
        "    esp complete $argv (commandline -ct) $config 2>/dev/null",
        "end",
        "",
        "complete -c esp -f",
    ]
    for command in commands:
        condition = f"-n {_fish_quoted('__esp_is ' + ' '.join(command.words))}"
        for name in command.commands:
            about = next(one.about[0] for one in commands if one.words == (*command.words, name))
            lines.append(f"complete -c esp {condition} -a {name} -d {_fish_quoted(about)}")
        for option in command.options:
            if not option.names:
                if value := _fish_value(option):
                    lines.append(f"complete -c esp {condition} {value}")
                continue
            flags = [f"-l {one[2:]}" if one.startswith("--") else f"-s {one[1:]}" for one in option.names]
            value = f" -r {_fish_value(option) or '-f'}" if option.metavar else ""
            lines.append(f"complete -c esp {condition} {' '.join(flags)}{value} -d {_fish_quoted(option.help)}")
    return "\n".join(lines) + "\n"


def _fish_value(option: Option) -> str:
    if option.choices:
        return f"-f -a {_fish_quoted(' '.join(option.choices))}"
    if live := _live(option.metavar):
        return f"-f -a {_fish_quoted(f'(__esp_live {live})')}"
    return {"FILE": "-F", "[FILE]": "-F", "DIR": "-f -a '(__fish_complete_directories)'"}.get(option.metavar, "")


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
