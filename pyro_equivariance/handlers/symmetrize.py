"""A guide whose sites draw from their averages over the group."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from ..distributions import Placed
from ..errors import ClosednessError, SymmetryError, check_option
from ..spaces import check_plates, site_space
from ..symmetrize import RULES, average_site, warn_if_wide
from ..symmetry import Symmetry, needed
from .base import AUXILIARY, wrap


class SymmetrizeMessenger(Messenger):
    """Replaces the distribution at each latent site of a guide by its average over the orbit.

    :param Symmetry symmetry: has a representation for every latent site.
    :param str rule: see :func:`~pyro_equivariance.average`.
    :param guide: the guide that it is put around, if known: the supports of an ``AutoNormal``'s sites are then checked.
    """

    def __init__(self, symmetry: Symmetry, rule: str = "geometric", guide: Callable | None = None):
        super().__init__()
        self._guide = guide
        self._calls, self._warned = 0, False
        check_option("rule", rule, RULES)
        self.symmetry, self.rule = symmetry, rule
        self._averaged: dict[str, torch.Tensor | None] = {}
        self._spread: dict[str, tuple] = {}
        self._fitting: set[str] = set()  # sites whose support the action was seen to fit

    def __enter__(self):
        self._averaged, self._spread = {}, {}
        self._calls += 1
        return super().__enter__()

    def __exit__(self, *args):
        result = super().__exit__(*args)  # first, since a warning may be an error
        spread, self._averaged, self._spread = self._spread, {}, {}
        if spread:
            self._warned = warn_if_wide(spread, stacklevel=5)
        return result

    @property
    def _looks(self) -> bool:
        """Whether this call measures the spread: the 1st, 10th, 100th, …, since it costs as much as the average."""
        return not self._warned and self._calls == 10 ** (len(str(self._calls)) - 1)

    def _pyro_sample(self, msg) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        if isinstance(msg["fn"], dist.Delta):
            self._check_delta(name, msg["fn"].v)
            # A plain Delta loses the log density of its transform under TraceMeanField_ELBO.
            msg["fn"] = Placed(msg["fn"].v, msg["fn"].log_density, msg["fn"].event_dim)
            return
        site = name.removesuffix(AUXILIARY) if msg["infer"].get("is_auxiliary") else name
        if msg["infer"].get("is_auxiliary") and site == name:
            raise SymmetryError(
                f"Expected latent sites that are drawn one by one; this guide draws them together, from {name!r}, "
                f"which no average by sites reaches. Use pe.AutoSymmetricMultivariateNormal(model, symmetry) instead, "
                f"or pe.AutoOrbitMixture."
            )
        rep = self.symmetry[site]
        check_plates(site, rep, len(msg["fn"].event_shape), msg["cond_indep_stack"])
        before = msg["fn"]
        try:
            msg["fn"] = average_site(site, before, self.symmetry, self.rule)
        except ClosednessError as error:
            raise ClosednessError(
                f"Expected site {site!r} to draw from a law that the action keeps, or from one under transforms "
                f"entry by entry: {error} pe.AutoSymmetricMultivariateNormal and pe.AutoOrbitMixture bear more."
            ) from error
        if self._looks:
            self._spread[site] = (before, rep)
        self._averaged[site] = None

    def _pyro_post_sample(self, msg) -> None:
        if msg["infer"].get("is_auxiliary"):
            self._averaged[msg["name"].removesuffix(AUXILIARY)] = msg["value"]

    def _check_delta(self, name: str, value: torch.Tensor) -> None:
        if name not in self._averaged:
            raise SymmetryError(
                f"Expected a distribution with a density at site {name!r} of the guide; got a Delta, which no average "
                f"reaches. Use pe.AutoSymmetricNormal(model, symmetry) instead of this guide, or pe.AutoOrbitMixture."
            )
        prototype = getattr(self._guide, "prototype_trace", None)
        if prototype is not None and name in prototype.nodes and name not in self._fitting:
            node = prototype.nodes[name]
            site_space(name, node["fn"].support, self.symmetry[name], node["value"].shape)
            self._fitting.add(name)
        unconstrained = self._averaged[name]
        if unconstrained is not None and unconstrained.shape != value.shape:
            raise SymmetryError(
                f"Expected site {name!r} to be transformed entry by entry; its transform changes the shape. Use "
                f"pe.AutoSymmetricMultivariateNormal(model, symmetry) or pe.AutoOrbitMixture instead of this guide."
            )
        moved_as_it_is = unconstrained is None or self.symmetry[name].space == "unconstrained" or value is unconstrained
        if moved_as_it_is or torch.equal(value, unconstrained) or self.symmetry[name].is_permutation:
            return
        raise SymmetryError(
            f"Expected site {name!r}, which is constrained, to be moved by permutations; got {self.symmetry[name]}, "
            f"which does not pass through its transform. Say that it acts on unconstrained values: "
            f"rep.on_unconstrained()."
        )


def symmetrize(fn: Callable | None = None, symmetry: Symmetry | None = None, rule: str = "geometric"):
    """Average a guide over the group, always on: each latent site draws from its orbit average.

    :param fn: the guide; left out, a decorator and context manager is returned.
    :param Symmetry symmetry: a representation for every latent site.
    :param str rule: ``"geometric"``, ``"arithmetic"`` or ``"projection"``.
    :raises SymmetryError: for a site without a representation, or one that holds a Delta.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> swap = pe.Symmetry(pe.SymmetricGroup(2), {"z": pe.permutation(pe.SymmetricGroup(2))})
    >>> @pe.handlers.symmetrize(symmetry=swap)
    ... def guide():
    ...     return pyro.sample("z", dist.Normal(torch.tensor([0.0, 2.0]), 0.5).to_event(1))
    >>> pyro.poutine.trace(guide).get_trace().nodes["z"]["fn"].mean.tolist()
    [1.0, 1.0]
    """
    averaged = wrap(SymmetrizeMessenger(needed(symmetry), rule, fn), fn)
    averaged.always_invariant = True
    return averaged
