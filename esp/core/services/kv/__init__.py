"""etcd's KV service over several shards.

    service        the handlers of the RPCs: a call goes to one shard, over several, or is refused
    routed         the common part of the handlers
    peek           finds the key in a request's bytes, without parsing
    txn_handler    the handler of Txn
    txn_plan       how a transaction is served, or why not
    txn_look       the keys and tokens of a transaction, found in its bytes, in steps
    txn_refused    how many operations a shard has refused
    validate, txn  etcd's own checks
    before_move    numbers of before a range came to its shard
    translate      revisions in a request, as the shard counts that gets the request

    clipping       requests without the keys of esp's own

One shard:

    read_batch     sends simultaneous reads of one key each as one transaction
    batched_call   that transaction, from the moment it leaves
    read_txn       the bytes of that transaction

Several shards:

    concat         a Range made of the shards' bytes
    concat_part, kept_answer    one shard's part of it, and the bytes of its answer
    concat_order   another order of rows than that of their keys
    concat_sending the half of it that sends
    part_batch     joins parts for the same shard as read_batch joins reads
    range_bytes    the bytes of requests for parts, and of answers
    spans          what such Ranges have in common
    across         the other calls, as coroutines
    merge          the question for each shard, and one answer made of the shards' answers
    stream_merge   the same for a RangeStream, chunk by chunk
    reading        reads of several shards, each at one revision
    snapshot       finds a moment at which all shards can be read
    rows           the rows of answers, as bytes
    compaction     Compact, each shard at its own revision
"""

from esp.core.services.kv.clipping import without_own_keys
from esp.core.services.kv.compaction import Compactions
from esp.core.services.kv.merge import delete_refused
from esp.core.services.kv.read_batch import PassReads
from esp.core.services.kv.service import AT_REVISIONS, handlers
from esp.core.services.kv.txn_plan import planned

__all__ = ["AT_REVISIONS", "Compactions", "PassReads", "delete_refused", "handlers", "planned", "without_own_keys"]
