"""Posteriors as ArviZ data: named arrays of draws, log likelihoods and predictions, for any model and guide."""

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from . import __version__
from .errors import DataError, OptionError, SymmetryError
from .handlers import AugmentMessenger
from .networks.bayesian import NetworkModel
from .prediction import evaluating, log_likelihood, observation_sites, outputs, posterior_draws
from .symmetry import Symmetry

with warnings.catch_warnings():
    # ArviZ 0.23 announces its 1.x series when it is first imported on a day.
    warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
    import arviz as az

OBSERVATION = "observation"
METHOD = "method_name"

Labelled = tuple[tuple[str, ...], Tensor]  # the names of the axes, and the values


@torch.no_grad()
def to_arviz(
    model: Callable,
    guide: Callable,
    data,
    symmetry: Symmetry | None = None,
    draws: int = 200,
    sites: Sequence[str] | str | None = None,
) -> "az.InferenceData":
    """The posterior as ArviZ data, from one set of draws of the guide that all groups share.

    With ``N`` data, ``T`` draws of one chain and ``K`` classes:

    - ``posterior``: the guide's sites ``(chain, draw, *shape)``, and ``mean_log_likelihood`` ``(chain, draw)``, the
      mean of ``log p(y_n | x_n, θ_t)`` over the data, in nats;
    - ``log_likelihood``: each datum's, ``(chain, draw, observation)``, under the name of the observation site; not
      scaled for subsampling, 0 where masked;
    - ``posterior_predictive``: a draw of each observation, and for classes ``probs``, their probabilities
      ``(chain, draw, observation, class)``;
    - ``orbit_predictive``, with a symmetry that moves the inputs: ``probs`` at ``ρ_X(g) x_n``,
      ``(chain, draw, element, observation, class)``, or ``mean`` where the observation is no class;
    - ``observed_data``: the observations; ``constant_data``: the other tensors of ``data``, named ``x``, ``x_1``, …

    Several observation sites have ``<site>_probs`` with an axis ``<site>_class`` each, and if they are of unequal
    lengths, an axis ``<site>_observation`` each. A model under :func:`~pyro_equivariance.handlers.augment` counts as
    what it wraps: the data are taken once, as they are. Pyro's seed fixes the draws.

    :param model: a Pyro model ``model(*data)`` with observations; for the orbit also callable as ``model(x)``.
    :param guide: its guide, trained; it is called with the same arguments.
    :param data: the model's arguments: a tensor, or a tuple, inputs first.
    :param Symmetry symmetry: for the orbit; only the action on the inputs is used.
    :param int draws: T.
    :param sites: names of the sites to keep, or ``"all"``; by default all, but none for the weights of a network.
    :raises OptionError: for a site that the guide does not draw.
    :raises SymmetryError: for a site that is neither observed nor drawn by the guide, less than one draw, or an orbit
        of several observation sites.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3))
    >>> guide = pe.AutoSymmetricNormal(model := pe.BayesianNetwork(net), sym)
    >>> idata = to_arviz(model, guide, (torch.randn(5, 1, 3, 3), torch.zeros(5).long()), symmetry=sym, draws=7)
    >>> idata.orbit_predictive.probs.dims
    ('chain', 'draw', 'element', 'observation', 'class')
    >>> az.summary(idata, kind="stats").index.tolist()
    ['mean_log_likelihood']
    """
    data = (data,) if isinstance(data, Tensor) else tuple(data)
    model = _unaugmented(model)
    moved = _moved(symmetry, data)
    rows = []
    with evaluating(model):
        for draw in posterior_draws(guide, draws, *data):
            trace = poutine.trace(poutine.replay(model, draw)).get_trace(*data)
            observations = _observations(trace, draw)
            row = {
                "posterior": _latents(model, draw, sites) | _mean_log_likelihood(observations),
                "log_likelihood": {o.name: o.labelled(o.log_likelihood) for o in observations},
                "posterior_predictive": _replicates(model, draw, data, observations),
            }
            if moved is not None:
                row["orbit_predictive"] = _orbit(model, draw, moved, len(data[0]), observations)
            rows.append(row)
    attrs = _attributes(guide, symmetry)
    names = {} if symmetry is None else {"element": list(symmetry.group.names)}
    groups = {group: _dataset(_stacked([row[group] for row in rows]), names, attrs) for group in rows[0]}
    groups |= {group: _dataset(arrays, {}, attrs) for group, arrays in _fixed(data, observations).items() if arrays}
    return _inference_data(groups, attrs)


def stack(idatas: Mapping[str, Sequence]) -> "az.InferenceData":
    """Many runs as one: the runs of a method become chains, the methods a leading dimension ``method_name``.

    ``stack(...).sel(method_name="baseline")`` is a method's own data again. (A dimension ``method`` could not be
    selected: xarray's ``sel(method=...)`` is something else.) Data that all runs share are kept once. Runs on
    different data, such as splits by seed, give the data groups these dimensions as well; element-wise statistics
    (``az.loo``) then pool different data under one index: select a chain first.

    :param dict idatas: for each method a list of :func:`to_arviz` results, as many for each.
    :raises DataError: for no runs, or runs whose numbers, groups, variables or shapes differ.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3))
    >>> data = (torch.zeros(5, 4), torch.zeros(5).long())
    >>> runs = [to_arviz(model, pe.AutoMeanFieldNormal(model), data, draws=7) for _ in range(2)]
    >>> dict(stack({"a": runs, "b": runs}).posterior.sizes)
    {'method_name': 2, 'chain': 2, 'draw': 7}
    """
    runs = {method: [_groups(idata) for idata in several] for method, several in idatas.items()}
    counts = {method: len(several) for method, several in runs.items()}
    if not counts or len(set(counts.values())) > 1 or 0 in counts.values():
        raise DataError(f"Expected the same number of runs for each method, at least one; got {counts}.")
    first = next(iter(runs.values()))[0]
    _check_alike(first, runs)
    joined = {group: _join({m: [run[group] for run in several] for m, several in runs.items()}) for group in first}
    return _inference_data(joined, joined["posterior"].attrs)


def save(idata: "az.InferenceData", path: str | os.PathLike) -> None:
    """Write netCDF, whole or not at all: a file of that name is replaced once the new one is complete.

    :param idata: what :func:`to_arviz` or :func:`stack` gives; ``az.from_netcdf(path)`` reads it.
    :param path: the file, in a folder that exists.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        idata.to_netcdf(str(part))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _unaugmented(model: Callable) -> Callable:
    """The model inside :func:`~pyro_equivariance.handlers.augment`; other handlers around it, which count, stay."""
    while inspect.isfunction(model) and isinstance(
        inspect.getclosurevars(model).nonlocals.get("self"), AugmentMessenger
    ):
        model = model.__wrapped__
    return model


def _moved(symmetry: Symmetry | None, data: tuple[Tensor, ...]) -> Tensor | None:
    """All moved copies of the inputs as one batch ``(|G| N, ...)``, the copies by the identity first."""
    if symmetry is None or symmetry.inputs is None:
        return None
    return symmetry.inputs.orbit(data[0]).flatten(0, 1)


@dataclass(frozen=True)
class _Observation:
    """An observation site of a trace, and the name of its first axis if it has a batch."""

    name: str
    site: dict
    axis: tuple[str, ...]

    @cached_property
    def log_likelihood(self) -> Tensor:
        return log_likelihood(self.site).double()

    @property
    def has_classes(self) -> bool:
        return isinstance(self.site["fn"], torch.distributions.Categorical)

    def labelled(self, values: Tensor, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> Labelled:
        """Values of this site, between axes of other names."""
        own = _own_dims(self.name, values.ndim - len(before) - len(after))
        return (*before, *self.axis, *own[len(self.axis) :], *after), values


def _observations(trace, draw) -> list[_Observation]:
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
    prefix = {name: "" if len(set(batches.values())) == 1 else f"{name}_" for name in sites}
    return [_Observation(n, site, (prefix[n] + OBSERVATION,) if batches[n] else ()) for n, site in sites.items()]


def _latents(model: Callable, draw, sites) -> dict[str, Labelled]:
    """The sites of the guide that are shown."""
    latents = {name: site["value"] for name, site in draw.nodes.items() if _is_latent(site)}
    if sites is None:
        sites = () if isinstance(inspect.unwrap(model), NetworkModel) else latents
    names = latents if sites == "all" else [sites] if isinstance(sites, str) else sites
    if unknown := [name for name in names if name not in latents]:
        raise OptionError(f"Expected sites of the guide, {', '.join(map(repr, latents))}; got {unknown[0]!r}.")
    return {name: (_own_dims(name, latents[name].ndim), latents[name]) for name in names}


def _is_latent(site: dict) -> bool:
    if site["type"] != "sample" or site["is_observed"] or isinstance(site["fn"], _Subsample):
        return False
    return not site["infer"].get("is_auxiliary")


def _mean_log_likelihood(observations: list[_Observation]) -> dict[str, Labelled]:
    rows = [o.log_likelihood.flatten() for o in observations]
    return {"mean_log_likelihood": ((), torch.cat(rows).mean())}


def _replicates(model: Callable, draw, data: tuple, observations: list[_Observation]) -> dict[str, Labelled]:
    """A draw of all observations together, the observed values forgotten, and the probabilities of classes."""
    nodes = poutine.trace(poutine.uncondition(poutine.replay(model, draw))).get_trace(*data).nodes
    drawn = {o.name: o.labelled(nodes[o.name]["value"]) for o in observations}
    prefix = {o.name: "" if len(observations) == 1 else f"{o.name}_" for o in observations}
    probs = {
        f"{prefix[o.name]}probs": o.labelled(nodes[o.name]["fn"].probs, after=(f"{prefix[o.name]}class",))
        for o in observations
        if o.has_classes
    }
    return drawn | probs


def _orbit(model: Callable, draw, moved: Tensor, count: int, observations: list[_Observation]) -> dict[str, Labelled]:
    """The mean of the only observation, given the same draw, at all moved inputs."""
    means = outputs(model, draw, moved).unflatten(0, (-1, count))
    if observations[0].has_classes:
        return {"probs": observations[0].labelled(means, ("element",), ("class",))}
    return {"mean": observations[0].labelled(means, ("element",))}


def _fixed(data: tuple, observations: list[_Observation]) -> dict[str, dict[str, Labelled]]:
    """The groups without draws: what was observed, and the rest of the data."""
    observed = {o.name: o.labelled(o.site["value"]) for o in observations}
    lengths = {len(o.log_likelihood) for o in observations if o.axis == (OBSERVATION,)}
    constant: dict[str, Labelled] = {}
    for values in filter(torch.is_tensor, data):
        if not any(_same(values, value) for _, value in observed.values()):
            name = f"x_{len(constant)}" if constant else "x"
            axis = (OBSERVATION,) if values.shape[:1] in [(n,) for n in lengths] else ()
            constant[name] = (*axis, *_own_dims(name, values.ndim)[len(axis) :]), values
    return {"observed_data": observed, "constant_data": constant}


def _own_dims(name: str, ndim: int) -> tuple[str, ...]:
    return tuple(f"{name}_dim_{i}" for i in range(ndim))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _stacked(rows: list[dict[str, Labelled]]) -> dict[str, Labelled]:
    """The rows of all draws as one chain."""
    return {
        name: (("chain", "draw", *dims), torch.stack([row[name][1] for row in rows])[None])
        for name, (dims, _) in rows[0].items()
    }


def _dataset(arrays: dict[str, Labelled], names: dict[str, list[str]], attrs: dict[str, str]) -> xr.Dataset:
    """Arrays with a label for each index: those of ``names``, and numbers elsewhere."""
    dataset = xr.Dataset({name: (dims, values.cpu().numpy()) for name, (dims, values) in arrays.items()}, attrs=attrs)
    labels = {d: names[d] if d in names else np.arange(n) for d, n in dataset.sizes.items()}
    return dataset.assign_coords(labels)


def _attributes(guide: Callable, symmetry: Symmetry | None) -> dict[str, str]:
    return {
        "inference_library": "pyro",
        "inference_library_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "pyro_equivariance_version": __version__,
        "arviz_version": az.__version__,
        "guide": getattr(inspect.unwrap(guide), "__name__", type(guide).__name__),
        "symmetry": repr(symmetry),
    }


def _inference_data(groups: dict[str, xr.Dataset], attrs: dict):
    if hasattr(az, "InferenceData"):
        return az.InferenceData(attrs=attrs, **groups)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attrs), **groups})  # ArviZ 1


def _groups(idata) -> dict[str, xr.Dataset]:
    if isinstance(idata, xr.DataTree):
        return {name: child.to_dataset() for name, child in idata.children.items()}
    return {name: idata[name] for name in idata.groups()}


def _check_alike(first: dict[str, xr.Dataset], runs: dict[str, list[dict[str, xr.Dataset]]]) -> None:
    expected = _shapes(first)
    for method, several in runs.items():
        for shapes in map(_shapes, several):
            if differing := [name for name in expected | shapes if expected.get(name) != shapes.get(name)]:
                name = differing[0]
                raise DataError(
                    f"Expected the same arrays in all runs; {'.'.join(name)} is {expected.get(name)} in the first and "
                    f"{shapes.get(name)} in one of {method!r}. Use equal draws and data, and keep shared sites only."
                )


def _shapes(groups: dict[str, xr.Dataset]) -> dict[tuple[str, str], dict[str, int]]:
    return {(g, name): dict(array.sizes) for g, dataset in groups.items() for name, array in dataset.items()}


def _join(datasets: dict[str, list[xr.Dataset]]) -> xr.Dataset:
    """One group of all runs: with methods and chains, unless it has no draws and is the same in all."""
    flat = [dataset for several in datasets.values() for dataset in several]
    if "chain" not in flat[0].dims and all(dataset.equals(flat[0]) for dataset in flat):
        return flat[0]
    chains = [_concatenate(several, "chain") for several in datasets.values()]
    chains = [dataset.assign_coords(chain=np.arange(dataset.sizes["chain"])) for dataset in chains]
    return _concatenate(chains, xr.DataArray(list(datasets), dims=METHOD, name=METHOD))


def _concatenate(datasets: list[xr.Dataset], dim) -> xr.Dataset:
    return xr.concat(
        datasets, dim, data_vars="all", coords="minimal", compat="equals", join="exact",
        combine_attrs="drop_conflicts",
    )  # fmt: skip
