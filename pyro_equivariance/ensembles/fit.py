"""Training of ensembles: all members in one program, or one after another, with the same results."""

import copy
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import OptionError, check_option
from ..guides.base import own_randomness
from ..networks.bayesian import BayesianNetwork
from ..networks.supports import with_support
from ..prediction import evaluating
from ..symmetry import Symmetry
from .base import Ensemble, as_count
from .batches import Batches, moves_of, pair_of
from .starts import all_starts, check_start, generators, start_cores

OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
IMAGES_TOGETHER = 1024  # beyond about as many per step, batched convolutions on a CPU outgrow its cache


def fit_ensemble(
    net: nn.Module,
    data,
    members: int = 16,
    augmentation: Symmetry | None = None,
    orbit: str = "full",
    optimizer: str | Callable = "adam",
    learning_rate: float = 0.01,
    epochs: int = 20,
    batch_size: int | None = None,
    init: str | Callable | Mapping[str, Tensor] = "he",
    support=None,
    core_start: bool = False,
    likelihood="categorical",
    prior=None,
    order: str = "own",
    seed: int = 0,
    stacked: bool | int | None = None,
    processes: int = 1,
    validation=None,
    validate_every: int = 1,
    snapshots: Sequence[int] = (),
    progress: bool = True,
) -> Ensemble:
    """Train M networks that differ in their start and in the order of their data.

    Each minimises ``−mean_n mean_g log p(ρ_Y(g) y_n | ρ_X(g) x_n, θ) − (1/N) log prior(θ)``: maximum likelihood, or
    with a prior the posterior's mode. With an invariant law of the start, augmentation over a group, a network that the
    group keeps (its supports included) and an optimizer that commutes with the action, the law of a member is invariant
    at every time, so that the expected prediction is equivariant (see [1], [2] in the package's docstring).

    A member's random numbers are its own: they depend on ``seed`` and its index, and not on how many others there are
    or how they are trained.

    :param Module net: the network; its values count only as far as ``init`` uses them. It is trained in training mode.
    :param data: ``(x, y)`` with the data along the first axis.
    :param int members: M.
    :param Symmetry augmentation: has ``inputs``, and ``outputs`` where these move; ``None`` for no augmentation.
    :param str orbit: ``"full"``, all moved copies of each datum, or ``"random"``, one for each example, new in every
        epoch and member.
    :param optimizer: ``"adam"``, ``"sgd"``, or a callable from a list of parameters to a torch optimizer that treats
        each entry by itself, since members may be stacked into one tensor, and steps without a closure.
    :param float learning_rate: of a named optimizer.
    :param int epochs: passes over the data.
    :param int batch_size: ``None`` for all data at once; a short last batch is left out of its epoch.
    :param init: the law of the start. ``"he"``: weights ``N(0, 2 / fan-in)``; ``"normal"``: ``N(0, 1)``; biases
        (parameters with "bias" in their name) 0, gains of normalisations 1, and any other parameter of at most one
        axis, such as the slopes of a PReLU or the scales of layers, at the network's own value. These two are invariant
        under orthogonal actions, so far as these own values are. ``"offset"`` is not, a negative
        control: half of the variance of ``"he"`` is around an offset that all members share, itself a draw of it. A
        callable ``(name, shape, generator) -> tensor``. Or the starts themselves, a dict of ``(M, *shape)``.
    :param support: of the network's convolutions, see :func:`~pyro_equivariance.networks.supports.with_support`.
    :param bool core_start: whether kernels start at 0 off what the group keeps of their support; it needs an
        augmentation, a support and a law as ``init``.
    :param likelihood: as for :class:`~pyro_equivariance.BayesianNetwork`; ``"categorical"`` is the cross-entropy and
        ``"normal"`` half the squared error.
    :param prior: as there, not learned; ``2.0`` for ``N(0, 2²)``. ``None`` for none.
    :param str order: of the data: each member's ``"own"``, or one that is ``"shared"``. Random elements are a member's
        own in any case: common ones would be an error that no number of members averages out.
    :param int seed: of all random numbers; layers that draw by themselves, such as Dropout, use torch's, seeded too.
    :param stacked: ``True`` trains all members together, in one tensor for each parameter, ``False`` one by one, and a
        number so many together. The results are the same but for rounding (and Dropout). ``None`` takes what is
        quicker as a rule: all, but with convolutions on a CPU no more than see 1,024 images in one step; and one by
        one where :func:`torch.func.vmap` cannot run the network, as for ``nn.GRU`` or branches that depend on values.
    :param int processes: that train such groups of members side by side.
    :param validation: ``(x, y)``; each member keeps the state with the lowest loss on it, without the prior, over all
        moved copies, since upright ones alone would choose a time that the group does not keep; so the group is finite.
    :param int validate_every: epochs between two validations; the last epoch always is. NaN in the history elsewhere.
    :param snapshots: epochs after which states are kept, 0 being the start: in ``ensemble.snapshots``.
    :param bool progress: whether to show a progress bar.
    :returns: the :class:`Ensemble`; ``history["loss"]`` is the mean over the minibatches of each epoch.
    :raises OptionError: for options that do not exist or do not fit, or a loss that is not finite.
    :raises DataError: for data that do not fit the network or one another.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> x, y = torch.randn(6, 1, 3, 3), torch.arange(6) % 2
    >>> turns = pe.Symmetry(pe.CyclicGroup(4), {}, inputs=pe.image(pe.CyclicGroup(4), (1, 3, 3)))
    >>> ensemble = fit_ensemble(net, (x, y), members=5, augmentation=turns, epochs=3, progress=False)
    >>> len(ensemble), ensemble.history["loss"].shape
    (5, torch.Size([5, 3]))
    """
    check_option("orbit", orbit, ("full", "random"))
    check_option("order", order, ("own", "shared"))
    members, epochs, processes = _counts(members=members, epochs=epochs, processes=processes)
    (validate_every,), seed = _counts(validate_every=validate_every), as_count("seed", seed, least=0)
    batch_size = None if batch_size is None else as_count("batch_size", batch_size)
    _check_stacked(stacked)
    check_start(init)
    net = net if support is None else with_support(net, support)
    _check_network(net)
    data, validation = pair_of(data, "data"), None if validation is None else pair_of(validation, "validation")
    augmentation = moves_of(augmentation, orbit, validation is not None)
    model = BayesianNetwork(net, 1.0 if prior is None else prior, likelihood)
    _check_model(model, data, validation)
    task = Task(
        model, prior is not None, Batches(data, batch_size, augmentation, orbit, order, seed),
        None if validation is None else Batches(validation, None, augmentation, "full", order, seed),
        _make_optimizer(optimizer, learning_rate), epochs, validate_every, _epochs_of(snapshots, epochs),
    )  # fmt: skip
    starts = all_starts(
        model.net, init, start_cores(model.net, init, augmentation) if core_start else {}, members, seed
    )
    together = _possible(_together(model.net, stacked, members, task.batches.images), task, starts, seed, stacked)
    begin = time.perf_counter()
    trained = _run(task, starts, seed, together, processes, progress)
    return _gathered(model, trained, time.perf_counter() - begin)


@dataclass(frozen=True)
class Task:
    """What training a member depends on, besides its start and its random numbers."""

    model: BayesianNetwork
    has_prior: bool
    batches: Batches
    validation: Batches | None
    make_optimizer: Callable
    epochs: int
    validate_every: int
    snapshots: frozenset[int]


@dataclass
class Trained:
    """Some members: their weights ``(m, *shape)``, history ``(m, epochs)`` and earlier weights."""

    weights: dict[str, Tensor]
    history: dict[str, Tensor]
    snapshots: dict[int, dict[str, Tensor]]


def train(task: Task, starts: Mapping[str, Tensor], first: int, seed: int, report: Callable[[int], object]) -> Trained:
    """Train members ``first``, ``first + 1``, … together, one for each row of the starts."""
    weights = {name: w.clone().requires_grad_() for name, w in starts.items()}
    count = len(next(iter(weights.values())))
    sources = [generators(seed, first + i)[1] for i in range(count)]
    optimizer = task.make_optimizer(list(weights.values()))
    history, kept = {"loss": [], "validation": []}, {0: _copy(weights)} if 0 in task.snapshots else {}
    best = Best(weights)
    with pyro.validation_enabled(False), own_randomness(sources[0].initial_seed() % 2**32), _training(task):
        for epoch in range(1, task.epochs + 1):
            history["loss"].append(_epoch(task, weights, optimizer, sources, epoch))
            if task.validation is not None:
                is_due = epoch % task.validate_every == 0 or epoch == task.epochs
                scores = _validate(task, weights) if is_due else torch.full_like(history["loss"][-1], math.nan)
                history["validation"].append(scores)
                best.keep(weights, scores)
            if epoch in task.snapshots:
                kept[epoch] = _copy(weights)
            report(count)
    found = {name: torch.stack(rows, 1) for name, rows in history.items() if rows}
    return Trained(_copy(weights if task.validation is None else best.weights), found, kept)


def _epoch(task: Task, weights, optimizer, sources, epoch: int) -> Tensor:
    """One pass over the data; each member's mean loss, ``(m,)``."""
    total, steps = 0.0, 0
    for x, y in task.batches.of_epoch(sources, epoch):
        losses = _losses(task, weights, x, y)
        if task.has_prior:
            losses = losses - _log_prior(task, weights) / task.batches.count
        losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        total, steps = total + losses.detach(), steps + 1
    if not bool(total.isfinite().all()):
        raise OptionError(
            f"Expected finite losses; {int((~total.isfinite()).sum())} of {len(total)} members have none in epoch "
            f"{epoch}. Lower the learning rate."
        )
    return (total / steps).cpu()


@torch.no_grad()
def _validate(task: Task, weights) -> Tensor:
    (batch,) = task.validation.of_epoch([], 0)
    with evaluating(task.model):
        return _losses(task, weights, *batch).cpu()


@contextmanager
def _training(task: Task):
    """The network in training mode, whatever mode it was given in; each module's own comes back afterwards."""
    modes = {module: module.training for module in task.model.net.modules()}
    task.model.net.train()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _losses(task: Task, weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Each member's mean negative log likelihood: ``(m,)``, from ``x`` and ``y`` of ``(m or 1, B, ...)``."""
    output = outputs(task.model.net, weights, x)
    law = task.model.likelihood(output, output.ndim - 2)
    return -scale_and_mask(law.log_prob(y), mask=None).mean(1)


def _log_prior(task: Task, weights: Mapping[str, Tensor]) -> Tensor:
    """Each member's log prior density: ``(m,)``."""
    parameters = dict(task.model.net.named_parameters())
    return sum(task.model.prior_of(name, parameters[name]).log_prob(w) for name, w in weights.items())


def outputs(net: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The network under each row of weights: ``(m, B, *out)`` for ``x`` of ``(m or 1, B, ...)``."""
    count = len(next(iter(weights.values())))
    if count == 1:
        return torch.func.functional_call(net, {n: w[0] for n, w in weights.items()}, (x[0],))[None]
    common = len(x) == 1
    run = torch.func.vmap(
        lambda w, x: torch.func.functional_call(net, w, (x,)), (0, None if common else 0), randomness="different"
    )
    return run(dict(weights), x[0] if common else x)


class Best:
    """For each member the weights with the lowest score so far."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self.weights = _copy(weights)
        self.scores = torch.full((len(next(iter(weights.values()))),), math.inf)

    def keep(self, weights: Mapping[str, Tensor], scores: Tensor) -> None:
        """Take over those members' weights whose score is lower."""
        better = scores < self.scores
        self.scores = torch.where(better, scores, self.scores)
        for name, w in weights.items():
            self.weights[name][better.to(w.device)] = w.detach()[better.to(w.device)]


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: w.detach().clone() for name, w in weights.items()}


def _run(task: Task, starts, seed: int, together: int, processes: int, progress: bool) -> list[Trained]:
    """All members, in groups that are trained together."""
    members = len(next(iter(starts.values())))
    groups = [{n: w[i : i + together] for n, w in starts.items()} for i in range(0, members, together)]
    firsts = range(0, members, together)
    with tqdm(total=members * task.epochs, disable=not progress, unit="epoch", leave=False) as bar:
        report = bar.update if processes == 1 else _silent
        calls = [partial(train, task, g, first, seed, report) for g, first in zip(groups, firsts, strict=True)]
        trained = []
        for found in _called(calls, processes):
            trained.append(found)
            bar.update(0 if processes == 1 else task.epochs * together)
        return trained


def _silent(count: int) -> None:
    """Another process does not show what it has done."""


def _called(calls: list[Callable], processes: int):
    if processes == 1:
        return (call() for call in calls)
    from joblib import Parallel, delayed

    return Parallel(n_jobs=processes, return_as="generator")(delayed(call)() for call in calls)


def _gathered(model: BayesianNetwork, parts: list[Trained], seconds: float) -> Ensemble:
    def joined(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    earlier = {epoch: joined([part.snapshots[epoch] for part in parts]) for epoch in sorted(parts[0].snapshots)}
    kept = {epoch: Ensemble(model, weights) for epoch, weights in earlier.items()}
    return Ensemble(model, joined([p.weights for p in parts]), joined([p.history for p in parts]), seconds, kept)


def _together(net: nn.Module, stacked: bool | int | None, members: int, images: int) -> int:
    """How many members are trained together."""
    if stacked is not None:
        return min(int(stacked) if stacked is not True else members, members) or 1
    on_cpu = all(p.device.type == "cpu" for p in net.parameters())
    if on_cpu and any(isinstance(m, nn.modules.conv._ConvNd) for m in net.modules()):
        return max(1, min(members, IMAGES_TOGETHER // images))
    return members


def _possible(together: int, task: Task, starts: Mapping[str, Tensor], seed: int, stacked: bool | int | None) -> int:
    """The same, or one where the choice is free and ``vmap`` cannot run the network.

    :raises OptionError: where it cannot, and the choice is not free.
    """
    refusal = _refusal(task, starts, seed) if together > 1 else None
    if refusal is None:
        return together
    if stacked is None:
        return 1
    raise OptionError(
        f"Expected a network that torch.func.vmap can run for stacked={stacked!r}; it says: {refusal} Use "
        f"stacked=False."
    )


def _refusal(task: Task, starts: Mapping[str, Tensor], seed: int) -> str | None:
    """Why two members cannot take their first step in one program, on two rows; nobody's random numbers go on by it."""
    weights = {name: w[:2].clone().requires_grad_() for name, w in starts.items()}
    sources = [generators(seed, i)[1] for i in range(2)]
    try:
        with pyro.validation_enabled(False), own_randomness(0), _training(task):
            batch = next(copy.copy(task.batches).of_epoch(sources, 1))  # which keeps what it moved
            _losses(task, weights, *(t[:, :2] for t in batch)).sum().backward()
    except RuntimeError as error:
        return f"{error}".splitlines()[0]
    return None


def _make_optimizer(optimizer, learning_rate: float) -> Callable:
    if callable(optimizer):
        return partial(_made, optimizer)
    check_option("optimizer", optimizer, OPTIMIZERS)
    if not 0 < learning_rate < math.inf:
        raise OptionError(f"Expected learning_rate to be positive; got {learning_rate}.")
    return partial(OPTIMIZERS[optimizer], lr=learning_rate)


def _made(optimizer: Callable, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """What a user's callable returns, checked."""
    made = optimizer(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise OptionError(f"Expected optimizer to return a torch.optim.Optimizer; got {type(made).__name__}.")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise OptionError(
            f"Expected an optimizer that steps without a closure; got {type(made).__name__}. Use 'adam' or 'sgd'."
        )
    return made


def _counts(**counts) -> tuple[int, ...]:
    """These numbers of things, checked."""
    return tuple(as_count(name, value) for name, value in counts.items())


def _epochs_of(snapshots: Sequence[int], epochs: int) -> frozenset[int]:
    """The epochs after which states are kept, checked."""
    if not isinstance(snapshots, Iterable):
        raise OptionError(f"Expected snapshots to be a sequence of epochs; got {snapshots!r}. Use ({snapshots!r},).")
    found = frozenset(as_count("each of snapshots", epoch, least=0) for epoch in snapshots)
    if outside := [epoch for epoch in found if epoch > epochs]:
        raise OptionError(f"Expected snapshots of epochs from 0 to {epochs}; got {outside[0]}.")
    return found


def _check_stacked(stacked) -> None:
    if not (stacked is None or isinstance(stacked, bool) or (isinstance(stacked, Integral) and stacked > 0)):
        raise OptionError(f"Expected stacked to be True, False, None or a number of members; got {stacked!r}.")


def _check_network(net: nn.Module) -> None:
    for name, layer in net.named_modules():
        if getattr(layer, "running_mean", None) is not None:
            raise OptionError(
                f"Expected layers without running statistics, which members would share; {name!r} has them. Use "
                f"track_running_stats=False, or another normalisation."
            )


def _check_model(model: BayesianNetwork, data, validation) -> None:
    prior, likelihood = model.prior, model.likelihood
    if getattr(likelihood, "learned", False) or hasattr(prior, "scales"):
        raise OptionError("Expected a prior and a likelihood that are not learned, for an ensemble. Set their scales.")
    for pair in (data, validation):
        if pair is not None:
            model.check_data(*pair)
