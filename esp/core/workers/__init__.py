"""Several processes that serve as one: a supervisor, and the workers that it forks.

    channel     questions between the supervisor and a worker, in both directions
    supervisor  starts the workers, begins those anew that have ended, and ends them all
    balance     hands new clients to the worker that has the fewest
    watchdog    ends workers whose loop stands still
    rounds      work that many ask for, and that is done for all of them together

The supervisor binds the sockets and keeps them open, so that no client is refused while a worker begins anew. A worker
is a fork of the supervisor, and not a new program: so it has the very config, and the very version of esp, that the
other workers have, whatever is on the disk by now. Fork also shares memory, and takes no time to import modules.
"""

from esp.core.workers.balance import Balance, Share
from esp.core.workers.channel import Channel, ChannelError
from esp.core.workers.rounds import Rounds
from esp.core.workers.supervisor import Supervisor, Worker
from esp.core.workers.watchdog import Watchdog

__all__ = ["Balance", "Channel", "ChannelError", "Rounds", "Share", "Supervisor", "Watchdog", "Worker"]
