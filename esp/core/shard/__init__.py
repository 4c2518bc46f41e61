"""The client of one shard, and esp's own questions to shards.

    unary      one unary RPC, asked of one shard or of several at once: parsed answers, or statuses that blame a shard
    at_once    one call to each of several shards, in one turn of the loop
    guarded_shard  a shard that holds a guard
    shard      one shard, as its callers see it: clients' calls passed on, esp's own calls
    checked    calls that compare nothing: the guard is looked at behind the answer
    guarded    the connections of a shard that holds a guard: each call for keys compares it
    waits      calls for locks and elections that are given up, one at a time
    connected  keeps a shard connected to one endpoint, fail-over to the next
    second_look  failed endpoints, looked at again while another is in use
    links      a shard's two connections to the endpoint in use
    pulse      the health of a connection: Status calls while nobody else asks
    leader     when a member that has no leader is left
    outage     what the log says of losses and outages
    compared   requests that compare the shard's guard, as bytes, and their answers
    cluster    one etcd cluster as its answers show it: version, revision, limits
    fate       what becomes of a call that broke: when it is sent again
    link       one connection of a shard, and the calls that wait for the connection
    login      esp's own user: the token that goes with esp's own questions
    member     a server's first answer: whether the server is up, and is not an esp
    dialler    connects to an endpoint as far as that calls can be sent
    common_name  refuses a certificate of esp's that a shard may take for a user's
    peer_port  recognises the port of etcd's members
    strangers  finds out who answers at an endpoint that does not answer as an etcd
    secured    TLS towards a shard: credentials, and the faults of handshakes
    dial       connects to the first of a host's addresses that accepts
    endpoint_state  the state of one endpoint: connectivity, trouble, round trips
    lookup     looks up host names, each in at most one thread

From the top down; each file imports only files below it.
"""

from esp.core.shard.at_once import AtOnce, are_ready
from esp.core.shard.cluster import NONE_REFUSED
from esp.core.shard.compared import GUARD_KEY, GUARD_PERMISSION, Guard, Kind
from esp.core.shard.connected import FIRST_PAUSE, LONGEST_PAUSE
from esp.core.shard.dial import connect
from esp.core.shard.dialler import reason_of
from esp.core.shard.endpoint_state import Connectivity, EndpointState
from esp.core.shard.fate import outcome
from esp.core.shard.guarded import Compared
from esp.core.shard.guarded_shard import GuardedShard, Outdated, check_guard, is_unsafe, nobody, too_old
from esp.core.shard.lookup import Lookups, UnknownNameError, is_address
from esp.core.shard.member import STATUS_PATH, is_probe
from esp.core.shard.secured import Secured
from esp.core.shard.shard import Shard
from esp.core.shard.unary import (
    ALARMS,
    AUTH_STATUS,
    AUTHENTICATE,
    COMPACT,
    DELETE_RANGE,
    LEASE_GRANT,
    LEASE_LEASES,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    MEMBER_LIST,
    PUT,
    RANGE,
    ROLE_GET,
    ROLE_GRANT_PERMISSION,
    ROLE_LIST,
    STATUS,
    TXN,
    USER_GET,
    USER_LIST,
    Answer,
    Method,
    answers_of,
    ask,
    ask_all,
    ask_all_for_esp,
    ask_for_esp,
    ask_in_turn,
    failures_of,
)

__all__ = [
    "ALARMS",
    "AUTHENTICATE",
    "AUTH_STATUS",
    "COMPACT",
    "DELETE_RANGE",
    "FIRST_PAUSE",
    "GUARD_KEY",
    "GUARD_PERMISSION",
    "LEASE_GRANT",
    "LEASE_LEASES",
    "LEASE_REVOKE",
    "LEASE_TIME_TO_LIVE",
    "LONGEST_PAUSE",
    "MEMBER_LIST",
    "NONE_REFUSED",
    "PUT",
    "RANGE",
    "ROLE_GET",
    "ROLE_GRANT_PERMISSION",
    "ROLE_LIST",
    "STATUS",
    "STATUS_PATH",
    "TXN",
    "USER_GET",
    "USER_LIST",
    "Answer",
    "AtOnce",
    "Compared",
    "Connectivity",
    "EndpointState",
    "Guard",
    "GuardedShard",
    "Kind",
    "Lookups",
    "Method",
    "Outdated",
    "Secured",
    "Shard",
    "UnknownNameError",
    "answers_of",
    "are_ready",
    "ask",
    "ask_all",
    "ask_all_for_esp",
    "ask_for_esp",
    "ask_in_turn",
    "check_guard",
    "connect",
    "failures_of",
    "is_address",
    "is_probe",
    "is_unsafe",
    "nobody",
    "outcome",
    "reason_of",
    "too_old",
]
