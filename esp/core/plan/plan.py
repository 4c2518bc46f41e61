"""A plan: what was found, what was asked for, and what is proposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esp.core.plan.proposal import Proposal, Wish
from esp.core.plan.survey import Survey
from esp.core.plan.weights import Weights
from esp.core.shard_map import ShardMap


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan.

    Attributes:
        survey: what was found.
        wish: what was asked for.
        proposal: what is proposed.
        today: today's map, if it is to be shown.
        now: what each shard has by today's map, by its name.
    """

    survey: Survey
    wish: Wish
    proposal: Proposal
    today: ShardMap | None
    now: Mapping[str, Weights]

    @property
    def total(self) -> Weights:
        """What there is."""
        return self.survey.counted.curve.total

    def share(self, weights: Weights) -> float:
        """The share of all there is, by the measure that is asked for."""
        return weights.of(self.wish.measure) / self.total.of(self.wish.measure)

    def rate(self, weights: Weights) -> float | None:
        """Writes a second; None if they were not watched."""
        survey = self.survey
        if not survey.seconds:
            return None
        return weights.writes / survey.sampled * survey.writes / survey.seconds if survey.sampled else 0.0

    def largest(self, weights: Mapping[str, Weights]) -> float:
        """The largest of some shards, in fair shares of as many shards as are asked for."""
        return max(map(self.share, weights.values())) * self.wish.shards
