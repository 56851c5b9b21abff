"""How the equivariance of an ensemble's mean depends on the number of members."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import metrics
from ..errors import DataError, OptionError, check_option
from ..metrics.base import Estimate, check_action, check_draws, move
from .base import MEANS, as_count, as_log_probs

QUANTITIES = ("defect", "symmetric_kl", "osp")


@dataclass(frozen=True, eq=False)
class EnsembleSweep:
    """Measures of equivariance against the number S of members; see :func:`ensemble_sweep`. It prints as a table.

    :param tuple sizes: numbers of members.
    :param int members: M, of all.
    :param Tensor values: ``(sizes, quantities)``: means over sub-ensembles of that size, in the order of
        ``QUANTITIES``.
    :param Tensor bootstrap: ``(repeats, sizes, quantities)``: the same of members drawn again with replacement.
    :param unbiased: the defect of the mean over infinitely many members, with its jackknife error; ``None`` for the
        mean of logits, which has no unbiased estimate.
    """

    sizes: tuple[int, ...]
    members: int
    values: Tensor
    bootstrap: Tensor
    unbiased: Estimate | None

    def value(self, quantity: str) -> Tensor:
        """The mean over sub-ensembles of each size: ``(sizes,)``."""
        return self.values[:, _index(quantity)]

    def se(self, quantity: str) -> Tensor:
        """The standard deviation over bootstrap samples of the members: ``(sizes,)``."""
        return self.bootstrap[..., _index(quantity)].std(0)

    def interval(self, quantity: str, level: float = 0.95) -> Tensor:
        """Bootstrap intervals around the values: ``(2, sizes)``, lower and upper ends; see :meth:`samples`."""
        found = self.samples(quantity)
        return found.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=found.dtype), 0)

    def samples(self, quantity: str) -> Tensor:
        """The bootstrap samples, ``(repeats, sizes)``, shifted so that their mean is the value.

        Drawing members again adds to the variance of their mean, and so to a plug-in defect; hence the shift.
        """
        found = self.bootstrap[..., _index(quantity)]
        return found - found.mean(0) + self.value(quantity)

    def bound(self, delta: float = 0.05) -> Tensor:
        r"""For each size S, how far the plug-in defect can be from that of infinitely many members: ``(sizes,)``.

        With probability at least :math:`1 - \delta` over the members, whatever their law, the network and the inputs,
        ``|value("defect") − Δ|`` is at most

        .. math:: (1 - 1/S) \, \varepsilon_S + 2/S = O(1/\sqrt{S}),

        with :math:`\varepsilon_S` of :func:`~pyro_equivariance.metrics.deviation` for the unbiased estimate
        :math:`U_S`: the plug-in is :math:`(1 - 1/S) U_S + \text{mean}_m K_{mm} / S`, and both
        :math:`K_{mm} = \text{mean}_{x, g} \|d_m\|^2` and :math:`\Delta` lie between 0 and 2. Means over orders keep
        it, since Hoeffding's inequality for U-statistics is one for means over orders. It is wide: the errors measured
        from the members themselves, :meth:`se` and that of ``unbiased``, are far smaller.

        :param float delta: the probability of a larger deviation, in (0, 1).
        :raises OptionError: for the mean of logits, or a delta that is none.
        """
        if self.unbiased is None:
            raise OptionError("Expected the mean of probabilities for a bound; this is the mean of logits.")
        largest = {size: metrics.deviation(max(size, 2), delta) for size in self.sizes}
        return torch.tensor([(1 - 1 / s) * largest[s] + 2 / s for s in self.sizes], dtype=torch.float64)

    def slope(self, quantity: str = "defect") -> Estimate:
        """Of ``log value`` over ``log S``, by least squares, and its bootstrap error: −1 for an invariant law."""
        at, values = _index(quantity), self.values
        repeats = [_log_slope(self.sizes, row[:, at]) for row in self.bootstrap]
        return Estimate(_log_slope(self.sizes, values[:, at]), float(torch.tensor(repeats).std()))

    def rows(self) -> list[dict[str, float]]:
        """The table, a dict for each size."""
        found = [{"members": size} for size in self.sizes]
        for quantity in QUANTITIES:
            low, high = self.interval(quantity)
            for i, row in enumerate(found):
                row |= {quantity: self.value(quantity)[i].item(), f"{quantity}_low": low[i].item(),
                        f"{quantity}_high": high[i].item()}  # fmt: skip
        return found

    def __str__(self) -> str:
        lines = [f"{'M':>5}  {'defect':>10} {'interval':>22}  {'sym. KL':>10} {'OSP count':>10}"]
        lines += [
            "{members:5d}  {defect:10.3e} [{defect_low:10.3e},{defect_high:10.3e}] {symmetric_kl:10.3e} "
            "{osp:10.4f}".format(**row)
            for row in self.rows()
        ]
        kl, defect = self.slope("symmetric_kl"), self.slope()
        lines.append(
            f"slopes over log M: defect {defect.value:.2f} ± {defect.se:.2f}, symmetric KL {kl.value:.2f} ± {kl.se:.2f}"
        )
        if self.unbiased is not None:
            lines.append(f"unbiased defect, of infinitely many: {self.unbiased.value:.3e} ± {self.unbiased.se:.1e}")
        return "\n".join(lines)


def ensemble_sweep(
    outputs: Tensor,
    sizes: Sequence[int] | None = None,
    repeats: int = 100,
    mean: str = "probabilities",
    *,
    action=None,
    orders: int = 4,
    seed: int = 0,
) -> EnsembleSweep:
    r"""The defect, symmetric KL and orbit same prediction of the mean of S members, for S from 1 to M.

    For each size these are means over sub-ensembles without repetition: the first S members in each of ``orders``
    random orders. The defect here is the *plug-in* :math:`\text{mean}_{x, g} \|F_S(gx) - \rho_Y(g) F_S(x)\|^2` of the
    sub-ensemble's own mean :math:`F_S`. With :math:`d_m = f_m(gx) - \rho_Y(g) f_m(x)` its expectation is

    .. math:: \Delta + \text{mean}_{x, g} \text{tr Var}(d_m) / S

    for the mean of probabilities: a slope of −1 where the law of the members is invariant, :math:`\Delta = 0`, and a
    level :math:`\Delta` otherwise. That level is estimated without bias beside it, as
    :func:`~pyro_equivariance.metrics.equivariance_defect` does; :func:`~pyro_equivariance.metrics.deviation` of the
    number of members bounds its error for any law, by :math:`O(1/\sqrt{M})`, and :meth:`EnsembleSweep.bound` that of
    the plug-in. The symmetric KL (mean over :math:`g \ne e`) behaves alike; OSP is the count out of \|G\|.

    :param Tensor outputs: class probabilities ``(M, |G|, N, K)`` of all members, element 0 the identity, such as
        ``pe.orbit_predict(ensemble.model, ensemble.in_turn(), symmetry, x, len(ensemble))``. For ``mean="logits"`` also
        log-probabilities, :meth:`Ensemble.log_probs` of the moved copies, which it needs where probabilities are 0.
    :param sizes: increasing numbers of members, at most M; by default the powers of 2.
    :param int repeats: bootstrap samples of the members.
    :param str mean: ``"probabilities"`` or ``"logits"``, see :func:`ensemble_mean`.
    :param action: permutes the classes, as for the metrics; ``None`` for invariant classes.
    :param int orders: random orders of the members for each value.
    :param int seed: of the orders and the bootstrap.
    :returns: the :class:`EnsembleSweep`.
    :raises OptionError: for sizes that are not increasing or exceed M.
    :raises DataError: for outputs of other axes, or that are no class probabilities.

    Members of one law at every pose:

    >>> _ = torch.manual_seed(0)
    >>> sweep = ensemble_sweep(torch.rand(64, 4, 20, 3).softmax(-1), repeats=10)
    >>> -1.1 < sweep.slope("defect").value < -0.9, -1.1 < sweep.slope("symmetric_kl").value < -0.9
    (True, True)
    """
    check_option("mean", mean, MEANS)
    _check_axes(outputs)
    check_draws(outputs, action)
    repeats, orders, seed = as_count("repeats", repeats), as_count("orders", orders), as_count("seed", seed, least=0)
    sizes = _checked_sizes(sizes, len(outputs))
    check_action(action, outputs.shape[1], outputs.shape[3:])
    generator = torch.Generator().manual_seed(seed)
    values = as_log_probs(outputs) if mean == "logits" else outputs.double()
    everyone = torch.arange(len(values))
    curve = _curve(values, everyone, sizes, mean, action, orders, generator)
    resampled = [
        _curve(values, torch.randint(len(values), (len(values),), generator=generator), sizes, mean, action, orders,
               generator)
        for _ in range(repeats)
    ]  # fmt: skip
    unbiased = metrics.equivariance_defect(outputs, action=action) if mean == "probabilities" else None
    return EnsembleSweep(sizes, len(values), curve, torch.stack(resampled), unbiased)


def _curve(values: Tensor, pool: Tensor, sizes, mean: str, action, orders: int, generator) -> Tensor:
    """``(sizes, quantities)`` of the members in the pool, means over random orders."""
    total = torch.zeros(len(sizes), len(QUANTITIES), dtype=torch.float64)
    for _ in range(orders):
        order = pool[torch.randperm(len(pool), generator=generator)]
        running, start = torch.zeros_like(values[0]), 0
        for i, size in enumerate(sizes):
            running += values[order[start:size]].sum(0)
            start = size
            total[i] += _measured(running / size, mean, action)
    return total / orders


def _measured(pooled: Tensor, mean: str, action) -> Tensor:
    """The quantities of one mean ``(|G|, N, K)``."""
    probs = pooled.softmax(-1) if mean == "logits" else pooled
    anchor = move(probs[:1], action, len(probs)).squeeze(0)
    return torch.stack([
        (probs - anchor).square().sum(-1).mean(),
        metrics.symmetric_kl(probs, action=action),
        metrics.orbit_same_prediction(probs, action=action, definition="count"),
    ])  # fmt: skip


def _check_axes(outputs: Tensor) -> None:
    if outputs.ndim != 4 or outputs.numel() == 0:
        raise DataError(
            f"Expected outputs of all members of shape (M, |G|, N, K), not empty; got {tuple(outputs.shape)}. Use "
            f"orbit_predict."
        )


def _index(quantity: str) -> int:
    check_option("quantity", quantity, QUANTITIES)
    return QUANTITIES.index(quantity)


def _log_slope(sizes: Sequence[int], values: Tensor) -> float:
    """NaN unless all values are positive, and at least two."""
    if len(sizes) < 2 or not bool((values > 0).all()):
        return math.nan
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), values.log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def _checked_sizes(sizes: Sequence[int] | None, members: int) -> tuple[int, ...]:
    if sizes is None:
        sizes = [2**i for i in range(int(math.log2(members)) + 1)]
    sizes = tuple(as_count("every size", size) for size in sizes)
    if not sizes or sizes != tuple(sorted(set(sizes))) or sizes[-1] > members:
        raise OptionError(f"Expected increasing sizes up to the {members} members; got {sizes}.")
    return sizes
