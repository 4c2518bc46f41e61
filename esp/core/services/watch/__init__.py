"""etcd's Watch service over several shards.

    client stream      stream.py    one client's Watch call: its ids; outbox.py what waits for the client to read it
      request          slots.py     what it asks for, answered in order; progress.py puts answers together
      watcher          watcher.py   one watcher of a client, in one shard or in several
        tap            tap.py       its part in one shard: where it gets that shard's events from
    source             source.py    one watcher of a shard, which feeds one tap or many
      upstream         upstream.py  one Watch call to a shard, opened again whenever it breaks; call.py its stream
    pool               pool.py      which sources are shared, and who may join them

A watcher from now on joins the shared source for its range. One from a revision gets a source of its own, on an
upstream of its client's own that the client's windows hold back, so that reading a long history delays nobody; when
it has caught up and others watch the same it joins a shared one. Messages are passed on as the bytes they came in,
with the watch id exchanged (messages.py).

Resuming. A source knows the lowest revision that it has not passed on (`Source.next`), and a tap that has just joined
one knows its own (`Tap.next`). After a break the source is created again upstream at exactly that revision, and
whatever comes that is older is dropped. So nothing is lost and nothing comes twice, whatever breaks and whenever.
"""

from esp.core.services.watch.service import handlers

__all__ = ["handlers"]
