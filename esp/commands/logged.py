"""The log of `esp serve`, from before the config is read until the process ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from esp.commands.output import USAGE, CommandError, LogFormat, LogLevel
from esp.core.config import ConfigError
from esp.core.log.setup import Log

log = logging.getLogger("esp")


@contextmanager
def logged(form: LogFormat | None, level: LogLevel | None) -> Iterator[Log]:
    """The log of the process while the block runs. `form` and `level` go before those of the config.

    Raises:
        SystemExit: for an expected failure of the block, if the log is JSON: its last line has the reason, where other
            forms leave this to the command line.
    """
    lines = Log(None if form is None else form.value, None if level is None else level.value)
    try:
        yield lines
    except (ConfigError, CommandError) as error:
        if lines.form == "text":
            raise
        log.error("%s", error)
        raise SystemExit(error.exit_code if isinstance(error, CommandError) else USAGE) from None
    finally:
        lines.close()
