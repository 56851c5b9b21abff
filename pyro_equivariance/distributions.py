"""Distributions made of the copies of another one over an orbit."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor


class OrbitPredictive(dist.TorchDistribution):
    """Observations of moved copies, each weighed by what all copies of its datum say together.

    For ``order`` copies of ``B`` data along the last batch axis, copy ``g`` of datum ``b`` at ``g · B + b``, every
    copy has the log density ``log (1/|G|) Σ_g p(ρ_Y(g) y_b | ρ_X(g) x_b, θ)``, so that their mean over ``g`` is the
    invariant log likelihood. A draw is one of ``base``.

    :param Distribution base: the law of the moved observations, batch shape ``(..., order · B)``.
    :param int order: the number of copies.

    >>> import torch, pyro.distributions as dist
    >>> q = OrbitPredictive(dist.Bernoulli(torch.tensor([0.2, 0.4])), order=2)  # one datum, two copies
    >>> [round(p, 4) for p in q.log_prob(torch.ones(2)).exp().tolist()]
    [0.3, 0.3]
    """

    arg_constraints = {}

    def __init__(self, base: dist.Distribution, order: int):
        self.base, self.order = base, order
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self):
        return self.base.support

    @property
    def has_rsample(self) -> bool:
        return self.base.has_rsample

    def rsample(self, sample_shape=()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape=()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        copies = self.base.log_prob(value).unflatten(-1, (self.order, -1))
        together = copies.logsumexp(-2, keepdim=True) - math.log(self.order)
        return together.expand_as(copies).flatten(-2)

    def expand(self, batch_shape, _instance=None) -> "OrbitPredictive":
        return OrbitPredictive(self.base.expand(batch_shape), self.order)
