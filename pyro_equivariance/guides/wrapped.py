"""Any mean-field guide, averaged over the group each time it is called, as a module."""

from collections.abc import Callable
from contextlib import nullcontext

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import biject_to
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import unwrap
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from .. import handlers
from ..errors import SymmetryError, check_option
from ..symmetrize import RULES
from ..symmetry import Symmetry, needed


class SymmetrizedGuide(nn.Module):
    """A guide whose latent sites draw from their orbit averages, whatever its parameters: always invariant.

    It is what :func:`~pyro_equivariance.handlers.symmetrize` makes of a guide, with the interface of Pyro's autoguides.
    The guide keeps its own parameters.

    :param guide: a guide whose sites draw from Normals, or from Normals under transforms entry by entry: a hand-written
        one, :class:`~pyro.infer.autoguide.AutoNormal`, ``AutoNormalMessenger``.
    :param Symmetry symmetry: a representation for every latent site.
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :raises SymmetryError: when called, for a site without a representation or one that no average reaches.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model():
    ...     pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    >>> swap = pe.Symmetry(pe.SymmetricGroup(2), {"z": pe.permutation(pe.SymmetricGroup(2))})
    >>> guide = pe.SymmetrizedGuide(pyro.infer.autoguide.AutoNormal(model), swap)
    >>> guide.initialize()
    >>> guide.get_posterior("z").event_shape
    torch.Size([2])
    """

    always_invariant = True

    def __init__(self, guide: Callable, symmetry: Symmetry, rule: str = "geometric"):
        super().__init__()
        check_option("rule", rule, RULES)
        self.guide, self.symmetry, self.rule = guide, needed(symmetry), rule
        self._averaging = handlers.SymmetrizeMessenger(symmetry, rule, guide)

    def forward(self, *args, **kwargs):
        """What the guide returns, its sites averaged."""
        # A GuideMessenger runs the model, whose observations would count as sites of the guide.
        is_model = isinstance(unwrap(self.guide), GuideMessenger)
        with poutine.block(hide_fn=_is_observed) if is_model else nullcontext(), self._averaging:
            return self.guide(*args, **kwargs)

    def initialize(self, *args, **kwargs) -> None:
        """Make the guide's parameters, with the model's arguments; otherwise the first call does."""
        with torch.random.fork_rng(devices=[]), poutine.block():
            self.guide(*args, **kwargs)

    def get_posterior(self, name: str, *args, **kwargs) -> dist.Distribution:
        """The averaged distribution of a site; arguments are those that the guide needs to be called."""
        laws = self._laws(*args, **kwargs)
        if name not in laws:
            raise SymmetryError(f"Expected a latent site of the guide; got {name!r}. It has {', '.join(laws)}.")
        return laws[name]

    def median(self, *args, **kwargs) -> dict[str, Tensor]:
        """The median of every site."""
        return {name: q[0] for name, q in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs) -> dict[str, Tensor]:
        """The given quantiles of every site, along a new first axis."""
        return {name: _quantile(q, quantiles) for name, q in self._laws(*args, **kwargs).items()}

    def _laws(self, *args, **kwargs) -> dict[str, dist.Distribution]:
        trace = poutine.trace(self).get_trace(*args, **kwargs)
        laws = {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or node["is_observed"] or isinstance(node["fn"], _Subsample):
                continue
            if node["infer"].get("is_auxiliary"):
                site = name.removesuffix(handlers.AUXILIARY)
                laws[site] = self._in_its_space(site, node["fn"])
            elif name not in laws:
                laws[name] = node["fn"]
        return laws

    def _in_its_space(self, site: str, unconstrained: dist.Distribution) -> dist.Distribution:
        support = self.guide.prototype_trace.nodes[site]["fn"].support
        transform = biject_to(support)
        identity = torch.equal(transform(probe := torch.ones(unconstrained.shape())), probe)
        return unconstrained if identity else dist.TransformedDistribution(unconstrained, transform)


def _is_observed(msg) -> bool:
    return msg["type"] == "sample" and msg["is_observed"]


def _quantile(q: dist.Distribution, levels) -> Tensor:
    """Of a Normal, or of one transformed entry by entry."""
    if isinstance(q, torch.distributions.Independent):
        return _quantile(q.base_dist, levels)
    if isinstance(q, torch.distributions.TransformedDistribution):
        value = _quantile(q.base_dist, levels)
        for transform in q.transforms:
            value = transform(value)
        return value
    return q.icdf(torch.as_tensor(levels).to(q.mean).reshape(-1, *[1] * q.mean.ndim))
