"""Training loops: ``fit``, a convenience over Pyro's ELBOs that adds what symmetrization needs."""

import inspect
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from tqdm.auto import tqdm

from .errors import DataError, OptionError
from .expansion import expand, symmetrize_
from .guides.parameters import parameter_actions
from .handlers import ExpandedNetwork
from .networks.bayesian import BayesianNetwork
from .prediction import log_predictive, predict
from .representations import Representation
from .symmetry import Symmetry, needed


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` returns.

    ``guide`` and ``model`` are those trained at the end (see :class:`ExpandAt`), the model augmented or not, as it was
    given. ``history`` has one entry per epoch under ``"loss"`` (the mean over minibatches of −ELBO / N, nats per
    datum), ``"kl_weight"`` and ``"validation"`` (negative log predictive density per datum, ``nan`` where not
    evaluated).
    """

    guide: Callable
    history: dict[str, list[float]]
    best_epoch: int
    seconds: float
    model: Callable | None = None


@dataclass
class Training:
    """The state that a callback may look at, and change, at the start of each epoch."""

    model: Callable
    guide: Callable
    loss: ELBO
    make_optimizer: object = None
    make_scheduler: Callable | None = None
    data: tuple[Tensor, ...] = ()
    example: tuple[Tensor, ...] = ()
    epoch: int = 0
    optimizer: object = None
    scheduler: object = None
    average_gradient: Symmetry | None = None
    actions: list[tuple[Tensor, Representation]] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    fired: list[object] = field(default_factory=list)
    best: list[Tensor] | None = None
    best_score: float = float("inf")
    best_epoch: int = -1

    def start(self, model: Callable, guide: Callable) -> None:
        """Train this model and guide from here on, with an optimizer of their own."""
        self.model, self.guide = model, guide
        self.parameters = _capture_parameters(model, guide, self.loss, self.example)
        if hasattr(guide, "restart") and self.loss.num_particles % len(guide.symmetry.group):
            order = len(guide.symmetry.group)
            raise OptionError(
                f"Expected loss= with a number of particles that is a multiple of {order}, for draws that come in "
                f"orbits; got {self.loss.num_particles}. Use pyro.infer.TraceMeanField_ELBO(num_particles={order})."
            )
        if self.average_gradient is not None:
            self.actions = parameter_actions(guide, self.average_gradient, *self.example)
        self.optimizer = _build(self.make_optimizer, self.parameters)
        self.scheduler = self.make_scheduler(self.optimizer) if self.make_scheduler else None
        self.forget_best()

    def accuracy(self, draws: int = 10) -> float:
        """The fraction of the training data whose most probable class is right, not augmented."""
        x, y = self.data[:2]
        probs = predict(inspect.unwrap(self.model), self.guide, x, draws).mean(0)
        if y.is_floating_point() or probs.ndim != y.ndim + 1:
            raise OptionError(
                "Expected class labels, integers, for a training accuracy; use epoch= with other outputs."
            )
        return float((probs.argmax(1) == y).double().mean())

    def keep_if_best(self, score: float) -> None:
        """Remember the parameters if their validation score is the lowest so far."""
        if score < self.best_score:
            self.best, self.best_score, self.best_epoch = (
                [p.detach().clone() for p in self.parameters],
                score,
                self.epoch,
            )

    def forget_best(self) -> None:
        """Choose the best state among those to come only, as after a change that training did not make."""
        self.best, self.best_score, self.best_epoch = None, float("inf"), -1

    def restore_best(self) -> None:
        """Put the remembered parameters back."""
        if self.best is not None:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, self.best, strict=True):
                    parameter.copy_(value)


@dataclass(frozen=True)
class Trigger(ABC):
    """A callback that acts once: at the start of an epoch, or of the first one that a training accuracy is reached by.

    To implement one: :meth:`act`.

    :param epoch: 0 is right after the start; ``None`` with ``accuracy`` alone.
    :param accuracy: fires as soon as the posterior predictive (10 draws) is right on this fraction of the training
        data; with an epoch as well, whichever comes first.
    """

    epoch: int | None

    @abstractmethod
    def act(self, training: Training) -> None:
        """What it does when it fires."""

    def __call__(self, training: Training) -> None:
        if not any(self is other for other in training.fired) and self._is_due(training):
            training.fired.append(self)
            self.act(training)
            training.forget_best()

    def _is_due(self, training: Training) -> bool:
        if self.epoch is not None and training.epoch >= self.epoch:
            return True
        return self.accuracy is not None and training.accuracy() >= self.accuracy

    def check(self, epochs: int) -> None:
        """Raise unless it can fire within so many epochs."""
        if self.accuracy is None and (self.epoch is None or not 0 <= self.epoch < epochs):
            raise OptionError(
                f"Expected {type(self).__name__} to name an epoch from 0 to {epochs - 1}, or an accuracy; got "
                f"epoch={self.epoch}."
            )
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise OptionError(f"Expected an accuracy between 0 and 1; got {self.accuracy}.")


@dataclass(frozen=True)
class SymmetrizeAt(Trigger):
    """Callback: symmetrize the guide once and clear the optimizer's state.

    :param epoch: at the start of which epoch; 0 is right after the start. ``None`` with ``accuracy`` alone.
    :param Symmetry symmetry: a representation for every latent site.
    :param str rule: see :func:`~pyro_equivariance.average`.
    :param accuracy: fires as soon as the posterior predictive (10 draws) is right on this fraction of the training
        data; with an epoch as well, whichever comes first.
    """

    symmetry: Symmetry
    rule: str = "geometric"
    accuracy: float | None = None

    def act(self, training: Training) -> None:
        symmetrize_(training.guide, self.symmetry, self.rule, training.optimizer, training.example)


@dataclass(frozen=True)
class ExpandAt(Trigger):
    """Callback: :func:`~pyro_equivariance.expand` the network once, and train the large one from there on.

    The optimizer and the scheduler start afresh; :class:`FitResult` holds the large model and guide.

    :param epoch: at the start of which epoch. ``None`` with ``accuracy`` alone.
    :param Symmetry symmetry: the small network's, ``hidden="trivial"``.
    :param str arrangement: see :func:`~pyro_equivariance.expand`.
    :param tie: likewise.
    :param around: what is done to the large model and its symmetry before it is trained, such as
        ``pe.handlers.augment``; needed if the small model was augmented.
    :param accuracy: as in :class:`SymmetrizeAt`.
    """

    symmetry: Symmetry
    arrangement: str = "gcnn"
    tie: str | None = None
    around: Callable | None = None
    accuracy: float | None = None

    def act(self, training: Training) -> None:
        small = inspect.unwrap(training.model)
        if small is not training.model and self.around is None:
            raise OptionError(
                "Expected around= to say how the large model is augmented, since the small one is; for example "
                "around=pe.handlers.augment."
            )
        model, guide, symmetry = expand(small, training.guide, self.symmetry, self.arrangement, self.tie)
        training.start(self.around(model, symmetry) if self.around else model, guide)


class TemperMessenger(Messenger):
    """Multiplies the log density of every latent site by ``weight``; around model and guide, a KL weight."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg) -> None:
        if not msg["is_observed"] and not isinstance(msg["fn"], _Subsample):
            msg["scale"] = msg["scale"] * self.weight


def fit(
    model: Callable,
    guide: Callable,
    data,
    epochs: int = 20,
    batch_size: int | None = None,
    optimizer=None,
    scheduler: Callable | None = None,
    kl_weight: float = 1.0,
    kl_warmup: int = 0,
    validation=None,
    validate_every: int = 1,
    validation_draws: int = 10,
    callbacks: Sequence[Callable[[Training], None]] = (),
    loss: ELBO | None = None,
    seed: int = 0,
    progress: bool = True,
    average_gradient: Symmetry | None = None,
) -> FitResult:
    """Maximise ``E_q[log p(y | x, θ)] − β KL(q ‖ prior)`` by minibatches.

    Two runs with one seed agree bit for bit on a CPU.

    :param model: a Pyro model, for example ``pe.handlers.augment(model, symmetry)``.
    :param guide: its guide; trained in place. A guide without parameters yet gets them from the first batch.
    :param data: the model's arguments: a tensor, or a tuple of tensors with the data along their first axis.
    :param int epochs: passes over the data.
    :param int batch_size: ``None`` for all data at once.
    :param optimizer: a Pyro optimizer, or a callable from a list of parameters to a torch optimizer, such as
        ``functools.partial(torch.optim.Adam, lr=1e-3)``; by default Adam with rate 0.01.
    :param scheduler: a callable from the torch optimizer to a learning rate scheduler, stepped once an epoch.
    :param float kl_weight: β.
    :param int kl_warmup: epochs over which the weight grows linearly to β.
    :param validation: like ``data``; the state with the lowest negative log predictive density on it is kept (after the
        warm-up). Never the test set.
    :param int validate_every: epochs between validations; the last epoch always is.
    :param int validation_draws: posterior draws of a validation.
    :param callbacks: called with the :class:`Training` at the start of each epoch.
    :param loss: the ELBO; by default :class:`~pyro.infer.TraceMeanField_ELBO`.
    :param int seed: of all of Pyro's and torch's randomness, and of the order of the data.
    :param bool progress: whether to show a progress bar.
    :param Symmetry average_gradient: average the gradient over this group at each step, and then the parameters, so
        that the posterior is invariant from the first step on, whatever the noise of draws, of minibatches and of
        random augmentation. With Adam this is the same as tying the parameters of an orbit. For mean-field Normal
        guides whose means and scales are parameters of their own, moved by signed permutations; others are refused.
    :raises SymmetryError: for a guide or a symmetry that ``average_gradient`` does not fit.
    :raises DataError: for data of different lengths, none at all, values that are not finite, labels out of range.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3), size=6)
    >>> data = (torch.randn(6, 4), torch.arange(6) % 3)
    >>> result = pe.fit(model, pe.AutoMeanFieldNormal(model), data, epochs=2, progress=False)
    >>> len(result.history["loss"])
    2
    """
    data, validation = _arguments(data, "data"), None if validation is None else _arguments(validation, "validation")
    count = len(data[0])
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"Expected batch_size to be at least 1, or None for all data; got {batch_size}.")
    batch_size = min(batch_size or count, count)
    _check(model, data, validation, batch_size, epochs, kl_weight, kl_warmup, validate_every)
    triggers = [callback for callback in callbacks if isinstance(callback, Trigger)]
    for trigger in triggers:
        trigger.check(epochs)
    pyro.set_rng_seed(seed)
    order = torch.Generator().manual_seed(seed)
    loss = loss or TraceMeanField_ELBO()
    example = tuple(t[:batch_size] for t in data)
    average_gradient = None if average_gradient is None else needed(average_gradient)
    training = Training(model, guide, loss, optimizer, scheduler, data, example, average_gradient=average_gradient)
    training.start(model, guide)
    history = {"loss": [], "kl_weight": [], "validation": []}
    start = time.perf_counter()
    bar = tqdm(range(epochs), disable=not progress, unit="epoch", leave=False)
    for epoch in bar:
        training.epoch = epoch
        for callback in callbacks:
            callback(training)
        weight = kl_weight * min(1.0, (epoch + 1) / (kl_warmup + 1))
        history["kl_weight"].append(weight)
        history["loss"].append(_epoch(training, loss, data, batch_size, weight, order))
        if not math.isfinite(history["loss"][-1]):
            raise OptionError(
                f"Expected a finite loss; it is {history['loss'][-1]} in epoch {epoch}. Lower the learning rate, or "
                f"raise kl_warmup."
            )
        score = float("nan")
        if validation and epoch >= kl_warmup and ((epoch + 1) % validate_every == 0 or epoch == epochs - 1):
            score = negative_log_predictive(training.model, training.guide, validation, validation_draws)
            training.keep_if_best(score)
        history["validation"].append(score)
        bar.set_postfix(loss=f"{history['loss'][-1]:.4f}", refresh=False)
        if training.scheduler:
            training.scheduler.step()
    for trigger in (c for c in triggers if not any(c is other for other in training.fired)):
        warnings.warn(f"{type(trigger).__name__} did not fire: the training accuracy stayed below "
                      f"{trigger.accuracy}. Lower it, or give an epoch as well.", stacklevel=2)  # fmt: skip
    training.restore_best()
    best = training.best_epoch if training.best is not None else epochs - 1
    return FitResult(training.guide, history, best, time.perf_counter() - start, training.model)


def negative_log_predictive(model: Callable, guide: Callable, data: tuple[Tensor, ...], draws: int) -> float:
    """``−mean_n log (1/T) Σ_t p(y_n | x_n, θ_t)`` in nats."""
    rows = log_predictive(model, guide, data, draws)
    return float(-(rows.logsumexp(0) - torch.tensor(float(draws)).log()).mean())


def _epoch(training: Training, loss: ELBO, data, batch_size: int, kl_weight: float, order: torch.Generator) -> float:
    """One pass over the data; returns the mean loss per datum."""
    count, total, steps = len(data[0]), 0.0, 0
    shuffled = torch.randperm(count, generator=order) if batch_size < count else torch.arange(count)
    for rows in shuffled.split(batch_size):
        if len(rows) < batch_size:
            break  # a short last batch would weigh its data more; the next epoch's order brings them back
        batch = [t[rows] if batch_size < count else t for t in data]
        total += _step(training, loss, batch, kl_weight, count)
        steps += 1
    return total / steps


def _step(training: Training, loss: ELBO, batch, kl_weight: float, count: int) -> float:
    if restart := getattr(training.guide, "restart", None):
        restart()  # draws that come in orbits begin one with each step
    # The first step of a run was validated when the parameters were captured; the checks cost as much as the maths.
    with TemperMessenger(kl_weight), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # fit says so, with the way out
        value = loss.differentiable_loss(training.model, training.guide, *batch) / count
    value.backward()
    for leaf, rep in training.actions:
        leaf.grad = rep.mean(leaf.grad)
    if isinstance(training.optimizer, pyro.optim.PyroOptim):
        training.optimizer(training.parameters)
        pyro.infer.util.zero_grads(training.parameters)
    else:
        training.optimizer.step()
        training.optimizer.zero_grad()
    with torch.no_grad():
        for leaf, rep in training.actions:
            leaf.copy_(rep.mean(leaf))
    return value.item()


def _capture_parameters(model, guide, loss: ELBO, batch) -> list[Tensor]:
    """The unconstrained leaves that one evaluation of the loss meets, in order."""
    with poutine.trace(param_only=True) as capture:
        loss.differentiable_loss(model, guide, *batch)
    leaves = [site["value"].unconstrained() for site in capture.trace.nodes.values()]
    return list({id(leaf): leaf for leaf in leaves}.values())


def _build(optimizer, parameters):
    if optimizer is None:
        return torch.optim.Adam(parameters, lr=0.01)
    if isinstance(optimizer, pyro.optim.PyroOptim):
        return optimizer
    if not callable(optimizer):
        raise OptionError(
            f"Expected optimizer to be a Pyro optimizer or a callable on parameters, such as "
            f"functools.partial(torch.optim.Adam, lr=0.01); got {type(optimizer).__name__}."
        )
    return optimizer(parameters)


def _arguments(data, what: str) -> tuple[Tensor, ...]:
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    lengths = [len(t) for t in tensors]
    if not lengths or len(set(lengths)) > 1:
        raise DataError(f"Expected tensors of one length in {what}; got lengths {lengths}.")
    if lengths[0] == 0:
        raise DataError(f"Expected at least one datum in {what}; it is empty.")
    if any(not isinstance(t, Tensor) for t in tensors):
        raise DataError(f"Expected torch tensors in {what}; got {', '.join(type(t).__name__ for t in tensors)}.")
    if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors):
        raise DataError(f"Expected finite values in {what}; some are NaN or infinite. Clean or drop these rows.")
    return tensors


def _check(
    model, data, validation, batch_size: int, epochs: int, kl_weight: float, kl_warmup: int, validate_every: int
) -> None:
    if validate_every < 1:
        raise OptionError(f"Expected validate_every to be at least 1; got {validate_every}.")
    if epochs < 1 or kl_weight <= 0 or kl_warmup < 0:
        raise OptionError(
            f"Expected epochs ≥ 1, kl_weight > 0 and kl_warmup ≥ 0; got {epochs}, {kl_weight} and {kl_warmup}."
        )
    network = inspect.unwrap(model)
    network = network.big if isinstance(network, ExpandedNetwork) else network
    if isinstance(network, BayesianNetwork):
        network.check_data(*data)
        if validation:
            network.check_data(*validation)
        if batch_size < len(data[0]) and network.size != len(data[0]):
            raise OptionError(
                f"Expected BayesianNetwork(..., size={len(data[0])}), the number of data that minibatches stand for; "
                f"got size={network.size}."
            )
