"""Mean-field Normals that draw each site directly: free, invariant, or expanded from small ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import pyro.distributions as dist
import torch
from torch import Tensor

from ..errors import ClosednessError, check_option
from ..families import is_closed
from ..families.normal import average_loc_scale
from ..handlers import ExpandedNetwork
from ..networks.bayesian import NetworkModel
from ..networks.expanded import SiteExpansion
from ..representations import Representation
from ..spaces import Space, space_of
from ..symmetrize import RULES
from ..symmetry import Symmetry, needed
from .base import AutoDirectNormal, is_subsampled, joint_action


@dataclass(frozen=True)
class FractionOfPrior:
    """For ``init_scale``: each site starts with this fraction of its prior's standard deviation.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3), prior=2.0)
    >>> guide = pe.AutoMeanFieldNormal(model, init_scale=pe.FractionOfPrior(0.1))
    >>> guide.initialize(torch.zeros(1, 4), torch.zeros(1).long())
    >>> round(float(guide.get_posterior("bias").base_dist.scale[0].detach()), 4)
    0.2
    """

    fraction: float

    def __call__(self, site: dict) -> Tensor:
        return self.fraction * site["fn"].stddev


class AutoMeanFieldNormal(AutoDirectNormal):
    """Independent Normals: ``θ_i ~ N(μ_i, σ_i²)`` for every entry of every site.

    Like :class:`~pyro.infer.autoguide.AutoNormal`, but each site is sampled directly, so that the KL to a Normal
    prior is analytic under :class:`~pyro.infer.TraceMeanField_ELBO`. It is ``always_invariant`` on the model of
    :func:`~pyro_equivariance.handlers.expand`, all of whose draws are equivariant networks.

    >>> import torch, pyro_equivariance as pe
    >>> guide = pe.AutoMeanFieldNormal(pe.BayesianNetwork(torch.nn.Linear(4, 3)))
    >>> guide(torch.zeros(2, 4), torch.zeros(2).long())["weight"].shape
    torch.Size([3, 4])
    """

    def __init__(self, model, init_loc_fn=None, init_scale=0.1, create_plates=None):
        super().__init__(model, init_loc_fn, init_scale, create_plates)
        self.always_invariant = isinstance(model, ExpandedNetwork) and model.is_equivariant

    def _start(self, name, loc, scale):
        return loc, scale

    def _normal(self, name, loc, scale):
        return dist.Normal(loc, scale)


class AutoSymmetricNormal(AutoDirectNormal):
    """A mean-field Normal averaged over the group at every evaluation: invariant for every value of its parameters.

    Its parameters are those of :class:`AutoMeanFieldNormal`; the site draws from their
    :func:`~pyro_equivariance.average`. Where the model is compatible with the symmetry, its unaugmented ELBO
    equals the fully augmented one, in value and gradient (:attr:`always_invariant`), so it trains on upright data.

    :param model: a Pyro model.
    :param Symmetry symmetry: a representation for every latent site.
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :param init_loc_fn: as in Pyro's autoguides; its values are projected onto the invariant ones. ``None`` starts at a
        network's own values, which are then brought back to their size.
    :param init_scale: the initial standard deviation, or a callable from a site.
    :raises SymmetryError: for a site without a representation, or one of the wrong shape.
    :raises ClosednessError: if the action does not keep a mean-field Normal.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> guide = pe.AutoSymmetricNormal(pe.BayesianNetwork(net), sym)
    >>> guide.initialize(torch.zeros(1, 1, 3, 3), torch.zeros(1).long())
    >>> loc = guide.get_posterior("1.weight").base_dist.loc
    >>> torch.allclose(loc, sym["1.weight"].act(1, loc))
    True
    """

    always_invariant = True

    def __init__(self, model, symmetry: Symmetry, rule: str = "geometric", init_loc_fn=None, init_scale=0.1,
                 create_plates=None):  # fmt: skip
        super().__init__(model, init_loc_fn, init_scale, create_plates)
        check_option("rule", rule, RULES)
        self.symmetry, self.rule = needed(symmetry), rule
        self._keeps_size = init_loc_fn is None and isinstance(model, NetworkModel)
        self._spaces: dict[str, Space] = {}
        self._joint: Representation | None = None

    def _transform(self, name, site):
        self._spaces[name] = space_of(self.symmetry, name, site)
        return self._spaces[name].transform

    def _start(self, name, loc, scale):
        check_closed(dist.Normal(loc, scale), self._spaces[name].rep, name)
        invariant = self._spaces[name].rep.mean(loc)
        size = invariant.norm()
        larger = loc.norm() / size if self._keeps_size and size > 0 else 1.0
        return invariant * larger, scale

    def _normal(self, name, loc, scale):
        return dist.Normal(*average_loc_scale(loc, scale, self._spaces[name].rep, RULES[self.rule]))

    def _laws(self):
        if any(is_subsampled(site) or not self._spaces[name].rep.is_permutation for name, site in self._latents()):
            return super()._laws()
        return {name: partial(self._in_its_space, name, q) for name, q in self._all_at_once().items()}

    def _all_at_once(self) -> dict[str, dist.Normal]:
        """Every site's Normal, the average taken once of all of them side by side."""
        names = list(self._spaces)
        locs, scales = ([attrgetter(name)(part) for name in names] for part in (self.locs, self.scales))
        shapes = [loc.shape for loc in locs]
        if self._joint is None:
            self._joint = joint_action(self.symmetry.group, self._spaces, dict(zip(names, shapes, strict=True)))
        flat = (torch.cat([t.flatten() for t in part]) for part in (locs, scales))
        averaged = average_loc_scale(*flat, self._joint, RULES[self.rule])
        columns = zip(*(t.split([shape.numel() for shape in shapes]) for t in averaged), strict=True)
        return {
            name: dist.Normal(loc.reshape(shape), scale.reshape(shape))
            for name, shape, (loc, scale) in zip(names, shapes, columns, strict=True)
        }


class AutoExpandedNormal(AutoDirectNormal):
    """A mean-field Normal on an expanded network whose means and scales are expansions of small ones.

    The entries are drawn independently, so single draws are not equivariant, but the law is invariant for every
    value of the parameters (unless an arrangement is not equivariant).

    :param model: the expanded network's model.
    :param dict expansions: a :class:`~pyro_equivariance.networks.expanded.SiteExpansion` for each site.
    :param dict locs: the initial base means by site.
    :param dict scales: the initial base standard deviations by site.
    """

    def __init__(self, model, expansions: Mapping[str, SiteExpansion], locs, scales):
        super().__init__(model)
        self._expansions, self._base_locs, self._base_scales = dict(expansions), dict(locs), dict(scales)
        self.always_invariant = all(e.is_equivariant for e in self._expansions.values())

    def _start(self, name, loc, scale):
        return self._base_locs[name].clone(), self._base_scales[name].clone()

    def _normal(self, name, loc, scale):
        expansion = self._expansions[name]
        return dist.Normal(expansion.expand(loc), expansion.expand_scale(scale))


def check_closed(q: dist.Distribution, rep: Representation, site: str) -> None:
    """Raise unless the action keeps the family of a site's distribution, naming the guides that it keeps."""
    if not is_closed(q, rep):
        raise ClosednessError(
            f"Expected site {site!r} to be moved by signed permutations, which keep a mean-field Normal; got {rep}. "
            f"Use pe.AutoSymmetricMultivariateNormal or pe.AutoOrbitMixture, which bear every linear action."
        )
