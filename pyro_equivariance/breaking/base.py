"""What the score of a symmetry's breaking is: for one group, for several, and the interval of Wilson."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

POWER, SHOWN = 0.8, 4


@dataclass(frozen=True)
class SymmetryBreaking:
    """How far the data are from symmetric under one group: what :func:`symmetry_breaking_score` returns.

    ``accuracy`` is that of the classifiers on ``count`` data held out, ``low`` and ``high`` its Wilson interval at
    ``level``. ``by_element`` has, for each element (of at most 64), the share of its moved copies that were called
    moved, under ``"e"`` that of the data left as they are: an element that breaks no symmetry has the share of ``"e"``,
    and ``elements`` how many of each there were. ``has_traces``: moved copies are interpolated and the others are not,
    which alone may tell them apart.
    """

    group: object
    accuracy: float
    low: float
    high: float
    level: float
    count: int
    by_element: Mapping[str, float]
    elements: Mapping[str, int]
    has_traces: bool

    @property
    def is_broken(self) -> bool:
        """Whether the interval lies above 0.5; of symmetric data at most ``(1 − level) / 2`` are called broken."""
        return self.low > 0.5

    @property
    def detectable(self) -> float:
        """The accuracy that a classifier must have to be told from 0.5 in four of five samples of this size."""
        normal = NormalDist()
        return min(1.0, 0.5 + (normal.inv_cdf((1 + self.level) / 2) + normal.inv_cdf(POWER)) / (2 * self.count**0.5))

    @property
    def broken_by(self) -> tuple[str, ...]:
        """The elements whose moved copies are called moved more often than the data are, all together at ``level``."""
        names = [name for name in self.by_element if name != "e"]
        bar = NormalDist().inv_cdf(1 - (1 - self.level) / (2 * max(len(names), 1)))
        return tuple(name for name in names if self._distance(name) > bar)

    def _distance(self, name: str) -> float:
        """Between the rates of an element and of ``e``, in standard errors of equal rates."""
        n, m = self.elements[name], self.elements["e"]
        own, still = self.by_element[name], self.by_element["e"]
        pooled = (n * own + m * still) / (n + m)
        return (own - still) / max(math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m)), 1e-12)

    def __float__(self) -> float:
        return self.accuracy

    def __str__(self) -> str:
        level = f"{self.level:.2%}".replace(".00%", "%")
        return (
            f"{self.group}: accuracy {self.accuracy:.3f}, {self.low:.3f} to {self.high:.3f} ({level} interval, "
            f"{self.count:,} held out): {self.verdict}"
        )

    @property
    def verdict(self) -> str:
        """In words: broken, and by which elements, or not, and how much could have been overlooked."""
        if not self.is_broken:
            return f"no breaking found (accuracies from {self.detectable:.3f} on would be)"
        names, others = self.broken_by, len(self.by_element) - 1
        who = f" by {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}" if names else ""
        if 1 < others == len(names):
            who = f" by all {others} elements"
        return f"broken{who}{', unless by its interpolation' if self.has_traces else ''}"


@dataclass(frozen=True)
class SymmetryBreakingTable(Sequence):
    """The scores of several groups, whose intervals hold together with probability ``level`` (Bonferroni).

    ``contains`` has for each group the places of those in the list whose moves are among its own.
    """

    scores: tuple[SymmetryBreaking, ...]
    contains: tuple[tuple[int, ...], ...]
    level: float

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, place):
        return self.scores[place]

    @property
    def symmetric(self) -> tuple[SymmetryBreaking, ...]:
        """The groups under which no breaking was found, nor in a group of the list that they contain."""
        pairs = zip(self.scores, self.contains, strict=True)
        return tuple(s for s, inner in pairs if not any(self.scores[i].is_broken for i in inner))

    @property
    def largest(self) -> SymmetryBreaking | None:
        """Of these the one of the largest group, the first of equals; ``None`` if there is none."""
        return max(self.symmetric, key=lambda score: _order(score.group), default=None)

    def __str__(self) -> str:
        width = max(len(str(s.group)) for s in self.scores)
        lines = [f"{'group':<{width}}  accuracy  interval        data"]
        lines += [f"{s.group!s:<{width}}  {s.accuracy:>8.3f}  {s.low:.3f} – {s.high:.3f}   {s.verdict}" for s in self]
        largest = self.largest.group if self.largest else "none of these"
        lines.append(f"largest group under which the data look symmetric: {largest}")
        lines.append(
            f"{self[0].count:,} data held out; intervals at {self[0].level:.2%} each, {self.level:.0%} all together"
        )
        return "\n".join(lines)


def _order(group) -> float:
    return len(group) if group.is_indexed else math.inf


def wilson_interval(right: int, count: int, level: float) -> tuple[float, float]:
    """The interval of Wilson for a probability, from ``right`` successes in ``count`` trials.

    ``(p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`` with ``p = right / count``, ``z`` the Normal quantile [1]:
    the probabilities that a two-sided test does not reject.

    [1] Wilson (1927) "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212.

    >>> [round(end, 4) for end in wilson_interval(5, 10, 0.95)]
    [0.2366, 0.7634]
    """
    z, p = NormalDist().inv_cdf((1 + level) / 2), right / count
    middle, half = p + z**2 / (2 * count), z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
