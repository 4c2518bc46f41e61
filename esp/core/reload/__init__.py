"""Another config for a running proxy: checked first, then all of it or nothing.

    reloads      the steps of a reload, one at a time; its outcome
    watch        reloads when the config file changes
    leases       gives a shard that is new to the map its leases
    keys         keys that clients would lose sight of
    difference   the difference between two configs, for people and programs

From the top down; each file imports only files below it.
"""

from esp.core.reload.difference import LIVE, Change, Difference, Move, moves
from esp.core.reload.reloads import HANDING_OVER, Outcome, Reloads, Result, log_outcome
from esp.core.reload.watch import ConfigFile

__all__ = [
    "HANDING_OVER",
    "LIVE",
    "Change",
    "ConfigFile",
    "Difference",
    "Move",
    "Outcome",
    "Reloads",
    "Result",
    "log_outcome",
    "moves",
]
