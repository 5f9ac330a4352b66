"""Medians, percentiles and the bootstrap interval of a median ratio."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

RESAMPLES = 2000


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which share (0 to 1) of the values lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def interval(values: Sequence[float], seed: int = 1) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median."""
    chance = random.Random(seed)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Round by round, so that what slowed a whole round down cancels out."""
    return [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
