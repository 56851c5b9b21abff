"""Posteriors as ArviZ data: named arrays of draws, log densities and predictions, for any model and guide."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from .. import __version__
from ..errors import OptionError, SymmetryError
from ..guides.base import own_randomness
from ..handlers import AugmentMessenger
from ..networks.bayesian import NetworkModel
from ..prediction import evaluating, outputs
from ..spaces import unconstraining
from ..symmetry import Symmetry
from . import base
from .arguments import Arguments, as_arguments
from .runs import OneSubsample, Run, as_runs, check_independent, density_arguments, is_latent, log_density
from .sites import (
    Forgetting,
    Observation,
    drawn,
    is_deterministic,
    labelled,
    mean_log_likelihood,
    observations,
    own_dims,
)
from .tables import Labelled, Labels, Recorder, as_arrays, dataset


def to_arviz(
    model: Callable,
    guide: Any = None,
    data: Any = (),
    symmetry: Symmetry | None = None,
    draws: int = 200,
    sites: Sequence[str] | str | None = None,
    *,
    runs: Sequence[Any] = (),
    thin: int = 1,
    dtype: str | None = None,
    prior_draws: int | None = None,
    coords: Mapping[str, Sequence] | None = None,
    history: Mapping[str, Sequence[float]] | Sequence[float] | None = None,
    seed: int | None = None,
    held_out: bool = False,
):
    """A posterior as ArviZ data; all groups of draws come from one set of draws. A chain is one independent run.

    Discrete latents that are enumerated in training are not taken: sum them out in the model, as
    ``dist.MixtureSameFamily`` does. With several observation sites ArviZ's ``loo`` needs ``var_name=``, one of them. It
    takes draws of a guide for those of the posterior; :func:`~pyro_equivariance.diagnose` corrects by ``lp - log_q``.

    With ``N`` data, ``T`` draws of a chain, ``K`` classes and ``y`` the name of the observation site:

    - ``posterior``: the latent sites ``(chain, draw, *plates, ...)`` and the model's deterministic ones, and
      ``mean_log_likelihood`` ``(chain, draw)``, the mean of ``log p(y_n | x_n, θ_t)`` over the data that
      count, in nats;
    - ``sample_stats`` ``(chain, draw)``: ``lp``, ``log p(y, θ_t)``, and ``log_q``, ``log q(θ_t)``, in nats, scaled as
      the model scales them for subsampling; ``group_element``, the index of the element that an orbit mixture drew.
      With a symmetry that moves the latent sites ``log_q_orbit`` ``(chain, draw, element)``, ``log q(ρ(g) θ_t)``, and,
      if it leaves the inputs alone, ``lp_orbit``, ``log p(y, ρ(g) θ_t)``, for groups of at most 64 elements and guides
      with a density at any value; an action on unconstrained values adds the log Jacobian of its move. MCMC has ``lp``
      and ``diverging`` only;
    - ``log_likelihood``: each datum's, ``(chain, draw, observation)``; not scaled for subsampling (the attribute
      ``scale`` says by what the model scales the site), 0 where masked;
    - ``posterior_predictive``: a draw of each observation, and for classes ``probs``, their probabilities
      ``(chain, draw, observation, class)``; ``prior`` and ``prior_predictive``: the same from the prior, one chain;
    - ``orbit_predictive``, with a symmetry that moves the inputs: ``probs`` at ``ρ_X(g) x_n``,
      ``(chain, draw, element, observation, class)``, or ``mean`` where the observation is no class;
    - ``observed_data``: the observations; ``constant_data``: the other tensors of ``data``, named ``x``, ``x_1``, … or
      as in ``data``, and where data are masked ``<site>_mask``, True for those that count;
    - ``variational`` ``(chain, step)``: the history of a :class:`~pyro_equivariance.FitResult`, by optimizer steps.

    Axes in plates are named as the plates (a network's data ``observation``, as are observations outside plates), the
    others ``<site>_dim_<i>``. Several observation sites have ``<site>_probs`` with an axis ``<site>_class`` each, and
    outside plates, if of unequal lengths, an axis ``<site>_observation`` each. A subsampled plate keeps the indices
    that it first draws, so that all draws are of the same data. A model under
    :func:`~pyro_equivariance.handlers.augment` counts as what it wraps: the data are taken once, as they are.

    The result takes ``8 T (|G| N K + 2 N K + 3 N + 2 S)`` bytes for one chain, with ``K`` classes and ``S`` entries of
    the sites shown, in posterior and prior; half of that with ``dtype="float32"``: 200 draws of 500 images in 10
    classes with four moved copies 50 MB, or 25.

    :param model: a Pyro model ``model(*data)``, or ``model(**data)``, with observations; for the orbit also callable
        with the inputs alone.
    :param guide: where the draws come from: a guide, trained, called with the same arguments; a
        :class:`~pyro_equivariance.FitResult`; Pyro's ``MCMC`` after its run, with its chains; or draws of all latent
        sites, ``{site: (T, *shape)}``. ``None`` if ``runs`` says it.
    :param data: the arguments of model and guide: a tensor or array; a tuple, inputs first; or a dict of keyword
        arguments, of which the first tensor is the inputs.
    :param Symmetry symmetry: names the elements; its action on inputs gives the orbit, that on sites the log densities.
    :param int draws: T, of a guide; of MCMC and of given draws all are kept.
    :param sites: names of the sites to keep, or ``"all"``; by default all, but none for the weights of a network.
    :param runs: a list of further independent runs, each like ``guide``, of as many draws: they become chains. Guides
        of one class share their parameters in Pyro's store: call ``pyro.clear_param_store()`` before each is trained.
    :param int thin: keep each ``thin``-th of given draws and of MCMC's.
    :param dtype: of the floating arrays, such as ``"float32"``; ``None`` leaves each as it is.
    :param prior_draws: draws of the prior groups, by default as many as of the posterior; 0 for none.
    :param coords: labels of axes by name, such as ``{"schools": ["Choate", ...]}``.
    :param history: of a guide trained otherwise: its losses, or a dict of lists of equal length with ``"loss"``.
    :param seed: of the draws; recorded. Other random numbers go on as if nothing had been drawn. Without it Pyro's
        seed fixes the draws.
    :param bool held_out: whether the data are others than those that the posterior was fitted to; recorded, as then
        ``lp`` and ``log_q`` say nothing on the fit.
    :returns: ``arviz.InferenceData`` (ArviZ 0.2x) or ``xarray.DataTree`` (1.x).
    :raises OptionError: for a site that the guide does not draw, options out of range, or guides that share parameters.
    :raises DataError: for data or draws that do not fit the model.
    :raises SymmetryError: for a site that is neither observed nor drawn by the guide, less than one draw, or an orbit
        of several observation sites.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> guide = pe.AutoSymmetricNormal(model := pe.BayesianNetwork(net), sym)
    >>> idata = to_arviz(model, guide, (torch.randn(5, 1, 3, 3), torch.zeros(5).long()), symmetry=sym, draws=7)
    >>> idata.orbit_predictive.probs.dims
    ('chain', 'draw', 'element', 'observation', 'class')
    >>> sorted(idata.sample_stats), list(idata.posterior)
    (['log_q', 'log_q_orbit', 'lp'], ['mean_log_likelihood'])
    """
    data = as_arguments(data)
    _check_options(draws, thin, dtype, prior_draws, runs)
    model = _unaugmented(model)
    several = as_runs([*([] if guide is None else [guide]), *runs], draws, thin, history)
    labels = Labels({} if symmetry is None else {"element": symmetry.group}, coords or {})
    randomness = nullcontext() if seed is None else own_randomness(seed)
    with torch.no_grad(), evaluating(model), OneSubsample(), randomness:
        view = _View(model, data, symmetry, sites)
        recorders = [_recorded(view, run, dtype) for run in several]
        if len(several) > 1:
            check_independent(several, data)  # again, as guides get their parameters when they are first called
        count = recorders[0].draws if prior_draws is None else prior_draws
        groups = _joined(recorders, labels)
        view.add_scales(groups["log_likelihood"])
        groups |= {name: dataset(as_arrays(group, dtype), labels) for name, group in view.fixed().items() if group}
        groups |= _prior(view, count, dtype, labels)
    first_chains = np.cumsum([0, *(run.chains for run in several[:-1])])
    if steps := {chain: run.variational() for chain, run in zip(first_chains, several, strict=True) if run.history}:
        groups["variational"] = _side_by_side(list(steps.values())).assign_coords(chain=list(steps))
    labels.check_used({dim for group in groups.values() for dim in group.dims})
    attrs = _attributes(several, symmetry, seed) | ({"held_out": 1} if held_out else {})
    return base.ARVIZ.container({name: group.assign_attrs(attrs) for name, group in groups.items()}, attrs)


def _check_options(draws: int, thin: int, dtype: str | None, prior_draws: int | None, runs: Sequence) -> None:
    if not isinstance(runs, Sequence) or isinstance(runs, str):
        raise OptionError(f"Expected runs to be a list; got {type(runs).__name__}. Write runs=[...].")
    for name, count in {"draws": draws, "thin": thin, "prior_draws": prior_draws or 0}.items():
        if not isinstance(count, Integral):
            raise OptionError(f"Expected {name} to be a whole number; got {count!r}.")
    if draws < 1:
        raise SymmetryError(f"Expected at least one posterior draw; got draws={draws}.")
    if thin < 1:
        raise OptionError(f"Expected thin to be at least 1; got {thin}.")
    if prior_draws is not None and prior_draws < 0:
        raise OptionError(f"Expected prior_draws to be at least 0; got {prior_draws}.")
    try:
        if dtype is not None and not np.issubdtype(np.dtype(dtype), np.floating):
            raise TypeError
    except TypeError as error:
        raise OptionError(f"Expected dtype to be 'float32', 'float64' or another float; got {dtype!r}.") from error


def _unaugmented(model: Callable) -> Callable:
    """The model inside :func:`~pyro_equivariance.handlers.augment`; other handlers around it, which count, stay."""
    while inspect.isfunction(model) and isinstance(
        inspect.getclosurevars(model).nonlocals.get("self"), AugmentMessenger
    ):
        model = model.__wrapped__
    return model


def _recorded(view: "_View", run: Run, dtype: str | None) -> Recorder:
    """All groups of one run's draws."""
    recorder = Recorder(run.chains, run.draws, dtype)
    with run.drawing():
        density = run.density(view.data) if view.moves_latents and run.has_density else None
        for place, (trace, stats) in enumerate(run.traces(view.data)):
            recorder.add(place, view.row(trace, stats, density))
    return recorder


def _joined(recorders: list[Recorder], labels: Labels) -> base.Groups:
    groups = {name: [recorder.dataset(name, labels) for recorder in recorders] for name in recorders[0].groups}
    for name, several in groups.items():
        for one in several:
            sizes = {n: dict(a.sizes) | {"chain": 0} for n, a in several[0].items()}
            if {n: dict(a.sizes) | {"chain": 0} for n, a in one.items()} != sizes:
                raise OptionError(
                    f"Expected runs with the same arrays and numbers of draws; the group {name!r} has "
                    f"{_sizes(several[0])} in the first and {_sizes(one)} in another. Use runs of one kind, or thin=."
                )
    return {name: _side_by_side(several) for name, several in groups.items()}


def _sizes(group: xr.Dataset) -> str:
    return ", ".join(f"{name} {tuple(array.shape[1:])}" for name, array in group.items()) or "nothing"


def _side_by_side(several: Sequence[xr.Dataset]) -> xr.Dataset:
    joined = xr.concat(several, "chain", data_vars="all", coords="minimal", compat="override", join="outer")
    return joined.assign_coords(chain=np.arange(joined.sizes["chain"]))


class _View:
    """A model on its data, and what is recorded of it at a draw of its latents."""

    def __init__(self, model: Callable, data: Arguments, symmetry: Symmetry | None, sites):
        self.model, self.data, self.symmetry, self.sites = model, data, symmetry, sites
        self.is_network = isinstance(inspect.unwrap(model), NetworkModel)
        self._observations: list[Observation] = []
        self._shown: list[str] = []

    @cached_property
    def moved(self) -> Tensor | None:
        """All moved copies of the inputs as one batch ``(|G| N, ...)``, the copies by the identity first."""
        if self.symmetry is None or self.symmetry.inputs is None:
            return None
        return self.symmetry.inputs.orbit(self.data.inputs).flatten(0, 1)

    @cached_property
    def moves_latents(self) -> bool:
        """Whether log densities are evaluated along orbits of latents."""
        if self.symmetry is None or not self.symmetry.sites:
            return False
        group = self.symmetry.group
        return group.is_finite and group.is_indexed and len(group) <= base.MAX_ORBIT

    def row(self, draw, stats: dict[str, Labelled], density: Callable | None) -> dict[str, dict[str, Labelled]]:
        """All groups at one draw, given as a trace of the latents."""
        trace = self.data.trace(poutine.replay(self.model, draw))
        self._observations = seen = observations(trace, draw, self.is_network)
        row = {
            "posterior": self._latents(trace, draw) | mean_log_likelihood(seen),
            "sample_stats": {"lp": ((), log_density(trace))} | stats | self._along_orbit(trace, draw, density),
            "log_likelihood": {o.name: o.labelled(o.log_likelihood) for o in seen},
            "posterior_predictive": self._replicates(trace, draw, seen),
        }
        if self.moved is not None:
            row["orbit_predictive"] = self._orbit(draw, seen)
        return row

    def prior_row(self) -> dict[str, dict[str, Labelled]]:
        """A draw of the latents and of the observations from the model itself."""
        trace = self.data.trace(Forgetting()(self.model))
        names = {o.name for o in self._observations}
        seen = [Observation(o.name, trace.nodes[o.name], o.axis) for o in self._observations if o.name in trace.nodes]
        latents = {n: s for n, s in trace.nodes.items() if n not in names and (is_latent(s) or is_deterministic(s))}
        return {
            "prior": {name: labelled(name, latents[name]) for name in self._shown if name in latents},
            "prior_predictive": drawn(seen, {o.name: o.site for o in seen}),
        }

    def _latents(self, trace, draw) -> dict[str, Labelled]:
        """The sites that are shown."""
        latents = {name: trace.nodes.get(name, site) for name, site in draw.nodes.items() if is_latent(site)}
        fixed = {name: site for name, site in trace.nodes.items() if is_deterministic(site) and name not in latents}
        self._shown = self._chosen(latents, fixed)
        return {name: labelled(name, (latents | fixed)[name]) for name in self._shown}

    def _chosen(self, latents: Mapping[str, dict], fixed: Mapping[str, dict]) -> list[str]:
        """Of a network no site unless asked for, and the deterministic ones, such as expanded weights, by name only."""
        if self.sites is None or self.sites == "all":
            return [] if self.is_network and self.sites is None else [*latents, *(() if self.is_network else fixed)]
        names = [self.sites] if isinstance(self.sites, str) else list(self.sites)
        if unknown := [name for name in names if name not in latents | fixed]:
            raise OptionError(f"Expected sites of the guide, {', '.join(map(repr, latents))}; got {unknown[0]!r}.")
        return names

    def _along_orbit(self, trace, draw, density: Callable | None) -> dict[str, Labelled]:
        """Log densities at the moved latents; what the symmetry does not name stays."""
        if density is None:
            return {}
        moving = [name for name, site in draw.nodes.items() if is_latent(site) and name in self.symmetry.sites]
        if not moving:
            return {}
        copies = [self._moved_latents(g, moving, trace) for g in range(len(self.symmetry.group))]
        still = density_arguments(draw)
        found = {"log_q_orbit": torch.stack([density(still | moved) + volume for moved, volume in copies])}
        if self.moved is None:
            found["lp_orbit"] = torch.stack([self._log_density(trace, moved) + volume for moved, volume in copies])
        return {name: (("element",), value.double()) for name, value in found.items()}

    def _moved_latents(self, g: int, names: list[str], trace) -> tuple[dict[str, Tensor], Tensor]:
        """``ρ(g) θ`` and the log Jacobian of this move, which is 0 but for actions on unconstrained values."""
        moved, volume = {}, torch.zeros(())
        for name in names:
            rep, site = self.symmetry[name], trace.nodes[name]
            if rep.space == "constrained":
                moved[name] = rep.act(g, site["value"])
                continue
            transform = unconstraining(site["fn"].support)
            before = transform.inv(site["value"])
            after = rep.act(g, before)
            moved[name] = transform(after)
            volume = volume + transform.log_abs_det_jacobian(after, moved[name]).sum()
            volume = volume - transform.log_abs_det_jacobian(before, site["value"]).sum()
        return moved, volume

    def _log_density(self, trace, moved: dict[str, Tensor]) -> Tensor:
        """``log p(y, θ)`` where some latents have other values than in the trace."""
        model = poutine.replay(poutine.condition(self.model, moved), trace)
        return log_density(self.data.trace(model))

    def _replicates(self, trace, draw, seen: list["Observation"]) -> dict[str, Labelled]:
        """A draw of all observations together, the observed values forgotten, and the probabilities of classes."""
        if len(seen) == 1:  # nothing else depends on it
            nodes = {seen[0].name: {**seen[0].site, "value": seen[0].site["fn"].sample()}}
        else:
            nodes = self.data.trace(Forgetting()(poutine.replay(self.model, draw))).nodes
        return drawn(seen, nodes)

    def _orbit(self, draw, seen: list["Observation"]) -> dict[str, Labelled]:
        """The mean of the only observation, given the same draw, at all moved inputs."""
        means = outputs(self.data.of_inputs(self.model), draw, self.moved).unflatten(0, (-1, len(self.data.inputs)))
        if seen[0].has_classes:
            return {"probs": seen[0].labelled(means, ("element",), ("class",))}
        return {"mean": seen[0].labelled(means, ("element",))}

    def fixed(self) -> dict[str, dict[str, Labelled]]:
        """The groups without draws: what was observed, and the rest of the data."""
        observed = {o.name: o.value for o in self._observations}
        lengths = {len(o.log_likelihood): o.axis for o in self._observations if len(o.axis) == 1}
        constant: dict[str, Labelled] = {}
        for name, values in self.data.tensors:
            if not any(_same(values, value) for _, value in observed.values()):
                name = name or (f"x_{len(constant)}" if constant else "x")
                axis = lengths.get(len(values), ()) if values.ndim else ()
                name = f"{name}_values" if name in axis else name
                constant[name] = (*axis, *own_dims(name, values.ndim)[len(axis) :]), values
        masks = {f"{o.name}_mask": o.labelled(o.counts) for o in self._observations if not bool(o.counts.all())}
        return {"observed_data": observed, "constant_data": constant | masks}

    def add_scales(self, log_likelihood: xr.Dataset) -> None:
        """Note at each site by what the model scales its log density."""
        for o in self._observations:
            log_likelihood[o.name].attrs["scale"] = o.scale


def _prior(view: _View, draws: int, dtype: str | None, labels: Labels) -> base.Groups:
    """The groups of the prior; left out, with a warning, if the model cannot be drawn from."""
    recorder = Recorder(1, draws, dtype)
    try:
        for place in range(draws):
            recorder.add(place, view.prior_row())
    except (NotImplementedError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it has no sampler"
        warnings.warn(
            f"The prior groups are left out, as the model cannot be drawn from: {type(error).__name__}, {reason}. Pass "
            f"prior_draws=0 if this is meant.",
            stacklevel=3,
        )
        return {}
    found = {name: recorder.dataset(name, labels) for name in recorder.groups}
    return {name: group for name, group in found.items() if group.data_vars}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _attributes(runs: list[Run], symmetry: Symmetry | None, seed: int | None) -> dict[str, Any]:
    first = runs[0]
    known = {
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "pyro_equivariance_version": __version__,
        "arviz_version": base.ARVIZ.version,
        "guide": first.name,
        "symmetry": None if symmetry is None else repr(symmetry),
        "group": None if symmetry is None else repr(symmetry.group),
        "inputs": None if symmetry is None or symmetry.inputs is None else repr(symmetry.inputs),
        "rule": first.rule,
        "seed": seed,
    }
    settings = {f"fit_{key}": _joined_values([run.settings.get(key) for run in runs]) for key in first.settings}
    return {key: value for key, value in (known | settings).items() if value is not None}


def _joined_values(values: list) -> Any:
    """One value for all runs, or one for each as text."""
    if len(set(map(str, values))) > 1:
        return ", ".join(map(str, values))
    return int(values[0]) if isinstance(values[0], bool) else values[0]
