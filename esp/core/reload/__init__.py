"""Another config for a running proxy: checked first, then all of it or nothing.

    reloads        the reloads of a process that serves alone
    one_at_a_time  reloads that are wanted from several sides, and done one after the other
    steps          the steps of a reload
    outcome        the outcome of a reload, for people, programs and the log
    watch          reloads when the config file changes
    leases         gives a shard that is new to the map its leases
    keys           keys that clients would lose sight of
    difference     the difference between two configs, for people and programs

From the top down; each file imports only files below it.
"""

from esp.core.reload.difference import LIVE, Change, Difference
from esp.core.reload.leases import MissingLeasesError, bring_leases
from esp.core.reload.one_at_a_time import OneAtATime
from esp.core.reload.outcome import Outcome, Result, log_outcome
from esp.core.reload.reloads import Reloads
from esp.core.reload.steps import CLOSE_SECONDS, HANDING_OVER, LOOK_SECONDS, Reload
from esp.core.reload.watch import ConfigFile

__all__ = [
    "CLOSE_SECONDS",
    "HANDING_OVER",
    "LIVE",
    "LOOK_SECONDS",
    "Change",
    "ConfigFile",
    "Difference",
    "MissingLeasesError",
    "OneAtATime",
    "Outcome",
    "Reload",
    "Reloads",
    "Result",
    "bring_leases",
    "log_outcome",
]
