"""The log density of a guide at given values of the latent sites, whatever the guide draws them from."""

from collections.abc import Callable, Iterator, Mapping

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import biject_to
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoCallable, AutoContinuous, AutoGuide, AutoGuideList
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger, unwrap
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Transform

from ..errors import SymmetryError
from ..handlers import AUXILIARY
from .base import own_randomness
from .joint import AutoJoint
from .wrapped import SymmetrizedGuide


def guide_log_density(guide: Callable, values: Mapping[str, Tensor], *args, **kwargs) -> Tensor:
    """``log q(θ)`` in nats, of the sites together, at values in their own (constrained) space.

    For many values of one guide, :class:`GuideDensity` prepares once.

    :param guide: see :class:`GuideDensity`.
    :param dict values: see :meth:`GuideDensity.__call__`.
    :param args: what the guide is called with, as its model.
    :returns: a scalar without gradient.
    :raises SymmetryError: for a guide without a density, and values that are none of its sites.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model():
    ...     pyro.sample("rate", dist.Gamma(2.0, 1.0))
    >>> guide = pyro.infer.autoguide.AutoNormal(model, init_scale=1.0)
    >>> _, values = guide(), guide.median()  # where exp(u) has the density N(0; 0, 1) / rate
    >>> log_q = guide_log_density(guide, values) + values["rate"].log()
    >>> round(float(log_q.exp()), 4)
    0.3989
    """
    return GuideDensity(guide, *args, **kwargs)(values)


class GuideDensity:
    """``log q`` of a guide, called with values of its latent sites; arguments are those that the guide is called with.

    The guide runs with its sites set to the values, so that sites may depend on those before them, and scales, masks
    and plates count as they do in its trace. Where it draws an auxiliary site and places the latent sites by it, the
    auxiliary value is recovered: of ``<site>_unconstrained`` (Pyro's ``AutoNormal``) and of one vector for all sites
    (Pyro's ``AutoContinuous`` guides, :class:`AutoOrbitMixture`); the Jacobians count. Guides in an ``AutoGuideList``,
    in :class:`SymmetrizedGuide` and inside handlers are read the same way; one under
    :func:`~pyro_equivariance.handlers.antithetic` has the law of the guide within. Parameters are those at the time of
    the call. No random numbers are used up. A value that was rounded to the edge of its support, as a sigmoid of 40, no
    longer says what it was drawn from.

    :param guide: any guide with a density.
    :param args: what the guide is called with, as its model.
    :raises SymmetryError: for a point mass (``AutoDelta``), and auxiliary sites that the values do not determine
        (``AutoStructured``).

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model():
    ...     pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    >>> flip = pe.signed_permutation(pe.SignGroup(), [[0, 1]] * 2, [[1, 1], [-1, -1]])
    >>> log_q = GuideDensity(pe.AutoOrbitMixture(model, pe.Symmetry(pe.SignGroup(), {"z": flip})))
    >>> z = torch.tensor([0.1, -0.2])
    >>> torch.allclose(log_q({"z": z}), log_q({"z": -z}))
    True
    """

    def __init__(self, guide: Callable, *args, **kwargs):
        # The draws of handlers.antithetic come in orbits, whose count a call would move on.
        self.guide = guide.guide if hasattr(guide, "restart") else guide
        self._args, self._kwargs = args, kwargs
        self._observes = not isinstance(unwrap(self.guide), GuideMessenger)  # such a guide runs the model
        with torch.no_grad(), own_randomness(0), poutine.block():
            trace = poutine.trace(self.guide).get_trace(*args, **kwargs)
        drawn = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"] and _is_open(s)}
        self._like = {n: site["value"] for n, site in drawn.items() if not site["infer"].get("is_auxiliary")}
        self._behind = {n: self._sites_behind(n, site) for n, site in drawn.items() if n not in self._like}
        self._placed = {name for _, names in self._behind.values() for name in names}
        for name in self._like:
            if name not in self._placed and _is_point(drawn[name]["fn"]):
                raise SymmetryError(
                    f"Expected a guide with a density; it puts a point mass on site {name!r}. Use "
                    f"pe.AutoMeanFieldNormal or AutoNormal."
                )

    @torch.no_grad()
    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        """``log q(θ)`` in nats, a scalar.

        :param dict values: of every latent site, of the shape that the guide draws, and of every subsampled plate the
            indices that it has, under the plate's name.
        :returns: ``-inf`` where the guide has no mass.
        :raises SymmetryError: for missing or unknown sites, wrong shapes, NaN, a value out of the support of a site
            that the guide transforms, and an orbit mixture of a group too large to be summed.
        """
        values = self._checked(values)
        auxiliary = {name: self._recovered(*behind, values) for name, behind in self._behind.items()}
        at_values = _AtValues(values, auxiliary, self._placed, self._observes)
        try:
            with poutine.block(), at_values:
                self.guide(*self._args, **self._kwargs)
        except _NoMassError:
            return torch.tensor(-torch.inf)
        log_q = sum(at_values.terms, torch.zeros(()))
        if log_q.isnan():
            raise SymmetryError("Expected a log density; got NaN, as at the edge of a support. Move the values inside.")
        return log_q

    def _checked(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if set(values) != set(self._like):
            missing, unknown = [n for n in self._like if n not in values], [n for n in values if n not in self._like]
            raise SymmetryError(
                f"Expected a value of every latent site and the indices of every subsampled plate of the guide, "
                f"{', '.join(map(repr, self._like))}; {missing or unknown} {'missing' if missing else 'unknown'}."
            )
        checked = {}
        for name, like in self._like.items():
            value = torch.as_tensor(values[name]).to(like)
            if value.shape != like.shape or value.isnan().any():
                wrong = "NaN" if value.shape == like.shape else f"shape {tuple(value.shape)}"
                raise SymmetryError(
                    f"Expected numbers of shape {tuple(like.shape)} at site {name!r}, one draw; got {wrong}."
                )
            checked[name] = value
        return checked

    def _sites_behind(self, auxiliary: str, site: dict) -> tuple[AutoGuide, list[str]]:
        """The autoguide that draws an auxiliary site, and the latent sites that it places by it, in order."""
        for part in _parts(self.guide):
            if isinstance(part, (AutoContinuous, AutoJoint)) and auxiliary == f"_{part._pyro_name}_latent":
                if _is_point(site["fn"]):
                    raise SymmetryError(
                        f"Expected a guide with a density; {type(part).__name__} is a point mass until it is fitted. "
                        f"Use guide.laplace_approximation(*args)."
                    )
                return part, [name for name, _ in part.prototype_trace.iter_stochastic_nodes()]
            name = auxiliary.removesuffix(AUXILIARY)
            if name != auxiliary and part.prototype_trace is not None and name in part.prototype_trace.nodes:
                return part, [name]
        raise SymmetryError(
            f"Expected latent sites that are drawn directly, or from <site>{AUXILIARY}, or all from one vector; the "
            f"auxiliary site {auxiliary!r} cannot be recovered from them. Use pe.AutoMeanFieldNormal or AutoNormal."
        )

    def _recovered(self, part: AutoGuide, names: list[str], values: dict[str, Tensor]) -> Tensor:
        """The auxiliary value that places the sites at their values."""
        coordinates = [_unconstrained(part, name, values[name]) for name in names]
        is_joint = isinstance(part, (AutoContinuous, AutoJoint))
        return torch.cat([u.flatten() for u in coordinates]) if is_joint else coordinates[0]


class _NoMassError(Exception):
    """A value out of the support of the law that a site is drawn from."""


class _AtValues(Messenger):
    """Sets the sites of a guide to values, and collects their log densities.

    :param dict values: by latent site.
    :param dict auxiliary: by auxiliary site.
    :param placed: the latent sites that follow from auxiliary ones.
    :param bool observes: whether observed sites (``pyro.factor``) count.
    """

    def __init__(self, values: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], placed, observes: bool):
        super().__init__()
        self.values, self.auxiliary, self.placed, self.observes = values, auxiliary, placed, observes
        self.terms: list[Tensor] = []

    def _pyro_sample(self, msg) -> None:
        name = msg["name"]
        if msg["is_observed"] or name in self.placed or not _is_open(msg):
            return
        if name not in self.values and name not in self.auxiliary:
            raise SymmetryError(f"Expected a guide with the same sites in every run; {name!r} is not in all of them.")
        msg["value"] = self.values[name] if name in self.values else self.auxiliary[name]

    def _pyro_post_sample(self, msg) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if isinstance(fn, _Subsample) or (msg["is_observed"] and not self.observes):
            return
        if name in self.placed:
            _check_placed(name, value, self.values[name])
        elif name in self.values and not fn.support.check(value).all():
            raise _NoMassError
        try:
            log_prob = fn.log_prob(value)
        except (NotImplementedError, KeyError) as error:  # so say the flows that Pyro cannot invert
            raise SymmetryError(
                f"Expected a law at site {name!r} with a density at any value, not at its own draws alone, as a flow "
                f"that has no inverse; got {type(fn).__name__}. Use pe.AutoMeanFieldNormal or AutoIAFNormal."
            ) from error
        self.terms.append(scale_and_mask(log_prob, msg["scale"], msg["mask"]).sum())


def _is_open(site: dict) -> bool:
    """Whether a site's value is for the guide to choose; the indices of a whole plate are not."""
    fn = site["fn"]
    return not isinstance(fn, _Subsample) or (fn.subsample_size or fn.size) < fn.size


def _is_point(fn) -> bool:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _parts(guide: Callable) -> Iterator[AutoGuide]:
    """The autoguides that a guide is made of, whatever is around them."""
    guide = unwrap(guide)
    if isinstance(guide, SymmetrizedGuide):
        yield from _parts(guide.guide)
    elif isinstance(guide, AutoGuideList):
        for part in guide:
            yield from _parts(part)
    elif isinstance(guide, AutoCallable):
        yield from _parts(guide._guide)
    elif isinstance(guide, AutoGuide):
        yield guide


def _unconstrained(part: AutoGuide, name: str, value: Tensor) -> Tensor:
    """A site's value in the coordinates that its autoguide draws."""
    support = part.prototype_trace.nodes[name]["fn"].support
    if not support.check(value).all():
        raise SymmetryError(f"Expected values of site {name!r} in its support, {support}; some lie outside.")
    transform: Transform = part._transforms[name] if isinstance(part, AutoJoint) else biject_to(support)
    return transform.inv(value)


def _check_placed(name: str, value: Tensor, wanted: Tensor) -> None:
    """Raise unless a site was placed where it was to be."""
    tolerance = torch.finfo(value.dtype).eps ** 0.5
    if value.shape != wanted.shape or not torch.allclose(value, wanted, rtol=tolerance, atol=tolerance):
        raise SymmetryError(
            f"Expected site {name!r} to follow from its auxiliary site by the transform of its support; the guide "
            f"transforms it in another way. Draw the site directly, from a TransformedDistribution."
        )
