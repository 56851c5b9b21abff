"""Draws of a guide in whole orbits, which keep a Monte Carlo gradient equivariant."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ..errors import SymmetryError
from ..families import is_closed
from ..spaces import check_plates, check_transforms, site_space
from ..symmetry import Symmetry, needed
from .base import AUXILIARY

PARTICLES = "num_particles_vectorized"


class AntitheticMessenger(Messenger):
    """Replaces the noise of a mean-field Normal guide by orbits of it. See :func:`antithetic`."""

    def __init__(self, symmetry: Symmetry, guide: Callable | None = None):
        super().__init__()
        self.symmetry, self._guide = symmetry, guide
        self._order = len(symmetry.group.elements)
        self._fitting: set[str] = set()  # sites that were seen to bear it
        self.restart()

    def restart(self) -> None:
        """Begin a new orbit with the next call."""
        self._calls, self._noise = -1, {}

    def __enter__(self):
        self._calls = (self._calls + 1) % self._order
        if self._calls == 0:
            self._noise = {}
        return super().__enter__()

    def _pyro_sample(self, msg) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample) or isinstance(msg["fn"], dist.Delta):
            return
        site = msg["name"].removesuffix(AUXILIARY) if msg["infer"].get("is_auxiliary") else msg["name"]
        normal, transforms = _taken_apart(site, msg["fn"])
        if site not in self._fitting:
            self._check(site, msg, normal, transforms)
            self._fitting.add(site)
        value = normal.loc + normal.scale * self._orbit_noise(site, msg, normal)
        for transform in transforms:
            value = transform(value)
        msg["value"] = value

    def _orbit_noise(self, site: str, msg, normal) -> Tensor:
        """``ρ(g) ε``: this call's ``g``, or, of particles side by side, all of the group along their axis."""
        rep = self.symmetry[site]
        # The plate of the particles is outside of this handler, and marks the message after it.
        plates = [f for f in _PYRO_STACK if getattr(f, "name", "").startswith(PARTICLES)]
        axes = [f.dim - len(msg["fn"].event_shape) for f in plates]
        if not axes:
            noise = self._noise.setdefault(site, torch.randn_like(normal.loc.expand(normal.batch_shape)))
            return rep.act(self._calls, noise)
        self._calls = -1
        shape = list(torch.broadcast_shapes(normal.batch_shape, (plates[0].size,) + (1,) * (-axes[0] - 1)))
        count = shape[axes[0]]
        if count % self._order:
            raise SymmetryError(
                f"Expected a number of particles that is a multiple of {self._order}, the order of "
                f"{self.symmetry.group}, so that draws come in whole orbits; got {count}."
            )
        shape[axes[0]] = count // self._order
        copies = rep.orbit(torch.randn(shape, dtype=normal.loc.dtype, device=normal.loc.device))
        return torch.cat(copies.unbind(0), axes[0])

    def _check(self, site: str, msg, normal, transforms) -> None:
        rep = self.symmetry[site]
        check_plates(site, rep, len(msg["fn"].event_shape), msg["cond_indep_stack"])
        prototype = getattr(self._guide, "prototype_trace", None)
        if msg["infer"].get("is_auxiliary") and prototype is not None:
            node = prototype.nodes[site]
            if site_space(site, node["fn"].support, rep, node["value"].shape).rep.event_shape != rep.event_shape:
                raise SymmetryError(
                    f"Expected site {site!r} to be transformed entry by entry; its transform changes the shape. Use "
                    f"pe.AutoOrbitMixture, which needs no such draws."
                )
        check_transforms(site, transforms, rep, normal.batch_shape)
        if not is_closed(normal, rep) or not rep.is_orthogonal:
            raise SymmetryError(
                f"Expected site {site!r} to be moved by signed permutations, under which noise keeps its law entry by "
                f"entry; got {rep}."
            )


def antithetic(fn: Callable, symmetry: Symmetry) -> Callable:
    """A guide whose draws come in orbits: each noise ``ε`` with its ``|G|`` moved copies ``ρ(g) ε``.

    ``θ_g = μ + σ ρ(g) ε``. Each draw has the law of the guide, but ``|G|`` successive ones belong together. Of an
    invariant ``q`` they are the orbit of one ``θ``; with full augmentation the gradient of an ELBO with ``|G|``
    particles is then equivariant for every noise, not only on average, so that training from an invariant state stays
    there (see the theory page). Use ``TraceMeanField_ELBO(num_particles=len(group))`` or a multiple;
    vectorized particles are moved along their axis. Other draws in between, of a validation say, are to be taken from
    the guide itself, or followed by ``wrapped.restart()``, which begins a new orbit, as :func:`~pyro_equivariance.fit`
    does at each step.

    :param fn: a guide whose sites draw from Normals, or from Normals under transforms entry by entry.
    :param Symmetry symmetry: a representation by signed permutations for every latent site; a finite group.
    :raises SymmetryError: when called, for a site that draws from another law, or is moved in another way.

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> swap = pe.Symmetry(pe.SymmetricGroup(2), {"z": pe.permutation(pe.SymmetricGroup(2))})
    >>> def guide():
    ...     return pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    >>> guide = pe.handlers.antithetic(guide, swap)
    >>> first, second = guide(), guide()
    >>> torch.equal(first, second.flip(0))
    True
    """
    messenger = AntitheticMessenger(needed(symmetry), fn)
    wrapped = messenger(fn)
    wrapped.restart, wrapped.guide, wrapped.symmetry = messenger.restart, fn, messenger.symmetry
    return wrapped


def _taken_apart(site: str, fn) -> tuple[torch.distributions.Normal, list]:
    """The Normal behind a distribution, and the transforms from it to the site's values."""
    transforms = []
    while isinstance(fn, (torch.distributions.Independent, torch.distributions.TransformedDistribution)):
        if isinstance(fn, torch.distributions.TransformedDistribution):
            transforms = [*fn.transforms, *transforms]
        fn = fn.base_dist
    if not isinstance(fn, torch.distributions.Normal):
        raise SymmetryError(
            f"Expected site {site!r} of the guide to draw from independent Normals, whose noise can be moved; got "
            f"{type(fn).__name__}. Use pe.AutoMeanFieldNormal or pyro's AutoNormal."
        )
    return fn, transforms
