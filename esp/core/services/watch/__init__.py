"""etcd's Watch service over several shards.

From the top down; each file imports only files below it:

    client stream      stream.py    one client's Watch call: its requests and its watch ids
      request          slots.py     a request, answered in order; progress.py puts the shards' answers together
      watcher          watcher.py   one watcher of a client, in one shard or in several
        crossing       crossing.py  how it goes over to the shard to which all its keys have moved
        tap            tap.py       a watcher's part in one shard: where that shard's events come from
    pool               pool.py      which sources are shared, and which taps may join them
    source             source.py    one watcher of a shard, which feeds one tap or many
      upstream         upstream.py  one Watch call to a shard, opened again whenever it breaks
      exchange         exchange.py  the requests and replies of that call; call.py its stream, checked_call.py where
                                    shards hold guards
    outbox             outbox.py    the way back to one client: messages that wait, and the end of the client's call

A watcher from now on joins the shared source for its range. A watcher from a revision gets a source of its own, on an
upstream that belongs to its client. The client's windows hold back this upstream, so that a long history delays no
other client. When the source has caught up, and others watch the same range, the watcher joins a shared source. esp
passes messages on as the bytes that came, with another watch id (messages.py).

Resuming. A source knows the lowest revision that it has not passed on (`Source.next`), and a tap that has just joined
a source knows its own (`Tap.next`). After a break the source is created again upstream at exactly that revision, and
older events are dropped. So after any break no event is lost, and none comes twice.

Where the shards hold the map, a shard that gives keys away or gets some has another guard, and so another client. Its
upstreams go on by that one, as after a break (`Watch.install`).
"""

from esp.core.services.watch.positions import Finding, Others, Positions
from esp.core.services.watch.service import PATH, Watch

__all__ = ["PATH", "Finding", "Others", "Positions", "Watch"]
