"""The orbit mixture as a guide: one joint latent, moved as a whole by one random element."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from pyro.nn import PyroParam
from torch import Tensor

from ..distributions import MAX_EXACT, SAMPLES, OrbitMixture, Placed, can_be_summed
from ..errors import check_option
from ..symmetry import Symmetry
from .base import MANY, is_real
from .joint import AutoJoint, low_rank, make_low_rank_parameters

BASES = ("diagonal", "full", "low_rank")


class AutoOrbitMixture(AutoJoint):
    """The mixture ``q^G(θ) = (1/|G|) Σ_g q(ρ(g)⁻¹ θ)`` of a Normal and its moved copies: exactly invariant.

    One element ``g`` moves all sites together. For a model whose density is invariant its ELBO is that of the Normal
    ``q`` plus the mutual information ``0 ≤ I(g; θ) ≤ log |G|``: it finds all of the symmetric modes of a posterior
    where a Normal finds one, and where an average would lie between them. It is ``always_invariant``, unless a
    :class:`~pyro_equivariance.measures.Measure` stands for the group.

    All sites are drawn from one auxiliary site, a vector of unconstrained values, whose log density is the exact
    logsumexp over the group; a group of more than ``max_exact`` elements, or without a list of them, gets the bound
    from ``samples`` elements (see :class:`~pyro_equivariance.OrbitMixture`), and the guide's ``repr`` says which. Under
    :class:`~pyro.infer.TraceMeanField_ELBO` the KL is estimated by draws.

    :param model: a Pyro model whose latent sites lie in no subsampled plate.
    :param Symmetry symmetry: a representation for every latent site; any linear one, and permutations of categories.
    :param str base: the Normal ``q``: ``"diagonal"``, ``"full"`` or ``"low_rank"``.
    :param init_loc_fn: as in Pyro's autoguides.
    :param init_scale: the initial standard deviation, or a callable from a site.
    :param rank: of the low-rank base, as in :class:`AutoSymmetricLowRankMultivariateNormal`.
    :param int max_exact: the largest group to be summed over.
    :param int samples: the number of elements in the bound for larger groups.
    :param create_plates: as in Pyro's autoguides.
    :raises SymmetryError: for a site without a representation, one of the wrong shape, or in a subsampled plate.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    ...     pyro.sample("y", dist.Normal(z.prod(), 0.1), obs=torch.tensor(1.0))
    >>> flip = pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, -1]])
    >>> pe.AutoOrbitMixture(model, pe.Symmetry(pe.SignGroup(), {"z": flip}))
    AutoOrbitMixture(base=diagonal, group=SignGroup(), density=exact)
    """

    _is_smoothing = True

    def __init__(self, model, symmetry: Symmetry, base: str = "diagonal", init_loc_fn=None, init_scale=0.1,
                 rank: int | None = None, max_exact: int = MAX_EXACT, samples: int = SAMPLES,
                 create_plates=None):  # fmt: skip
        super().__init__(model, symmetry, init_loc_fn, init_scale, create_plates)
        check_option("base", base, BASES)
        self.base, self.rank, self.max_exact, self.samples = base, rank, max_exact, samples
        self.always_invariant = self.symmetry.group.is_uniform

    def extra_repr(self) -> str:
        return f"base={self.base}, group={self.symmetry.group}, density={self.density}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    @property
    def density(self) -> str:
        """How the log density is computed: ``exact``, or the bound and its number of elements."""
        exact = can_be_summed(self.symmetry.group, self.max_exact)
        return "exact" if exact else f"lower bound of the ELBO from {self.samples} elements"

    def _make_parameters(self, loc, scale):
        if self.base == "low_rank":
            make_low_rank_parameters(self, loc, scale)
            return
        self.loc = PyroParam(loc, constraints.real, 1)
        self.scale = PyroParam(scale, constraints.softplus_positive, 1)
        if self.base == "full":
            eye = torch.eye(len(loc), dtype=loc.dtype, device=loc.device)
            self.scale_tril = PyroParam(eye, constraints.unit_lower_cholesky, 2)

    def get_base(self) -> dist.Distribution:
        """The Normal ``q`` on the vector of all unconstrained values, one component of the mixture."""
        self._need_prototype()
        if self.base == "diagonal":
            return dist.Normal(self.loc, self.scale).to_event(1)
        if self.base == "full":
            return dist.MultivariateNormal(self.loc, scale_tril=self.scale[..., None] * self.scale_tril)
        return low_rank(self)

    def get_posterior(self, *args, **kwargs) -> OrbitMixture:
        """The mixture on the vector of all unconstrained values."""
        return OrbitMixture(self.get_base(), self._rep, self.max_exact, self.samples)

    def sample_latent(self, *args, **kwargs) -> Tensor:
        """Draw the vector of all unconstrained values."""
        self.initialize(*args, **kwargs)
        name = f"_{self._pyro_name}_latent"
        return pyro.sample(name, self.get_posterior(), infer={"is_auxiliary": True})

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draw every latent site: a dict by site name."""
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        return {
            name: self._draw(name, site, partial(self._placed, name, site, latent[..., part]), plates)
            for name, site, part in self._slices()
        }

    def _placed(self, name: str, site: dict, flat: Tensor) -> Placed:
        """A site's value and the log density that its transform adds, particles to the left of the plates."""
        shape, event_dim = self._shapes[name], self._event_dims[name]
        u = flat.reshape(torch.broadcast_shapes(shape, flat.shape[:-1] + (1,) * event_dim))
        if is_real(site["fn"].support):
            return Placed(u, event_dim=event_dim)
        transform, event_dim = self._transforms[name], site["fn"].event_dim
        value = transform(u)
        density = 0.0
        if poutine.get_mask() is not False:
            density = -transform.log_abs_det_jacobian(u, value)
            density = sum_rightmost(density, density.ndim - value.ndim + event_dim)
        return Placed(value, log_density=density, event_dim=event_dim)

    @torch.no_grad()
    def median(self, *args, **kwargs) -> dict[str, Tensor]:
        """The median of every entry of the Normal ``q``: the centre of one of the ``|G|`` components, a typical value.

        The medians of the mixture's own entries lie between its modes; ``quantiles([0.5])`` has them.
        """
        return self._split(self.get_base().mean.detach().clone())

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs) -> dict[str, Tensor]:
        """The given quantiles of every entry of the mixture by itself, along a new first axis.

        They are exact, by bisection, where the group is summed over and acts by signed permutations; otherwise, and for
        simplices, those of 10,000 draws.
        """
        posterior, base = self.get_posterior(), self.get_base()
        if not self._rep.is_monomial or not posterior.is_exact:
            draws = self._split(posterior.sample((MANY,)))
            levels = torch.as_tensor(quantiles).to(base.mean).reshape(-1)
            return {name: values.quantile(levels, 0) for name, values in draws.items()}
        parts = dist.Normal(self._rep.orbit(base.mean), self._rep.modulus(2).orbit(base.variance).sqrt())
        levels = torch.as_tensor(quantiles).to(base.mean).reshape(-1, 1)
        low = (parts.loc - 10 * parts.scale).amin(0).expand(len(levels), -1)
        high = (parts.loc + 10 * parts.scale).amax(0).expand(len(levels), -1)
        for _ in range(60):
            middle = (low + high) / 2
            below = parts.cdf(middle[:, None]).mean(1) < levels
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return self._or_of_draws(self._split((low + high) / 2), levels)
