"""What is done at the start of an epoch: symmetrize the guide, expand the network, measure the defect."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError, SymmetryError
from ..expansion import expand, symmetrize_
from ..guides.base import own_randomness
from ..metrics import Estimate, equivariance_defect
from ..prediction import orbit_predict
from ..symmetry import Symmetry
from .base import Training


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


@dataclass(frozen=True, eq=False)
class TrackDefect:
    """Callback: the equivariance defect of the posterior predictive in the course of training.

    At the start of each ``every``-th epoch, the first included, the unbiased estimate and its standard error (see
    :func:`~pyro_equivariance.metrics.equivariance_defect`) are written into ``history["defect"]`` and
    ``history["defect_se"]``, and NaN in all other epochs; :meth:`measure` has it after the last. A model that is
    augmented is measured as it is within. The draws have random numbers of their own, from the seed of the training and
    the epoch: without the callback the training is the same, bit for bit.

    :param Tensor x: inputs ``(N, ...)``, all of whose moved copies are predicted with the same draws.
    :param Symmetry symmetry: with ``inputs``, and ``outputs`` where they move; of a finite group.
    :param int every: epochs between two measurements.
    :param int draws: posterior draws of a measurement, at least 3 for a standard error.
    :raises OptionError: for ``every`` below 1, or less than 2 draws.
    :raises SymmetryError: for a symmetry that does not move inputs.

    >>> import torch, pyro_equivariance as pe
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    >>> sym, model = pe.network_symmetry(net, pe.CyclicGroup(4), (1, 3, 3)), pe.BayesianNetwork(net, size=5)
    >>> data = torch.randn(5, 1, 3, 3), torch.arange(5) % 2
    >>> track = pe.TrackDefect(data[0], sym, every=2)
    >>> result = pe.fit(model, pe.AutoMeanFieldNormal(model), data, epochs=3, callbacks=[track], progress=False)
    >>> [defect == defect for defect in result.history["defect"]]
    [True, False, True]
    >>> track.measure(result.model, result.guide).value > 0
    True
    """

    x: Tensor
    symmetry: Symmetry
    every: int = 1
    draws: int = 50

    def __post_init__(self):
        if self.every < 1 or self.draws < 2:
            raise OptionError(f"Expected every ≥ 1 and draws ≥ 2; got every={self.every} and draws={self.draws}.")
        if self.symmetry.inputs is None:
            raise SymmetryError("Expected a symmetry that moves inputs, for a defect; its inputs= is None.")

    def __call__(self, training: Training) -> None:
        estimate = Estimate(float("nan"), float("nan"))
        if training.epoch % self.every == 0:
            own = np.random.SeedSequence((training.seed, training.epoch)).generate_state(1)[0]
            estimate = self.measure(training.model, training.guide, int(own))
        for name, number in (("defect", estimate.value), ("defect_se", estimate.se)):
            training.history.setdefault(name, []).append(number)

    def measure(self, model: Callable, guide: Callable, seed: int = 0) -> Estimate:
        """The defect of this posterior; random numbers after it are those that would have come without it.

        :param model: a Pyro model ``model(x)`` with one observation site, augmented or not.
        :param guide: its guide.
        :param int seed: of the posterior draws.
        """
        devices = [self.x.device] if self.x.is_cuda else []
        with torch.random.fork_rng(devices=devices), own_randomness(seed):
            predictions = orbit_predict(inspect.unwrap(model), guide, self.symmetry, self.x, self.draws)
        return equivariance_defect(predictions, action=self.symmetry.outputs)
