"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        parser=path_of,
        help="Config file; else ESP_CONFIG, ./esp.yaml, ./.esp/esp.yaml or /etc/esp/esp.yaml.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    Format, typer.Option("-o", "--output", metavar="table|json", help="Output format.", show_default=False)
]
CertOption = Annotated[str, typer.Option("--cert", metavar="FILE", help="Client certificate.", show_default=False)]
KeyOption = Annotated[str, typer.Option("--key", metavar="FILE", help="Its key.", show_default=False)]
