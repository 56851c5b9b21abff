"""The sites of a trace as arrays: observations, latents and deterministic sites, with the names of their axes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pyro.distributions as dist
import torch
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from ..errors import SymmetryError
from ..prediction import is_point_mass, log_likelihood, observation_sites
from .base import OBSERVATION
from .tables import Labelled


@dataclass(frozen=True)
class Observation:
    """An observation site of a trace, and the names of its axes that belong to the data."""

    name: str
    site: dict
    axis: tuple[str, ...]

    @cached_property
    def log_likelihood(self) -> Tensor:
        return log_likelihood(self.site).double()

    @property
    def scale(self) -> float:
        """By what the model multiplies the log density, as in a subsampled plate; the mean where it varies."""
        return float(torch.as_tensor(self.site["scale"]).double().mean())

    @cached_property
    def counts(self) -> Tensor:
        """Which data count, ``True`` where no mask hides them; of the shape of ``log_likelihood``."""
        shape = self.log_likelihood.shape
        return _as_mask(self.site["mask"]).expand(shape) & _own_mask(self.site["fn"]).expand(shape)

    @property
    def has_classes(self) -> bool:
        return isinstance(self.site["fn"], torch.distributions.Categorical)

    @property
    def value(self) -> Labelled:
        return self.labelled(_whole(self.site))

    def labelled(self, values: Tensor, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Labelled:
        """Values of this site, between axes of other names."""
        own = own_dims(self.name, values.ndim - len(before) - len(after))
        return (*before, *self.axis, *own[len(self.axis) :], *after), values


def observations(trace, draw, is_network: bool) -> list[Observation]:
    """The observation sites of a model's trace at a draw of its latents.

    :raises SymmetryError: for a site that is neither observed nor drawn, or no observation at all.
    """
    _check_order(trace, draw)
    sites = {n: site for n, site in observation_sites(trace, draw) if not isinstance(site["fn"], dist.Unit)}
    for name, site in sites.items():
        if not site["is_observed"]:
            raise SymmetryError(
                f"Expected the guide to draw each site that is not observed; it has no {name!r}. If this is the "
                f"observation, pass it in data; if it is a discrete latent, sum it out in the model, as "
                f"pyro.distributions.MixtureSameFamily does."
            )
    if not sites:
        raise SymmetryError("Expected a model with an observed site; it has none. Pass the observation in data.")
    batches = {name: log_likelihood(site).shape[:1] for name, site in sites.items()}
    shared = len(set(batches.values())) == 1 and OBSERVATION not in sites  # an axis and a site cannot share a name
    prefix = {name: "" if shared else f"{name}_" for name in sites}
    found = []
    for name, site in sites.items():
        named = () if is_network else plates_of(name, site)
        first = (prefix[name] + OBSERVATION,) if batches[name] else ()
        found.append(Observation(name, site, named or first))
    return found


def _check_order(trace, draw) -> None:
    """Raise if what was given as the guide is the model."""
    for name, site in draw.nodes.items():
        if name not in trace.nodes and site["type"] == "sample" and site["is_observed"]:
            if not isinstance(site["fn"], dist.Unit) and not is_point_mass(site["fn"]):
                raise SymmetryError(
                    f"Expected the model first and its guide second; the guide observes {name!r}, which the model does "
                    f"not have. Swap the two."
                )


def plates_of(name: str, site: dict) -> tuple[str, ...]:
    """The names of a site's batch axes, of those in plates the plates'; none for a site outside of plates."""
    count = len(site["fn"].batch_shape)
    plates = {frame.dim + count: _free(frame.name) for frame in site["cond_indep_stack"] if frame.vectorized}
    return tuple(plates.get(i, own) for i, own in enumerate(own_dims(name, count))) if plates else ()


def _free(plate: str) -> str:
    """The name of a plate, changed where ArviZ or this package has another axis of that name."""
    return f"{plate}_plate" if plate in ("chain", "draw", "element", "class") else plate


def labelled(name: str, site: dict) -> Labelled:
    """A latent or deterministic site with the names of its axes."""
    value = site["value"]
    plates = plates_of(name, site) if "cond_indep_stack" in site and hasattr(site["fn"], "batch_shape") else ()
    if value.shape[: len(plates)] != getattr(site["fn"], "batch_shape", ())[: len(plates)]:
        plates = ()  # a deterministic site may be smaller than the plates that it stands in
    return (*plates, *own_dims(name, value.ndim)[len(plates) :]), value


def is_deterministic(site: dict) -> bool:
    """Whether an entry of a trace comes from ``pyro.deterministic``, or is what a reparametrised site has become."""
    return site["type"] == "sample" and site["is_observed"] and is_point_mass(site["fn"])


def mean_log_likelihood(seen: list[Observation]) -> dict[str, Labelled]:
    """Over all data that no mask hides, in nats."""
    rows = [o.log_likelihood[o.counts] for o in seen]
    return {"mean_log_likelihood": ((), torch.cat(rows).mean())}


def _as_mask(mask: Tensor | bool | None) -> Tensor:
    return torch.as_tensor(True if mask is None else mask, dtype=torch.bool)


def _own_mask(fn) -> Tensor:
    """The mask of a distribution itself, ``fn.mask(...)``; a datum of several entries counts if one of them does."""
    if isinstance(fn, dist.MaskedDistribution):
        return _as_mask(fn._mask) & _own_mask(fn.base_dist)
    if not isinstance(fn, torch.distributions.Independent) or not fn.reinterpreted_batch_ndims:
        return torch.tensor(True)
    return _own_mask(fn.base_dist).expand(fn.base_dist.batch_shape).flatten(-fn.reinterpreted_batch_ndims).any(-1)


def drawn(seen: list[Observation], nodes: Mapping[str, dict]) -> dict[str, Labelled]:
    """The values of observations in a trace, and the probabilities of classes."""
    values = {o.name: o.labelled(_whole(nodes[o.name])) for o in seen}
    prefix = {o.name: "" if len(seen) == 1 else f"{o.name}_" for o in seen}
    probs = {
        f"{prefix[o.name]}probs": o.labelled(nodes[o.name]["fn"].probs, after=(f"{prefix[o.name]}class",))
        for o in seen
        if o.has_classes
    }
    return values | probs


class Forgetting(UnconditionMessenger):
    """Draws what was observed; deterministic sites, which Pyro observes as well, stay what they are."""

    def _pyro_sample(self, msg) -> None:
        if not is_deterministic(msg):
            super()._pyro_sample(msg)


def _whole(site: dict) -> Tensor:
    """The value of an observation, as integers where its law is one of integers, such as a Bernoulli's."""
    value = site["value"]
    if not value.is_floating_point() or not _is_discrete(site["fn"]) or not bool((value == value.round()).all()):
        return value
    return value.long()


def _is_discrete(law) -> bool:
    try:
        return law.support.is_discrete
    except NotImplementedError:
        return False


def own_dims(name: str, ndim: int) -> tuple[str, ...]:
    """Names for axes that have none."""
    return tuple(f"{name}_dim_{i}" for i in range(ndim))
