"""``fit``, a convenience over Pyro's ELBOs that adds what symmetrization needs."""

import inspect
import math
import time
import warnings
from collections.abc import Callable, Sequence

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import DataError, OptionError
from ..handlers import ExpandedNetwork, RelaxedNetwork
from ..networks.bayesian import BayesianNetwork
from ..prediction import log_predictive
from ..symmetry import Symmetry, needed
from .base import FitResult, Training
from .callbacks import TrackDefect, Trigger


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
    triggers = _checked_triggers(callbacks, epochs)
    pyro.set_rng_seed(seed)
    order = torch.Generator().manual_seed(seed)
    loss = loss or TraceMeanField_ELBO()
    example = tuple(t[:batch_size] for t in data)
    average_gradient = None if average_gradient is None else needed(average_gradient)
    history = {name: [] for name in ("loss", "gradient_norm", "learning_rate", "steps", "kl_weight", "validation")}
    training = Training(model, guide, loss, optimizer, scheduler, data, example, average_gradient=average_gradient,
                        seed=seed, history=history)  # fmt: skip
    training.start(model, guide)
    start = time.perf_counter()
    bar = tqdm(range(epochs), disable=not progress, unit="epoch", leave=False)
    for epoch in bar:
        training.epoch = epoch
        for callback in callbacks:
            callback(training)
        weight = kl_weight * min(1.0, (epoch + 1) / (kl_warmup + 1))
        history["kl_weight"].append(weight)
        history["learning_rate"].append(training.learning_rate)
        mean_loss, gradient_norm = _epoch(training, loss, data, batch_size, weight, order)
        history["loss"].append(mean_loss)
        history["gradient_norm"].append(gradient_norm)
        history["steps"].append(training.steps)
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
    seconds = time.perf_counter() - start
    settings = {
        "seed": seed, "loss": type(loss).__name__, "particles": loss.num_particles,
        "optimizer": training.optimizer_name, "kl_weight": kl_weight, "batch_size": batch_size, "epochs": epochs,
        "average_gradient": average_gradient is not None,
    }  # fmt: skip
    return FitResult(training.guide, history, best, seconds, training.model, settings)


def negative_log_predictive(model: Callable, guide: Callable, data: tuple[Tensor, ...], draws: int) -> float:
    """``−mean_n log (1/T) Σ_t p(y_n | x_n, θ_t)`` in nats."""
    rows = log_predictive(model, guide, data, draws)
    return float(-(rows.logsumexp(0) - torch.tensor(float(draws)).log()).mean())


def _epoch(
    training: Training, loss: ELBO, data, batch_size: int, kl_weight: float, order: torch.Generator
) -> tuple[float, float]:
    """One pass over the data; returns the mean loss per datum and the root mean square of the gradient's norm."""
    count, total, norms = len(data[0]), 0.0, []
    shuffled = torch.randperm(count, generator=order) if batch_size < count else torch.arange(count)
    for rows in shuffled.split(batch_size):
        if len(rows) < batch_size:
            break  # a short last batch would weigh its data more; the next epoch's order brings them back
        batch = [t[rows] if batch_size < count else t for t in data]
        value, norm = _step(training, loss, batch, kl_weight, count)
        total += value
        norms.append(norm)
    training.steps += len(norms)
    return total / len(norms), float(torch.stack(norms).cpu().double().square().mean().sqrt())


def _step(training: Training, loss: ELBO, batch, kl_weight: float, count: int) -> tuple[float, Tensor]:
    """One step of the optimizer; the loss per datum, and the norm of the gradient that it was taken with."""
    if restart := getattr(training.guide, "restart", None):
        restart()  # draws that come in orbits begin one with each step
    # The first step of a run was validated when the parameters were captured; the checks cost as much as the maths.
    with TemperMessenger(kl_weight), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered NaN", UserWarning)  # fit says so, with the way out
        value = loss.differentiable_loss(training.model, training.guide, *batch) / count
    value.backward()
    for leaf, rep in training.actions:
        leaf.grad = rep.mean(leaf.grad)
    norm = _norm(training.parameters)
    if isinstance(training.optimizer, pyro.optim.PyroOptim):
        training.optimizer(training.parameters)
        pyro.infer.util.zero_grads(training.parameters)
    else:
        training.optimizer.step()
        training.optimizer.zero_grad()
    with torch.no_grad():
        for leaf, rep in training.actions:
            leaf.copy_(rep.mean(leaf))
    return value.item(), norm


def _norm(parameters: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, left on their device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def _checked_triggers(callbacks: Sequence[Callable], epochs: int) -> list[Trigger]:
    """The callbacks that act once, each of which can; and no two that write the same history."""
    if len([callback for callback in callbacks if isinstance(callback, TrackDefect)]) > 1:
        raise OptionError("Expected one TrackDefect, since the history has one defect. Join the inputs, torch.cat.")
    triggers = [callback for callback in callbacks if isinstance(callback, Trigger)]
    for trigger in triggers:
        trigger.check(epochs)
    return triggers


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
    network = network.big if isinstance(network, (ExpandedNetwork, RelaxedNetwork)) else network
    if isinstance(network, BayesianNetwork):
        network.check_data(*data)
        if validation:
            network.check_data(*validation)
        if batch_size < len(data[0]) and network.size != len(data[0]):
            raise OptionError(
                f"Expected BayesianNetwork(..., size={len(data[0])}), the number of data that minibatches stand for; "
                f"got size={network.size}."
            )
