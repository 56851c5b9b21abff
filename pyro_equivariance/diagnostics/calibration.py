"""Variational simulation-based calibration: whether guides for simulated data rank the truth as a posterior would."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import joblib
import numpy as np
import pyro
import torch
import xarray as xr
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import DataError, OptionError, SymmetryError
from ..guides.base import own_randomness
from ..metrics.base import check_count
from ..model_symmetries import canonicalize
from ..prediction import evaluating
from ..symmetry import Symmetry
from .ranks import VSBC

LEAST, LEAST_STEPS = 20, 5
CLEAR = 4.0  # standard errors of a fall of the loss


def vsbc(
    model: Callable,
    make_guide: Callable,
    *args,
    simulations: int = 200,
    draws: int = 99,
    steps: int = 1000,
    learning_rate: float = 0.02,
    loss: ELBO | None = None,
    functionals: Mapping[str, Callable] | None = None,
    sites: Sequence[str] | None = None,
    symmetry: Symmetry | None = None,
    seed: int = 0,
    processes: int = 1,
    progress: bool = True,
    alpha: float = 0.05,
    **kwargs,
) -> VSBC:
    """Whether a kind of guide is calibrated for a model, over data that the model itself makes [1, 2].

    Each simulation draws ``(θ*, y*)`` from the model with its observations forgotten, makes and trains a guide for the
    model given ``y*``, and ranks ``θ*`` among draws of that guide, entry by entry. If the guide is the posterior, each
    rank is uniform on 0..draws. Two tests of each quantity, all of them at one level:

    - *symmetry* of ``u = (rank + ½) / (draws + 1)`` about ½ flags a guide that is too low or too high. It is Wilcoxon's
      signed rank test, which needs no more than independent simulations. (The published test takes u and 1 − u for
      two independent samples: of exact guides it flags 10 % at a nominal 5 %.)
    - *uniformity* of the ranks also flags a guide that is too narrow or too wide, which symmetry alone cannot see. It
      is Kuiper's test on the lattice of the ranks, where it is conservative; unlike Kolmogorov–Smirnov it is as
      sensitive in the tails as in the middle.

    What it cannot see: a guide that ignores the data and returns the prior has uniform ranks, too; a functional of θ
    and y, such as the log likelihood, tells it apart [3]. A bias whose sign changes from data to data looks narrow. And
    the ranks are of data from the prior, not of those at hand.

    Discrete sites are not ranked (a functional may rank them: ties are broken at random), nor are entries that never
    vary. The model's own parameters stay as they are, and Dropout does not act.

    :param model: a Pyro model that observes a site when it is called with these arguments and sees all its data, with
        no ``pyro.factor``. What it makes of its observations it must take from ``pyro.sample``, not from its arguments.
    :param make_guide: makes the guide of a model, such as ``AutoNormal`` or a ``functools.partial`` of
        :class:`~pyro_equivariance.AutoSymmetricNormal`. It is called with the conditioned model, a
        :class:`ConditionedModel`, whose ``observations`` are ``y*`` by site.
    :param args: the model's and the guide's arguments, with data of the right shapes; ``kwargs`` likewise.
    :param int simulations: of ``(θ*, y*)``; at least 20.
    :param int draws: of each guide. An even number of ranks, ``draws + 1``, that has many divisors makes good plots.
    :param int steps: of Adam, with its learning rate falling to 0 over the second half, so that the guide's parameters
        are those of its optimum and not scattered about it. Adam moves a parameter by at most about ``¾ steps ·
        learning_rate``, 15 by default. The table says in how many simulations the loss was still falling half way: its
        verdicts are then of the training. A guide without parameters is not trained.
    :param float learning_rate: of the first half.
    :param loss: by default ``Trace_ELBO()``, which is right for every guide. (``TraceMeanField_ELBO`` is not for
        Pyro's autoguides of constrained sites.)
    :param dict functionals: more quantities by name: callables from a dict of sites, latent and observed, to a number.
    :param sites: the latent sites whose entries are ranked; by default all continuous ones.
    :param Symmetry symmetry: ``θ*`` and draws are first moved to representatives of their orbits, by
        :func:`~pyro_equivariance.canonicalize` with ``method="order"``. Then a guide of one mode is judged by what the
        symmetry leaves identified, rather than flagged for the other modes.
    :param int seed: of the study; a simulation's own follows from it and its number. The generators' states and Pyro's
        parameter store are afterwards as before.
    :param int processes: how many run simulations side by side; the ranks are the same.
    :param bool progress: show a progress bar.
    :param float alpha: the probability, at most, that any test fails for an exact guide.
    :raises DataError: if a loss or a quantity is not finite, naming the simulation and its seed.
    :raises OptionError: for options out of range.
    :raises SymmetryError: for a model that cannot be simulated, or a guide that leaves out a site.

    [1] Yao, Vehtari, Simpson, Gelman (2018) "Yes, but did it work?: evaluating variational inference"
    https://arxiv.org/abs/1802.02538
    [2] Talts, Betancourt, Simpson, Vehtari, Gelman (2018) "Validating Bayesian inference algorithms with
    simulation-based calibration" https://arxiv.org/abs/1804.06788
    [3] Modrák et al. (2023) "Simulation-based calibration checking for Bayesian computation: the choice of test
    quantities shapes sensitivity" https://arxiv.org/abs/2211.02383

    >>> import torch, pyro, pyro.distributions as dist, pyro_equivariance as pe
    >>> def model(y):
    ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    >>> def shifted(model):
    ...     y = model.observations["y"]
    ...     return lambda _: pyro.sample("mu", dist.Normal(y / 2 - 1.0, 0.5**0.5))
    >>> result = vsbc(model, shifted, torch.tensor(0.0), simulations=50, draws=9, progress=False)
    >>> result.quantities, result.ranks.shape, result.verdicts
    (('mu',), (50, 1), ('too low',))
    """
    _check_options(model, make_guide, functionals, alpha, learning_rate, seed)
    for name, value in {"draws": draws, "steps": steps, "processes": processes, "simulations": simulations}.items():
        check_count(name, value)
    if simulations < LEAST:
        raise OptionError(f"Expected at least {LEAST} simulations, for tests of their ranks; got {simulations}.")
    study = _Study(
        model, make_guide, args, kwargs, draws, steps, learning_rate, loss or Trace_ELBO(), dict(functionals or {}),
        None if sites is None else tuple(sites), symmetry, seed, _own_parameters(model, args, kwargs, seed),
        torch.get_default_dtype(), pyro.settings.get("module_local_params"),
    )  # fmt: skip
    run = joblib.Parallel(n_jobs=processes, return_as="generator", backend="loky")
    rows = run(joblib.delayed(study)(number) for number in range(simulations))
    ranked = list(tqdm(rows, total=simulations, desc="vsbc", disable=not progress))
    return _gathered(ranked, draws, alpha, seed)


@dataclass(frozen=True)
class ConditionedModel:
    """A model given simulated observations, in the place of those it has: ``observations`` by site.

    >>> import pyro, pyro.distributions as dist
    >>> given = ConditionedModel(lambda: pyro.sample("y", dist.Normal(0.0, 1.0)), {"y": torch.tensor(2.0)})
    >>> given()
    tensor(2.)
    """

    model: Callable
    observations: Mapping[str, Tensor]

    def __call__(self, *args, **kwargs):
        return poutine.condition(self.model, dict(self.observations))(*args, **kwargs)


@dataclass(frozen=True)
class _Ranked:
    """One simulation: the quantities, ranks, which have several values, final loss, whether it was still falling."""

    names: tuple[str, ...]
    ranks: np.ndarray
    varies: np.ndarray
    loss: float
    falling: bool = False


@dataclass(frozen=True)
class _Study:
    """All that a simulation needs, so that it runs in any process alike; called with its number."""

    model: Callable
    make_guide: Callable
    args: tuple
    kwargs: dict
    draws: int
    steps: int
    learning_rate: float
    loss: ELBO
    functionals: dict[str, Callable]
    sites: tuple[str, ...] | None
    symmetry: Symmetry | None
    seed: int
    fixed: dict[str, dict]
    dtype: torch.dtype
    module_local_params: bool

    def __call__(self, number: int) -> _Ranked:
        seed = int(np.random.SeedSequence(self.seed, spawn_key=(number,)).generate_state(1)[0])
        with self._alone(), own_randomness(seed), evaluating(self.model):
            try:
                return self._ranked()
            except DataError as error:
                raise DataError(f"Simulation {number}, of seed {seed}: {error}") from error
            except Exception as error:
                error.add_note(f"In simulation {number}, of seed {seed}.")
                raise

    @contextmanager
    def _alone(self):
        """One thread, the study's precision, and a store of the model's parameters, in this process or another."""
        threads, before = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        torch.set_default_dtype(self.dtype)
        local = pyro.settings.context(module_local_params=self.module_local_params)
        try:
            with local, pyro.get_param_store().scope(dict(self.fixed)):
                yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(before)

    def _ranked(self) -> _Ranked:
        truth, observations = self._simulated()
        model = ConditionedModel(self.model, observations)
        guide = self.make_guide(model)
        if not callable(guide):
            raise SymmetryError(f"Expected make_guide to return a guide, a callable; got {guide!r}.")
        history = self._trained(model, guide)
        with torch.no_grad():
            values = self._quantities(truth, self._drawn(guide, truth), observations)
            ranks = _ranks(torch.stack(list(values.values()), 1))
            return _Ranked(tuple(values), *ranks, _last(history), _is_falling(history))

    @torch.no_grad()
    def _simulated(self) -> tuple[dict[str, dict], dict[str, Tensor]]:
        """The latent sites of one run of the model that observes nothing, and the values of those it would observe."""
        nodes = poutine.trace(poutine.uncondition(self.model)).get_trace(*self.args, **self.kwargs).nodes
        random = {name: site for name, site in nodes.items() if _is_random(site)}
        for name, site in random.items():
            _check_site(name, site)
        observed = {name: site["value"] for name, site in random.items() if site["infer"].get("was_observed")}
        if not observed:
            raise SymmetryError(
                "Expected a model that observes a site when it is called with these arguments; got none. Pass data of "
                "the right shapes: their values do not matter."
            )
        return {name: site for name, site in random.items() if name not in observed}, observed

    def _trained(self, model: ConditionedModel, guide: Callable) -> list[float]:
        """The loss at each step; none for a guide without parameters."""
        with poutine.trace(param_only=True) as capture:
            guide(*self.args, **self.kwargs)
        trained = [
            s["value"].unconstrained() for s in capture.trace.nodes.values() if s["name"] not in self.fixed["params"]
        ]
        parameters = list({id(leaf): leaf for leaf in trained}.values())
        if not parameters:
            return []
        optimizer, history = torch.optim.Adam(parameters, lr=self.learning_rate), []
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.learning_rate * min(1.0, 2 * (1 - step / self.steps))
            history.append(self._step(model, guide, parameters))
            optimizer.step()
        return history

    def _step(self, model: ConditionedModel, guide: Callable, parameters: list[Tensor]) -> float:
        """The loss; sets the gradients of the guide's parameters, and no others."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered NaN")  # below it is an error
            loss = self.loss.differentiable_loss(model, guide, *self.args, **self.kwargs)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        value = float(loss.detach())
        if not math.isfinite(value) or not all(bool(g.isfinite().all()) for g in gradients if g is not None):
            raise DataError(f"Expected a finite loss and gradient; got the loss {value}. Use a smaller learning_rate=.")
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return value

    def _drawn(self, guide: Callable, truth: Mapping[str, dict]) -> dict[str, Tensor]:
        """The truth and then the guide's draws of each latent site it has, ``(1 + draws, *shape)``."""
        runs = [poutine.trace(guide).get_trace(*self.args, **self.kwargs).nodes for _ in range(self.draws)]
        values = {}
        for name, site in truth.items():
            if name not in runs[0] and site["fn"].support.is_discrete:
                continue
            if any(name not in nodes or nodes[name]["value"].shape != site["value"].shape for nodes in runs):
                found = tuple(runs[0][name]["value"].shape) if name in runs[0] else "no such site"
                raise SymmetryError(
                    f"Expected the guide to draw {name!r} with the model's shape {tuple(site['value'].shape)}; got "
                    f"{found}."
                )
            values[name] = torch.stack([site["value"], *(nodes[name]["value"] for nodes in runs)])
        return values if self.symmetry is None else _canonical(values, self.symmetry)

    def _quantities(self, truth: Mapping[str, dict], values: dict[str, Tensor], observations) -> dict[str, Tensor]:
        """Every scalar by its name, ``(1 + draws,)``."""
        continuous = [name for name, site in truth.items() if not site["fn"].support.is_discrete]
        wanted = continuous if self.sites is None else self.sites
        for name in wanted:
            if name not in continuous:
                listed = ", ".join(map(repr, continuous)) or "none"
                raise OptionError(f"Expected sites= to name continuous latent sites, {listed}; got {name!r}.")
        entries = {
            f"{name}[{', '.join(map(str, index))}]" if index else name: values[name][(slice(None), *index)].double()
            for name in wanted
            for index in np.ndindex(values[name].shape[1:])
        }
        draws = [{name: value[t] for name, value in values.items()} | observations for t in range(1 + self.draws)]
        for name, functional in self.functionals.items():
            if name in entries:
                raise OptionError(f"Expected functionals= with names of their own; {name!r} is an entry of a site.")
            entries[name] = torch.tensor([_number(name, functional(sites)) for sites in draws], dtype=torch.float64)
        for name, column in entries.items():
            if bool(column.isnan().any()):
                raise DataError(f"Expected values of {name!r} in the model's and the guide's draws; got NaN.")
        if not entries:
            raise SymmetryError("Expected a continuous latent site, or functionals=, to be ranked; got none.")
        return entries


def _own_parameters(model: Callable, args: tuple, kwargs: Mapping, seed: int) -> dict[str, dict]:
    """The state of a parameter store that holds the parameters of a model, and none of a guide."""
    store = pyro.get_param_store()
    with store.scope(store.get_state()), own_randomness(seed), evaluating(model), torch.no_grad():
        with poutine.trace(param_only=True) as capture:
            poutine.uncondition(model)(*args, **kwargs)
        return {
            kind: {name: value for name, value in part.items() if name in capture.trace.nodes}
            for kind, part in store.get_state().items()
        }


def _check_options(model, make_guide, functionals, alpha, learning_rate, seed) -> None:
    for name, value in {"model": model, "make_guide": make_guide, **(functionals or {})}.items():
        if not callable(value):
            raise OptionError(f"Expected {name} to be callable; got {value!r}.")
    if not 0 < alpha < 1:
        raise OptionError(f"Expected alpha between 0 and 1; got {alpha!r}.")
    if not learning_rate > 0:
        raise OptionError(f"Expected learning_rate to be positive; got {learning_rate!r}.")
    if not isinstance(seed, int) or seed < 0:
        raise OptionError(f"Expected seed to be an integer, 0 or more; got {seed!r}.")


def _is_random(site: dict) -> bool:
    """Whether a site of a run without observations is drawn at random, rather than computed or a choice of rows."""
    return (
        site["type"] == "sample" and not isinstance(site["fn"], _Subsample) and not site["infer"].get("_deterministic")
    )


def _check_site(name: str, site: dict) -> None:
    """Raise unless drawing the site is all that it does to the model's density."""
    if isinstance(site["fn"], Unit):
        raise SymmetryError(
            f"Expected a model that can be simulated; {name!r} is a pyro.factor. Observe a site instead."
        )
    if bool((torch.as_tensor(site["scale"]) != 1).any()):
        raise SymmetryError(
            f"Expected sites that count once; {name!r} is scaled. Use all of the data, without a subsampling plate or "
            f"poutine.scale."
        )


def _canonical(values: Mapping[str, Tensor], symmetry: Symmetry) -> dict[str, Tensor]:
    """Each draw moved as a whole to its orbit's representative; the first axis alone is that of the draws."""
    arrays = {n: (("sample", *(f"{n} axis {i}" for i in range(v.ndim - 1))), v.numpy()) for n, v in values.items()}
    moved = canonicalize(xr.Dataset(arrays), symmetry, method="order")
    return {name: torch.from_numpy(moved[name].values) for name in values}


def _number(name: str, value) -> float:
    value = torch.as_tensor(value)
    if value.numel() != 1:
        raise OptionError(f"Expected the functional {name!r} to return a number; got shape {tuple(value.shape)}.")
    return float(value)


def _ranks(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The rank of the first of ``(1 + draws, quantities)`` among the others, ties at random; whether any differs."""
    truth, draws = values[0], values[1:]
    ties = (draws == truth).sum(0)
    ranks = (draws < truth).sum(0) + (torch.rand(len(truth), dtype=torch.float64) * (ties + 1)).long()
    return ranks.numpy(), (ties < len(draws)).numpy()


def _last(history: Sequence[float]) -> float:
    """The mean loss over the last tenth of a training."""
    return float(np.mean(history[-max(1, len(history) // 10) :])) if history else math.nan


def _is_falling(history: Sequence[float]) -> bool:
    """Whether the loss fell from the fourth to the fifth tenth of a training, where the learning rate is constant."""
    tenth = len(history) // 10
    if tenth < LEAST_STEPS:
        return False
    before, after = np.array(history[3 * tenth : 4 * tenth]), np.array(history[4 * tenth : 5 * tenth])
    error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / tenth)
    return bool(before.mean() - after.mean() > CLEAR * error)


def _gathered(rows: list[_Ranked], draws: int, alpha: float, seed: int) -> VSBC:
    names = rows[0].names
    for number, row in enumerate(rows):
        if row.names != names:
            raise SymmetryError(
                f"Expected the same quantities in every simulation; the first has {len(names)}, number {number} "
                f"{len(row.names)}. Use a model whose sites and shapes are fixed."
            )
    varies = np.any([row.varies for row in rows], axis=0)
    ranks = np.stack([row.ranks for row in rows])[:, varies]
    losses = np.array([row.loss for row in rows])
    kept = tuple(name for name, keep in zip(names, varies, strict=True) if keep)
    if not kept:
        raise SymmetryError(f"Expected a quantity that varies; {', '.join(map(repr, names))} never do.")
    return VSBC(ranks, kept, draws, losses, alpha, seed, np.array([row.falling for row in rows]))
