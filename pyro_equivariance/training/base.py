"""What a training run gives back, and its state in between, which callbacks look at and change."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from torch import Tensor

from ..errors import OptionError
from ..guides.parameters import parameter_actions
from ..prediction import predict
from ..representations import Representation
from ..symmetry import Symmetry


@dataclass(frozen=True)
class FitResult:
    """What :func:`fit` returns.

    ``guide`` and ``model`` are those trained at the end (see :class:`ExpandAt`), the model augmented or not, as it was
    given. ``history`` has one entry per epoch under

    - ``"loss"``: the mean over minibatches of −ELBO / N, nats per datum;
    - ``"gradient_norm"``: the root mean square over the steps of the gradient's Euclidean norm, of all parameters
      together as the optimizer sees it, before any clipping of its own;
    - ``"learning_rate"``: of the first group of parameters as the epoch starts; ``nan`` if the optimizer does not tell;
    - ``"steps"``: optimizer steps done by the end of the epoch, since the start;
    - ``"kl_weight"``, and ``"validation"`` (negative log predictive density per datum, ``nan`` where not evaluated);
    - ``"defect"`` and ``"defect_se"``, with :class:`TrackDefect`;
    - ``"scale.<layer>"``, ``"multiplier.<layer>"`` and ``"constraint"`` (``Σ λ (s − u) / N``, part of the loss), with
      :class:`ConstrainRelaxation`.

    ``settings`` has what the run was called with, as plain values: ``seed``, ``loss`` and ``optimizer`` (names of
    classes), ``particles``, ``kl_weight``, ``batch_size``, ``epochs``, and whether the gradient was averaged
    (``average_gradient``).
    """

    guide: Callable
    history: dict[str, list[float]]
    best_epoch: int
    seconds: float
    model: Callable | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Training:
    """The state that a callback may look at, and change, at the start of each epoch.

    A callback that measures something appends one number an epoch to a list of its own in ``history``.
    """

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
    seed: int = 0
    steps: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)

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

    @property
    def learning_rate(self) -> float:
        """Of the optimizer's first group of parameters; NaN if it does not tell."""
        optimizer = self.optimizer
        if isinstance(optimizer, pyro.optim.PyroOptim):
            known = [optimizer.optim_objs[p] for p in self.parameters[:1] if p in optimizer.optim_objs]
            if not known:  # its optimizers are made by the first step
                options = optimizer.pt_optim_args
                return float(options.get("lr", math.nan)) if isinstance(options, dict) else math.nan
            optimizer = getattr(known[0], "optimizer", known[0])  # a scheduler has one
        groups = getattr(optimizer, "param_groups", [{}])
        return float(groups[0].get("lr", math.nan))

    @property
    def optimizer_name(self) -> str:
        """The class of the torch optimizer."""
        if isinstance(self.optimizer, pyro.optim.PyroOptim):
            constructor = self.optimizer.pt_optim_constructor
            return getattr(constructor, "__name__", type(constructor).__name__)
        return type(self.optimizer).__name__

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
