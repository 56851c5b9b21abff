"""Normals with correlations between all sites, averaged over the group; each site is drawn given those before it."""

from abc import abstractmethod
from functools import partial

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide.initialization import init_to_median
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from ..distributions import Arranged
from ..errors import OptionError, SymmetryError, check_option
from ..families import is_closed, orbit_mean
from ..representations import Representation
from ..spaces import IsometricLogRatio, Space, space_of
from ..symmetrize import RULES
from ..symmetry import Symmetry, needed
from .base import MANY, AutoDirect, is_real, joint_action


class AutoJoint(AutoDirect):
    """Base of the guides whose sites are correlated: one Normal on the vector of all unconstrained values.

    To implement one: :meth:`_make_parameters`, and :meth:`get_posterior`, the Normal they describe; for those that draw
    sites directly :meth:`_conditionals`.
    """

    _usual_start = staticmethod(init_to_median)
    _is_smoothing = False  # whether a law that is not uniform will do

    def __init__(self, model, symmetry: Symmetry, init_loc_fn=None, init_scale=0.1, create_plates=None):
        super().__init__(model, init_loc_fn, init_scale, create_plates)
        self.symmetry = needed(symmetry, self._is_smoothing)
        self._spaces: dict[str, Space] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._rep: Representation | None = None

    @abstractmethod
    def _make_parameters(self, loc: Tensor, scale: Tensor) -> None: ...

    @abstractmethod
    def get_posterior(self, *args, **kwargs) -> dist.Distribution: ...

    def _transform(self, name, site):
        self._spaces[name] = space_of(self.symmetry, name, site)
        return self._spaces[name].transform

    def _setup_prototype(self, *args, **kwargs):
        super()._setup_prototype(*args, **kwargs)
        locs, scales = [], []
        for name, site in self._latents():
            _check_plates(name, site)
            loc = self._unconstrained(name, site)
            self._shapes[name] = loc.shape
            locs.append(loc.flatten())
            scales.append(self._first_scale(site, loc).flatten())
        self._rep = joint_action(self.symmetry.group, self._spaces, self._shapes)
        self._make_parameters(torch.cat(locs), torch.cat(scales))

    def _slices(self):
        """``(name, site, slice)`` of the vector, site after site."""
        start = 0
        for name, site in self._latents():
            size = self._shapes[name].numel()
            yield name, site, slice(start, start + size)
            start += size

    def _or_of_draws(self, exact: dict[str, Tensor], levels: Tensor) -> dict[str, Tensor]:
        """Quantiles, those of simplices from draws: an entry is no function of one coordinate."""
        mixed = [n for n, t in self._transforms.items() if isinstance(t, IsometricLogRatio)]
        draws = self._split(self.get_posterior().sample((MANY,))) if mixed else {}
        return exact | {name: draws[name].quantile(levels.reshape(-1), 0) for name in mixed}

    def _split(self, vector: Tensor) -> dict[str, Tensor]:
        """Sites, in their own space, from vectors ``(..., n)``."""
        return {
            name: self._transforms[name](vector[..., part].reshape(vector.shape[:-1] + self._shapes[name]))
            for name, _, part in self._slices()
        }


class AutoSymmetricJoint(AutoJoint):
    """Base of those that draw each site from its conditional given the sites before it, inside the model's plates."""

    always_invariant = True

    def __init__(self, model, symmetry: Symmetry, rule: str, init_loc_fn=None, init_scale=0.1, create_plates=None):
        super().__init__(model, symmetry, init_loc_fn, init_scale, create_plates)
        check_option("rule", rule, RULES)
        self.rule = rule

    @abstractmethod
    def _raw(self) -> dist.Distribution:
        """The Normal before it is averaged."""

    @abstractmethod
    def _conditionals(self, q: dist.Distribution):
        """A generator: yields the law of the next site's vector, and is sent the vector that was drawn."""

    def get_posterior(self, *args, **kwargs) -> dist.Distribution:
        """The averaged Normal on the vector of all unconstrained values."""
        self._need_prototype()
        return orbit_mean(self._raw(), self._rep, RULES[self.rule])

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draw every latent site: a dict by site name."""
        self.initialize(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        conditionals, drawn, vector = self._conditionals(self.get_posterior()), {}, None
        for name, site, _ in self._slices():
            law = next(conditionals) if vector is None else conditionals.send(vector)
            drawn[name] = self._draw(name, site, partial(self._arranged, name, site, law), plates)
            vector = self._flat(name, drawn[name])
        return drawn

    def _arranged(self, name: str, site: dict, law: dist.Distribution) -> dist.Distribution:
        """The law of a site's vector as that of the site, in its plates."""
        shape, event_dim = self._shapes[name], self._event_dims[name]
        inner, event = shape[: len(shape) - event_dim], shape[len(shape) - event_dim :]
        lead = [size for size in law.batch_shape if size > 1]
        if lead:  # particles: to the left of every plate
            law = _at_the_left(law, lead, self._depth - len(inner))
        fn = Arranged(law, inner, event)
        return fn if is_real(site["fn"].support) else dist.TransformedDistribution(fn, self._transforms[name])

    def _flat(self, name: str, value: Tensor) -> Tensor:
        u = self._transforms[name].inv(value)
        axes = len(self._shapes[name])
        self._depth = u.ndim - self._event_dims[name]  # axes of plates and particles together
        lead = [size for size in u.shape[: u.ndim - axes] if size > 1]
        return u.reshape(*lead, -1)

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs) -> dict[str, Tensor]:
        """The given quantiles of every entry by itself, along a new first axis; of a simplex those of 10,000 draws."""
        q = self.get_posterior()
        levels = torch.as_tensor(quantiles).to(q.loc).reshape(-1, 1)
        return self._or_of_draws(self._split(dist.Normal(q.loc, q.variance.sqrt()).icdf(levels)), levels)


class AutoSymmetricMultivariateNormal(AutoSymmetricJoint):
    """A Normal with a full covariance over all sites, averaged over the group at every evaluation.

    Like :class:`~pyro.infer.autoguide.AutoMultivariateNormal`, but invariant for every value of its parameters, and
    each site is drawn directly, from its conditional given the sites before it: constrained sites keep their Jacobian
    under :class:`~pyro.infer.TraceMeanField_ELBO`, and the KL of a site to a Normal prior is analytic. Every linear
    action keeps it, rotations by any angle included. Memory and time are those of a covariance of all entries together.

    :param model: a Pyro model whose latent sites lie in no subsampled plate.
    :param Symmetry symmetry: a representation for every latent site.
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :param init_loc_fn: as in Pyro's autoguides.
    :param init_scale: the initial standard deviation, or a callable from a site.
    :param create_plates: as in Pyro's autoguides.
    :raises SymmetryError: for a site without a representation, one of the wrong shape, or in a subsampled plate.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model():
    ...     pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    >>> turn = pe.Symmetry(pe.CyclicGroup(8), {"z": pe.vector(pe.CyclicGroup(8))})
    >>> guide = pe.AutoSymmetricMultivariateNormal(model, turn)
    >>> guide()["z"].shape
    torch.Size([2])
    """

    def __init__(self, model, symmetry: Symmetry, rule: str = "geometric", init_loc_fn=None, init_scale=0.1,
                 create_plates=None):  # fmt: skip
        super().__init__(model, symmetry, rule, init_loc_fn, init_scale, create_plates)

    def _make_parameters(self, loc, scale):
        eye = torch.eye(len(loc), dtype=loc.dtype, device=loc.device)
        self.loc = PyroParam(self._rep.mean(loc), constraints.real, 1)
        self.scale = PyroParam(scale, constraints.softplus_positive, 1)
        self.scale_tril = PyroParam(eye, constraints.unit_lower_cholesky, 2)

    def _raw(self):
        return dist.MultivariateNormal(self.loc, scale_tril=self.scale[..., None] * self.scale_tril)

    def _conditionals(self, q):
        noise = None  # the standardised entries of the sites before
        for _, _, part in self._slices():
            before, own = q.scale_tril[part, : part.start], q.scale_tril[part, part]
            loc = q.loc[part] if noise is None else q.loc[part] + noise @ before.mT
            vector = yield dist.MultivariateNormal(loc, scale_tril=own)
            rows = torch.linalg.solve_triangular(own, (vector - loc)[..., None], upper=False)[..., 0]
            noise = rows if noise is None else torch.cat([noise.expand(rows.shape[:-1] + noise.shape[-1:]), rows], -1)
        yield None


class AutoSymmetricLowRankMultivariateNormal(AutoSymmetricJoint):
    """A Normal with covariance ``W Wᵀ + D`` over all sites, averaged over the group at every evaluation.

    The averages have the mean covariance: ``μ`` and ``D`` are averaged, ``W`` becomes ``[ρ(g) W]_g / √|G|``, of ``|G|``
    times the rank; for ``arithmetic`` the spread of the means is added. There is no geometric average, since the family
    has no natural parameters. Sites are drawn directly, as in :class:`AutoSymmetricMultivariateNormal`.

    :param model: a Pyro model whose latent sites lie in no subsampled plate.
    :param Symmetry symmetry: a representation for every latent site, by signed permutations.
    :param str rule: ``"projection"`` or ``"arithmetic"``.
    :param init_loc_fn: as in Pyro's autoguides.
    :param init_scale: the initial standard deviation, or a callable from a site.
    :param rank: columns of ``W``; left out, the square root of the number of entries, as in Pyro.
    :param create_plates: as in Pyro's autoguides.
    :raises OptionError: for ``rule="geometric"``.
    :raises SymmetryError: for a site without a representation, or an action that is no signed permutation.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model():
    ...     pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    >>> turn = pe.Symmetry(pe.CyclicGroup(4), {"z": pe.vector(pe.CyclicGroup(4))})
    >>> guide = pe.AutoSymmetricLowRankMultivariateNormal(model, turn, rank=1)
    >>> guide()["z"].shape, guide.get_posterior().cov_factor.shape
    (torch.Size([2]), torch.Size([2, 4]))
    """

    def __init__(self, model, symmetry: Symmetry, rule: str = "projection", init_loc_fn=None, init_scale=0.1,
                 rank: int | None = None, create_plates=None):  # fmt: skip
        if rule == "geometric":
            raise OptionError(
                "Expected rule='projection' or 'arithmetic' for a low-rank Normal, which has no natural parameters; "
                "got 'geometric'. Use pe.AutoSymmetricMultivariateNormal for it."
            )
        super().__init__(model, symmetry, rule, init_loc_fn, init_scale, create_plates)
        self.rank = rank

    def _make_parameters(self, loc, scale):
        _need_monomial(loc, self._rep)
        make_low_rank_parameters(self, self._rep.mean(loc), scale)

    def _raw(self):
        return low_rank(self)

    def _conditionals(self, q):
        factor, diagonal = q.cov_factor, q.cov_diag
        precision = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        pull = torch.zeros(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        for _, _, part in self._slices():
            covariance = precision.inverse()
            root = torch.linalg.cholesky(covariance)
            shift = (pull @ covariance) @ factor[part].mT
            vector = yield dist.LowRankMultivariateNormal(q.loc[part] + shift, factor[part] @ root, diagonal[part])
            scaled = factor[part] / diagonal[part, None]
            precision = precision + factor[part].mT @ scaled
            pull = pull + (vector - q.loc[part]) @ scaled
        yield None


def _at_the_left(law: dist.Distribution, lead: list[int], width: int) -> dist.Distribution:
    """The same law with its batch axes ``lead`` followed by axes of size 1, ``width`` in all."""
    loc = law.loc.reshape(*lead, *[1] * (width - len(lead)), law.event_shape[0])
    if isinstance(law, LowRankMultivariateNormal):
        return dist.LowRankMultivariateNormal(loc, law._unbroadcasted_cov_factor, law._unbroadcasted_cov_diag)
    return dist.MultivariateNormal(loc, scale_tril=law._unbroadcasted_scale_tril)


def make_low_rank_parameters(guide, loc: Tensor, scale: Tensor) -> None:
    """``loc``, ``scale`` and ``cov_factor``, which start as those of Pyro's low-rank guide do."""
    rank = max(1, round(len(loc) ** 0.5)) if guide.rank is None else guide.rank
    if not 1 <= rank <= len(loc):
        raise OptionError(f"Expected a rank from 1 to the {len(loc)} entries of all sites; got {guide.rank}.")
    guide.loc = PyroParam(loc, constraints.real, 1)
    guide.scale = PyroParam(scale * 0.5**0.5, constraints.softplus_positive, 1)
    start = torch.randn(len(loc), rank, dtype=loc.dtype, device=loc.device) / rank**0.5
    guide.cov_factor = PyroParam(start, constraints.real, 2)


def low_rank(guide) -> LowRankMultivariateNormal:
    """The Normal of these parameters: ``σ (F Fᵀ + 1) σ``."""
    return dist.LowRankMultivariateNormal(guide.loc, guide.cov_factor * guide.scale[..., None], guide.scale.square())


def _need_monomial(loc: Tensor, rep: Representation) -> None:
    q = dist.LowRankMultivariateNormal(loc, loc.new_zeros(len(loc), 1), torch.ones_like(loc))
    if not is_closed(q, rep):
        raise SymmetryError(
            "Expected sites that are moved by signed permutations, which keep a low-rank Normal. Use "
            "pe.AutoSymmetricMultivariateNormal or pe.AutoOrbitMixture, which bear every linear action."
        )


def _check_plates(name: str, site: dict) -> None:
    for frame in site["cond_indep_stack"]:
        if frame.full_size not in (None, frame.size):
            raise SymmetryError(
                f"Expected no latent site in a subsampled plate, for a guide that correlates all sites; {name!r} lies "
                f"in {frame.name!r}. Use pe.AutoSymmetricNormal for it (pyro's AutoGuideList combines guides)."
            )
