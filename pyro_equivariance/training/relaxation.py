"""The constrained form of a relaxed expansion: a multiplier and a slack for each layer, as a schedule of training."""

import inspect
import math
from dataclasses import dataclass

from ..errors import OptionError
from ..handlers.relax import RelaxedNetwork, as_number
from .base import Training


@dataclass(frozen=True)
class ConstrainRelaxation:
    """Callback: trains a relaxed expansion under ``s_l ≤ u_l``, with a slack that is paid for.

    The problem is ``min −ELBO(s) + (ρ/2) Σ_l u_l²`` subject to ``s_l ≤ u_l``, with the Lagrangian
    ``−ELBO(s) + Σ_l λ_l (s_l − u_l) + (ρ/2) Σ_l u_l²``. Its minimum over the slack is ``u_l = λ_l / ρ``. At the start
    of each epoch but the first the multiplier takes a step of ascent, ``λ_l ← [λ_l + η (s_l − λ_l / ρ)]₊``, from
    ``λ_l = 0``; within the epoch the model's loss has the term ``λ_l (s_l − u_l)``.

    At a fixed point ``s_l = u_l = λ_l / ρ`` and ``λ_l = ∂ELBO/∂s_l``: the multiplier is what the last bit of asymmetry
    is worth, in nats. It is a stationary point of ``ELBO − (ρ/2) Σ_l s_l²``, as under a half-normal prior of scale
    ``1/√ρ`` on each ``s_l``. The larger ``ρ``, the nearer that point is to 0, the hard constraint; but ``s`` falls only
    as fast as the optimizer moves it, so that a short training ends above it, whatever ``ρ``. A layer whose scale the
    ELBO takes to 0 has ``λ_l = 0`` in the end. If the scales settle within an epoch, the ascent is stable for
    ``η (1/ρ + 1/κ) < 2`` with ``κ`` the ELBO's curvature in ``s_l``.

    ``history`` of the fit gets ``"scale.<layer>"`` and ``"multiplier.<layer>"`` for each epoch, at its start, and
    ``"constraint"``, the term ``Σ_l λ_l (s_l − u_l) / N`` there. ``"loss"`` has the term: −ELBO / N is ``"loss"`` less
    ``"constraint"``, exactly so with one step an epoch. The multipliers stay with the model, ``model.multipliers``,
    whose ELBO they are part of; another fit with this callback begins at 0 again, and ``model.multipliers.clear()``
    drops them.

    :param float rho: ρ, the price of the slack, in nats.
    :param rate: η; by default ρ/10.
    :raises OptionError: for numbers that are not positive, or another model.

    Source: Hounie, Ribeiro, Chamon (2023) "Resilient constrained learning", here with a quadratic price of the slack
    and the scales of :func:`~pyro_equivariance.handlers.relax` for constraints.

    >>> import torch, pyro_equivariance as pe
    >>> from pyro_equivariance.training.relaxation import ConstrainRelaxation
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2), torch.nn.Tanh(), torch.nn.Linear(2, 3))
    >>> symmetry = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 4, 4), hidden="trivial")
    >>> model = pe.handlers.relax(pe.BayesianNetwork(net), symmetry)
    >>> data = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    >>> schedule = ConstrainRelaxation(rho=10.0)
    >>> result = pe.fit(model, pe.AutoMeanFieldNormal(model), data, 2, callbacks=[schedule], progress=False)
    >>> result.history["multiplier.1"][0], result.history["multiplier.1"][1] > 0
    (0.0, True)
    """

    rho: float
    rate: float | None = None

    def __post_init__(self):
        rho, rate = as_number(self.rho), None if self.rate is None else as_number(self.rate)
        if not 0 < rho < math.inf or not (rate is None or 0 < rate < math.inf):
            raise OptionError(f"Expected rho and rate to be positive numbers; got {self.rho!r} and {self.rate!r}.")
        object.__setattr__(self, "rho", rho)
        object.__setattr__(self, "rate", rate)

    @property
    def _rate(self) -> float:
        return self.rho / 10 if self.rate is None else self.rate

    def __call__(self, training: Training) -> None:
        network = inspect.unwrap(training.model)
        if not isinstance(network, RelaxedNetwork):
            raise OptionError(
                f"Expected a model of pe.handlers.relax, whose scales ConstrainRelaxation holds; got "
                f"{type(network).__name__}."
            )
        scales = network.scales()
        if training.epoch == 0:
            multipliers = dict.fromkeys(scales, 0.0)
        else:
            multipliers = {layer: self.ascend(network.multipliers[layer][0], s) for layer, s in scales.items()}
        network.multipliers = {layer: (value, value / self.rho) for layer, value in multipliers.items()}
        terms = [value * (scales[layer] - slack) for layer, (value, slack) in network.multipliers.items()]
        entries = {"constraint": sum(terms) / len(training.data[0])}
        entries |= {f"scale.{layer}": scale for layer, scale in scales.items()}
        entries |= {f"multiplier.{layer}": value for layer, value in multipliers.items()}
        for name, value in entries.items():
            training.history.setdefault(name, []).append(value)

    def ascend(self, multiplier: float, scale: float) -> float:
        """One step of the multiplier, ``[λ + η (s − λ/ρ)]₊``.

        >>> ConstrainRelaxation(rho=10.0).ascend(2.0, 0.5)
        2.3
        """
        return max(0.0, multiplier + self._rate * (scale - multiplier / self.rho))
