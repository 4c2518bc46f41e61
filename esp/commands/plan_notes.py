"""What a reader of a plan should know beside the figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from esp.core.keys import KeyRange, format_key, format_range, prefix_end
from esp.core.plan import Plan, Prefix
from esp.core.tokens import is_token
from esp.core.wording import counted, few

OTHER_SEPARATORS: Final = (b":", b".", b"|", b"_", b"-")


def notes_of(plan: Plan) -> Iterator[tuple[str, str]]:
    """The notes: kinds, and texts for people."""
    proposal, wish, found = plan.proposal, plan.wish, plan.survey
    if len(proposal.map.names) < wish.shards:
        yield (
            "fewer-shards",
            f"there are boundaries for {counted(len(proposal.map.names), 'shard')} only, not for {wish.shards}: what "
            "lies between is not divided. A greater --depth, or --divide PREFIX, allows more",
        )
    if proposal.heaviest is not None:
        share = plan.share(found.counted.curve.within(proposal.heaviest))
        one = _heaviest(proposal.heaviest, plan)
        name = format_range(proposal.heaviest) if one is None else f'"{format_key(one.prefix)}"'
        resources = tuple(each.range.start for cluster in proposal.clusters for each in cluster.resources)
        if one is not None and one.prefix[:-1].startswith(resources):
            why = "since kube-apiserver needs it in one shard, so no plan is more even"
        elif one is not None and one.locks:
            why = "since it has locks, so no plan is more even"
        else:
            why = (
                "so no plan is more even. If no client lists, watches or locks it as one, have it divided: --divide "
                "PREFIX, or a greater --depth"
            )
        yield "heaviest", f"{name} has {share:.0%} of the {wish.measure} and stays whole, {why}"
    if proposal.at_keys:
        told = few([f'"{format_key(one)}"' for one in proposal.at_keys])
        yield (
            "at-keys",
            f"no prefix ends at {told}: a list, a watch or a lock of keys on both sides would span shards. If there "
            "are such, keep them together with --keep PREFIX, or name another --separator",
        )
    if (other := _other_separator(plan)) is not None:
        text = f'few keys have a "{format_key(wish.separator)}", and most have a "{other}": try --separator {other}'
        yield "separator", text
    if len(plan.now) == 1 and any(map(is_token, found.revisions.values())):
        names = few(list(found.revisions))
        yield "an-esp", f"{names} is an esp: give its config with -c, so that the plan is about its shards"
    if found.compacted:
        names = few(list(found.compacted))
        yield "compacted", f"{names}: the revision was compacted while keys were read; the rest is of a later one"
    if found.sampled < found.writes:
        yield (
            "sampled-writes",
            f"a sample of {found.sampled:,} of {found.writes:,} writes tells the shares, which are nearly always off "
            "by less than half a percent of all writes",
        )


def _heaviest(piece: KeyRange, plan: Plan) -> Prefix | None:
    """The shortest prefix between two boundaries that has nearly all that lies there."""
    measure = plan.wish.measure
    within = plan.survey.counted.curve.within(piece).of(measure)
    for one in plan.survey.counted.prefixes:
        end = prefix_end(one.prefix)
        inside = one.prefix >= piece.start and (piece.end is None or (end is not None and end <= piece.end))
        if inside and one.prefix and 10 * one.weights.of(measure) >= 9 * within:
            return one
    return None


def _other_separator(plan: Plan) -> str | None:
    """A separator that most keys have, where they do not have the one in use."""
    samples = plan.survey.counted.samples
    if len(samples) < 10 or 2 * sum(one.find(plan.wish.separator, 1) > 0 for one in samples) > len(samples):
        return None
    for other in OTHER_SEPARATORS:
        if 10 * sum(one.find(other, 1) > 0 for one in samples) >= 9 * len(samples):
            return other.decode()
    return None
