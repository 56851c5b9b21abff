"""Ranks of the truth among draws of a guide: their tests, and what these say in words."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from scipy import stats

SHOWN = 20
TERMS = np.arange(1, 101)[:, None]  # of Kuiper's series, which converges fast
CERTAIN = 0.4  # Kuiper's λ below which p is 1 to all digits; its series converges slowly there


@dataclass(frozen=True)
class VSBC:
    """What :func:`vsbc` returns; ``str()`` is its table.

    ``ranks`` are integers from 0 to ``draws``, ``(simulations, quantities)``, each uniform if the guide is exact;
    ``losses`` the mean loss over the last tenth of each training, in nats, ``nan`` for a guide without parameters, and
    ``falling`` whether the loss of a simulation was still falling half way through.
    All arrays below have one entry for each of ``quantities``; ``u = (rank + ½) / (draws + 1)``.

    >>> tilted = VSBC(np.arange(100)[:, None] ** 2 // 100, ("mu",), draws=99, losses=np.full(100, np.nan))
    >>> tilted.verdicts, round(float(tilted.bias[0]), 3)
    (('too high',), -0.171)
    """

    ranks: np.ndarray
    quantities: tuple[str, ...]
    draws: int
    losses: np.ndarray
    alpha: float = 0.05
    seed: int = 0
    falling: np.ndarray | None = None

    @cached_property
    def bias(self) -> np.ndarray:
        """``mean(u) − ½``: positive where the truth ranks high among the draws, so that the guide is too low."""
        return self.ranks.mean(0) / (self.draws + 1) - self.draws / (2 * (self.draws + 1))

    @cached_property
    def width(self) -> np.ndarray:
        """The variance of the ranks over that of uniform ones: 1 if calibrated, above 1 if the guide is too narrow."""
        return self.ranks.var(0, ddof=1) / _uniform_variance(self.draws)

    @cached_property
    def width_se(self) -> np.ndarray:
        """The standard error of ``width``."""
        squares = np.square(self.ranks - self.ranks.mean(0))
        return squares.std(0, ddof=1) / _uniform_variance(self.draws) / math.sqrt(len(self.ranks))

    @cached_property
    def symmetry(self) -> np.ndarray:
        """The p-value of each quantity's test that u is symmetric about ½: the guide's bias."""
        return np.array([symmetry_test(column, self.draws) for column in self.ranks.T])

    @cached_property
    def uniformity(self) -> np.ndarray:
        """The p-value of each quantity's test that u is uniform: its width and shape, and bias once more."""
        return np.array([uniformity_test(column, self.draws) for column in self.ranks.T])

    @cached_property
    def flags(self) -> np.ndarray:
        """Which tests fail at level ``alpha`` by Holm's procedure over all of them: ``(2, quantities)``, bias first."""
        return holm(np.stack([self.symmetry, self.uniformity])) <= self.alpha

    @property
    def passes(self) -> bool:
        """Whether no test fails."""
        return not self.flags.any()

    @cached_property
    def verdicts(self) -> tuple[str, ...]:
        """In words: ``"calibrated"``, ``"too low"``, ``"too high"``, ``"too narrow"``, ``"too wide"``, ``"misshapen"``.

        A bias alone makes ranks less spread and not uniform. Of a biased quantity only ``"and too narrow"`` is said.
        """
        return tuple(map(self._verdict, range(len(self.quantities))))

    def _verdict(self, i: int) -> str:
        is_biased, is_uneven = self.flags[:, i]
        off = (self.width[i] - 1) / max(self.width_se[i], np.finfo(float).tiny)
        if is_biased:
            return ("too low" if self.bias[i] > 0 else "too high") + " and too narrow" * bool(is_uneven and off > 2)
        if is_uneven:
            return "misshapen" if abs(off) <= 2 else "too narrow" if off > 0 else "too wide"
        return "calibrated"

    @cached_property
    def table(self) -> xr.Dataset:
        """All of the above as a dataset over ``quantity``."""
        columns = {
            "bias": self.bias,
            "symmetry": self.symmetry,
            "width": self.width,
            "width_se": self.width_se,
            "uniformity": self.uniformity,
            "verdict": np.array(self.verdicts, dtype=str),
        }
        attrs = {"simulations": len(self.ranks), "draws": self.draws, "alpha": self.alpha, "seed": self.seed}
        return xr.Dataset(
            {name: ("quantity", column) for name, column in columns.items()},
            coords={"quantity": list(self.quantities)},
            attrs=attrs,
        )

    def __str__(self) -> str:
        count = len(self.quantities)
        width = max(len("quantity"), *map(len, self.quantities))
        lines = [
            f"{len(self.ranks)} simulations, {self.draws} draws each; {2 * count} tests, level {self.alpha:g} together "
            f"(Holm): an exact guide is flagged with at most this probability",
            f"{'quantity':<{width}} {'bias':>7} {'symmetry p':>10} {'width':>6} {'uniformity p':>12}  verdict",
        ]
        worst = np.argsort(np.minimum(self.symmetry, self.uniformity), kind="stable")
        for i in worst[:SHOWN]:
            lines.append(
                f"{self.quantities[i]:<{width}} {self.bias[i]:>+7.3f} {self.symmetry[i]:>10.2g} {self.width[i]:>6.2f} "
                f"{self.uniformity[i]:>12.2g}  {self.verdicts[i]}"
            )
        if self.falling is not None and self.falling.any():
            lines.insert(1, f"not trained to the end: the loss was still falling half way in {self.falling.sum()} of "
                            f"{len(self.ranks)} simulations; take more steps, or a larger learning_rate")  # fmt: skip
        if count > SHOWN:
            lines.append(f"and {count - SHOWN} more, {int(self.flags.any(0)[worst[SHOWN:]].sum())} of them flagged")
        return "\n".join(lines)


def symmetry_test(ranks: np.ndarray, draws: int) -> float:
    """p of Wilcoxon's signed rank test that ranks on 0..draws are symmetric about their middle.

    >>> symmetry_test(np.arange(20), 19)
    1.0
    """
    signed = 2 * ranks.astype(float) - draws  # integers, so that ties are exact
    return float(stats.wilcoxon(signed).pvalue) if signed.any() else 1.0


def uniformity_test(ranks: np.ndarray, draws: int) -> float:
    """p of Kuiper's test [1] that ranks are uniform on 0..draws: at most the nominal size, since they are discrete.

    ``V = max_k d_k + max_k (−d_k)`` with ``d_k = F_n(k) − (k + 1) / (draws + 1)``, and ``p = 2 Σ_j (4 j² λ² − 1)
    exp(−2 j² λ²)`` with ``λ = V (√n + 0.155 + 0.24 / √n)`` [2]. On the lattice V is no larger than that of
    ``(rank + v) / (draws + 1)`` with uniform v, for which the formula holds.

    [1] Kuiper (1960) "Tests concerning random points on a circle"
    [2] Stephens (1970) "Use of the Kolmogorov–Smirnov, Cramér–von Mises and related statistics without extensive
    tables"

    >>> uniformity_test(np.arange(20), 19), uniformity_test(np.arange(20) // 2, 19) < 0.05
    (1.0, True)
    """
    n = len(ranks)
    gaps = np.bincount(ranks, minlength=draws + 1).cumsum() / n - np.arange(1, draws + 2) / (draws + 1)
    scaled = float(gaps.max() - gaps.min()) * (math.sqrt(n) + 0.155 + 0.24 / math.sqrt(n))
    if scaled < CERTAIN:
        return 1.0
    powers = np.square(TERMS * scaled)
    return float(np.clip(2 * ((4 * powers - 1) * np.exp(-2 * powers)).sum(), 0.0, 1.0))


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted by Holm's procedure (1979), which bounds the rate of any false alarm whatever their dependence.

    >>> holm(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, axis=None)
    stepped = np.maximum.accumulate(p.ravel()[order] * np.arange(p.size, 0, -1)).clip(max=1.0)
    adjusted = np.empty(p.size)
    adjusted[order] = stepped
    return adjusted.reshape(p.shape)


def _uniform_variance(draws: int) -> float:
    """The variance of a uniform rank on 0..draws."""
    return ((draws + 1) ** 2 - 1) / 12
