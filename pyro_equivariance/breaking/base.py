"""What the score of a symmetry's breaking is: for one group, for several, and the interval of Wilson."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import torch

from ..errors import OptionError

POWER, SHOWN = 0.8, 4


@dataclass(frozen=True)
class SymmetryBreaking:
    """How far the data are from symmetric under one group: what :func:`symmetry_breaking_score` returns.

    ``accuracy`` is that of the classifiers on ``count`` data held out, ``low`` and ``high`` its Wilson interval at
    ``level``. ``by_element`` has, for each element (of at most 64), the share of its moved copies that were called
    moved, under ``"e"`` that of the data left as they are: an element that breaks no symmetry has the share of ``"e"``,
    and ``elements`` how many of each there were. ``has_traces``: moves interpolate, which alone may tell moved copies
    from the data, and a little still where these go there and back; ``compared`` is then the share of the entries that
    the classifier saw, and ``None`` otherwise.
    """

    group: object
    accuracy: float
    low: float
    high: float
    level: float
    count: int
    by_element: Mapping[str, float] = field(hash=False)
    elements: Mapping[str, int] = field(hash=False)
    has_traces: bool
    compared: float | None = None

    @property
    def is_broken(self) -> bool:
        """Whether so many right answers are too many for fair coins.

        It is the exact test, ``p_value <= (1 − level) / 2``: symmetric data are called broken with at most that
        probability. The interval approximates, and near the border it may end on the other side of 0.5.
        """
        return self.p_value <= (1 - self.level) / 2

    @property
    def p_value(self) -> float:
        """The probability that ``count`` fair coins are right as often or more."""
        return fair_coin_tail(round(self.accuracy * self.count), self.count)

    @property
    def detectable(self) -> float:
        """The accuracy that a classifier must have to be told from 0.5 in four of five samples of this size."""
        normal = NormalDist()
        return min(1.0, 0.5 + (normal.inv_cdf((1 + self.level) / 2) + normal.inv_cdf(POWER)) / (2 * self.count**0.5))

    @property
    def broken_by(self) -> tuple[str, ...]:
        """The elements whose moved copies are called moved more often than the data are, all together at ``level``."""
        names = [name for name in self.by_element if name != "e"] if "e" in self.by_element else []
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
        seen = "" if self.compared is None else f"; {self.compared:.0%} of the pixels compared"
        if not self.is_broken:
            return f"no breaking found; an accuracy of {self.detectable:.3f} would be found in 4 of 5 samples{seen}"
        return f"broken{self._breakers}{self._caveat}{seen}"

    @property
    def _breakers(self) -> str:
        names = self.broken_by
        if 1 < len(self.by_element) - 1 == len(names):
            return f" by all {len(names)} elements"
        return f" by {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}" if names else ""

    @property
    def _caveat(self) -> str:
        if not self.has_traces:
            return ""
        return f", unless by {'its' if self.compared is None else 'what is left of its'} interpolation"


@dataclass(frozen=True)
class SymmetryBreakingTable(Sequence):
    """The scores of several groups, whose intervals hold together with probability ``level`` (Bonferroni).

    ``contains`` has for each group the places of those in the list whose moves are among its own, ``may_contain`` those
    of which that is not known.
    """

    scores: tuple[SymmetryBreaking, ...]
    contains: tuple[tuple[int, ...], ...]
    may_contain: tuple[tuple[int, ...], ...]
    level: float

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, place):
        return self.scores[place]

    @property
    def symmetric(self) -> tuple[SymmetryBreaking, ...]:
        """The groups under which no breaking was found, nor in a group of the list that they contain."""
        pairs = zip(self.scores, self.contains, strict=True)
        return tuple(s for s, inner in pairs if not self._broken(inner))

    @property
    def largest(self) -> SymmetryBreaking | None:
        """Of these the one of the largest group, the first of equals; ``None`` if there is none.

        A group that may contain a broken one, as far as is known, is not considered.
        """
        pairs = zip(self.scores, self.contains, self.may_contain, strict=True)
        found = [s for s, inner, perhaps in pairs if not self._broken(inner + perhaps)]
        return max(found, key=lambda score: _order(score.group), default=None)

    def _broken(self, places) -> list[str]:
        return [str(self.scores[i].group) for i in places if self.scores[i].is_broken]

    def __str__(self) -> str:
        width = max(len(str(s.group)) for s in self.scores)
        lines = [f"{'group':<{width}}  accuracy  interval        verdict"]
        lines += [f"{s.group!s:<{width}}  {s.accuracy:>8.3f}  {s.low:.3f} – {s.high:.3f}   {s.verdict}" for s in self]
        largest = self.largest.group if self.largest else "none of these"
        lines.append(f"largest group under which the data look symmetric: {largest}")
        for score, perhaps in zip(self.scores, self.may_contain, strict=True):
            if score in self.symmetric and self._broken(perhaps):
                lines.append(f"{score.group}: not compared with {', '.join(self._broken(perhaps))}, which is broken")
        lines.append(
            f"{self[0].count:,} data held out; intervals at {self[0].level:.2%} each, {self.level:.0%} all together"
        )
        return "\n".join(lines)


def _order(group) -> float:
    return len(group) if group.is_indexed else math.inf


def fair_coin_tail(right: int, count: int) -> float:
    """``P(X ≥ right)`` for the number ``X`` of heads of ``count`` fair coins, ``Σ_{k ≥ right} C(count, k) / 2^count``.

    >>> round(fair_coin_tail(9, 10), 6)  # (10 + 1) / 1024
    0.010742
    """
    k = torch.arange(right, count + 1, dtype=torch.float64)
    n = torch.tensor(float(count), dtype=torch.float64)
    logs = (n + 1).lgamma() - (k + 1).lgamma() - (n - k + 1).lgamma() - n * math.log(2)
    return min(1.0, float(logs.logsumexp(0).exp()))


def wilson_interval(right: int, count: int, level: float) -> tuple[float, float]:
    """The interval of Wilson for a probability, from ``right`` successes in ``count`` trials.

    ``(p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`` with ``p = right / count``, ``z`` the Normal quantile [1]:
    the probabilities that a two-sided test does not reject.

    :raises OptionError: unless ``0 <= right <= count`` and ``count`` is positive.

    [1] Wilson (1927) "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212.

    >>> [round(end, 4) for end in wilson_interval(5, 10, 0.95)]
    [0.2366, 0.7634]
    """
    if not 0 <= right <= count or count < 1:
        raise OptionError(f"Expected right between 0 and count, and count at least 1; got {right} of {count}.")
    z, p = NormalDist().inv_cdf((1 + level) / 2), right / count
    middle, half = p + z**2 / (2 * count), z * math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
