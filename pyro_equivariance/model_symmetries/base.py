"""A model as a density: its latent sites, and what each of its sites adds to the log density at given latents."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import config_enumerate
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ..errors import SymmetryError
from ..guides.base import own_randomness
from ..prediction import evaluating

ATTEMPTS = 20


@dataclass(frozen=True)
class Terms:
    """What each site adds to the log density, its terms in double precision, and the precision they were computed in.

    Where discrete sites are summed out, ``total`` is the marginal log density, and a site's terms are a summary.
    """

    sites: dict[str, Tensor]
    precision: dict[str, float]
    total: float


class ModelDensity:
    """``log p(θ, data)`` of a Pyro model, site by site, as a function of its latent sites.

    Discrete latent sites that are given no value are summed out. The state of the random number generators stays as it
    was, and dropout does not act.

    :param model: a Pyro model.
    :param args: its arguments, observations included.
    :param kwargs: likewise.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: Mapping):
        if not callable(model):
            raise SymmetryError(f"Expected a Pyro model, a callable; got {model!r}.")
        self.model, self.args, self.kwargs = model, args, dict(kwargs)

    @cached_property
    def latents(self) -> dict[str, dict]:
        """The latent sites of one run of the model, as entries of its trace."""
        nodes = self.run(self.model).nodes
        return {name: site for name, site in nodes.items() if _is_latent(site)}

    @cached_property
    def factors(self) -> frozenset[str]:
        """The names of the ``pyro.factor`` terms."""
        nodes = self.run(self.model).nodes.items()
        return frozenset(n for n, site in nodes if site["type"] == "sample" and isinstance(site["fn"], Unit))

    @cached_property
    def plates(self) -> dict[str, tuple[int, bool]]:
        """For each vectorised plate its size, and whether the model sees all of it."""
        frames = [
            frame
            for site in self.run(self.model).nodes.values()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
            if frame.vectorized
        ]
        return {frame.name: (frame.size, frame.full_size in (None, frame.size)) for frame in frames}

    def site(self, name: str) -> dict:
        """One latent site.

        :raises SymmetryError: if the model has none of that name.
        """
        if name not in self.latents:
            listed = ", ".join(map(repr, self.latents)) or "none"
            raise SymmetryError(f"Expected the name of a latent site of the model; got {name!r}. Latent: {listed}.")
        return self.latents[name]

    def draws(self, count: int):
        """So many draws of the latents from the prior at which the log density is finite.

        :raises SymmetryError: if the model shows none.
        """
        found = 0
        for seed in range(ATTEMPTS + count):
            nodes = self.run(self.model, seed=seed).nodes
            values = {name: nodes[name]["value"] for name in self.latents if name in nodes}
            if len(values) == len(self.latents) and math.isfinite(self.terms(values).total):
                found += 1
                yield values
            if found == count:
                return
        raise SymmetryError(
            f"Expected a model whose log density is finite at draws from its prior; {ATTEMPTS + count - found} of "
            f"{ATTEMPTS + count} were not. Widen the observation's law, or narrow the priors."
        )

    def terms(self, values: Mapping[str, Tensor], args: tuple | None = None) -> Terms:
        """What each site adds at these latents; discrete ones that are left out are summed out.

        :param dict values: of the latent sites.
        :param tuple args: other arguments of the model, such as moved data.
        """
        model = poutine.condition(self.model, dict(values))
        summed_out = [name for name in self.latents if name not in values]
        depth = self._plate_depth if summed_out else 0
        if summed_out:
            self._check_enumerable(summed_out)
            model = poutine.enum(config_enumerate(model, "parallel"), first_available_dim=-1 - depth)
        trace = self.run(model, args)
        trace.compute_log_prob()
        sites, precision = {}, {}
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
                term = site["log_prob"].detach()
                precision[name] = torch.finfo(term.dtype).eps
                sites[name] = _joined(term.double(), depth) if summed_out else term.double()
        marginal = TraceEinsumEvaluator(trace, True, depth).log_prob(trace) if summed_out else None
        total = sum(float(term.sum()) for term in sites.values()) if marginal is None else float(marginal)
        return Terms(sites, precision, total)

    @cached_property
    def _plate_depth(self) -> int:
        sites = self.run(self.model).nodes.values()
        frames = [frame for s in sites if s["type"] == "sample" for frame in s["cond_indep_stack"] if frame.vectorized]
        return max((-frame.dim for frame in frames), default=0)

    def _check_enumerable(self, names: list[str]) -> None:
        for name in names:
            if not self.latents[name]["fn"].has_enumerate_support:
                raise SymmetryError(
                    f"Expected the discrete site {name!r} to be moved by the symmetry, or to have a finite support, "
                    f"so that it can be summed out; it is a {type(self.latents[name]['fn']).__name__}."
                )

    def run(self, model: Callable, args: tuple | None = None, seed: int = 0):
        """The trace of a model on these arguments, by default its own."""
        with own_randomness(seed), evaluating(self.model), torch.no_grad():
            return poutine.trace(model).get_trace(*(self.args if args is None else args), **self.kwargs)


def _is_latent(site: dict) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not isinstance(site["fn"], _Subsample)


def _joined(term: Tensor, depth: int) -> Tensor:
    """A site's terms, those of enumerated values (left of the plates) joined whatever their order."""
    axes = tuple(range(term.ndim - depth))
    return term.logsumexp(axes) if axes else term
