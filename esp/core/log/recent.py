"""The last lines of the log about shards, for people who look at the status page."""

from __future__ import annotations

import logging
from collections import deque
from typing import Final, NamedTuple

from esp.core.log.lines import fields_of, plain, text_of

MOST: Final = 64
"""Lines that are kept."""


class RecentLine(NamedTuple):
    """A line: when it was logged (seconds since 1970), its level in lower case, the shard, the text."""

    at: float
    level: str
    shard: str
    text: str


class Recent(logging.Handler):
    """A log handler that keeps the last lines, from INFO on, that are about one shard.

    Lines about clients are not kept: their addresses and keys are no business of others.

    Attributes:
        lines: the oldest first.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[RecentLine] = deque(maxlen=MOST)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the line if it is about a shard. Raises nothing."""
        if not isinstance(record.msg, str) or not record.msg.startswith("shard %s"):
            return
        try:
            shard, text = fields_of(record).get("shard"), plain(text_of(record))
        except Exception:  # the handler that writes the line tells of it
            return
        self.lines.append(RecentLine(record.created, record.levelname.lower(), str(shard), text))
