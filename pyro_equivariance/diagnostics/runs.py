"""Where draws come from: guides, results of ``fit``, MCMC, or draws given as they are, each an independent run."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro import poutine
from pyro.infer import MCMC
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger, unwrap
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from ..distributions import OrbitMixture
from ..errors import DataError, OptionError, SymmetryError
from ..guides.base import own_randomness
from ..guides.density import GuideDensity
from ..training import FitResult
from .tables import Labelled

History = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Run(ABC):
    """Draws of the latents of a model, as traces to be replayed.

    To implement one: :meth:`traces`, and ``chains``, ``draws`` and ``name``.
    """

    draws: int
    name: str
    chains: int = 1
    history: History = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    has_density = False
    rule = None

    @abstractmethod
    def traces(self, data: tuple) -> Iterator[tuple[Any, dict[str, Labelled]]]:
        """For each draw, chain by chain, a trace of the latents and what else is known of the draw."""

    @contextmanager
    def own_parameters(self):
        """While this run is drawn from."""
        yield

    def density(self, data: tuple) -> Callable[[Mapping[str, Tensor]], Tensor] | None:
        """``log q`` at given latents, where the run has one."""
        return None

    def variational(self) -> xr.Dataset:
        """The history, ``(chain, step)``."""
        lists = {name: np.asarray(values, dtype=float) for name, values in self.history.items()}
        if "loss" not in lists or len({len(values) for values in lists.values()}) > 1:
            raise DataError(
                f"Expected a history of lists of equal length, the loss among them; got "
                f"{', '.join(f'{name} {len(values)}' for name, values in lists.items())}."
            )
        steps = lists.pop("steps", np.arange(1, len(lists["loss"]) + 1)).astype(int)
        arrays = {name: (("chain", "step"), values[None]) for name, values in lists.items()}
        return xr.Dataset(arrays, coords={"chain": [0], "step": steps})


@dataclass(frozen=True)
class GuideRun(Run):
    """Independent draws of a guide."""

    guide: Callable = None

    @property
    def has_density(self) -> bool:
        return getattr(self.guide, "has_density", True)

    @property
    def rule(self) -> str | None:
        return getattr(inspect.unwrap(self.guide), "rule", None)

    def traces(self, data):
        guide = _without_observations(self.guide)
        for _ in range(self.draws):
            trace = poutine.trace(guide).get_trace(*data)
            yield trace, self._log_q(trace) | _group_element(trace)

    def _log_q(self, trace) -> dict[str, Labelled]:
        if not self.has_density or _has_no_density(trace):
            return {}
        return {"log_q": ((), torch.as_tensor(trace.log_prob_sum()).detach())}

    def density(self, data):
        try:
            found = GuideDensity(self.guide, *data)
            with own_randomness(0), poutine.block():
                found(density_arguments(poutine.trace(_without_observations(found.guide)).get_trace(*data)))
        except SymmetryError:  # a point mass, or a density that cannot be evaluated at other values than a draw
            return None
        return found

    @contextmanager
    def own_parameters(self):
        """Pyro keeps parameters by name in one store, where guides of one name would take one another's."""
        own = tuple(f"{module._pyro_name}." for module in _parts_with_parameters(self.guide))
        if not own or pyro.settings.get("module_local_params"):
            yield
            return
        state = pyro.get_param_store().get_state()
        others = {kind: {n: v for n, v in state[kind].items() if not n.startswith(own)} for kind in state}
        with pyro.get_param_store().scope(others):
            yield


@dataclass(frozen=True)
class SampleRun(Run):
    """Draws given as they are, ``{site: (chains, draws, *shape)}``."""

    samples: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, np.ndarray] = field(default_factory=dict)

    def traces(self, data):
        for chain in range(self.chains):
            for draw in range(self.draws):
                trace = poutine.Trace()
                for name, values in self.samples.items():
                    trace.add_node(name, name=name, type="sample", is_observed=False, value=values[chain, draw],
                                   fn=None, infer={}, cond_indep_stack=())  # fmt: skip
                yield trace, {n: ((), torch.as_tensor(v[chain, draw])) for n, v in self.stats.items()}


class OneSubsample(Messenger):
    """Lets subsampled plates keep the indices that they first had, so that all draws are of the same data."""

    def __init__(self):
        super().__init__()
        self._indices: dict[tuple, Tensor] = {}

    def _pyro_sample(self, msg) -> None:
        if is_subsampled(msg) and msg["value"] is None:
            msg["value"] = self._indices.get(self._key(msg))

    def _pyro_post_sample(self, msg) -> None:
        if is_subsampled(msg):
            self._indices.setdefault(self._key(msg), msg["value"])

    @staticmethod
    def _key(msg) -> tuple:
        return msg["name"], msg["fn"].size, msg["fn"].subsample_size


def as_runs(sources: Sequence, draws: int, thin: int, history: History | Sequence[float] | None) -> list[Run]:
    """One run for each source; the history belongs to the first."""
    if not sources:
        raise OptionError("Expected a guide, or runs= with at least one; got none.")
    histories = [_as_history(history), *({} for _ in sources[1:])]
    return [_as_run(source, draws, thin, known) for source, known in zip(sources, histories, strict=True)]


def _as_history(history: History | Sequence[float] | None) -> History:
    if history is None:
        return {}
    return dict(history) if isinstance(history, Mapping) else {"loss": list(history)}


def _as_run(source: Any, draws: int, thin: int, history: History) -> Run:
    if isinstance(source, FitResult):
        known = getattr(source, "settings", {})
        return GuideRun(draws, _name(source.guide), 1, history or source.history, known, guide=source.guide)
    if isinstance(source, MCMC):
        return _of_mcmc(source, thin)
    if isinstance(source, Mapping):
        return _of_samples({name: torch.as_tensor(values)[None] for name, values in source.items()}, "samples", thin)
    if not callable(source):
        raise OptionError(
            f"Expected a guide, a FitResult, an MCMC object or a dict of draws by site; got {type(source).__name__}."
        )
    return GuideRun(draws, _name(source), 1, history, guide=source)


def _name(guide: Callable) -> str:
    return getattr(inspect.unwrap(guide), "__name__", type(guide).__name__)


def _of_samples(
    samples: dict[str, Tensor], name: str, thin: int, stats: Mapping[str, np.ndarray] | None = None
) -> SampleRun:
    sizes = {values.shape[:2] for values in samples.values()}
    if len(sizes) != 1 or len(size := next(iter(sizes))) < 2 or 0 in size:
        listed = ", ".join(f"{n} {v.shape[1] if v.ndim > 1 else 0}" for n, v in samples.items()) or "no sites"
        raise DataError(f"Expected draws of every latent site, as many of each, at least one; got {listed}.")
    samples = {n: values[:, ::thin] for n, values in samples.items()}
    stats = {n: values[:, ::thin] for n, values in (stats or {}).items()}
    chains, draws = next(iter(samples.values())).shape[:2]
    return SampleRun(draws, name, chains, samples=samples, stats=stats)


def _of_mcmc(mcmc: MCMC, thin: int) -> SampleRun:
    if not getattr(mcmc, "_samples", None):
        raise OptionError("Expected an MCMC object after its run; it has no samples yet. Call mcmc.run(*data) first.")
    samples = mcmc.get_samples(group_by_chain=True)
    found, stats = mcmc._diagnostics, {}
    if all(isinstance(known, Mapping) and "divergences" in known for known in found):
        diverging = np.zeros(next(iter(samples.values())).shape[:2], dtype=bool)
        for chain, known in enumerate(found):
            diverging[chain, known["divergences"]] = True
        stats["diverging"] = diverging
    return _of_samples(samples, type(mcmc.kernel).__name__, thin, stats)


def is_latent(site: dict) -> bool:
    """Whether an entry of a trace is a latent site that is drawn for the model."""
    if site["type"] != "sample" or site["is_observed"] or isinstance(site["fn"], _Subsample):
        return False
    return not site["infer"].get("is_auxiliary")


def is_subsampled(site: dict) -> bool:
    """Whether an entry of a trace is the indices of a plate of which a part was drawn."""
    fn = site["fn"] if site["type"] == "sample" else None
    return isinstance(fn, _Subsample) and (fn.subsample_size or fn.size) < fn.size


def density_arguments(trace) -> dict[str, Tensor]:
    """What the density of a guide takes, of a trace of it."""
    return {name: site["value"] for name, site in trace.nodes.items() if is_latent(site) or is_subsampled(site)}


def _without_observations(guide: Callable) -> Callable:
    """A guide that runs the model, without the model's observations."""
    if not isinstance(unwrap(guide), GuideMessenger):
        return guide
    return poutine.block(guide, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])


def _parts_with_parameters(guide: Callable) -> list[PyroModule]:
    """The modules of a guide that hold parameters; one that was not called yet has none."""
    guide = inspect.unwrap(guide)
    parts = guide.modules() if isinstance(guide, torch.nn.Module) else ()
    return [part for part in parts if isinstance(part, PyroModule) and any(True for _ in part.parameters())]


def _has_no_density(trace) -> bool:
    """Whether all that a guide draws is point masses, or something that it moves without saying how densely."""
    drawn = [s for s in trace.nodes.values() if s["type"] == "sample" and not isinstance(s["fn"], _Subsample)]
    return all(isinstance(_core(s["fn"]), dist.Delta) for s in drawn if not s["is_observed"])


def _core(fn):
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return fn


def _group_element(trace) -> dict[str, Labelled]:
    """The element that an orbit mixture drew, if its group has a list."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and isinstance(site["fn"], OrbitMixture):
            g = site["fn"].drawn_element(site["value"])
            if g is not None and g.ndim == 0:
                return {"group_element": ((), g)}
    return {}
