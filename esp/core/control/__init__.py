"""The control socket of a running proxy: commands of the operator, such as `esp reload`, and file descriptors.

    lines     requests and answers, one JSON object a line
    place     where the socket of a config is, and whether the folder is safe
    server    the end in the running proxy: a table of commands
    client    the other end: asks, prints progress, takes descriptors

A connection carries any number of requests, one after the other. A request is `{"command": NAME, ...}`. Its answers are
any number of `{"progress": {...}}`, then one `{"result": {...}}` or `{"error": TEXT}`. Later versions add fields and
commands, and never change one.
"""

from esp.core.control.client import Client, NoneRunsError, RefusedError
from esp.core.control.lines import MAX_ANSWER_BYTES, size_of
from esp.core.control.place import Place, PlaceError, find, looked_at, others_of, place_of
from esp.core.control.server import Call, Command, Control, DeniedError

__all__ = [
    "MAX_ANSWER_BYTES",
    "Call",
    "Client",
    "Command",
    "Control",
    "DeniedError",
    "NoneRunsError",
    "Place",
    "PlaceError",
    "RefusedError",
    "find",
    "looked_at",
    "others_of",
    "place_of",
    "size_of",
]
