"""Where keys, bytes and writes are, and which shard is to own what: `esp plan`.

    plan       what was found, what was asked for, and what is proposed
    survey     the keys of servers, read and counted; what is written there
    watching   writes, watched for some seconds
    sources    the servers: shards of a config, or an etcd or an esp by its URL
    proposal   which shard is to own what, and what has to move
    places     the boundaries that are possible
    parts      the choice among them
    resources  the resources of Kubernetes among the prefixes
    whole      what no boundary may divide
    tally      keys in their order, counted by prefixes
    curve      how much lies before a key
    sizes      the sizes of values, of which only some are read
    writes     a sample of writes
    weights    keys, bytes and writes of a prefix

From the top down; each file imports only files below it. `proposal` and what is below it are pure functions.
"""

from esp.core.plan.plan import Plan
from esp.core.plan.proposal import EVEN, Move, Proposal, Wish, propose, weights_of
from esp.core.plan.resources import Cluster, Resource
from esp.core.plan.sources import Source, SurveyError, source_of, sources_of
from esp.core.plan.survey import Survey, surveyed
from esp.core.plan.tally import Counted, Prefix
from esp.core.plan.weights import Measure, Weights

__all__ = [
    "EVEN",
    "Cluster",
    "Counted",
    "Measure",
    "Move",
    "Plan",
    "Prefix",
    "Proposal",
    "Resource",
    "Source",
    "Survey",
    "SurveyError",
    "Weights",
    "Wish",
    "propose",
    "source_of",
    "sources_of",
    "surveyed",
    "weights_of",
]
