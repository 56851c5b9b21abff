"""An ensemble as a guide: an empirical posterior, whose draws are its members."""

import copy
from collections.abc import Mapping, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..errors import DataError, OptionError, check_option
from ..networks.bayesian import BayesianNetwork
from ..prediction import predict

MEANS = ("probabilities", "logits")
INDEX = "_member"  # the auxiliary site that chooses one


class Ensemble(nn.Module):
    """M sets of weights of one network: the empirical posterior ``q = (1/M) Σ_m δ(θ − θ_m)``, as a guide.

    In Pyro a call draws *one* member for all sites, uniformly: an auxiliary site ``"_member"``, and a ``Delta`` at each
    weight, named as those of :class:`~pyro_equivariance.BayesianNetwork`. So :func:`~pyro_equivariance.predict`,
    :func:`~pyro_equivariance.orbit_predict`, the metrics and :func:`~pyro_equivariance.to_arviz` take it like any
    guide. An empirical posterior has no density: an ELBO or a KL with it means nothing.

    Draws repeat members. :meth:`in_turn` goes through them without repetition, so ``draws=len(ensemble)`` is exact.

    :param BayesianNetwork model: the model of the network; its prior matters to an ensemble only where
        :func:`fit_ensemble` was given one.
    :param dict members: a tensor ``(M, *shape)`` for each parameter of the network.
    :param dict history: for each member and epoch ``"loss"`` and ``"validation"``, ``(M, epochs)``.
    :param float seconds: of training.
    :param dict snapshots: ensembles of earlier epochs.
    :raises DataError: unless there are values of the right shapes for all parameters, equally many.

    >>> import torch, pyro_equivariance as pe
    >>> model = pe.BayesianNetwork(torch.nn.Linear(4, 3))
    >>> ensemble = Ensemble(model, {"weight": torch.randn(7, 3, 4), "bias": torch.randn(7, 3)})
    >>> len(ensemble), ensemble.predict(torch.zeros(5, 4)).shape
    (7, torch.Size([7, 5, 3]))
    >>> pe.orbit_predict(model, ensemble, pe.Symmetry(pe.SymmetricGroup(4), {}, inputs=pe.permutation(
    ...     pe.SymmetricGroup(4))), torch.zeros(5, 4), draws=2).shape
    torch.Size([2, 24, 5, 3])
    """

    always_invariant = False
    has_density = False

    def __init__(self, model: BayesianNetwork, members: Mapping[str, Tensor], history: dict[str, Tensor] | None = None,
                 seconds: float = float("nan"), snapshots: Mapping[int, "Ensemble"] | None = None):  # fmt: skip
        super().__init__()
        self._model = (model,)  # not a submodule: its own weights are no members
        self.stack = _stacked(model.net, members)
        self.history, self.seconds, self.snapshots = dict(history or {}), seconds, dict(snapshots or {})

    @property
    def model(self) -> BayesianNetwork:
        """The Pyro model that this is a posterior of."""
        return self._model[0]

    @property
    def members(self) -> dict[str, Tensor]:
        """``(M, *shape)`` for each parameter of the network."""
        return dict(self.stack.named_parameters())

    def __len__(self) -> int:
        return len(next(self.stack.parameters()))

    def __repr__(self) -> str:
        return f"Ensemble({len(self)} members of {type(self.model.net).__name__})"

    def _apply(self, fn, recurse=True):
        self.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, *args, **kwargs) -> dict[str, Tensor]:
        """Draw one member: a dict by site name."""
        uniform = dist.Categorical(torch.ones(len(self)))
        return self._draw(int(pyro.sample(INDEX, uniform, infer={"is_auxiliary": True})))

    def _draw(self, index: int) -> dict[str, Tensor]:
        """The sites at one member's values."""
        return {
            name: pyro.sample(name, dist.Delta(values[index], event_dim=values.ndim - 1))
            for name, values in self.members.items()
        }

    def in_turn(self) -> "MembersInTurn":
        """A guide whose draws are member 0, 1, …, and from the last on again the first: exact for ``draws=M``."""
        return MembersInTurn(self)

    def subset(self, indices: Sequence[int] | Tensor) -> "Ensemble":
        """The ensemble of these members, with their history and snapshots.

        :raises OptionError: for no index, or one that is not from ``-M`` to ``M - 1``.
        """
        index = torch.as_tensor(indices, dtype=torch.long).reshape(-1)
        if len(index) == 0 or int(index.min()) < -len(self) or int(index.max()) >= len(self):
            raise OptionError(f"Expected indices of members, from 0 to {len(self) - 1}; got {index.tolist()}.")
        members = {name: values[index.to(values.device)] for name, values in self.members.items()}
        history = {name: values[index] for name, values in self.history.items()}
        snapshots = {epoch: ensemble.subset(index) for epoch, ensemble in self.snapshots.items()}
        return Ensemble(self.model, members, history, self.seconds, snapshots)

    def predict(self, x: Tensor) -> Tensor:
        """Each member's mean of the observation, for classes their probabilities: ``(M, N, *event)``."""
        return predict(self.model, self.in_turn(), x, len(self))

    def mean(self, x: Tensor, mean: str = "probabilities") -> Tensor:
        """The ensemble's prediction, ``(N, *event)``; see :func:`ensemble_mean`."""
        return ensemble_mean(self.predict(x), mean)


class MembersInTurn:
    """A guide that goes through an ensemble's members in their order; see :meth:`Ensemble.in_turn`.

    It counts its own calls: make a new one for each evaluation.
    """

    def __init__(self, ensemble: Ensemble):
        self.ensemble, self.calls = ensemble, 0

    def __call__(self, *args, **kwargs) -> dict[str, Tensor]:
        index, self.calls = self.calls % len(self.ensemble), self.calls + 1
        return self.ensemble._draw(index)


def ensemble_mean(outputs: Tensor, mean: str = "probabilities") -> Tensor:
    """One prediction from those of all members.

    ``"probabilities"``: their mean, which is the posterior predictive. ``"logits"``: the softmax of the mean of their
    logits, that is their geometric mean, normalised, as published code takes it. Both are equivariant where the
    law of the members is invariant; they differ at finite M and in the limit.

    :param Tensor outputs: ``(M, ..., K)``, class probabilities for ``"logits"``.
    :returns: ``(..., K)`` in float64.

    >>> import torch
    >>> ensemble_mean(torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64), "logits")
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    check_option("mean", mean, MEANS)
    if mean == "probabilities":
        return outputs.double().mean(0)
    return log_probs(outputs).mean(0).softmax(-1)


def log_probs(probs: Tensor) -> Tensor:
    """Their logarithms in float64, of 0 that of the smallest normal number: logits, up to a constant for each row."""
    if bool((probs < 0).any()) or not bool(((probs.double().sum(-1) - 1).abs() < 1e-3).all()):
        raise DataError("Expected class probabilities on the last axis for mean='logits'; got others.")
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).double().log()


def _stacked(net: nn.Module, members: Mapping[str, Tensor]) -> nn.Module:
    """The network with the values of all members in the place of each parameter."""
    shapes = {name: p.shape for name, p in net.named_parameters()}
    if set(shapes) != set(members):
        raise DataError(f"Expected members of {', '.join(map(repr, shapes))}; got {', '.join(map(repr, members))}.")
    counts = {len(values) if values.ndim else 0 for values in members.values()}
    if len(counts) != 1 or 0 in counts:
        raise DataError(f"Expected the same number of members for each parameter, at least one; got {sorted(counts)}.")
    for name, shape in shapes.items():
        if members[name].shape[1:] != shape:
            raise DataError(
                f"Expected members of {name!r} of shape (M, {', '.join(map(str, shape))}); got "
                f"{tuple(members[name].shape)}."
            )
    stack = copy.deepcopy(net)
    for name, values in members.items():
        owner, _, leaf = name.rpartition(".")
        setattr(stack.get_submodule(owner), leaf, nn.Parameter(values.detach().clone(), requires_grad=False))
    return stack
