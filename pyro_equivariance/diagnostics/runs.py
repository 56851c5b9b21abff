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
from pyro.distributions.util import scale_and_mask, sum_rightmost
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
from ..guides.wrapped import SymmetrizedGuide
from ..training import FitResult
from .arguments import Arguments
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
    def traces(self, data: Arguments) -> Iterator[tuple[Any, dict[str, Labelled]]]:
        """For each draw, chain by chain, a trace of the latents and what else is known of the draw."""

    @contextmanager
    def drawing(self):
        """Around the draws of this run and the model at them."""
        yield

    def density(self, data: Arguments) -> Callable[[Mapping[str, Tensor]], Tensor] | None:
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
            trace = data.trace(guide)
            yield trace, self._log_q(trace) | _group_element(trace)

    def _log_q(self, trace) -> dict[str, Labelled]:
        if not self.has_density or _has_no_density(trace):
            return {}
        return {"log_q": ((), log_density(trace))}

    def density(self, data):
        try:
            found = GuideDensity(self.guide, *data.args, **data.kwargs)
            with own_randomness(0), poutine.block():
                found(density_arguments(data.trace(_without_observations(found.guide))))
        except SymmetryError:  # a point mass, or a density that cannot be evaluated at other values than a draw
            return None
        return found

    @contextmanager
    def drawing(self):
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

    @contextmanager
    def drawing(self):
        try:
            with _Fitting({name: values.shape[2:] for name, values in self.samples.items()}):
                yield
        except _MisfitError as error:
            raise DataError(str(error)) from None


class _MisfitError(Exception):
    """Draws that do not fit the model. It is no ``ValueError``, to which Pyro adds all shapes of the trace."""


class _Fitting(Messenger):
    """Raises unless draws that are given are of the latent sites of the model, and of their shapes.

    :param dict shapes: of one draw of each site.
    """

    def __init__(self, shapes: Mapping[str, torch.Size]):
        super().__init__()
        self.shapes = shapes

    def _pyro_sample(self, msg) -> None:
        if not is_latent(msg):
            return
        name, expected = msg["name"], msg["fn"].shape()
        if name not in self.shapes:
            raise _MisfitError(
                f"Expected draws of every latent site of the model; there are none of {name!r}, only of "
                f"{', '.join(map(repr, self.shapes))}. If it is the observation, pass it in data; if it is a discrete "
                f"latent, sum it out in the model."
            )
        if self.shapes[name] != expected:
            raise _MisfitError(
                f"Expected draws of site {name!r} of shape {tuple(expected)} each, after one axis of draws; got "
                f"{tuple(self.shapes[name])}. If the first axis is chains, pass the MCMC object, or one dict per chain "
                f"in runs=."
            )


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
    for second, source in enumerate(sources):
        first = next(i for i, other in enumerate(sources) if other is source)
        if first < second and isinstance(source, FitResult | MCMC | Mapping):
            raise OptionError(f"Expected independent runs; runs {first} and {second} are the same. Leave one out.")
    histories = [_as_history(history), *({} for _ in sources[1:])]
    runs = [_as_run(source, draws, thin, known) for source, known in zip(sources, histories, strict=True)]
    check_independent(runs)
    return runs


def check_independent(runs: Sequence[Run], data: Arguments | None = None) -> None:
    """Raise if two guides share parameters, as their draws would then agree whatever they were trained to.

    :param data: what guides that are functions are called with to find their parameters; ``None`` leaves them out.
    """
    seen: dict[int, int] = {}
    for number, run in enumerate(runs):
        parameters = _parameters(run.guide, data) if isinstance(run, GuideRun) else ()
        places = {p.untyped_storage().data_ptr() for p in parameters if p.numel()}
        if shared := [seen[place] for place in places if place in seen]:
            raise OptionError(
                f"Expected independent runs; runs {min(shared)} and {number} share their parameters, since Pyro's "
                f"store keeps guides of one name together. Call pyro.clear_param_store() before each fit, or "
                f"pyro.settings.set(module_local_params=True)."
            )
        seen |= dict.fromkeys(places, number)


def _parameters(guide: Callable, data: Arguments | None) -> list[Tensor]:
    """What a guide learns."""
    inner = _innermost(guide)
    if isinstance(inner, torch.nn.Module):
        return [parameter for parameter in inner.parameters() if parameter.requires_grad]
    if data is None:
        return []
    with own_randomness(0), poutine.block(), torch.no_grad():
        nodes = data.trace(guide).nodes.values()
    values = [site["value"] for site in nodes if site["type"] == "param"]
    return [getattr(value, "unconstrained", lambda value=value: value)() for value in values]


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


def log_density(trace) -> Tensor:
    """The log density of all sites of a trace in nats, scaled and masked as they are, summed in double precision.

    :raises DataError: for a site whose value is not in its support.
    """
    total = torch.zeros((), dtype=torch.float64)
    for name, site in trace.nodes.items():
        if site["type"] != "sample":
            continue
        try:
            log_prob = _log_prob(site["fn"], site["value"])
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"Expected a value with a density at site {name!r}; it has none: {reason}") from error
        total = total + scale_and_mask(log_prob, site["scale"], site["mask"]).sum().to(total.device)
    return total


def _log_prob(fn, value: Tensor) -> Tensor:
    """In double precision from the single entries on, of which a large event has a sum that single would round."""
    if isinstance(fn, torch.distributions.Independent):
        return sum_rightmost(_log_prob(fn.base_dist, value), fn.reinterpreted_batch_ndims)
    return torch.as_tensor(fn.log_prob(value)).detach().double()


def _without_observations(guide: Callable) -> Callable:
    """A guide that runs the model, without the model's observations."""
    if not isinstance(unwrap(guide), GuideMessenger):
        return guide
    return poutine.block(guide, hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"])


def _innermost(guide: Callable) -> Callable:
    """The guide that learns, inside handlers and averages."""
    guide = unwrap(inspect.unwrap(guide))
    return _innermost(guide.guide) if isinstance(guide, SymmetrizedGuide) else guide


def _parts_with_parameters(guide: Callable) -> list[PyroModule]:
    """The modules of a guide that hold parameters; one that was not called yet has none."""
    guide = _innermost(guide)
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
