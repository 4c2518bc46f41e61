"""Load on a proxy or an etcd, and what it measures: `esp bench`.

    rounds    the rounds of a workload, one target after the other in each
    streams   closed loops of watches and of keepalives
    calls     closed loops of unary calls
    loop      what all closed loops have: calls that are open, latencies, errors
    target    the connections to one target, and single calls
    keys      keys that are spread over the shards of a map
    figures   what was measured, as plain values

From the top down; each file imports only files below it.
"""

from esp.core.load.figures import PERCENTILES, Figures, Measured
from esp.core.load.keys import Keys, NoKeysError, keys_in, spread_over
from esp.core.load.rounds import Bench, Plan, Workload
from esp.core.load.target import Target, TargetError

__all__ = [
    "PERCENTILES",
    "Bench",
    "Figures",
    "Keys",
    "Measured",
    "NoKeysError",
    "Plan",
    "Target",
    "TargetError",
    "Workload",
    "keys_in",
    "spread_over",
]
