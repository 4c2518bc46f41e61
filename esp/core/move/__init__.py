"""Ranges of keys that move between shards while clients read and write them.

    mover      copies, follows, cuts, opens; or gives up
    deciding   a move is decided on, or taken over
    raising    the target's revision counter
    taking     a mover becomes the one who copies
    purging    keys that a shard does not own any more, deleted; and compared before
    locks      locks and elections in use
    chain      copies on the target, in order, several under way
    feed       the source, watched
    snapshot   the keys of the source at one revision
    copies     what the target holds of how far the copies are
    revisions  plain values: what one revision of the source has written
    troubles   why a move does not go on

From the top down; each file imports only files below it. The protocol is in docs/decisions/2026-11-30-one-map.md.
"""

from esp.core.move.copies import Copies, decode_copies
from esp.core.move.deciding import DEFAULT_PAUSE, announced, planned, taken_over
from esp.core.move.locks import Locks, locks_of
from esp.core.move.mover import GivenUpError, Moved, Mover, Stage, Told
from esp.core.move.purging import Content, compared, purge
from esp.core.move.troubles import CompactedError, TakenOverError, count, failures

__all__ = [
    "DEFAULT_PAUSE",
    "CompactedError",
    "Content",
    "Copies",
    "GivenUpError",
    "Locks",
    "Moved",
    "Mover",
    "Stage",
    "TakenOverError",
    "Told",
    "announced",
    "compared",
    "count",
    "decode_copies",
    "failures",
    "locks_of",
    "planned",
    "purge",
    "taken_over",
]
