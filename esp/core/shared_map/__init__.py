"""The map as the shards hold it: read from them, and changed on them.

    writing    changes, decided on the anchor and carried out on the shards
    access     the right of clients to have the guard compared, where auth is on
    serving    a config with the map that the shards hold
    watching   the news that a shard's keys of the map have changed
    reading    what the shards hold, and the map in force by that
    change     a change, its steps, and their transactions
    moving     a move of a range that is under way, and the maps to which it leads
    value      the map and its bytes
    moved      the moves that are done, as the map remembers them

From the top down; each file imports only files below it. The protocol is in docs/decisions/2026-11-30-one-map.md.
"""

from esp.core.shard import GUARD_KEY
from esp.core.shared_map.access import grant, is_auth_on, roles_without
from esp.core.shared_map.change import Kind, Next, Step, cutting, decode_next, steps, target_opening
from esp.core.shared_map.moved import MAX_MOVES, Moved, without_history
from esp.core.shared_map.moving import COPIES_KEY, MAX_PAUSE, Move, Phase, given_back, moved_to
from esp.core.shared_map.reading import DisagreeError, Held, Told, foreign_keys, moves_of, newest, opening, read
from esp.core.shared_map.serving import NoMapError, first_map, former_of, served, served_as
from esp.core.shared_map.value import (
    HELD_KEYS,
    MAP_KEY,
    MAX_MAP_BYTES,
    NEXT_KEY,
    OWN_KEYS,
    Change,
    MapFormatError,
    SharedMap,
    as_json,
    clients_keys,
    decode,
    first,
    with_new_guards,
    with_shards,
)
from esp.core.shared_map.watching import watch
from esp.core.shared_map.writing import ChangeError, How, Outcome, carry_out, decide, go_over, tell

__all__ = [
    "COPIES_KEY",
    "GUARD_KEY",
    "HELD_KEYS",
    "MAP_KEY",
    "MAX_MAP_BYTES",
    "MAX_MOVES",
    "MAX_PAUSE",
    "NEXT_KEY",
    "OWN_KEYS",
    "Change",
    "ChangeError",
    "DisagreeError",
    "Held",
    "How",
    "Kind",
    "MapFormatError",
    "Move",
    "Moved",
    "Next",
    "NoMapError",
    "Outcome",
    "Phase",
    "SharedMap",
    "Step",
    "Told",
    "as_json",
    "carry_out",
    "clients_keys",
    "cutting",
    "decide",
    "decode",
    "decode_next",
    "first",
    "first_map",
    "foreign_keys",
    "former_of",
    "given_back",
    "go_over",
    "grant",
    "is_auth_on",
    "moved_to",
    "moves_of",
    "newest",
    "opening",
    "read",
    "roles_without",
    "served",
    "served_as",
    "steps",
    "target_opening",
    "tell",
    "watch",
    "with_new_guards",
    "with_shards",
    "without_history",
]
